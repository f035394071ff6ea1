"""Warm-up and gradients of LESS on a tiny random Llama, in this process, with no Ray."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

from nncift_ray.engines.lora import LoraModel
from nncift_ray.labels.sample import SampleDesign
from nncift_ray.labels.step import LabelSample
from nncift_ray.recipe.sections import LessConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.schemas import CROSS, WITHIN
from nncift_ray.runtime.step import Shard, Stage
from nncift_ray.teachers.gradients import WarmupJob, WarmupStage
from tests.stages import RowsStage
from tests.tiny_models import make_tiny_llama

NUM_CANDIDATES, NUM_TARGETS, NUM_EPOCHS = 12, 4, 2
MAX_LENGTH = 64
TOO_LONG, EMPTY = 3, 7  # candidates that have no gradient, where a corpus is made with bad rows
MODEL_SETTINGS = {"model": "tiny", "revision": "1"}
LESS = LessConfig(
    warmup_fraction=0.5,
    num_epochs=NUM_EPOCHS,
    learning_rate=1e-2,
    lr_warmup_fraction=0.1,
    batch_size=2,
    rank=4,
    alpha=8.0,
    dropout=0.1,
    target_modules=("q_proj", "v_proj", "o_proj"),
    max_length=MAX_LENGTH,
    seed=5,
)


class CorpusStage(RowsStage):
    """Writes what the deduplicate stage would."""

    name: ClassVar[str] = "corpus"
    produces = {"candidates": schemas.EXAMPLES, "targets": schemas.EXAMPLES}

    def __init__(self, bad_rows: bool = False) -> None:
        self._bad_rows = bad_rows

    def settings(self) -> dict[str, Any]:
        return {"bad_rows": self._bad_rows}

    def work(self, shard: Shard, sink: Sink) -> None:
        for table, count in (("candidates", NUM_CANDIDATES), ("targets", NUM_TARGETS)):
            rows = [make_row(table, at) for at in range(count)]
            if self._bad_rows and table == "candidates":
                rows[TOO_LONG]["prompt"] *= MAX_LENGTH
                rows[EMPTY]["response"] = ""
            sink.write_rows(table, rows, schemas.EXAMPLES)


def make_row(table: str, at: int) -> dict[str, Any]:
    return {
        "row_index": at,
        "example_id": f"{table}-{at}",
        "prompt": f"{table[:4]} {at * 7 % 13}" + " more" * (at % 3),
        "response": f"It is {at * at}.",
        "record": "{}",
        "source": "corpus.jsonl",
        "line": at + 1,
        "layout": "prompt_completion",
        "num_duplicates": 0,
    }


def run(stage: Stage, folder: Path) -> StageOutput:
    """Run a stage in this process below a folder."""
    location = Location.of(str(folder / "run"))
    return run_stage(stage, location, execute=execute_here, reporter=SilentReporter())


def make_factory(folder: Path) -> functools.partial[LoraModel]:
    """Make the tiny model, and what loads it; a worker of Ray can unpickle that."""
    path = make_tiny_llama(folder / "model")
    return functools.partial(LoraModel, str(path), LESS, device="cpu")


def make_job(
    folder: Path, make_model: functools.partial[LoraModel], *, bad_rows: bool = False, **less: Any
) -> WarmupJob:
    """Describe a warm-up on half the candidates."""
    return WarmupJob(run(CorpusStage(bad_rows), folder), make_model, LESS.model_copy(update=less))


def run_warmup(folder: Path, job: WarmupJob) -> StageOutput:
    """Run the warm-up in this process."""
    return run(WarmupStage(job, MODEL_SETTINGS), folder)


def make_sample(corpus: StageOutput) -> LabelSample:
    """Draw most pairs of both blocks."""
    design = SampleDesign(label_fraction=0.9, holdout_pairs_per_quadrant=2, seed=1)
    return LabelSample(corpus, dict.fromkeys((WITHIN, CROSS), design), needs_baseline=False)
