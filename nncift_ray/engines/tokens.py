"""Texts to tokens and back, the same in all engines, and which requests are computed together."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import (
    AnyScoringRequest,
    FinishReason,
    Generation,
    GenerationRequest,
    ScoringFailure,
    ScoringRequest,
    shareable_tokens,
)
from nncift_ray.engines.chat import ChatTemplate, RefusedError, TrainingExample, well_formed
from nncift_ray.errors import ModelError
from nncift_ray.recipe.sections import TaughtTurns, Template

NEWLINE = "\n"
PROMPT_END = "\n"  # between a prompt and its response
TOKENS_PER_CHARACTER = 4  # at the most: a byte each
MIN_SHARED_TOKENS = 8  # a shorter prefix costs more to share than to compute again
CACHE_TOKENS_PER_BATCH_TOKEN = 16  # bound on the copies of a prefix: this times batch_tokens


class SegmentTokenizer:
    """Tokenises pieces of a text so that joining the pieces' tokens gives the text again.

    Tokenizers of the SentencePiece kind put a space before whatever they are given. In the middle
    of a text that space is not there, so such a piece is tokenised behind a newline, whose tokens
    are then taken off; the others tokenise a piece as it stands.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        template: Template = "auto",
        turns: TaughtTurns = "all",
    ) -> None:
        """Load the tokenizer of a model's folder.

        Args:
            model_path: The folder.
            template: "auto" writes examples in the model's chat template where it has one; "paper"
                never does.
            turns: Of the assistant, that are taught where examples are written in a template.

        Raises:
            ModelError: If there is none, it has no end token, or a template that cannot be used.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                str(model_path), trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"no tokenizer can be loaded from {model_path}: {error}") from error
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"the tokenizer of {model_path} names no end token, which the last response token "
                "must be; add eos_token to its tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        self.eos_id = int(tokenizer.eos_token_id)
        #: The tokens that end an answer: chat models have one for a turn, too.
        self.end_ids = read_end_ids(model_path) | {self.eos_id}
        self.vocabulary_size = len(tokenizer)
        self.start_ids = self._find_start_ids()
        #: What stands before the first token of a text, where something must.
        bos = tokenizer.bos_token_id
        self.document_start = self.start_ids or [self.eos_id if bos is None else int(bos)]
        self._newline_ids = self._plain(NEWLINE)
        self._needs_newline = self._plain(NEWLINE + "x") != self._newline_ids + self._plain("x")
        if tokenizer.chat_template and not tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer of {model_path} has a chat template and cannot tell where its "
                "tokens stand in a text; save a fast tokenizer (tokenizer.json) beside it"
            )
        self._template = ChatTemplate(tokenizer, turns) if tokenizer.chat_template else None
        #: What examples are written in; None: plain text.
        self.chat = self._template if template == "auto" else None

    def encode(self, text: str) -> list[int]:
        """Tokenise a piece of a text; no special tokens are added, none are read from the text."""
        text = well_formed(text)
        if not self._needs_newline:
            return self._plain(text)
        return self._plain(NEWLINE + text)[len(self._newline_ids) :]

    def encode_message(self, text: str) -> list[int]:
        """Tokenise a user's message as the model's chat template has it, ready to be answered.

        A model without a template gets its start tokens and the text.

        Raises:
            ModelError: If the template cannot be applied to one message of a user.
        """
        if self._template is None:
            return [*self.start_ids, *self.encode(text)]
        try:
            return self._template.message(text)
        except RefusedError as error:
            name = self._tokenizer.name_or_path
            raise ModelError(f"the chat template of {name} takes no message: {error}") from error

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self._tokenizer.save_pretrained(str(folder))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of some tokens in the middle of a text; special tokens are left out."""
        if not self._needs_newline:
            return self._text(token_ids)
        behind = self._text([*self._newline_ids, *token_ids])
        return behind.removeprefix(self._text(self._newline_ids))

    def is_ended(self, request: GenerationRequest, token_ids: Sequence[int]) -> bool:
        """Return whether the last token ended the answer: an end token, or a stop text."""
        if token_ids[-1] in self.end_ids:
            return True
        if not request.stop_text:
            return False
        # The text may begin and end inside a token; before the last one it was not there.
        tail = TOKENS_PER_CHARACTER * len(request.stop_text) + 1
        return request.stop_text in self.decode(token_ids[-tail:])

    def read_answer(self, request: GenerationRequest, token_ids: Sequence[int]) -> Generation:
        """Return the answer that some generated tokens are, at least one."""
        ended = token_ids[-1] in self.end_ids
        text = self.decode(token_ids[:-1] if ended else token_ids)
        if request.stop_text and request.stop_text in text:
            ended, text = True, text.partition(request.stop_text)[0]
        reason: FinishReason = "stop" if ended else "length"
        return Generation(text, len(request.prompt_ids), len(token_ids), reason)

    def _text(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _plain(self, text: str) -> list[int]:
        # split_special_tokens: "<|im_end|>" in a user's text is text, not the end of the response.
        return list(
            self._tokenizer(
                text, add_special_tokens=False, verbose=False, split_special_tokens=True
            )["input_ids"]
        )

    def _find_start_ids(self) -> list[int]:
        bare = self._plain("x")
        dressed = list(self._tokenizer("x")["input_ids"])
        return dressed[: dressed.index(bare[0])] if bare and bare[0] in dressed else []


def read_end_ids(model_path: str | Path) -> frozenset[int]:
    """Return the tokens that a model's files say end what it generates; none if they say nothing.

    Chat models often have one for the end of a turn beside the one for the end of a text.
    """
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(str(model_path), local_files_only=True)
    except (OSError, ValueError):  # not every model has such a file
        return frozenset()
    ids: Any = config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset(map(int, ids)) if isinstance(ids, list) else frozenset({int(ids)})


def encode_example(
    tokenizer: SegmentTokenizer, example: Example, max_length: int
) -> TrainingExample | ScoringFailure:
    r"""Tokenise an example in the chat template, or ``prompt + "\n"`` and ``response + end token``.

    Nothing is cut: half a response would be another example.

    Returns:
        The tokens, or a failure for the reason "no_response", "too_long" or "chat_template".
    """
    if tokenizer.chat is not None:
        return tokenizer.chat.fit(example, max_length)
    response = tokenizer.encode(example.response)
    if not response:
        return ScoringFailure("no_response", "the response has no tokens")
    prompt = (*tokenizer.start_ids, *tokenizer.encode(example.prompt + PROMPT_END))
    input_ids = (*prompt, *response, tokenizer.eos_id)
    if len(input_ids) > max_length:
        return ScoringFailure("too_long", f"{len(input_ids)} tokens, the limit is {max_length}")
    return TrainingExample(array("i", input_ids), ((len(prompt), len(input_ids)),))


# Which requests a model computes together: those of one prefix, of similar length.


@dataclass(frozen=True, slots=True)
class Job:
    """A text to run through a model, and which probabilities to read off it.

    The state at ``positions[r]`` is asked for the probability of ``targets[r]`` coming next.
    """

    token_ids: tuple[int, ...]
    prefix_length: int  # leading tokens that may be computed together with another job's
    positions: tuple[int, ...]
    targets: tuple[int, ...]


def make_job(request: AnyScoringRequest) -> Job:
    """Return what a request needs of a model."""
    prompt_ids, prefix_length = tuple(request.prompt_ids), shareable_tokens(request)
    last = len(prompt_ids) - 1
    if isinstance(request, ScoringRequest):
        response_ids = tuple(request.response_ids)
        # The token at t is predicted by the state at t - 1.
        positions = tuple(at - 1 for at in request.scored)
        targets = tuple(request.scored_ids)
        return Job((*prompt_ids, *response_ids), prefix_length, positions, targets)
    token_ids = tuple(request.token_ids)
    return Job(prompt_ids, prefix_length, (last,) * len(token_ids), token_ids)


def group_by_prefix(jobs: Sequence[Job]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Yield shared prefixes with the places of their jobs, then all others with an empty prefix."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, job in enumerate(jobs):
        length = job.prefix_length
        prefix = job.token_ids[:length] if length >= MIN_SHARED_TOKENS else ()
        groups.setdefault(prefix, []).append(place)
    alone = groups.pop((), [])
    for prefix, members in groups.items():
        if len(members) > 1:
            yield prefix, members
        else:
            alone += members
    if alone:
        yield (), alone


def cut_batches(lengths: Sequence[int], skip: int, batch_tokens: int) -> Iterator[list[int]]:
    """Cut places into batches of similar length.

    The longest come first: the batch that needs most memory fails early if it fails at all.

    Args:
        lengths: Tokens of each place, the shared prefix included.
        skip: Tokens of the shared prefix.
        batch_tokens: Most padded tokens of a batch behind the prefix; a single place may have more.
    """
    batch: list[int] = []
    longest = 0
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = longest or lengths[place]
        rows = len(batch) + 1
        too_wide = rows * (longest - skip) > batch_tokens
        too_deep = rows * longest > batch_tokens * CACHE_TOKENS_PER_BATCH_TOKEN
        if batch and (too_wide or too_deep):
            yield batch
            batch, longest = [], lengths[place]
        batch.append(place)
    if batch:
        yield batch
