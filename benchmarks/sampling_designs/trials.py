"""One trial: a design's pairs at a teacher's budget, a network trained on them, its error."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nncift_ray.labels.sample import LAYOUTS, TRAIN, VALIDATION, block_size, draw_pairs
from nncift_ray.network.fidelity import measure_within_rows, mse, r2, row_column_means, spearman
from nncift_ray.network.network import DeepInfluenceNetwork
from nncift_ray.network.step import BlockLabels, best_epoch, train_block
from nncift_ray.network.training import TrainingConfig
from nncift_ray.runtime.schemas import CROSS

#: The learning rate is ten times the paper's, the steps a tenth: a trial has to be quick.
TRAINING = TrainingConfig(learning_rate=1e-3)
MIN_STEPS = 2000
NUM_HIDDEN = 100
VALIDATION_SHARE = 0.1
FEWEST, FEW_MORE = 8, 1.05

Pairs = tuple[np.ndarray, np.ndarray]  # rows [P], columns [P]
Cost = Callable[[Pairs], float]


@dataclass(frozen=True)
class Table:
    """All labels that may be drawn, and the embeddings that a network reads."""

    name: str
    helped_ED: np.ndarray
    helper_ED: np.ndarray
    labels: Callable[[np.ndarray, np.ndarray], np.ndarray]
    cost: Cost  # of asking for some pairs, in the unit of budgets
    held_out: tuple[int, int]  # rows and columns of Q4

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.helped_ED), len(self.helper_ED)


@dataclass(frozen=True)
class Trial:
    """What to try."""

    table: str
    layout: str
    budget: float
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What came out, on the pairs of rows and columns that no design was offered (Q4)."""

    trial: Trial
    num_pairs: int
    num_rows: int
    num_columns: int
    cost: float
    mse: float
    mean_mse: float  # of row mean + column mean, fitted on the same pairs
    r2: float
    spearman: float
    centred_r2: float
    row_spearman: float
    top_overlap: float
    num_epochs: int


def draw(table: Table, trial: Trial) -> tuple[Pairs, Pairs]:
    """Return a design's pairs for a budget, and Q4: the same for all designs of a seed."""
    order = [np.random.default_rng([trial.seed, axis]).permutation(size)
             for axis, size in enumerate(table.size)]  # fmt: skip
    pools = [one[: len(one) - held] for one, held in zip(order, table.held_out, strict=True)]
    new = [one[len(one) - held :] for one, held in zip(order, table.held_out, strict=True)]
    layout = LAYOUTS[trial.layout]

    def drawn(num_pairs: int) -> Pairs:
        size = block_size(num_pairs, (len(pools[0]), len(pools[1])), False, layout, (0, 0))
        generator = np.random.default_rng([trial.seed, 2])
        return draw_pairs(pools[0][: size[0]], pools[1][: size[1]], False, num_pairs, layout,
                          generator)  # fmt: skip

    most = len(pools[0]) * len(pools[1])
    low = high = FEWEST
    while high < most and table.cost(drawn(high)) <= trial.budget:
        low, high = high, min(2 * high, most)
    while low < high:  # the most pairs that the budget pays for
        middle = (low + high + 1) // 2
        if table.cost(drawn(middle)) <= trial.budget:
            low = middle
        else:
            high = middle - 1
    # Costs are not quite monotone: a block of another shape may fit a few pairs more.
    more = range(low + 1, min(round(FEW_MORE * low), most) + 1)
    low = max([low, *(n for n in more if table.cost(drawn(n)) <= trial.budget)])
    return drawn(low), (np.repeat(new[0], len(new[1])), np.tile(new[1], len(new[0])))


def run(table: Table, trial: Trial) -> Outcome:
    """Draw, train as a run would, and measure."""
    (rows, columns), (new_rows, new_columns) = draw(table, trial)
    utility = table.labels(rows, columns)
    learnt = np.isfinite(utility)  # what the teacher failed at is no label
    rows, columns, utility = rows[learnt], columns[learnt], utility[learnt]
    split = np.full(len(rows), TRAIN, object)
    chosen = np.random.default_rng([trial.seed, 3]).permutation(len(rows))
    split[chosen[: round(VALIDATION_SHARE * len(rows))]] = VALIDATION
    data = BlockLabels(table.helped_ED, table.helper_ED, rows, columns, rows, columns, split,
                       utility)  # fmt: skip
    training = TrainingConfig(learning_rate=TRAINING.learning_rate, seed=trial.seed)
    make = functools.partial(DeepInfluenceNetwork, table.helped_ED.shape[1], NUM_HIDDEN, depth=1,
                             seed=trial.seed)  # fmt: skip
    network, history = train_block(data, CROSS, training, MIN_STEPS, make)
    assert isinstance(network, DeepInfluenceNetwork)  # noqa: S101
    truth = table.labels(new_rows, new_columns)
    measured = np.isfinite(truth)
    truth, new_rows, new_columns = truth[measured], new_rows[measured], new_columns[measured]
    predicted = network.predict(table.helped_ED, table.helper_ED, new_rows, new_columns)
    means = row_column_means(utility, rows, columns).predict(new_rows, new_columns)
    within = measure_within_rows(truth, predicted, new_rows)
    return Outcome(
        trial,
        len(rows),
        len(np.unique(rows)),
        len(np.unique(columns)),
        table.cost((rows, columns)),
        mse(truth, predicted),
        mse(truth, means),
        r2(truth, predicted) or 0.0,
        spearman(truth, predicted) or 0.0,
        within.centred_r2 or 0.0,
        within.row_spearman or 0.0,
        within.top_overlap or 0.0,
        best_epoch(history),
    )
