"""Where an answer ends, the same in every generation engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nncift_ray.models.generation import FinishReason, Generation, GenerationRequest
from nncift_ray.models.model_files import read_end_ids
from nncift_ray.models.tokenization import SegmentTokenizer


class AnswerEnds:
    """The tokens that end an answer, and how an answer is read up to there."""

    def __init__(
        self, model_path: str | Path, revision: str | None, tokenizer: SegmentTokenizer
    ) -> None:
        """Take the tokenizer's end token and those that the model's files name."""
        self.end_ids = read_end_ids(model_path, revision) | {tokenizer.eos_id}
        self._tokenizer = tokenizer
        self._last_ids: dict[str, frozenset[int]] = {"": self.end_ids}

    def last_ids(self, stop_text: str) -> frozenset[int]:
        """Return the tokens behind which nothing of an answer can follow.

        A stop text that a model writes in pieces ends no answer at once; what follows was written
        in vain and is cut off when the answer is read.
        """
        if stop_text not in self._last_ids:
            holding = self._tokenizer.tokens_with(stop_text)
            self._last_ids[stop_text] = self.end_ids | holding
        return self._last_ids[stop_text]

    def read(self, request: GenerationRequest, token_ids: Sequence[int]) -> Generation:
        """Make an answer of the tokens that were written, at least one."""
        ended = token_ids[-1] in self.end_ids
        text = self._tokenizer.decode(token_ids[:-1] if ended else token_ids)
        if request.stop_text and request.stop_text in text:
            ended, text = True, text.partition(request.stop_text)[0]
        reason: FinishReason = "stop" if ended else "length"
        return Generation(text, len(request.prompt_ids), len(token_ids), reason)
