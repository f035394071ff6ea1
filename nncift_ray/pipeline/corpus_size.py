"""How large a corpus is: exact from a finished run or small files, else from the first records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast

import numpy as np

from nncift_ray.config import Config
from nncift_ray.errors import DataError
from nncift_ray.storage.corpora import SourceFile, expand_sources
from nncift_ray.storage.example_rows import is_error, read_examples
from nncift_ray.storage.output import StageOutput
from nncift_ray.storage.rows import ExampleRow, ReadLimits

COUNTED_WHOLE_BYTES = 32 * 1024**2
SAMPLED_ROWS = 2000
COMPRESSION_RATIO = 3.0  # of text by gzip or zstd, where a file is too large to count


@dataclass(frozen=True)
class CorpusEstimate:
    """How large the corpus is."""

    num_candidates: int
    num_targets: int
    prompt_chars: float  # mean
    response_chars: float
    exact: bool
    num_existing: int = 0

    @property
    def num_rows(self) -> int:
        """Examples of all roles."""
        return self.num_candidates + self.num_targets + self.num_existing


def estimate_corpus(config: Config, examples: StageOutput | None) -> CorpusEstimate:
    """Count the corpus: exactly from a finished run or small files, else from the first records."""
    if examples is not None:
        counts = {role: examples.num_rows(role) for role in ("candidates", "targets", "existing")}
        head = next(examples.iter_batches("candidates", ["prompt", "response"]))
        prompts = [len(text) for text in cast("list[str]", head.column(0).to_pylist())]
        responses = [len(text) for text in cast("list[str]", head.column(1).to_pylist())]
        return CorpusEstimate(
            counts["candidates"],
            counts["targets"],
            float(np.mean(prompts)),
            float(np.mean(responses)),
            True,
            counts["existing"],
        )
    candidates = estimate_sources(config, config.data.candidates)
    targets = estimate_sources(config, config.data.targets) if config.data.targets else _EMPTY
    existing = estimate_sources(config, config.data.existing) if config.data.existing else _EMPTY
    return CorpusEstimate(
        candidates.num_rows,
        targets.num_rows,
        candidates.prompt_chars,
        candidates.response_chars,
        candidates.exact and targets.exact and existing.exact,
        existing.num_rows,
    )


@dataclass(frozen=True)
class SourceEstimate:
    """How large the files of one role are."""

    num_rows: int
    prompt_chars: float  # mean
    response_chars: float
    exact: bool


_EMPTY = SourceEstimate(0, 0.0, 0.0, True)


def estimate_sources(config: Config, patterns: Sequence[str]) -> SourceEstimate:
    """Count the files of one role, read as the recipe says.

    Raises:
        DataError: If there is no usable example in them.
    """
    found = [_estimate_source(config, source) for source in expand_sources(patterns)]
    total = sum(source.num_rows for source in found)
    if not total:
        raise DataError(
            f"{', '.join(patterns)}: no usable example found; see data.layout and columns"
        )
    return SourceEstimate(
        total,
        sum(source.prompt_chars * source.num_rows for source in found) / total,
        sum(source.response_chars * source.num_rows for source in found) / total,
        all(source.exact for source in found),
    )


def _estimate_source(config: Config, source: SourceFile) -> SourceEstimate:
    data = config.data
    rows = read_examples(
        source,
        "candidate",
        layout_override=None if data.layout == "auto" else data.layout,
        columns=data.columns,
        limits=ReadLimits(max_chars=data.max_chars),
    )
    whole = source.size <= COUNTED_WHOLE_BYTES
    ids: set[str] = set()
    prompt_chars = response_chars = num_bytes = num_good = 0
    for row in rows if whole else islice(rows, SAMPLED_ROWS):
        if is_error(row):
            continue
        example = cast("ExampleRow", row)
        num_good += 1
        ids.add(example["example_id"])
        prompt_chars += len(example["prompt"])
        response_chars += len(example["response"])
        num_bytes += len(example["record"].encode("utf-8", errors="replace"))
    if not num_good:
        return _EMPTY
    means = (prompt_chars / num_good, response_chars / num_good)
    if whole:
        return SourceEstimate(len(ids), *means, True)
    ratio = COMPRESSION_RATIO if source.path.endswith((".gz", ".zst", ".parquet")) else 1.0
    estimate = round(source.size * ratio / (num_bytes / num_good))
    return SourceEstimate(estimate, *means, False)
