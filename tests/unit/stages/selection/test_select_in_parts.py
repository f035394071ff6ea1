"""A partitioned selection reads the lists part by part, and writes what it would write with all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift_ray.runtime.driver import Executor, ShardOutcome, execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Shard, Stage
from nncift_ray.selection.partitioned import first_tasks
from nncift_ray.selection.problem import StreamedScores
from nncift_ray.selection.step import PartitionInputs, SelectPartitionsStage, SelectStage
from nncift_ray.selection.tables import Quotas, ScoreTables, SelectionPlan, source_of_parts
from tests.unit.stages.chain import Sizes, run_chain

CANDIDATES, TARGETS, EXISTING, BUDGET = 90, 20, 30, 12
#: Objective, the chain it is selected from, and the blocks it reads.
OBJECTIVES = (
    ("facility_location", "within", ("within",)),
    ("facility_location_mutual_information", "both", ("within", "cross")),
    ("facility_location_query_mutual_information", "cross", ("cross",)),
    ("facility_location_conditional_gain", "within", ("within",)),
    ("facility_location_conditional_gain", "cross", ("cross",)),
    ("saturated_coverage", "within", ("within",)),
    ("saturated_coverage", "cross", ("cross",)),
    ("graph_cut", "within", ("within",)),
    ("graph_cut_conditional_gain", "within", ("within",)),
    ("graph_cut_mutual_information", "cross", ("cross",)),
    ("random", "within", ("within",)),
)
CHAINS = {
    "within": "facility_location",
    "cross": "facility_location_query_mutual_information",
    "both": "facility_location_mutual_information",
}
Chains = dict[str, dict[str, StageOutput]]


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Chains:
    return {
        name: run_chain(
            tmp_path_factory.mktemp(name),
            num_candidates=CANDIDATES,
            num_targets=0 if name == "within" else TARGETS,
            num_existing=EXISTING,
            objective=objective,
            budget=BUDGET,
            sizes=Sizes(score_rows=16),
        )
        for name, objective in CHAINS.items()
    }


def backwards(stage: Stage, folder: Location, shards: list[Shard]) -> Iterator[ShardOutcome]:
    yield from execute_here(stage, folder, shards[::-1])


def select(
    outputs: dict[str, StageOutput],
    folder: Path,
    plan: SelectionPlan,
    execute: Executor = execute_here,
) -> StageOutput:
    location, reporter = Location.of(str(folder)), SilentReporter()
    scores, embeddings, examples = (
        outputs[name] for name in ("score_pairs", "embed", "deduplicate")
    )
    quotas = examples if plan.reads_examples else None
    stage = SelectPartitionsStage(PartitionInputs(scores, embeddings, quotas), plan)
    parts = run_stage(stage, location, execute=execute, reporter=reporter)
    merge = SelectStage(scores, embeddings, plan, examples=examples, parts=parts)
    return run_stage(merge, location, execute=execute, reporter=reporter)


def assert_same_in_memory(
    outputs: dict[str, StageOutput], folder: Path, plan: SelectionPlan, *, reads_all: bool = False
) -> None:
    """Compare with the way that holds all lists, which this search must not do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScoreTables, "streamed", whole_lists)
        patch.setattr(ScoreTables, "lists", whole_lists)
        expected = select(outputs, folder / "memory", plan)
    with pytest.MonkeyPatch.context() as patch:
        if not reads_all:
            patch.setattr(StreamedScores, "whole", refuse)
        found = select(outputs, folder / "parts", plan, backwards)
    for table in ("ranking", "coverage", "skipped"):
        assert found.read(table).equals(expected.read(table)), table
    assert found.manifest.facts() == expected.manifest.facts()
    assert found.num_rows("ranking") == BUDGET


STREAMED = ScoreTables.streamed


def whole_lists(self: ScoreTables, block: str) -> Any:
    return STREAMED(self, block).whole()


def refuse(self: StreamedScores) -> None:
    del self
    pytest.fail("all lists were read into memory")


@pytest.mark.parametrize(("objective", "chain", "blocks"), OBJECTIVES)
@pytest.mark.parametrize("num_parts", [1, 2, 5])
def test_every_objective_in_parts_writes_what_it_does_with_all_lists(
    chains: Chains, tmp_path: Path, objective: str, chain: str, blocks: Any, num_parts: int
) -> None:
    plan = SelectionPlan(
        objective, blocks, count=BUDGET, optimizer="partitioned", partitions=num_parts
    )
    assert_same_in_memory(chains[chain], tmp_path, plan, reads_all=objective == "random")


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        ("facility_location", {"rounds": 3}),
        ("facility_location", {"rounds": 3, "bounding": True}),
        ("saturated_coverage", {"rounds": 2, "bounding": True}),
        ("facility_location", {"quotas": Quotas("task", {"task 0": 5}, 5)}),
        ("graph_cut", {"rounds": 2}),
    ],
)
def test_rounds_bounding_and_quotas_read_part_by_part_too(
    chains: Chains, tmp_path: Path, objective: str, more: dict[str, Any]
) -> None:
    plan = SelectionPlan(
        objective, ("within",), count=BUDGET, optimizer="partitioned", partitions=3, **more
    )
    assert_same_in_memory(chains["within"], tmp_path, plan)


def test_a_graph_cut_that_is_bounded_first_reads_all_lists(chains: Chains, tmp_path: Path) -> None:
    plan = SelectionPlan(
        "graph_cut", ("within",), count=BUDGET, optimizer="partitioned", partitions=3, rounds=2,
        bounding=True,
    )  # fmt: skip
    assert_same_in_memory(chains["within"], tmp_path, plan, reads_all=True)


def test_the_entries_of_the_parts_are_those_of_the_lists_once(chains: Chains) -> None:
    plan = SelectionPlan(
        "facility_location", ("within",), count=BUDGET, optimizer="partitioned", partitions=4
    )
    tables = ScoreTables.open(chains["within"]["score_pairs"], CANDIDATES)
    _, source = source_of_parts(plan, tables, EXISTING)
    tasks = first_tasks(source, plan.budget(CANDIDATES), num_parts=4)
    held = [len(source.restricted(task.columns).values) for task in tasks]
    total = tables.lists("within").indptr[-1]
    assert sum(held) == total
    assert max(held) < total / 2
    assert np.count_nonzero(held) == 4
