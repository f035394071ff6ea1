"""Texts that overlap: near-duplicates by MinHash, and candidates that hold the words of a test.

Shape suffixes: N rows, G runs of words of the tests, H hashes of a sketch.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import rensa

from nncift_ray.corpus.examples import normalise_text

# rensa and pandas ship no types:
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]

_IDEOGRAPHS = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # written without spaces: a word each
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
SHINGLE_WORDS = 3
#: Hashes of the prompt and of the response; the standard error of a similarity of 0.95 is 0.02.
PROMPT_HASHES, RESPONSE_HASHES = 128, 64
NUM_BANDS = 16
SKETCH_SEED = 1
#: Kept rows of a bucket that a row is compared with: a bucket of a template holds any number.
MAX_BUCKET = 64
#: A run of words in more candidates than this is a template or a common text (GPT-3 did the same:
#: arXiv 2005.14165, appendix C).
MAX_HOLDERS = 10


@dataclass(frozen=True, slots=True)
class Runs:
    """A flat array of hashes and where each text's begin: text i has ``offsets[i : i + 2]``."""

    hashes: U64
    offsets: I64

    def rows(self) -> I64:
        """Return the text of each hash."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def split_words(text: str) -> list[str]:
    """Return the words of a text, without case and marks."""
    return _WORD.findall(text.casefold())


def hash_words(texts: Sequence[Sequence[str]]) -> Runs:
    """Return a hash of every word; the same on any machine."""
    import pandas  # takes half a second, and reading a recipe comes by here

    flat = np.array([word for words in texts for word in words], dtype=object)
    hashes = cast("Any", pandas).util.hash_array(flat) if len(flat) else np.empty(0, np.uint64)
    return Runs(hashes, np.cumsum([0, *map(len, texts)], dtype=np.int64))


def hash_runs(words: Runs, size: int, *, short: bool = False) -> Runs:
    """Return a hash of every run of ``size`` words, in the order of the words.

    ``short``: a text of fewer words has one run, of all of them; else it has none.
    """
    at, end = np.arange(len(words.hashes)), words.offsets[1:][words.rows()]
    total = np.zeros(len(at), np.uint64)
    for step in range(size):
        inside = at + step < end
        ahead = words.hashes[np.minimum(at + step, len(at) - 1)]
        total = total * _MULTIPLIER + np.where(inside, ahead, np.uint64(0))
    wanted = at + size <= end
    if short:
        wanted |= at == words.offsets[:-1][words.rows()]
    kept = np.concatenate([[0], np.cumsum(wanted)])
    return Runs(total[wanted], kept[words.offsets])


def hash_sides(prompts: Sequence[str], responses: Sequence[str]) -> tuple[Runs, Runs, Runs]:
    """Return the hashed words of examples: of the whole, of the prompts and of the responses."""
    both = zip(prompts, responses, strict=True)
    words = hash_words([split_words(text) for pair in both for text in pair])
    side, lengths = words.rows() % 2, np.diff(words.offsets)
    prompt, response = (
        Runs(words.hashes[side == each], np.cumsum([0, *lengths[each::2]], dtype=np.int64))
        for each in (0, 1)
    )
    return Runs(words.hashes, words.offsets[::2]), prompt, response


def make_sketches(prompts: Runs, responses: Runs) -> U32:
    """Return MinHash sketches [N, H] of the shingles of prompts and, behind them, of responses.

    A side without a word has no sketch but zeros, which ``find_twins`` likens to nothing.
    """
    sides = [(prompts, PROMPT_HASHES), (responses, RESPONSE_HASHES)]
    return np.concatenate([_sketch(words, count) for words, count in sides], axis=1)


def _sketch(words: Runs, num_hashes: int) -> U32:
    runs = hash_runs(words, SHINGLE_WORDS, short=True)
    sketcher = cast("Any", rensa).RMinHash
    matrix = sketcher.digest_matrix_from_flat_token_hashes(
        runs.hashes, runs.offsets.astype(np.uint64), num_hashes, SKETCH_SEED
    )
    sketch = np.array(matrix.to_rows(), np.uint32).reshape(-1, num_hashes)
    sketch[np.diff(runs.offsets) == 0] = 0
    return sketch


@dataclass(frozen=True, slots=True)
class Twins:
    """Which rows are near-duplicates of an earlier row.

    Attributes:
        twin_N: The earlier row, which itself has none; -1: there is none.
        similarity_N: The lower of the two sides' Jaccard similarities, as estimated; else 0.
    """

    twin_N: I64
    similarity_N: npt.NDArray[np.float32]


def find_twins(sketch_NH: U32, min_similarity: float, num_kept: int = 0) -> Twins:
    """Go through the rows in order; each is kept unless an earlier kept row is alike.

    Alike means that prompts and responses both have a Jaccard similarity of ``min_similarity``:
    rows of one template or one passage that differ in their answers are no twins. No chains: every
    row that goes is alike to one that stays.

    Args:
        sketch_NH: Of ``make_sketches``.
        min_similarity: From 0 to 1.
        num_kept: The first rows that stay in any case.

    Memory: 8 bytes a row and band, beside the sketches.
    """
    twins = Twins(np.full(len(sketch_NH), -1), np.zeros(len(sketch_NH), np.float32))
    bucket_NB = _buckets(sketch_NH)
    kept: defaultdict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero((bucket_NB >= 0).any(axis=1)).tolist():
        buckets = bucket_NB[row][bucket_NB[row] >= 0].tolist()
        if row >= num_kept:
            others = np.array(sorted({other for each in buckets for other in kept[each]}), np.int64)
            similarity = _similarity(sketch_NH[others], sketch_NH[row])
            if len(others) and similarity.max() >= min_similarity:
                twins.twin_N[row] = others[similarity.argmax()]
                twins.similarity_N[row] = similarity.max()
                continue
        for each in buckets:
            if len(kept[each]) < MAX_BUCKET:
                kept[each].append(row)
    return twins


def _buckets(sketch_NH: U32) -> I64:
    """Return the bucket of each row and band, numbered over all bands; -1: no other row is in it.

    A band takes hashes of both sides.
    """
    num_rows = len(sketch_NH)
    bucket_NB = np.full((num_rows, NUM_BANDS), -1)
    has_words = sketch_NH[:, :PROMPT_HASHES].any(axis=1) & sketch_NH[:, PROMPT_HASHES:].any(axis=1)
    columns = np.concatenate(
        [
            np.arange(PROMPT_HASHES).reshape(NUM_BANDS, -1),
            np.arange(PROMPT_HASHES, sketch_NH.shape[1]).reshape(NUM_BANDS, -1),
        ],
        axis=1,
    )
    first = 0
    for band in range(NUM_BANDS):
        key_N = np.zeros(num_rows, np.uint64)
        for column in columns[band]:
            key_N = (key_N ^ sketch_NH[:, column]) * _MULTIPLIER
            key_N ^= key_N >> np.uint64(29)
        _, bucket_N, count = np.unique(key_N, return_inverse=True, return_counts=True)
        is_shared = has_words & (count[bucket_N] > 1)
        bucket_NB[is_shared, band] = first + bucket_N[is_shared]
        first += len(count)
    return bucket_NB


def _similarity(sketch_MH: U32, sketch_H: U32) -> Any:
    """Return the estimated Jaccard similarity [M], of the less similar side."""
    equal = sketch_MH == sketch_H
    return np.minimum(equal[:, :PROMPT_HASHES].mean(axis=1), equal[:, PROMPT_HASHES:].mean(axis=1))


def prompt_key(prompt: str) -> bytes:
    """Return what two prompts of the same words have in common: 16 bytes."""
    words = " ".join(normalise_text(prompt).casefold().split())
    return hashlib.sha256(words.encode("utf-8", errors="surrogatepass")).digest()[:16]


class TestTexts:
    """What candidates must not hold: the prompts of tests, and their runs of words."""

    __test__ = False  # pytest collects no class that is named like this

    def __init__(self, prompts: Sequence[str], responses: Sequence[str], run_words: int) -> None:
        """Index the rows of tests; two texts overlap by ``run_words`` words in a row."""
        self.run_words = run_words
        self._prompts = {prompt_key(prompts[n]): n for n in reversed(range(len(prompts)))}
        self._texts = [f"{p}\n{r}" for p, r in zip(prompts, responses, strict=True)]
        runs = hash_runs(hash_sides(prompts, responses)[0], run_words)
        self._run_G, first_G = np.unique(runs.hashes, return_index=True)
        self._test_G = runs.rows()[first_G]
        self._start_G = first_G - runs.offsets[self._test_G]
        self._holders_G = np.zeros(len(first_G), np.int64)
        self._hits: list[tuple[I64, I64]] = []  # rows and their runs
        self._same_prompt: dict[int, int] = {}

    def look(self, rows: I64, prompts: Sequence[str], words: Runs) -> None:
        """Look through some candidates: their numbers, prompts and words."""
        for row, prompt in zip(rows.tolist(), prompts, strict=True):
            test = self._prompts.get(prompt_key(prompt))
            if test is not None:
                self._same_prompt[row] = test
        if not len(self._run_G):
            return
        runs = hash_runs(words, self.run_words)
        place = np.minimum(np.searchsorted(self._run_G, runs.hashes), len(self._run_G) - 1)
        is_hit = self._run_G[place] == runs.hashes
        pairs = np.unique(np.stack([runs.rows()[is_hit], place[is_hit]]), axis=1)
        wanted = self._holders_G[pairs[1]] <= MAX_HOLDERS  # else it is known for a template
        self._holders_G += np.bincount(pairs[1], minlength=len(self._holders_G))
        if wanted.any():
            self._hits.append((rows[pairs[0][wanted]], pairs[1][wanted]))

    def overlaps(self) -> dict[int, tuple[int, str]]:
        """Return by candidate the test and the words they share, "" for the whole prompt."""
        found: dict[int, tuple[int, str]] = {}
        for rows, runs in self._hits:
            for row, run in zip(rows.tolist(), runs.tolist(), strict=True):
                if self._holders_G[run] <= MAX_HOLDERS and row not in found:
                    test, start = int(self._test_G[run]), int(self._start_G[run])
                    words = split_words(self._texts[test])[start : start + self.run_words]
                    found[row] = (test, " ".join(words))
        return found | {row: (test, "") for row, test in self._same_prompt.items()}

    @property
    def num_templates(self) -> int:
        """Runs of words of tests that are in too many candidates to tell anything."""
        return int((self._holders_G > MAX_HOLDERS).sum())


@dataclass(frozen=True, slots=True)
class Found:
    """Which candidates to leave out.

    Attributes:
        twins: By candidate an earlier one that stays, and how similar the two are.
        overlaps: By candidate a row of the tests, and the words they share ("": the prompt).
        num_templates: See ``TestTexts``.
    """

    twins: dict[int, tuple[int, float]]
    overlaps: dict[int, tuple[int, str]]
    num_templates: int


class Cleaner:
    """Looks through the candidates once, in order, and says which of them to leave out."""

    def __init__(
        self,
        test_prompts: Sequence[str],
        test_responses: Sequence[str],
        run_words: int,
        min_similarity: float | None,
    ) -> None:
        """Look for words of tests, and for near-duplicates from ``min_similarity`` (None: no)."""
        self._tests = TestTexts(test_prompts, test_responses, run_words)
        self._min_similarity = min_similarity
        self._rows: list[I64] = [np.empty(0, np.int64)]
        self._sketches: list[U32] = []

    def look(self, rows: I64, prompts: Sequence[str], responses: Sequence[str]) -> None:
        """Take the next candidates: their numbers [N] and texts."""
        if not len(rows):
            return
        words, of_prompts, of_responses = hash_sides(prompts, responses)
        self._tests.look(rows, prompts, words)
        if self._min_similarity is not None:
            self._rows.append(rows)
            self._sketches.append(make_sketches(of_prompts, of_responses))

    def finish(self, num_kept: int) -> Found:
        """Return what was found; candidates below ``num_kept`` stay whatever they hold."""
        overlaps = {r: found for r, found in self._tests.overlaps().items() if r >= num_kept}
        twins: dict[int, tuple[int, float]] = {}
        if self._min_similarity is not None and self._sketches:
            rows = np.concatenate(self._rows)
            stays = ~np.isin(rows, list(overlaps))
            sketches, rows = np.concatenate(self._sketches)[stays], rows[stays]
            self._sketches.clear()
            found = find_twins(sketches, self._min_similarity, int((rows < num_kept).sum()))
            at = np.flatnonzero(found.twin_N >= 0)
            of_twin = rows[found.twin_N[at]].tolist()
            alike = zip(of_twin, found.similarity_N[at].tolist(), strict=True)
            twins = dict(zip(rows[at].tolist(), alike, strict=True))
        return Found(twins, overlaps, self._tests.num_templates)
