"""One tokenizer for all engines, so that the same pair is the same tokens whoever scores it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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

    def __init__(self, model_path: str | Path, revision: str | None = None) -> None:
        """Load the tokenizer of a model.

        Raises:
            ModelError: If there is no tokenizer at ``model_path``, or it has no end token.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                str(model_path),
                revision=revision,
                trust_remote_code=False,
                local_files_only=Path(model_path).is_dir(),
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
            drawn = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": MESSAGE}], tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, LookupError, TypeError, ValueError) as error:
            raise ModelError(
                f"the chat template of {self._tokenizer.name_or_path} takes no message: {error}"
            ) from error
        if drawn.count(MESSAGE) != 1:
            raise ModelError(
                f"the chat template of {self._tokenizer.name_or_path} writes a message "
                f"{drawn.count(MESSAGE)} times"
            )
        before, _, after = drawn.partition(MESSAGE)
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
    """The part of a scoring engine that is its tokenizer; engines set ``_tokenizer``."""

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
