from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest

from nncift_ray.errors import StorageError
from nncift_ray.evaluate.results import (
    TABLES,
    EvaluationFacts,
    EvaluationRecord,
    publish_record,
    read_record,
)
from nncift_ray.runtime import schemas
from nncift_ray.runtime.files import Location
from tests.unit.pipeline.evaluation.make_scores import make_scores
from tests.unit.report.make_evaluation import (
    make_agreement,
    make_answers,
    make_costs,
    make_network_fidelity,
)


def make_record() -> EvaluationRecord:
    """Make a record of which every table has a row; scores and summary are small."""
    scores = [
        make_scores("random", [0.1, 0.3, 0.2], seed=0),
        make_scores("random", [0.3, 0.1, None], seed=1),
        make_scores("nn_cift+delift", [0.4, 0.3, 0.4]),
    ]
    return EvaluationRecord(
        EvaluationFacts(name="tiny", num_samples=200, notices=("a note",), config={"a": [1]}),
        pa.concat_tables(scores),
        make_costs(),
        make_agreement(),
        make_network_fidelity(),
        make_answers("naïve <b>text</b>"),
    )


def test_what_is_published_is_read_back_and_published_the_same(tmp_path: Path) -> None:
    record, folder = make_record(), Location.of(str(tmp_path))
    files = publish_record(record, folder)
    page = files.page.read_bytes()
    again = read_record(folder)
    assert again.facts == record.facts
    for name in TABLES:
        assert getattr(again, name).equals(getattr(record, name))
    assert publish_record(again, folder).page.read_bytes() == page


def test_csv_files_hold_the_rows_of_their_tables(tmp_path: Path) -> None:
    files = publish_record(make_record(), Location.of(str(tmp_path)))
    summary = pyarrow.csv.read_csv(tmp_path / "summary.csv")
    assert summary["method"].to_pylist() == ["random", "nn_cift+delift"]
    assert summary["mean"].to_pylist() == pytest.approx([0.2, (0.4 + 0.3 + 0.4) / 3])
    assert summary["num_missing"].to_pylist() == [1, 0]
    assert files.data.summary.num_rows == 2
    for name in ("costs", "agreement", "fidelity"):
        assert pyarrow.csv.read_csv(tmp_path / f"{name}.csv").num_rows > 0


def test_a_record_without_any_score_is_published(tmp_path: Path) -> None:
    record = EvaluationRecord(EvaluationFacts(name="new"), schemas.SCORES.empty_table())
    files = publish_record(record, Location.of(str(tmp_path)))
    assert b"Nothing has been measured yet" in files.page.read_bytes()


def test_a_table_of_another_schema_is_refused_by_name() -> None:
    with pytest.raises(StorageError, match="evaluation table 'scores'"):
        EvaluationRecord(EvaluationFacts(name="new"), schemas.COSTS.empty_table())


def test_a_folder_without_an_evaluation_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="run nncift evaluate first"):
        read_record(Location.of(str(tmp_path)))


@pytest.mark.parametrize("name", ["scores.parquet", "evaluation.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    folder = Location.of(str(tmp_path))
    publish_record(make_record(), folder)
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(StorageError, match=name):
        read_record(folder)
