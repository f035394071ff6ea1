r"""The tokens that a model under evaluation is shown: a question alone, or behind examples.

An example reads ``prompt + "\n" + response + "\n\n"`` and the question ``prompt + "\n"``. Each
prompt and each response is a piece of its own, so that a model sees an example as it was trained
on it and as it is asked itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from nncift_ray.core.examples import Example
from nncift_ray.models.engine import ScoringFailure

PROMPT_END = "\n"
EXAMPLE_END = "\n\n"


class Encoder(Protocol):
    """What turns a piece of a text into tokens: any engine, or a ``SegmentTokenizer``."""

    @property
    def start_ids(self) -> list[int]:
        """Tokens the model expects at the start of every text."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokenise a piece of a text, with no special tokens added."""
        ...


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
    """Build a prompt: start tokens, the examples with the nearest last, the question.

    What does not fit is cut off the examples, token by token from the left of the whole, so that
    what stands next to the question stays. The question is never cut.

    Args:
        encoder: Whose tokens.
        question: The prompt of the row that is asked.
        examples: What to show before it, nearest first, as the table ``contexts`` has them.
        max_length: Most tokens of prompt and answer together.
        reserve: Tokens to keep free for the answer, its end token included.

    Returns:
        The prompt, or a failure for the reason "too_long": question and answer alone do not fit.
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
    """Tokenise an example as it is shown before a question."""
    prompt_ids = encoder.encode(example.prompt + PROMPT_END)
    return prompt_ids + encoder.encode(example.response + EXAMPLE_END)
