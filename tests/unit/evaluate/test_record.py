from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest

from nncift_ray.errors import StorageError
from nncift_ray.evaluation.page import render_evaluation
from nncift_ray.evaluation.results import TABLES, Evaluation, EvaluationFacts
from nncift_ray.runtime import schemas
from nncift_ray.runtime.files import Location
from tests.unit.evaluate.make_evaluation import (
    make_agreement,
    make_answers,
    make_costs,
    make_network_fidelity,
)
from tests.unit.evaluate.make_scores import make_scores


def make_record() -> Evaluation:
    """Make a record of which every table has a row; scores and summary are small."""
    scores = [
        make_scores("random", [0.1, 0.3, 0.2], seed=0),
        make_scores("random", [0.3, 0.1, None], seed=1),
        make_scores("nn_cift+delift", [0.4, 0.3, 0.4]),
    ]
    return Evaluation(
        EvaluationFacts(name="tiny", num_samples=200, notices=("a note",), config={"a": [1]}),
        pa.concat_tables(scores),
        make_costs(),
        make_agreement(),
        make_network_fidelity(),
        make_answers("naïve <b>text</b>"),
    )


def test_what_is_written_is_read_back_and_shown_the_same(tmp_path: Path) -> None:
    record, folder = make_record(), Location.of(str(tmp_path))
    record.write(folder)
    again = Evaluation.read(folder)
    assert again.facts == record.facts
    for name in TABLES:
        assert getattr(again, name).equals(getattr(record, name))
    assert render_evaluation(again) == render_evaluation(record)


def test_csv_files_hold_the_rows_of_their_tables(tmp_path: Path) -> None:
    make_record().write(Location.of(str(tmp_path)))
    summary = pyarrow.csv.read_csv(tmp_path / "summary.csv")
    assert summary["method"].to_pylist() == ["random", "nn_cift+delift"]
    assert summary["mean"].to_pylist() == pytest.approx([0.2, (0.4 + 0.3 + 0.4) / 3])
    assert summary["num_missing"].to_pylist() == [1, 0]
    for name in ("costs", "agreement", "fidelity"):
        assert pyarrow.csv.read_csv(tmp_path / f"{name}.csv").num_rows > 0


def test_a_table_of_another_schema_is_refused_by_name() -> None:
    with pytest.raises(StorageError, match="evaluation table 'scores'"):
        Evaluation(EvaluationFacts(name="new"), schemas.COSTS.empty_table())


def test_a_folder_without_an_evaluation_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="run nncift evaluate first"):
        Evaluation.read(Location.of(str(tmp_path)))


@pytest.mark.parametrize("name", ["scores.parquet", "evaluation.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    folder = Location.of(str(tmp_path))
    make_record().write(folder)
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(StorageError, match=name):
        Evaluation.read(folder)
