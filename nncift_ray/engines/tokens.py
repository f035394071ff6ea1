"""Texts to tokens and back, the same in all engines, and which requests are computed together."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import (
    AnyScoringRequest,
    Engine,
    FinishReason,
    Generation,
    GenerationRequest,
    ScoringFailure,
    ScoringRequest,
    shareable_tokens,
)
from nncift_ray.engines.models import read_end_ids
from nncift_ray.errors import ModelError

NEWLINE = "\n"
MESSAGE = "the-message-9c41d7"  # stands for a message while its model's chat template is read


class MessageFrame(NamedTuple):
    """What a chat template puts around a user's message."""

    before: list[int]
    space: str  # spaces that belong before the message: tokenizers join them with its first word
    after: list[int]  # up to where the model answers


def well_formed(text: str) -> str:
    """Return the text with "?" for lone surrogates, which no tokenizer can take."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


class SegmentTokenizer:
    """Tokenises pieces of a text so that joining the pieces' tokens gives the text again.

    Tokenizers of the SentencePiece kind put a space before whatever they are given. In the middle
    of a text that space is not there, so such a piece is tokenised behind a newline, whose tokens
    are then taken off; the others tokenise a piece as it stands.
    """

    def __init__(self, model_path: str | Path) -> None:
        """Load the tokenizer of a model's folder.

        Raises:
            ModelError: If there is none, or it has no end token.
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
        self.start_ids = self._find_start_ids()
        self._newline_ids = self._plain(NEWLINE)
        self._needs_newline = self._plain(NEWLINE + "x") != self._newline_ids + self._plain("x")

    @property
    def unconditional_ids(self) -> list[int]:
        """The tokens that a text with no prompt is scored behind."""
        first = self._tokenizer.bos_token_id
        return self.start_ids or [self.eos_id if first is None else int(first)]

    def encode(self, text: str) -> list[int]:
        """Tokenise a piece of a text; no special tokens are added, none are read from the text."""
        text = well_formed(text)
        if not self._needs_newline:
            return self._plain(text)
        return self._plain(NEWLINE + text)[len(self._newline_ids) :]

    def encode_message(self, text: str) -> list[int]:
        """Tokenise a user's message as the model's chat template has it, ready to be answered.

        Special tokens come from the template alone: those written in the message are text, so a
        message cannot end itself. A model without a template gets its start tokens and the text.

        Raises:
            ModelError: If the template cannot be applied to one message of a user.
        """
        frame = self._message_frame
        if frame is None:
            return [*self.start_ids, *self.encode(text)]
        return [*frame.before, *self.encode(frame.space + text), *frame.after]

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self._tokenizer.save_pretrained(str(folder))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of some tokens in the middle of a text; special tokens are left out."""
        if not self._needs_newline:
            return self._text(token_ids)
        behind = self._text([*self._newline_ids, *token_ids])
        return behind.removeprefix(self._text(self._newline_ids))

    @functools.cached_property
    def _message_frame(self) -> MessageFrame | None:
        import jinja2  # transformers runs templates in jinja2's sandbox

        if not self._tokenizer.chat_template:
            return None
        try:
            rendered = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": MESSAGE}], tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, LookupError, TypeError, ValueError) as error:
            raise ModelError(
                f"the chat template of {self._tokenizer.name_or_path} takes no message: {error}"
            ) from error
        if rendered.count(MESSAGE) != 1:
            raise ModelError(
                f"the chat template of {self._tokenizer.name_or_path} writes a message "
                f"{rendered.count(MESSAGE)} times"
            )
        before, _, after = rendered.partition(MESSAGE)
        bare = before.rstrip(" ")
        after_ids = self._special(NEWLINE + after)[len(self._newline_ids) :]
        if not self._needs_newline:
            after_ids = self._special(after)
        return MessageFrame(self._special(bare), before[len(bare) :], after_ids)

    def _special(self, text: str) -> list[int]:
        """Tokenise a text in which special tokens are what they say."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

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


class TokenizingEngine:
    """The part of an engine that is its tokenizer; engines set ``_tokenizer``."""

    _tokenizer: SegmentTokenizer

    @property
    def start_ids(self) -> list[int]:
        """Tokens the model expects at the start of every text."""
        return self._tokenizer.start_ids

    @property
    def eos_id(self) -> int:
        """The token that ends a response."""
        return self._tokenizer.eos_id

    def encode(self, text: str) -> list[int]:
        """Tokenise a piece of a text, with no special tokens added."""
        return self._tokenizer.encode(text)

    def encode_message(self, text: str) -> list[int]:
        """Tokenise a user's message as the model's chat template has it, start tokens included."""
        return self._tokenizer.encode_message(text)


# The tokens that a model under evaluation is shown: a question alone, or behind examples.

PROMPT_END = "\n"
EXAMPLE_END = "\n\n"

Encoder = Engine | SegmentTokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens before an answer."""

    ids: tuple[int, ...]
    num_cut: int  # tokens of the examples that did not fit


def build_prompt_ids(
    encoder: Encoder,
    question: str,
    examples: Sequence[Example] = (),
    *,
    max_length: int,
    reserve: int,
) -> Prompt | ScoringFailure:
    """Return a prompt: start tokens, the examples with the nearest last, the question.

    What does not fit is cut off the examples, token by token from the left of the whole, so that
    what stands next to the question stays. Where the question and the answer alone do not fit, it
    is a failure: the question is never cut.

    Args:
        encoder: Whose tokens.
        question: The prompt of the row that is asked.
        examples: What to show before it, nearest first, as the table ``contexts`` has them.
        max_length: Most tokens of prompt and answer together.
        reserve: Tokens to keep free for the answer, its end token included.
    """
    start_ids = encoder.start_ids
    question_ids = encoder.encode(question + PROMPT_END)
    room = max_length - reserve - len(start_ids) - len(question_ids)
    if room < 0:
        return ScoringFailure(
            "too_long",
            f"{max_length - room} tokens without any example ({reserve} of them for the answer), "
            f"the limit is {max_length}",
        )
    shown_ids = [
        token for example in reversed(examples) for token in encode_example(encoder, example)
    ]
    num_cut = max(0, len(shown_ids) - room)
    return Prompt((*start_ids, *shown_ids[num_cut:], *question_ids), num_cut)


def encode_example(encoder: Encoder, example: Example) -> list[int]:
    """Return the tokens of an example as it is shown before a question."""
    prompt_ids = encoder.encode(example.prompt + PROMPT_END)
    return prompt_ids + encoder.encode(example.response + EXAMPLE_END)


# Which requests a model computes together: those of one prefix, of similar length.

MIN_SHARED_TOKENS = 8  # a shorter prefix costs more to share than to compute again
CACHE_TOKENS_PER_BATCH_TOKEN = 16  # bound on the copies of a prefix: this times batch_tokens


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
        positions = tuple(range(last, last + len(response_ids)))
        return Job((*prompt_ids, *response_ids), prefix_length, positions, response_ids)
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


# Where an answer ends, the same in every engine.

TOKENS_PER_CHARACTER = 4  # at the most: a byte each


class AnswerEnds:
    """The tokens that end an answer, and how an answer is read up to there."""

    def __init__(self, model_path: str | Path, tokenizer: SegmentTokenizer) -> None:
        """Take the tokenizer's end token and those that the model's files name."""
        self.end_ids = read_end_ids(model_path) | {tokenizer.eos_id}
        self._tokenizer = tokenizer

    def is_ended(self, request: GenerationRequest, token_ids: Sequence[int]) -> bool:
        """Return whether the last token ended the answer: an end token, or a stop text."""
        if token_ids[-1] in self.end_ids:
            return True
        if not request.stop_text:
            return False
        # The text may begin and end inside a token; before the last one it was not there.
        tail = TOKENS_PER_CHARACTER * len(request.stop_text) + 1
        return request.stop_text in self._tokenizer.decode(token_ids[-tail:])

    def read(self, request: GenerationRequest, token_ids: Sequence[int]) -> Generation:
        """Return the answer that some generated tokens are, at least one."""
        ended = token_ids[-1] in self.end_ids
        text = self._tokenizer.decode(token_ids[:-1] if ended else token_ids)
        if request.stop_text and request.stop_text in text:
            ended, text = True, text.partition(request.stop_text)[0]
        reason: FinishReason = "stop" if ended else "length"
        return Generation(text, len(request.prompt_ids), len(token_ids), reason)
