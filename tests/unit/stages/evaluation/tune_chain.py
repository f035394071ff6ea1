"""Fine-tuning a tiny random Llama in this process, with no Ray."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from nncift_ray.engines.lora import AdapterSpec, LoraModel, ModelOptions, TrainableModel, WholeModel
from nncift_ray.evaluate.tune import TuneJob, TuneStage, tune_in_process
from nncift_ray.runtime.output import StageOutput
from nncift_ray.teachers.warmup import TrainingSettings
from tests.tiny_models import make_tiny_llama
from tests.unit.teachers.less_chain import MAX_LENGTH, CorpusStage, run

SPEC = AdapterSpec(rank=4, alpha=8.0, dropout=0.0, target_modules=None, seed=3)
TRAINING = TrainingSettings(
    num_epochs=2, learning_rate=1e-2, lr_warmup_fraction=0.1, batch_size=4, seed=5
)
MODEL_SETTINGS = {"model": "tiny", "revision": "1"}
MEMBERS = np.array([0, 1, 3, 4, 7, 9, 11])
QUANTIZATION = {"qlora": "bitsandbytes", "lora": None, "full": None}


def make_factory(
    base: Path, method: str = "lora", **options: Any
) -> functools.partial[TrainableModel]:
    """Describe how the model of a method is loaded; a worker of Ray can unpickle it."""
    given = {"device": "cpu", "max_length": MAX_LENGTH, "section": "evaluation.tuning"}
    loading = ModelOptions(**given | {"quantization": QUANTIZATION[method]} | options)
    if method == "full":
        return functools.partial(WholeModel, str(base), loading)
    return functools.partial(LoraModel, str(base), SPEC, loading)


def make_base(folder: Path) -> Path:
    return make_tiny_llama(folder / "base")


def make_job(
    folder: Path, base: Path, method: str = "lora", *, bad_rows: bool = False, **job: Any
) -> TuneJob:
    """Describe a tuning on some candidates of a corpus that lies below a folder."""
    corpus = run(CorpusStage(bad_rows), folder)
    defaults = {
        "members": MEMBERS,
        "make_model": make_factory(base, method),
        "base_name": "tiny",
        "training": TRAINING,
    }
    return TuneJob(corpus, **defaults | job)


def run_tune(folder: Path, job: TuneJob, method: str = "lora") -> StageOutput:
    stage = TuneStage(job, tune_in_process, MODEL_SETTINGS, quantization=QUANTIZATION[method])
    return run(stage, folder)
