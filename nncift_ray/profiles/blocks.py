"""What is kept of an example's pass through the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SEED = 0  # of the random projections
SKETCH_SIDE = 32
TAIL_SHARE = 0.1  # of the response tokens, the most surprising, that ``tail_surprise`` averages

#: "answer" is the mean over response tokens, "last_prompt" the token before them, "sketch" the sum
#: over response tokens of R1 W^T (p - onehot(y)) outer R2 h, W the token embeddings: the gradient
#: at the output, seen from a layer below.
Pooling = Literal["answer", "last_prompt", "sketch"]


@dataclass(frozen=True, slots=True)
class FeatureBlock:
    """A unit-length vector of an example: the states of one layer, pooled over some tokens."""

    name: str
    layer: float  # share of the model's depth; 1 is the state that the output layer reads
    pooling: Pooling
    width: int = 256

    def layer_of(self, num_layers: int) -> int:
        """Return which of the model's ``num_layers + 1`` hidden states it reads."""
        return round(self.layer * num_layers)


#: The blocks that are stored, in this order: what pairs are told by (benchmarks/influence_cpu.md).
FEATURE_BLOCKS = (
    FeatureBlock("answer_60", 0.6, "answer"),
    FeatureBlock("last_prompt_73", 0.73, "last_prompt"),
    FeatureBlock("sketch_50", 0.5, "sketch"),
)


#: Of a profile, one number each.
SCALARS = (
    "nll",
    "nll_alone",
    "distance",
    "num_prompt_tokens",
    "num_response_tokens",
    "max_surprise",
    "tail_surprise",
)
