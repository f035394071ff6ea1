"""Words of a text in any script, for metrics that compare word by word."""

from __future__ import annotations

import unicodedata
from typing import cast

import regex  # pyright: ignore[reportMissingTypeStubs]

#: Scripts that put no spaces between words: each letter, with its marks, counts as a word.
_UNSPACED = "".join(
    rf"\p{{Script={name}}}"
    for name in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
)
_WORD = regex.compile(
    rf"[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+", regex.VERSION1
)


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case, without punctuation and symbols.

    Runs of letters, marks and digits, after NFKC, so that a full-width digit is a digit. Chinese,
    Japanese, Thai, Lao, Khmer and Burmese are cut into letters. ASCII text gives what the tokenizer
    of the original ROUGE gives: runs of a-z and 0-9.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return cast("list[str]", _WORD.findall(folded))  # pyright: ignore[reportUnknownMemberType]
