"""A partitioned selection reads the lists part by part, and writes what it would write with all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift_ray.recipe.sections import SelectionConfig
from nncift_ray.runtime.driver import Executor, ShardOutcome, execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Shard, Stage
from nncift_ray.selection.budgets import Budget
from nncift_ray.selection.partitioned import part_tasks
from nncift_ray.selection.problem import Objective, SparseScores
from nncift_ray.selection.step import SelectPartitionsStage, SelectStage
from nncift_ray.selection.tables import ScoreTables, build_objective
from tests.chain import Sizes, run_chain

CANDIDATES, TARGETS, EXISTING, BUDGET = 90, 20, 30, 12
#: Objective, and the chain it is selected from.
OBJECTIVES = (
    ("facility_location", "within"),
    ("facility_location_mutual_information", "both"),
    ("facility_location_query_mutual_information", "cross"),
    ("facility_location_conditional_gain", "within"),
    ("facility_location_conditional_gain", "cross"),
    ("saturated_coverage", "within"),
    ("saturated_coverage", "cross"),
    ("graph_cut", "within"),
    ("graph_cut_conditional_gain", "within"),
    ("graph_cut_mutual_information", "cross"),
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


def in_parts(objective: str, partitions: int, **more: Any) -> SelectionConfig:
    optimizer = {"kind": "partitioned", "partitions": partitions}
    return SelectionConfig(objective=objective, budget=BUDGET, optimizer=optimizer, **more)


def select(
    outputs: dict[str, StageOutput],
    folder: Path,
    selection: SelectionConfig,
    execute: Executor = execute_here,
) -> StageOutput:
    location, reporter = Location.of(str(folder)), SilentReporter()
    read = (outputs["score_pairs"], outputs["embed"], selection, outputs["deduplicate"])
    stage = SelectPartitionsStage(*read)
    parts = run_stage(stage, location, execute=execute, reporter=reporter)
    return run_stage(SelectStage(*read, parts), location, execute=execute, reporter=reporter)


def assert_same_in_memory(
    outputs: dict[str, StageOutput], folder: Path, selection: SelectionConfig
) -> None:
    """Compare with the way that holds all lists, which this search must not do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScoreTables, "lists", lists_in_memory)
        expected = select(outputs, folder / "memory", selection)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "problem", refuse)
        found = select(outputs, folder / "parts", selection, backwards)
    for table in ("ranking", "coverage", "skipped"):
        assert found.read(table).equals(expected.read(table)), table
    assert found.manifest.facts() == expected.manifest.facts()
    assert found.num_rows("ranking") == BUDGET


LISTS = ScoreTables.lists


def lists_in_memory(self: ScoreTables, block: str) -> SparseScores:
    batches = list(LISTS(self, block).batches())
    lengths = [np.diff(batch.indptr) for batch in batches]
    return SparseScores(
        np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
        np.concatenate([batch.indices for batch in batches]),
        np.concatenate([batch.data for batch in batches]),
        self.num_candidates,
    )


def refuse(self: Objective) -> None:
    pytest.fail("all lists were read into memory")


@pytest.mark.parametrize(("objective", "chain"), OBJECTIVES)
@pytest.mark.parametrize("num_parts", [2, 5])
def test_every_objective_in_parts_writes_what_it_does_with_all_lists(
    chains: Chains, tmp_path: Path, objective: str, chain: str, num_parts: int
) -> None:
    assert_same_in_memory(chains[chain], tmp_path, in_parts(objective, num_parts))


def test_quotas_read_part_by_part_too(chains: Chains, tmp_path: Path) -> None:
    quotas = {"field": "task", "min": {"task 0": 5}, "max": 5}
    selection = in_parts("facility_location", 3, quotas=quotas)
    assert_same_in_memory(chains["within"], tmp_path, selection)


def test_the_entries_of_the_parts_are_those_of_the_lists_once(chains: Chains) -> None:
    tables = ScoreTables.open(chains["within"]["score_pairs"], CANDIDATES)
    objective = build_objective(in_parts("facility_location", 4), tables)
    tasks = part_tasks(objective, Budget(BUDGET), num_parts=4)
    held = [len(objective.restricted(task.columns).values) for task in tasks]
    total = len(objective.problem().values)
    assert sum(held) == total
    assert max(held) < total / 2
    assert np.count_nonzero(held) == 4
