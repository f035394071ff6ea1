"""Rows of examples as what a language model is trained on, and those that cannot be."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from nncift_ray.core.examples import Example
from nncift_ray.models.engine import ScoringFailure
from nncift_ray.models.trainable_model import TrainableModel, TrainingExample

EXAMPLE_COLUMNS = ["example_id", "prompt", "response"]


@dataclass(frozen=True)
class UnfitExample:
    """An example that cannot be trained on, as the errors table tells of it."""

    example_id: str
    reason: str
    message: str
    excerpt: str


def encode_rows(
    table: pa.Table, model: TrainableModel
) -> tuple[list[TrainingExample], list[UnfitExample]]:
    """Tokenise rows of EXAMPLE_COLUMNS; return those to train on and those that do not fit."""
    fit: list[TrainingExample] = []
    unfit: list[UnfitExample] = []
    for row in table.select(EXAMPLE_COLUMNS).to_pylist():
        example = Example(**row)
        encoded = model.encode(example)
        if isinstance(encoded, ScoringFailure):
            unfit.append(
                UnfitExample(example.example_id, encoded.reason, encoded.message, example.prompt)
            )
        else:
            fit.append(encoded)
    return fit, unfit
