"""The sweep of a run's labels, with no Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift_ray import sweep as sweeping
from nncift_ray.errors import ConfigError
from nncift_ray.network.step import BlockLabels
from nncift_ray.profiles.blocks import ExampleInputs
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import Config, NetworkConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import execute_here, finished_shards, run_stage, stage_folder
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.sweep import (
    CELLS_TABLE,
    Cell,
    SweepGrid,
    SweepStage,
    known_rows,
    measured_fraction,
    plan_sweep,
    publish,
    quadrants_of,
    sweep_points,
)
from nncift_ray.terminal import print_sweep
from tests.chain import run_chain

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
NETWORK = NetworkConfig(kind="paper", num_hidden=8, num_epochs=2, min_steps=0)


def count_cells(monkeypatch: pytest.MonkeyPatch, dies_at: int | None = None) -> list[Cell]:
    """Return the list that each cell is added to when it is trained; training may be cut short."""
    measure, trained = sweeping.measure_cell, []

    def counting(data: BlockLabels, cell: Cell, *rest: Any) -> list[dict[str, Any]]:
        if len(trained) == dies_at:
            raise KeyboardInterrupt
        trained.append(cell)
        return measure(data, cell, *rest)

    monkeypatch.setattr(sweeping, "measure_cell", counting)
    return trained


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageOutput]:
    return run_chain(
        tmp_path_factory.mktemp("chain"), num_candidates=120, objective="facility_location",
        num_targets=0,
    )  # fmt: skip


def cells(*fractions: float, seeds: int = 1) -> list[Cell]:
    return [Cell("within", fraction, 8, seed) for fraction in fractions
            for seed in range(seeds)]  # fmt: skip


def make_stage(
    chain: dict[str, StageOutput],
    wanted: list[Cell],
    run_dir: Location,
    network: NetworkConfig = NETWORK,
) -> SweepStage:
    labelled = {"within": measured_fraction(chain["label"], chain["deduplicate"], "within")}
    stage = SweepStage(chain["label"], ExampleInputs(chain["embed"]), wanted, network, labelled)
    stage.known = known_rows(run_dir, stage.base)
    return stage


def run(stage: SweepStage, run_dir: Location) -> StageOutput:
    return run_stage(stage, run_dir, execute=execute_here, reporter=SilentReporter())


def rows_of(output: StageOutput) -> list[dict[str, Any]]:
    rows = output.read(CELLS_TABLE, schema=schemas.SWEEP_CELLS).to_pylist()
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_every_cell_is_measured_by_quadrant_beside_the_baselines(
    chain: dict[str, StageOutput], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, run_dir = count_cells(monkeypatch), Location.of(str(tmp_path))
    wanted = cells(0.05, 0.1, seeds=2)
    found = rows_of(run(make_stage(chain, wanted, run_dir), run_dir))
    assert trained == wanted
    for cell in wanted:
        of = [row for row in found if all(row[k] == v for k, v in dataclasses.asdict(cell).items())]
        models = {row["model"] for row in of if row["split"] == "Q4"}
        assert models == {
            "network", "additive_ridge", "cosine", "row_column_mean", "mean", "zero", "random",
        }  # fmt: skip
        assert {"Q1", "Q2", "Q3", "Q4"} <= {row["split"] for row in of}


def test_smaller_fractions_train_on_fewer_pairs_and_are_measured_on_the_same_q4(
    chain: dict[str, StageOutput], tmp_path: Path
) -> None:
    run_dir = Location.of(str(tmp_path))
    found = rows_of(run(make_stage(chain, cells(0.04, 0.08, 0.12), run_dir), run_dir))
    zero = [row for row in found if (row["split"], row["model"]) == ("Q4", "zero")]
    assert [row["num_train_pairs"] for row in zero] == sorted({r["num_train_pairs"] for r in zero})
    assert len({row["mse"] for row in zero}) == len({row["scaled_mse"] for row in zero}) == 1


def test_interrupted_sweep_goes_on_without_training_a_cell_twice(
    chain: dict[str, StageOutput], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, wanted = Location.of(str(tmp_path)), cells(0.05, 0.1, seeds=2)
    count_cells(monkeypatch, dies_at=3)
    with pytest.raises(KeyboardInterrupt):
        run(make_stage(chain, wanted, run_dir), run_dir)
    monkeypatch.undo()
    trained = count_cells(monkeypatch)
    resumed = rows_of(run(make_stage(chain, wanted, run_dir), run_dir))
    assert trained == wanted[3:]
    other = Location.of(str(tmp_path / "other"))
    assert resumed == rows_of(run(make_stage(chain, wanted, other), other))


def test_larger_grid_trains_only_what_no_sweep_has_finished(
    chain: dict[str, StageOutput], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = Location.of(str(tmp_path))
    first = run(make_stage(chain, cells(0.05, 0.1), run_dir), run_dir)
    monkeypatch.undo()
    trained = count_cells(monkeypatch)
    second = run(make_stage(chain, cells(0.05, 0.08, 0.1), run_dir), run_dir)
    assert trained == cells(0.08)
    assert [row for row in rows_of(second) if row["fraction"] != 0.08] == rows_of(first)


def test_cells_of_other_training_are_not_taken_over(
    chain: dict[str, StageOutput], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = Location.of(str(tmp_path))
    run(make_stage(chain, cells(0.1), run_dir), run_dir)
    other = NETWORK.model_copy(update={"learning_rate": 0.5})
    trained = count_cells(monkeypatch)
    run(make_stage(chain, cells(0.1), run_dir, other), run_dir)
    assert trained == cells(0.1)


def test_finished_cells_are_found_also_where_the_sweep_was_not_finished(
    chain: dict[str, StageOutput], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = Location.of(str(tmp_path))
    stage = make_stage(chain, cells(0.05, 0.1), run_dir)
    count_cells(monkeypatch, dies_at=1)
    with pytest.raises(KeyboardInterrupt):
        run(stage, run_dir)
    assert len(finished_shards(stage_folder(stage, run_dir))) == 1
    assert list(known_rows(run_dir, stage.base)) == cells(0.05)


def test_table_and_plot_are_written(
    chain: dict[str, StageOutput], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = Location.of(str(tmp_path))
    wanted = cells(0.05, 0.1, seeds=2)
    output = run(make_stage(chain, wanted, run_dir), run_dir)
    result = publish(output.read(CELLS_TABLE), run_dir / "sweep")
    picture = Path(result.plot.path).read_bytes()
    assert picture.startswith(PNG_MAGIC)
    assert len(picture) > 20_000
    header = Path(result.csv.path).read_text().splitlines()[0]
    assert header.replace('"', "").split(",") == schemas.SWEEP_CELLS.names
    points = sweep_points(result.cells)
    assert len(points) == 2
    assert all(point.ridge_error > 0 for point in points)
    assert all(np.isfinite(point.knowledge["interaction"]) for point in points)
    print_sweep(points, quadrants_of(points))
    assert "the rivals" in capsys.readouterr().out


def recipe(folder: Path, **labels: Any) -> Config:
    corpus = folder / "corpus.jsonl"
    corpus.write_text(
        "".join(f'{{"prompt": "question {i}", "completion": "{i}"}}\n' for i in range(200))
    )
    tree = {
        "run_dir": str(folder / "run"),
        "data": {"candidates": [str(corpus)]},
        "teacher": {"kind": "delift_se"},
        "embedder": {"model": "embedded:all-minilm-l6-v2"},
        "selection": {"objective": "facility_location", "budget": 0.1},
        "labels": labels,
    }
    return make_config(tree)


def test_recipe_with_labels_enough_is_left_alone(tmp_path: Path) -> None:
    config = recipe(tmp_path, fraction=0.2)
    plan = plan_sweep(config, SweepGrid((0.05, 0.2), (8, 16), 3))
    assert plan.config == config
    assert len(plan.cells) == len(set(plan.cells)) == 2 * 2 * 3
    assert not plan.notices


def test_fraction_above_the_recipes_raises_it_and_says_so(tmp_path: Path) -> None:
    plan = plan_sweep(recipe(tmp_path, label_pairs=100), SweepGrid((0.1, 0.3)))
    assert (plan.config.labels.fraction, plan.config.labels.label_pairs) == (0.3, None)
    assert "labels.fraction is set" in plan.notices[0]


def test_fractions_default_to_parts_of_what_is_labelled(tmp_path: Path) -> None:
    plan = plan_sweep(recipe(tmp_path, fraction=0.2), SweepGrid())
    assert [cell.fraction for cell in plan.cells] == [0.05, 0.1, 0.15, 0.2]


def test_more_than_max_pairs_is_refused_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labels.max_pairs = 100 allows"):
        plan_sweep(recipe(tmp_path, max_pairs=100), SweepGrid((0.5,)))


@pytest.mark.parametrize(
    ("grid", "option"),
    [({"fractions": (0.0,)}, "--label-fraction"), ({"fractions": (1.5,)}, "--label-fraction"),
     ({"hidden": (0,)}, "--hidden"),
     ({"num_seeds": 0}, "--seeds")],
)  # fmt: skip
def test_options_out_of_range_are_named(grid: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        SweepGrid(**grid)
