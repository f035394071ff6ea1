"""Retrieving: prompts against prompts, the same however the work is cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift_ray.corpus.examples import DeduplicateStage
from nncift_ray.corpus.ingest import IngestStage, find_sources
from nncift_ray.embedders import EmbedPromptsStage
from nncift_ray.engines.models import ResolvedModel
from nncift_ray.errors import StageError
from nncift_ray.evaluation.ask import RetrieveStage
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput, column_matrix
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Stage
from tests.hash_embedder import HashEmbedder

MODEL = ResolvedModel("hash", "nowhere", "1")
COSINE_TOLERANCE = 1e-6


class Watched(HashEmbedder):
    """Remembers what it was asked to embed."""

    def __init__(self) -> None:
        super().__init__(24)
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> Any:
        self.texts.extend(texts)
        return super().embed(texts)


def run(stage: Stage, folder: Path) -> StageOutput:
    location = Location.of(str(folder / "run"))
    return run_stage(stage, location, execute=execute_here, reporter=SilentReporter())


def deduplicate(folder: Path, rows: list[tuple[str, str]], role: str) -> StageOutput:
    path = folder / f"{role}.jsonl"
    lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sources = (
        find_sources([str(path)], []) if role == "candidates" else find_sources([], [str(path)])
    )
    return run(DeduplicateStage(run(IngestStage(sources), folder)), folder)


def embed(examples: StageOutput, table: str, folder: Path, embedder: Any) -> StageOutput:
    return run(
        EmbedPromptsStage(examples, MODEL, make_embedder=lambda: embedder, tables=(table,)), folder
    )


@pytest.fixture
def examples(tmp_path: Path) -> tuple[StageOutput, StageOutput]:
    candidates = [
        ("red green blue", "one"),
        ("red green pink", "two"),
        ("one two three", "red green blue"),  # only its answer is alike
        ("one two four", "six"),
        ("red grey", "seven"),
    ]
    tests = [("red green blue cyan", "four five"), ("one two", "red")]
    return (
        deduplicate(tmp_path, candidates, "candidates"),
        deduplicate(tmp_path, tests, "targets"),
    )


@pytest.fixture
def colours(
    tmp_path: Path, examples: tuple[StageOutput, StageOutput]
) -> tuple[StageOutput, StageOutput]:
    embedder = HashEmbedder(24)
    return (
        embed(examples[0], "candidates", tmp_path, embedder),
        embed(examples[1], "targets", tmp_path, embedder),
    )


def make(colours: tuple[StageOutput, StageOutput], members: list[int], **options: Any) -> Any:
    chosen = {"num_examples": 2} | options
    return RetrieveStage(colours[0], np.array(members, np.int64), colours[1], **chosen)


def test_prompts_alone_are_embedded_of_one_table(
    tmp_path: Path, examples: tuple[StageOutput, StageOutput]
) -> None:
    embedder = Watched()
    output = embed(examples[1], "targets", tmp_path, embedder)
    assert embedder.texts == ["red green blue cyan", "one two"]
    expected = HashEmbedder(24).embed(embedder.texts)
    table = output.read("targets")
    np.testing.assert_array_equal(column_matrix(table["embedding"]), expected)
    assert table["example_id"].to_pylist() == examples[1].read("targets")["example_id"].to_pylist()
    assert output.num_rows("candidates") == 0


def test_the_nearest_prompts_of_the_subset_are_found(
    tmp_path: Path, colours: tuple[StageOutput, StageOutput]
) -> None:
    # Without the nearest of all.
    rows = run(make(colours, [1, 2, 3, 4]), tmp_path).read("contexts").to_pylist()
    assert [row["row_index"] for row in rows] == [0, 1]
    assert rows[0]["example_index"][0] == 1
    assert set(rows[1]["example_index"]) == {2, 3}
    query, found = HashEmbedder(24).embed(["red green blue cyan", "red green pink"])
    assert rows[0]["cosine"][0] == pytest.approx(float(query @ found), abs=COSINE_TOLERANCE)


def test_a_subset_smaller_than_what_is_wanted_gives_what_there_is(
    tmp_path: Path, colours: tuple[StageOutput, StageOutput]
) -> None:
    rows = run(make(colours, [0, 3], num_examples=5), tmp_path).read("contexts").to_pylist()
    assert [sorted(row["example_index"]) for row in rows] == [[0, 3], [0, 3]]


def test_an_empty_subset_is_refused(colours: tuple[StageOutput, StageOutput]) -> None:
    with pytest.raises(ValueError, match="subset is empty"):
        make(colours, [])


def test_an_embedding_that_is_not_finite_names_its_example(
    tmp_path: Path, examples: tuple[StageOutput, StageOutput]
) -> None:
    class Broken(HashEmbedder):
        def embed(self, texts: Sequence[str]) -> Any:
            vectors = super().embed(texts)
            vectors[[text.endswith("grey") for text in texts]] = np.nan
            return vectors

    grey = examples[0].read("candidates").to_pylist()[4]["example_id"]
    with pytest.raises(StageError, match=f"example {grey} is not finite"):
        embed(examples[0], "candidates", tmp_path, Broken())


def test_equal_subsets_share_their_work_and_others_do_not(
    colours: tuple[StageOutput, StageOutput],
) -> None:
    def settings(members: list[int], **options: Any) -> Any:
        return make(colours, members, **options).settings()

    assert settings([1, 2]) == settings([1, 2], shard_rows=9)
    for other in (settings([1, 3]), settings([1, 2], num_examples=3)):
        assert other != settings([1, 2])
