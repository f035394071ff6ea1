"""What data that the model already has do for the rows of a block: kept as one number or two a row.

A conditional gain asks how well a row is served without any pick. Of the pairs row x existing
nothing else is kept: no list, whatever their number. The scores count in the run's one scale.
Suffixes: I rows, P existing examples, H hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.core.pairs.column_sums import sum_columns
from nncift_ray.core.pairs.pair_scores import TopK, top_k_rows
from nncift_ray.errors import StageError
from nncift_ray.stages.driving.atoms import RowSpan
from nncift_ray.stages.pairs.pair_scorers import ColumnTiles, write_statistics
from nncift_ray.storage import schemas
from nncift_ray.storage.arrays import column_matrix
from nncift_ray.storage.output import Sink
from nncift_ray.storage.schemas import EXISTING


@dataclass(frozen=True)
class ExistingScorer:
    """Writes ``<block>_existing_influence``: the largest and the summed influence on each row."""

    network: FactoredNetwork
    existing: ColumnTiles

    def __call__(self, span: RowSpan, rows: pa.Table, sink: Sink) -> None:
        """Score some rows against all existing examples.

        Raises:
            StageError: If the scores are too large to be added exactly.
        """
        activation_IH = column_matrix(rows["activation"])
        sum_I = np.zeros(len(activation_IH), np.int64)
        top: TopK | None = None
        for offset, tile_PH in self.existing:
            top = top_k_rows(
                activation_IH,
                tile_PH,
                self.network.w_H,
                self.network.bias,
                1,
                column_offset=offset,
                state=None if top is None else top.state,
            )
            sum_I += self._sums(activation_IH, tile_PH, span)
        if top is None:
            return
        sink.write(
            f"{span.name}_existing_influence",
            pa.Table.from_pydict(
                {
                    "row_index": rows["row_index"],
                    "max_influence": pa.array(top.score_IK[:, 0], pa.float32()),
                    "sum": pa.array(sum_I, pa.int64()),
                },
                schema=schemas.EXISTING_INFLUENCE,
            ),
        )
        write_statistics(sink, EXISTING, top.statistics.total())

    def _sums(self, activation_IH: np.ndarray, tile_PH: np.ndarray, span: RowSpan) -> np.ndarray:
        """Return sum_p s_ip [I] as whole numbers of 2**-32.

        The score w . relu(a_i + b_p) + c does not change when the two sides are exchanged, so the
        sums of columns serve: rows as columns, existing examples as the rows that are added up.
        """
        one_group = np.zeros(len(tile_PH), np.int64)
        try:
            sums = sum_columns(
                tile_PH, activation_IH, self.network.w_H, self.network.bias, one_group, 1
            )
        except ValueError as error:
            raise StageError(f"existing data of block '{span.name}': {error}") from error
        return sums.sum_GJ[0]
