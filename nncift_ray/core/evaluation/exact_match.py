"""Exact match, where the reference has one right answer; elsewhere it does not apply."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

from nncift_ray.core.evaluation.words import words

#: A reference, or what stands behind its mark, with more words is a text and no answer.
MAX_WORDS = 5

# GSM8K (Cobbe et al., arXiv 2110.14168) marks the final answer; Markdown marks a heading so, too.
_MARKED_LINE = re.compile(r"^[ \t]*####[ \t]*(\S.*)$", re.MULTILINE)
_CURRENCY = r"[$€£¥₹]"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
# A minus belongs to the number unless it joins it to what stands before ("10-5", "GPT-4").
_NUMBER = re.compile(rf"(?<![\w.])[-−]?{_CURRENCY}?\s?{_DIGITS}|{_DIGITS}")
_WHOLE_NUMBER = re.compile(rf"[-−+]?{_CURRENCY}?[-−+]?{_DIGITS}{_CURRENCY}?%?")
_MARKED_NUMBER = re.compile(rf"####\s*([-−+]?{_CURRENCY}?\s?[-−+]?{_DIGITS})")
_BESIDE_DIGITS = re.compile(rf"[\s,+%]|{_CURRENCY}")
_OUTER_MARKS = frozenset(".,;:!?\"'*_`。，、；：！？．")
_OUTER_CATEGORIES = frozenset({"Ps", "Pe", "Pi", "Pf"})  # brackets and quotes

Form = tuple[str | Decimal, ...]


def exact_match(answer: str, reference: str) -> float | None:
    """Return 1.0 if the answer is the reference's, 0.0 if not, None if the question has no sense.

    If the reference ends with a line ``#### 42``, final answers are compared. The answer's is what
    stands behind its first such mark (a model that runs on into a next question is not asked about
    that one) or, where it has no mark, its last number. Numbers are equal by value: 1,000 is
    $1000.00.

    A reference of one line and at most ``MAX_WORDS`` words is compared with the whole answer: case,
    spaces and punctuation around words do not count, numbers are compared by value.
    """
    text = reference.strip()
    marked = _MARKED_LINE.fullmatch(text.rpartition("\n")[2])
    wanted = marked[1] if marked else text
    if not _is_short(wanted):
        return None
    found = _final_answer(answer, wanted) if marked else _form(answer)
    return float(found == _form(wanted))


def _is_short(text: str) -> bool:
    return "\n" not in text and 1 <= len(words(text)) <= MAX_WORDS


def _final_answer(answer: str, wanted: str) -> Form | None:
    """Return what an answer ends on; None if nothing is found."""
    form = _form(wanted)
    if len(form) == 1 and isinstance(form[0], Decimal):
        marked = _MARKED_NUMBER.search(answer)
        numbers = [marked[1]] if marked else _NUMBER.findall(answer)[-1:]
        return (_value(numbers[0]),) if numbers else None
    line = _MARKED_LINE.search(answer)
    return _form(line[1]) if line else None


def _form(text: str) -> Form:
    """Return the words of a short answer: numbers by value, the rest without outer punctuation."""
    pieces = unicodedata.normalize("NFKC", text).casefold().split()
    return tuple(word for word in map(_form_of_word, pieces) if word != "")


def _form_of_word(word: str) -> str | Decimal:
    start, stop = 0, len(word)
    while start < stop and _is_outer(word[start]) and not _WHOLE_NUMBER.fullmatch(word[start:]):
        start += 1
    while stop > start and _is_outer(word[stop - 1]):
        stop -= 1
    word = word[start:stop]
    return _value(word) if _WHOLE_NUMBER.fullmatch(word) else word


def _is_outer(letter: str) -> bool:
    return letter in _OUTER_MARKS or unicodedata.category(letter) in _OUTER_CATEGORIES


def _value(number: str) -> Decimal:
    return Decimal(_BESIDE_DIGITS.sub("", number).replace("−", "-"))
