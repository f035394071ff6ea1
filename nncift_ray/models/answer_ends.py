"""Where an answer ends, the same in every generation engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nncift_ray.models.generation import FinishReason, Generation, GenerationRequest
from nncift_ray.models.model_files import read_end_ids
from nncift_ray.models.tokenization import SegmentTokenizer

TOKENS_PER_CHARACTER = 4  # at the most: a byte each


class AnswerEnds:
    """The tokens that end an answer, and how an answer is read up to there."""

    def __init__(
        self, model_path: str | Path, revision: str | None, tokenizer: SegmentTokenizer
    ) -> None:
        """Take the tokenizer's end token and those that the model's files name."""
        self.end_ids = read_end_ids(model_path, revision) | {tokenizer.eos_id}
        self._tokenizer = tokenizer

    def is_ended(self, request: GenerationRequest, token_ids: Sequence[int]) -> bool:
        """Say whether the last of some tokens ended the answer: an end token, or a stop text."""
        if token_ids[-1] in self.end_ids:
            return True
        if not request.stop_text:
            return False
        # The text may begin and end inside a token; before the last one it was not there.
        tail = TOKENS_PER_CHARACTER * len(request.stop_text) + 1
        return request.stop_text in self._tokenizer.decode(token_ids[-tail:])

    def read(self, request: GenerationRequest, token_ids: Sequence[int]) -> Generation:
        """Make an answer of the tokens that were written, at least one."""
        ended = token_ids[-1] in self.end_ids
        text = self._tokenizer.decode(token_ids[:-1] if ended else token_ids)
        if request.stop_text and request.stop_text in text:
            ended, text = True, text.partition(request.stop_text)[0]
        reason: FinishReason = "stop" if ended else "length"
        return Generation(text, len(request.prompt_ids), len(token_ids), reason)
