"""How fast the InfluenceNetwork trains from ids, beside the paper's form with its inputs laid out.

    python -m benchmarks.training              # about a minute; prints a table and writes the page
    python -m benchmarks.training --json       # the last line is one JSON object

Both train one network on one block of labels, the same weights and the same order of pairs. Ours
reads pairs as two ids and projects no example of a batch twice where it is large enough to pay
(from as many pairs as the block has rows on). The other lays out
[e_i ; 0 ; e_j] of every pair once, as the published code does, and sends batches of it through the
whole first layer. Seconds are processor time of one thread, the best of several rounds in turn.
Writes ``training_cpu.md`` and ``.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe_commit, describe_machine
from nncift_ray.network.network import InfluenceNetwork, PairData, TrainingConfig, train_network

ROWS = COLUMNS = 70  # a block of 4,900 labels
HIDDEN = 100
DIMS = (384, 1024)
BATCHES = (64, 1024)  # the paper's, and one that shares more
EPOCHS, ROUNDS = 2, 3
LOSS_TOLERANCE = 1e-3  # relative, of the mean loss of an epoch; float32


def main() -> None:
    """Measure, print and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    table = [measure(dim, batch) for dim in DIMS for batch in BATCHES]
    figures: dict[str, Any] = {
        "commit": describe_commit(),
        "machine": describe_machine(),
        "pairs": ROWS * COLUMNS,
        "table": table,
        "seconds": round(time.perf_counter() - started, 1),
    }
    for row in table:
        figures[f"vs_concatenated_d{row['dim']}_batch{row['batch']}"] = row["speed_up"]
    folder = Path(__file__).parent
    (folder / "training_cpu.md").write_text(to_markdown(figures))
    (folder / "training_cpu.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(to_markdown(figures))
    if options.json:
        print(json.dumps(figures))


def measure(dim: int, batch: int) -> dict[str, Any]:
    """Train both ways and compare seconds and losses."""
    helped_ID, helper_JD, pairs = draw(dim)
    config = TrainingConfig(num_epochs=EPOCHS, batch_size=batch)
    none = PairData(pairs.helped_pos[:0], pairs.helper_pos[:0], pairs.utility[:0])
    laid_out = lay_out(helped_ID, helper_JD, pairs)
    ours: list[float] = []
    theirs: list[float] = []
    losses: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        network = InfluenceNetwork(dim, HIDDEN, seed=0)
        started = time.process_time()
        history = train_network(network, helped_ID, helper_JD, pairs, none, config)
        ours.append(time.process_time() - started)
        losses[0] = [record.train_loss for record in history]
        network = InfluenceNetwork(dim, HIDDEN, seed=0)
        started = time.process_time()
        losses[1] = train_concatenated(network, *laid_out, config)
        theirs.append(time.process_time() - started)
    difference = float(np.max(np.abs(np.subtract(*losses) / losses[1])))
    if difference > LOSS_TOLERANCE:
        raise SystemExit(f"losses differ by {difference:.1e}: {losses}")
    seen = EPOCHS * len(pairs) / 1000
    return {
        "dim": dim,
        "batch": batch,
        "kpairs_per_second": round(seen / min(ours), 1),
        "concatenated_kpairs_per_second": round(seen / min(theirs), 1),
        "speed_up": round(min(theirs) / min(ours), 2),
        "input_megabytes": round((helped_ID.nbytes + helper_JD.nbytes) / 1e6, 2),
        "concatenated_input_megabytes": round(laid_out[0].nbytes / 1e6, 2),
        "relative_loss_difference": float(f"{difference:.1e}"),
    }


def draw(dim: int) -> tuple[np.ndarray, np.ndarray, PairData]:
    """Draw unit vectors and the labels of a whole block, standardised."""
    rng = np.random.default_rng(0)
    helped_ID, helper_JD = (rng.standard_normal((n, dim), np.float32) for n in (ROWS, COLUMNS))
    for e in (helped_ID, helper_JD):
        e /= np.linalg.norm(e, axis=1, keepdims=True)
    rows, columns = np.repeat(np.arange(ROWS), COLUMNS), np.tile(np.arange(COLUMNS), ROWS)
    utility = (helped_ID @ helper_JD.T).ravel() + 0.02 * rng.standard_normal(len(rows))
    utility = (utility - utility.mean()) / utility.std()
    return helped_ID, helper_JD, PairData(rows, columns, utility.astype(np.float32))


def lay_out(
    helped_ID: np.ndarray, helper_JD: np.ndarray, pairs: PairData
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [e_i ; 0 ; e_j] of every pair, and its label."""
    zero_P1 = np.zeros((len(pairs), 1), np.float32)
    parts = [helped_ID[pairs.helped_pos], zero_P1, helper_JD[pairs.helper_pos]]
    return torch.from_numpy(np.hstack(parts)), torch.from_numpy(pairs.utility)


def train_concatenated(
    network: InfluenceNetwork,
    input_PX: torch.Tensor,
    label_P: torch.Tensor,
    config: TrainingConfig,
) -> list[float]:
    """Train on inputs laid out, in the order that `train_network` takes; return epoch losses."""
    optimiser = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    generator = torch.Generator().manual_seed(config.seed)
    losses: list[float] = []
    for _ in range(config.num_epochs):
        total = 0.0
        for batch in torch.randperm(len(label_P), generator=generator).split(config.batch_size):
            predicted_B = network.output(torch.relu(network.hidden(input_PX[batch]))).squeeze(1)
            loss = (predicted_B - label_P[batch]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(batch)
        losses.append(total / len(label_P))
    return losses


def to_markdown(figures: dict[str, Any]) -> str:
    """Write the page."""
    rows = figures["table"]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(map(str, r.values())) for r in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        "# training_cpu\n\n"
        f"`python -m benchmarks.training --json`. Machine: {figures['machine']}, one thread. "
        f"Commit {figures['commit']}. {figures['pairs']:,} labels of a square block, {HIDDEN} "
        "hidden units; thousands of pairs a second of processor time, training from ids against "
        f"inputs laid out. {figures['seconds']} s in all.\n\n{table}\n"
    )


if __name__ == "__main__":
    main()
