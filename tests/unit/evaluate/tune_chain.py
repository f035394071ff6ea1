"""Fine-tuning a tiny random Llama in this process, with no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import Engine, ScoringRequest, ScoringResult
from nncift_ray.engines.models import TunedModel, apply_tuning, resolve_language_model
from nncift_ray.engines.tokens import SegmentTokenizer, TrainingExample, encode_example
from nncift_ray.engines.transformers import TransformersEngine
from nncift_ray.evaluation.tune import EXAMPLE_COLUMNS, TuneJob, TuneStage
from nncift_ray.recipe.sections import EngineConfig, TuningConfig
from nncift_ray.runtime.output import StageOutput
from tests.tiny_models import make_tiny_llama
from tests.unit.teachers.less_chain import MAX_LENGTH, CorpusStage, run

MEMBERS = np.array([0, 1, 3, 4, 7, 9, 11])
TUNING = {
    "method": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.0, "num_epochs": 2,
    "learning_rate": 1e-2, "lr_warmup_fraction": 0.1, "batch_size": 4, "seed": 5,
    "max_length": MAX_LENGTH, "dtype": "float32",
}  # fmt: skip


def make_base(folder: Path) -> Path:
    return make_tiny_llama(folder / "base")


def make_job(base: Path, **tuning: Any) -> TuneJob:
    """Describe how a tiny model is tuned on a CPU."""
    model = resolve_language_model(str(base))
    return TuneJob(model, TuningConfig(**TUNING | tuning), on_gpu=False)


def make_corpus(folder: Path, bad_rows: bool = False) -> StageOutput:
    return run(CorpusStage(bad_rows), folder)


def run_tune(
    folder: Path, job: TuneJob, *, bad_rows: bool = False, members: np.ndarray = MEMBERS
) -> StageOutput:
    """Tune on some candidates of a corpus that lies below a folder."""
    return run(TuneStage(make_corpus(folder, bad_rows), members, job), folder)


def texts_of(corpus: StageOutput, members: np.ndarray = MEMBERS) -> list[Example]:
    rows = corpus.take_rows("candidates", members, EXAMPLE_COLUMNS).to_pylist()
    return [Example(**row) for row in rows]


def encode(base: Path, texts: list[Example]) -> list[TrainingExample]:
    tokenizer = SegmentTokenizer(base)
    encoded = [encode_example(tokenizer, text, MAX_LENGTH) for text in texts]
    assert all(isinstance(one, TrainingExample) for one in encoded)
    return [one for one in encoded if isinstance(one, TrainingExample)]


def load(tuned: TunedModel | None, base: Path) -> TransformersEngine:
    options = EngineConfig(engine="transformers", dtype="float32", max_length=600)
    return TransformersEngine(*apply_tuning(base, options, tuned), device="cpu")


def nll_of(engine: Engine, examples: list[TrainingExample]) -> float:
    """Return the mean nats of all response tokens."""
    requests = [
        ScoringRequest(
            tuple(e.input_ids[: e.response_start]), tuple(e.input_ids[e.response_start :])
        )
        for e in examples
    ]
    results = engine.score(requests)
    assert all(isinstance(result, ScoringResult) for result in results)
    nats = [-r.log_probs.sum() for r in results if isinstance(r, ScoringResult)]
    return float(sum(nats)) / sum(example.num_response_tokens for example in examples)
