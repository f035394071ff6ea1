"""What the label stage asks a teacher: the texts, vectors and gradients of a group of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nncift_ray.core.examples import Example
from nncift_ray.models.teachers import LabelRequest
from nncift_ray.storage.arrays import column_matrix
from nncift_ray.storage.output import StageOutput
from nncift_ray.storage.sampled import (
    HELPED,
    HELPER,
    ExampleKey,
    GradientKey,
    GradientReader,
    load_sampled_examples,
)
from nncift_ray.storage.schemas import CANDIDATE, TARGET, helped_role

Vectors = Mapping[ExampleKey, np.ndarray]
Gradients = Mapping[GradientKey, np.ndarray]


@dataclass(frozen=True)
class RequestMaker:
    """Looks up what requests are made of; texts and embeddings of the sample are in memory."""

    examples: Mapping[ExampleKey, Example]
    vectors: Vectors  # empty where the teacher reads none
    gradients: GradientReader | None  # reads from disk, a bounded part kept

    @classmethod
    def load(
        cls, sample: StageOutput, embeddings: StageOutput | None, gradients: StageOutput | None
    ) -> RequestMaker:
        """Read the sample's texts and, where they are given, embeddings."""
        examples = load_sampled_examples(sample)
        reader = None if gradients is None else GradientReader(gradients)
        return cls(examples, load_sampled_vectors(embeddings, examples), reader)

    def make(self, pairs: Sequence[Mapping[str, Any]]) -> list[LabelRequest]:
        """Return the requests of some pairs, in their order."""
        found: Gradients = {}
        if self.gradients is not None:
            found = self.gradients.vectors({key for pair in pairs for key in gradient_keys(pair)})
        return [self._make_one(pair, found) for pair in pairs]

    def _make_one(self, pair: Mapping[str, Any], gradients: Gradients) -> LabelRequest:
        helped, helper = example_keys(pair)
        if helper is None:
            return LabelRequest(self.examples[helped], helped_embedding=self.vectors.get(helped))
        return LabelRequest(
            helped=self.examples[helped],
            helper=self.examples[helper],
            helped_embedding=self.vectors.get(helped),
            helper_embedding=self.vectors.get(helper),
            helped_gradients=gradients.get(GradientKey(HELPED, *helped)),
            helper_gradients=gradients.get(GradientKey(HELPER, *helper)),
        )


def example_keys(pair: Mapping[str, Any]) -> tuple[ExampleKey, ExampleKey | None]:
    """Return the helped and the helper example of a pair."""
    helped: ExampleKey = (helped_role(pair["block"]), pair["helped_index"])
    helper = pair["helper_index"]
    return helped, None if helper is None else (CANDIDATE, helper)


def gradient_keys(pair: Mapping[str, Any]) -> list[GradientKey]:
    """Return the gradients that a pair's label is made of."""
    helped, helper = example_keys(pair)
    keys = [GradientKey(HELPED, *helped)]
    return keys if helper is None else [*keys, GradientKey(HELPER, *helper)]


def load_sampled_vectors(
    embeddings: StageOutput | None, examples: Mapping[ExampleKey, Example]
) -> dict[ExampleKey, np.ndarray]:
    """Read the vectors of the sample, float32; none where the teacher reads none."""
    vectors: dict[ExampleKey, np.ndarray] = {}
    if embeddings is None:
        return vectors
    for role in (CANDIDATE, TARGET):
        rows = np.array(sorted(row for kind, row in examples if kind == role), dtype=np.int64)
        if rows.size:
            table = embeddings.take_rows(f"{role}s", rows, ["embedding"])
            matrix = column_matrix(table["embedding"])
            vectors.update(((role, int(row)), matrix[at]) for at, row in enumerate(rows))
    return vectors
