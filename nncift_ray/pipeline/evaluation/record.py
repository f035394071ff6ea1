"""What an evaluation has measured, and the files it lies in: written whole, read back, drawn anew.

The tables are all there is to it: summary, pages and terminal are computed from them in seconds.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from nncift_ray.core.evaluation.statistics import DEFAULT_CONFIDENCE, DEFAULT_SAMPLES
from nncift_ray.errors import StorageError
from nncift_ray.pipeline.evaluation.summarising import SummarySettings, summarise
from nncift_ray.report.evaluation_data import EvaluationData
from nncift_ray.report.evaluation_page import render_evaluation
from nncift_ray.storage import evaluation_schemas as schemas
from nncift_ray.storage.filesystem import Location

FACTS_NAME, PAGE_NAME = "evaluation.json", "report.html"
SUMMARY_TABLE = "summary"
#: The tables that are kept, by the names of their files; the first and last have no CSV.
TABLES = {
    "scores": schemas.SCORES,
    "costs": schemas.COSTS,
    "agreement": schemas.AGREEMENT,
    "fidelity": schemas.NETWORK_FIDELITY,
    "answers": schemas.ANSWERS,
}
WITHOUT_CSV = ("scores", "answers")


class EvaluationFacts(BaseModel):
    """What is to be known of an evaluation beside its tables.

    Attributes:
        name: Heading of the page.
        created: When, as it shall be read.
        version: Of nncift_ray.
        confidence: Level of intervals and verdicts.
        num_samples: Resamplings.
        seed: Of the resamplings.
        num_candidates: Candidates that subsets were chosen from.
        model: That was taught.
        judge: That graded answers; "" where none did.
        config: The recipe; it holds no secrets.
        environment: Versions that shaped the results.
        notices: What a reader should know: failures, models that stood in for others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    created: str = ""
    version: str = ""
    confidence: float = DEFAULT_CONFIDENCE
    num_samples: int = DEFAULT_SAMPLES
    seed: int = 0
    num_candidates: int = 0
    model: str = ""
    judge: str = ""
    config: dict[str, Any] = {}
    environment: dict[str, str] = {}
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationRecord:
    """The tables of an evaluation, whole or half done (``storage/evaluation_schemas.py``)."""

    facts: EvaluationFacts
    scores: pa.Table  # SCORES
    costs: pa.Table = field(default_factory=schemas.COSTS.empty_table)
    agreement: pa.Table = field(default_factory=schemas.AGREEMENT.empty_table)
    fidelity: pa.Table = field(default_factory=schemas.NETWORK_FIDELITY.empty_table)
    answers: pa.Table = field(default_factory=schemas.ANSWERS.empty_table)

    def __post_init__(self) -> None:
        """Refuse a table that is not as declared.

        Raises:
            StorageError: Naming the table, with both schemas.
        """
        for each in fields(self):
            schema = TABLES.get(each.name)
            if schema is not None and not getattr(self, each.name).schema.equals(schema):
                found = getattr(self, each.name).schema
                raise StorageError(
                    f"evaluation table '{each.name}' is\n{found}\nand should be\n{schema}"
                )


@dataclass(frozen=True)
class EvaluationFiles:
    """What lies in the folder of an evaluation."""

    folder: Location
    data: EvaluationData  # what page and terminal show
    summary: Location
    page: Location


def publish_record(record: EvaluationRecord, folder: Location) -> EvaluationFiles:
    """Summarise an evaluation and write its tables and its page.

    Args:
        record: What was measured so far.
        folder: Where the files go; those of an earlier call are replaced.

    Raises:
        DataError: If the scores contradict themselves (``summarise``).
    """
    data = show(record, folder)
    for name in TABLES:
        _write_table(folder, name, getattr(record, name))
    _write_table(folder, SUMMARY_TABLE, data.summary)
    (folder / FACTS_NAME).write_bytes(record.facts.model_dump_json(indent=1).encode())
    (folder / PAGE_NAME).write_bytes(render_evaluation(data).encode("utf-8"))
    return EvaluationFiles(folder, data, folder / f"{SUMMARY_TABLE}.csv", folder / PAGE_NAME)


def show(record: EvaluationRecord, folder: Location) -> EvaluationData:
    """Return what page and terminal show of an evaluation, its summary computed.

    Raises:
        DataError: As ``publish_record``.
    """
    facts = record.facts
    settings = SummarySettings(facts.confidence, facts.num_samples, facts.seed)
    return EvaluationData(
        name=facts.name,
        summary=summarise(record.scores, settings),
        **{name: getattr(record, name) for name in TABLES},
        confidence=facts.confidence,
        num_candidates=facts.num_candidates,
        model=facts.model,
        judge=facts.judge,
        created=facts.created,
        version=facts.version,
        config=facts.config,
        environment=facts.environment,
        outputs={
            "every value": str(folder / "scores.parquet"),
            "means and verdicts": str(folder / f"{SUMMARY_TABLE}.csv"),
            "costs": str(folder / "costs.csv"),
            "agreement with teachers": str(folder / "agreement.csv"),
            "fidelity of networks": str(folder / "fidelity.csv"),
            "page": str(folder / PAGE_NAME),
        },
        notices=facts.notices,
    )


def read_record(folder: Location) -> EvaluationRecord:
    """Read the tables of an evaluation back.

    Raises:
        StorageError: If there is none, or a file of it is damaged or of another version.
    """
    if not (folder / FACTS_NAME).exists():
        raise StorageError(
            f"{folder}: there is no evaluation (no {FACTS_NAME}); run nncift evaluate first"
        )
    try:
        facts = EvaluationFacts.model_validate_json((folder / FACTS_NAME).read_bytes())
    except ValidationError as error:
        raise StorageError(
            f"{folder / FACTS_NAME}: not of this version of nncift_ray ({error.error_count()} "
            f"problems, first: {error.errors()[0]['msg']}); run nncift evaluate again"
        ) from error
    tables = {name: _read_table(folder / f"{name}.parquet") for name in TABLES}
    return EvaluationRecord(facts, **tables)


def _read_table(location: Location) -> pa.Table:
    try:
        return pq.read_table(pa.BufferReader(location.read_bytes()))
    except pa.ArrowInvalid as error:
        raise StorageError(f"{location}: damaged ({error}); run nncift evaluate again") from error


def _write_table(folder: Location, name: str, table: pa.Table) -> None:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    (folder / f"{name}.parquet").write_bytes(out.getvalue())
    if name not in WITHOUT_CSV:
        text = io.BytesIO()
        pyarrow.csv.write_csv(table, text)
        (folder / f"{name}.csv").write_bytes(text.getvalue())
