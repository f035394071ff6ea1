"""The gradients stage: which gradients, at which checkpoint, on which side; and reading them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nncift_ray.engines.lora import LoraModel
from nncift_ray.errors import EngineDiedError
from nncift_ray.labels.step import list_gradients
from nncift_ray.recipe.sections import LessConfig, PoolConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import MANIFEST_NAME, SHARD_FOLDER, StageOutput, column_matrix
from nncift_ray.runtime.schemas import CANDIDATE, TARGET
from nncift_ray.runtime.step import KILLED_WORKER
from nncift_ray.teachers import gradients as gradients_module
from nncift_ray.teachers import less as gradient_store
from nncift_ray.teachers.gradients import (
    GradientsStage,
    RademacherProjector,
    project_gradients,
    read_checkpoint,
)
from nncift_ray.teachers.less import (
    HELPED,
    HELPER,
    GradientKey,
    GradientReader,
    gradient_table,
)
from tests.unit.teachers.less_chain import (
    EMPTY,
    NUM_EPOCHS,
    TOO_LONG,
    make_factory,
    make_job,
    make_sample,
    run,
    run_warmup,
)

PROJECTION_DIM, SEED, ATOM_ROWS, BATCH_TOKENS = 24, 2, 8, 256
NORM_TOLERANCE = 1e-5


class Inputs:
    """A sample, a warm-up and the model of both, made once for all tests."""

    def __init__(self, folder: Path, bad_rows: bool) -> None:
        self.make_model = make_factory(folder)
        job = make_job(folder, self.make_model, bad_rows=bad_rows)
        self.sample = make_sample(job.examples)
        self.keys = list_gradients(self.sample.requests)
        self.warmup = run_warmup(folder, job)

    def stage(self, shard_rows: int | None = None) -> GradientsStage:
        less = LessConfig(
            projection_dim=PROJECTION_DIM, seed=SEED, pool=PoolConfig(shard_rows=shard_rows)
        )
        return GradientsStage(
            self.keys, self.sample.examples, self.warmup, self.make_model, less, BATCH_TOKENS
        )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("good"), bad_rows=False)


@pytest.fixture(scope="module")
def bad_inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("bad"), bad_rows=True)


@pytest.fixture(autouse=True)
def _small_atoms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients_module, "ATOM_ROWS", ATOM_ROWS)


def tables_of(output: StageOutput) -> list[pa.Table]:
    return [output.read(gradient_table(number)) for number in range(NUM_EPOCHS)]


def row_of(table: pa.Table, key: GradientKey) -> dict[str, Any]:
    rows = [r for r in table.to_pylist() if (r["side"], r["role"], r["row_index"]) == key]
    assert len(rows) == 1
    return rows[0]


def test_every_side_that_a_pair_needs_is_listed_once_in_order(inputs: Inputs) -> None:
    pairs = inputs.sample.requests.to_pylist()
    needed = {
        (HELPED, TARGET if pair["block"] == "cross" else CANDIDATE, pair["helped_index"])
        for pair in pairs
    } | {(HELPER, CANDIDATE, pair["helper_index"]) for pair in pairs}
    assert inputs.keys == sorted(needed)


def test_shards_of_any_size_give_the_same_bytes(inputs: Inputs, tmp_path: Path) -> None:
    by_size = [
        tables_of(run(inputs.stage(shard_rows=rows), tmp_path / str(rows))) for rows in (1, 24, 999)
    ]
    assert inputs.stage(shard_rows=1).shard_items == 1
    assert by_size[0] == by_size[1] == by_size[2]


def test_a_lost_shard_is_computed_again_to_the_same_bytes(inputs: Inputs, tmp_path: Path) -> None:
    output = run(inputs.stage(shard_rows=1), tmp_path)
    before = tables_of(output)
    folder = Path(output.folder.path)
    records = sorted((folder / SHARD_FOLDER).iterdir())
    lost = json.loads(records[3].read_text())["parts"]
    for path in (records[3], folder / MANIFEST_NAME, *(folder / part["name"] for part in lost)):
        path.unlink()
    assert tables_of(run(inputs.stage(shard_rows=999), tmp_path)) == before
    assert len(list((folder / SHARD_FOLDER).iterdir())) == len(records)


@pytest.mark.parametrize("side", [HELPED, HELPER])
def test_gradients_are_those_of_their_own_checkpoint_and_side(
    inputs: Inputs, tmp_path: Path, side: str
) -> None:
    tables = tables_of(run(inputs.stage(shard_rows=1), tmp_path))
    model: LoraModel = inputs.make_model()
    projector = RademacherProjector(model.num_adapter_parameters, PROJECTION_DIM, SEED)
    key = next(key for key in inputs.keys if key.side == side)
    example = model.encode(inputs.sample.load_examples()[key.example])
    for number in reversed(range(NUM_EPOCHS)):
        checkpoint = read_checkpoint(number, inputs.warmup.read_file)
        model.load_adapter(checkpoint.adapter)
        expected = project_gradients(
            model,
            [example],  # type: ignore[list-item]
            projector,
            adam=checkpoint if side == HELPER else None,
            batch_tokens=BATCH_TOKENS,
        )[0]
        feature = np.array(row_of(tables[number], key)["feature"])
        np.testing.assert_allclose(feature, expected, atol=NORM_TOLERANCE)
        assert abs(np.linalg.norm(feature) - 1) < NORM_TOLERANCE
    assert tables[0]["feature"] != tables[1]["feature"]


def test_rows_without_a_gradient_are_not_done_and_told_once(
    bad_inputs: Inputs, tmp_path: Path
) -> None:
    output = run(bad_inputs.stage(), tmp_path)
    bad_ids = {f"candidates-{TOO_LONG}": "too_long", f"candidates-{EMPTY}": "no_response"}
    for table in tables_of(output):
        missing = table.filter(pc.invert(table["done"]))
        assert set(missing["example_id"].to_pylist()) == set(bad_ids)
        assert missing["feature"].null_count == missing.num_rows == 4  # on both sides
        assert table.filter(table["done"])["feature"].null_count == 0
    errors = output.read("errors", schema=schemas.ERRORS).to_pylist()
    assert sorted((row["example_id"], row["reason"]) for row in errors) == sorted(bad_ids.items())


def test_a_gradient_that_is_not_finite_is_an_error_row_of_its_checkpoint(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: LoraModel, examples: Sequence[Any], *rest: Any, **options: Any) -> np.ndarray:
        rows = project_gradients(model, examples, *rest, **options)
        if options["adam"] is not None and options["adam"].summary.epoch == NUM_EPOCHS:
            rows[0] = np.nan
        return rows

    monkeypatch.setattr(gradients_module, "project_gradients", spoil)
    output = run(inputs.stage(), tmp_path)
    first, last = tables_of(output)
    spoilt = last.filter(pc.invert(last["done"]))
    assert set(spoilt["side"].to_pylist()) == {HELPER}
    assert pc.all(first["done"]).as_py()
    errors = output.read("errors", schema=schemas.ERRORS).to_pylist()
    assert [row["example_id"] for row in errors] == spoilt["example_id"].to_pylist()
    assert {row["reason"] for row in errors} == {"not_finite"}
    assert all("as helper at checkpoint 1" in row["message"] for row in errors)
    done = GradientReader(output).vectors(inputs.keys)
    assert len(done) == first.num_rows - spoilt.num_rows


@pytest.mark.parametrize("max_cached_bytes", [1, 1 << 20])
def test_the_reader_finds_what_was_written_with_any_cache(
    bad_inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_cached_bytes: int
) -> None:
    monkeypatch.setattr(gradient_store, "GRADIENT_BLOCK_ROWS", 5)  # never where shards were cut
    output = run(bad_inputs.stage(shard_rows=1), tmp_path)
    reader = GradientReader(output, max_cached_bytes=max_cached_bytes)
    keys = bad_inputs.keys
    good = [key for key in keys if key.example not in ((CANDIDATE, TOO_LONG), (CANDIDATE, EMPTY))]
    found = reader.vectors(reversed(keys))
    assert set(found) == set(good)
    again = reader.vectors([*good, GradientKey(HELPED, CANDIDATE, 999)])
    for number, table in enumerate(tables_of(output)):
        done = table.filter(table["done"])
        np.testing.assert_array_equal(
            np.stack([again[key][number] for key in good]), column_matrix(done["feature"])
        )
        np.testing.assert_array_equal(found[good[0]][number], again[good[0]][number])


def test_the_reader_keeps_no_more_blocks_than_it_may(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient_store, "GRADIENT_BLOCK_ROWS", 4)
    output = run(inputs.stage(), tmp_path)
    reads: list[int] = []
    read_range = StageOutput.read_range
    monkeypatch.setattr(
        StageOutput, "read_range", lambda *a, **k: reads.append(a[2]) or read_range(*a, **k)
    )
    block_bytes = NUM_EPOCHS * 4 * PROJECTION_DIM * 4
    reader = GradientReader(output, max_cached_bytes=2 * block_bytes)
    keys = inputs.keys
    for key in (keys[0], keys[1], keys[4], keys[0], keys[8], keys[1], keys[4]):
        reader.vectors([key])
    assert reads[::NUM_EPOCHS] == [0, 4, 8, 4]  # the block used longest ago made room


def test_a_row_that_kills_becomes_an_error_row_and_its_example_is_not_tried_again(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = inputs.make_model().encode(inputs.sample.load_examples()[(CANDIDATE, 5)])

    def die(model: LoraModel, examples: Sequence[Any], *rest: Any, **options: Any) -> np.ndarray:
        if deadly in examples:
            raise EngineDiedError("killed")
        return project_gradients(model, examples, *rest, **options)

    monkeypatch.setattr(gradients_module, "project_gradients", die)
    output = run(inputs.stage(shard_rows=999), tmp_path)
    for table in tables_of(output):
        missing = table.filter(pc.invert(table["done"]))
        assert set(missing["example_id"].to_pylist()) == {"candidates-5"}
    errors = output.read("errors", schema=schemas.ERRORS).to_pylist()
    assert {row["reason"] for row in errors} == {KILLED_WORKER}
    assert {row["example_id"] for row in errors} == {"candidates-5"}
