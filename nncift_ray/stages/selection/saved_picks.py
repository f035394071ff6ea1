"""What a selection has picked so far, kept in its stage's folder: a rerun goes on from there.

One small Arrow file, written whole or not at all now and then, and swept away when the stage is
finished. It also is what the driver reads to tell how far the selection is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from nncift_ray.core.selection.search import Progress, Rule
from nncift_ray.errors import StorageError
from nncift_ray.stages.driving.shard_runner import ATTEMPTS_FOLDER
from nncift_ray.storage.filesystem import Location

PICKS_NAME = "picks.arrow"
SAVE_SECONDS = 5.0

PICKS = pa.schema(
    [
        pa.field("rule", pa.string(), nullable=False),  # what was ranked by: see core's Progress
        pa.field("limit", pa.int64(), nullable=False),  # most picks there may be
        pa.field("value", pa.float64(), nullable=False),  # of the objective
        pa.field("gain", pa.float64(), nullable=False),  # of the last pick
        pa.field("order", pa.list_(pa.int64()), nullable=False),
    ]
)


class SavedPicks:
    """Saves progress, and gives back what an earlier attempt had saved."""

    def __init__(self, folder: Location, every_seconds: float = SAVE_SECONDS) -> None:
        """Keep the picks of a stage's folder."""
        self._location = folder / ATTEMPTS_FOLDER / PICKS_NAME
        self._every_seconds = every_seconds
        self._rows = {row["rule"]: row for row in read_picks(folder)}
        self._last = time.monotonic()

    def prefixes(self) -> dict[Rule, np.ndarray]:
        """Return what was picked by each rule, in order; nothing at first."""
        return {rule: np.asarray(row["order"], np.int64) for rule, row in self._rows.items()}

    def save(self, progress: Progress) -> None:
        """Keep how far a search is, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._last < self._every_seconds and progress.picked < progress.limit:
            return
        self._last = now
        self._rows[progress.rule] = {
            "rule": progress.rule,
            "limit": progress.limit,
            "value": progress.value,
            "gain": progress.gain,
            "order": progress.order.tolist(),
        }
        table = pa.Table.from_pylist(list(self._rows.values()), schema=PICKS)
        out = pa.BufferOutputStream()
        with pa.ipc.new_file(out, PICKS) as writer:
            writer.write_table(table)
        self._location.write_bytes(out.getvalue().to_pybytes())


def read_picks(folder: Location) -> list[dict[str, Any]]:
    """Read the saved picks of a stage's folder: rows of PICKS, one a rule; none at first.

    Raises:
        StorageError: If the file is damaged.
    """
    location = folder / ATTEMPTS_FOLDER / PICKS_NAME
    if not location.exists():
        return []
    try:
        with pa.ipc.open_file(location.read_bytes()) as reader:
            return reader.read_all().cast(PICKS).to_pylist()
    except (pa.ArrowInvalid, ValueError) as error:
        raise StorageError(
            f"{location}: saved picks cannot be read ({error}). Delete the file: the selection "
            "then starts again."
        ) from error


def describe_picks(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how far a selection is, in one line."""
    if not rows:
        return ""
    row = rows[-1]
    return (
        f"{len(row['order']):,} of at most {row['limit']:,} picks, value {row['value']:,.4g}, "
        f"last gain {row['gain']:,.3g}"
    )
