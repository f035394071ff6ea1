"""What networks know of pairs of unseen examples, beside simple rivals.

    python -m benchmarks.influence.labels FOLDER --corpus mixed     # once, some forty minutes
    python -m benchmarks.influence FOLDER --out benchmarks/influence_cpu
    python -m benchmarks.influence FOLDER --labels t0_gsm8k mixed_less mixed:delift_se

DELIFT (SE) labels are cosines of the embeddings: ``NAME:delift_se`` takes them of a matrix's rows.
SelectIT rates examples, not pairs: of ``NAME:selectit`` unseen rows are measured, R2 and rank
correlation.

Every split draws the labelled rows and helpers; what is measured is Q4, where neither example of a
pair was labelled. Figures are means over splits with their standard error.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.machine import describe_machine
from benchmarks.pages import markdown_table
from nncift_ray.corpus.examples import Example, embedding_text, make_example_id
from nncift_ray.embedders import SentenceTransformerEmbedder
from nncift_ray.engines.models import (
    EMBEDDED_EMBEDDER,
    EMBEDDED_LANGUAGE_MODEL,
    find_embedded,
    resolve_embedder,
)
from nncift_ray.labels.sample import TRAIN, VALIDATION
from nncift_ray.network.factored import Inputs
from nncift_ray.network.fidelity import (
    PairFeatures,
    additive_ridge,
    capture,
    interaction_correlation,
)
from nncift_ray.network.pair import ridge_leaving_one_out
from nncift_ray.network.step import BlockLabels, fit_block, score_labelled
from nncift_ray.profiles.blocks import FEATURE_BLOCKS, SCALARS
from nncift_ray.recipe.sections import EngineConfig, NetworkConfig
from nncift_ray.runtime.schemas import POINTS

SHARES = (0.15, 0.3, 0.6)  # of the rows and of the helpers of a matrix that are labelled
MAIN_SHARE = 0.6
BEST = {"eighth": 1 / 8, "hundredth": 1 / 100}
MEASURES = ("interaction correlation", "capture, best eighth", "capture, best 1 %")
RIDGE = "additive ridge, same inputs"
VALIDATION_SHARE = 0.1
#: The paper's network makes as many steps as its own samples allow; here a matrix is small.
PAPER = NetworkConfig(kind="paper", min_steps=4_000)


@dataclass(frozen=True)
class Matrix:
    """Labels of every pair of helped and helper, and what networks may read of the examples."""

    label_IJ: np.ndarray
    raw_ND: np.ndarray  # inputs of the pair network; helpers first
    widths: tuple[int, ...]

    @property
    def num_helpers(self) -> int:
        """Helpers J."""
        return self.label_IJ.shape[1]


def read_matrix(folder: Path, by: str = "") -> Matrix:
    """Read a matrix of labels and profile its examples; profiles are kept beside it.

    ``by`` delift_se: its labels are the cosines of the embeddings instead.
    """
    columns = [np.load(path) for path in sorted(folder.glob("helper-*.npy"))]
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    kept = folder / "inputs.npz"
    if not kept.exists():
        np.savez(kept, **profile(rows))
    found = dict(np.load(kept))
    embedding = found["embedding"]
    features = [found[block.name] for block in FEATURE_BLOCKS]
    scalars = [
        np.log1p(found[name]) if name.startswith("num_") else found[name] for name in SCALARS
    ]
    raw_ND = np.concatenate([embedding, *features, np.stack(scalars, 1)], axis=1)
    num_helpers = len(rows) - len(columns[0])
    raw_ND = np.concatenate([raw_ND[: len(columns)], raw_ND[num_helpers:]])
    widths = (embedding.shape[1], *(feature.shape[1] for feature in features))
    label_IJ, unit_ND = np.stack(columns, axis=1), raw_ND[:, : widths[0]]
    if by:
        label_IJ = unit_ND[len(columns) :] @ unit_ND[: len(columns)].T
    return Matrix(label_IJ, raw_ND.astype(np.float32), widths)


def profile(rows: Sequence[Mapping[str, str]]) -> dict[str, np.ndarray]:
    """Return embeddings and profiles of some rows, by name."""
    from nncift_ray.profiles.reader import ProfilingEngine, profile_examples

    path, _ = find_embedded(EMBEDDED_LANGUAGE_MODEL, "language model")
    engine = ProfilingEngine(path, EngineConfig(dtype="float32", template="paper"), device="cpu")
    examples = [
        Example(make_example_id(r["prompt"], r["response"]), r["prompt"], r["response"])
        for r in rows
    ]
    embedder = SentenceTransformerEmbedder(resolve_embedder(EMBEDDED_EMBEDDER).path)
    texts = [embedding_text(each.prompt, each.response) for each in examples]
    return {"embedding": embedder.embed(texts), **profile_examples(engine, examples)}


def splits(matrix: Matrix, share: float, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield masks of the labelled rows and helpers; the same order of examples for all shares."""
    num_rows, num_helpers = matrix.label_IJ.shape
    for seed in range(count):
        generator = np.random.default_rng(seed)
        order_I, order_J = generator.permutation(num_rows), generator.permutation(num_helpers)
        seen_I, seen_J = np.zeros(num_rows, np.bool_), np.zeros(num_helpers, np.bool_)
        seen_I[order_I[: round(share * num_rows)]] = True
        seen_J[order_J[: round(share * num_helpers)]] = True
        yield seen_I, seen_J


def block_labels(
    matrix: Matrix, seen_I: np.ndarray, seen_J: np.ndarray, *, cut: int
) -> BlockLabels:
    """Return the labelled block as a run hands it to the network; ``cut``: inputs that are read."""
    rows, columns = np.flatnonzero(seen_I), np.flatnonzero(seen_J)
    helped_pos, helper_pos = np.divmod(np.arange(len(rows) * len(columns)), len(columns))
    held_out = np.random.default_rng(0).random(len(helped_pos)) < VALIDATION_SHARE
    helped_ND = matrix.raw_ND[matrix.num_helpers :, :cut]
    return BlockLabels(
        helped_ED=helped_ND[rows],
        helper_ED=matrix.raw_ND[columns, :cut],
        sample_ND=matrix.raw_ND[:, :cut],
        widths=matrix.widths if cut > matrix.widths[0] else matrix.widths[:1],
        helped_pos=helped_pos,
        helper_pos=helper_pos,
        helped_index=matrix.num_helpers + rows[helped_pos],
        helper_index=columns[helper_pos],
        split=np.where(held_out, VALIDATION, TRAIN).astype(object),
        utility=matrix.label_IJ[np.ix_(rows, columns)].ravel().astype(np.float32),
    )


def predict(matrix: Matrix, data: BlockLabels, network: NetworkConfig) -> np.ndarray:
    """Return a network's scores of all pairs [I, J]."""
    cut = data.helped_ED.shape[1]
    made = fit_block(data, "cross", network).network
    num_rows, num_helpers = matrix.label_IJ.shape
    rows, columns = np.divmod(np.arange(num_rows * num_helpers), num_helpers)
    everything = BlockLabels(
        helped_ED=matrix.raw_ND[num_helpers:, :cut],
        helper_ED=matrix.raw_ND[:num_helpers, :cut],
        sample_ND=data.sample_ND,
        widths=data.widths,
        helped_pos=rows,
        helper_pos=columns,
        helped_index=rows,
        helper_index=columns,
        split=np.full(len(rows), "Q4", object),
        utility=matrix.label_IJ.ravel(),
    )
    return score_labelled(made, everything).reshape(num_rows, num_helpers)


def rivals(
    matrix: Matrix, data: BlockLabels, seen: tuple[np.ndarray, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the scores [I, J] of an additive ridge on the same inputs, and of cosines."""
    x_ND = Inputs.fit(matrix.raw_ND, matrix.widths).prepare(matrix.raw_ND)
    helper_JD, helped_ID = x_ND[: matrix.num_helpers], x_ND[matrix.num_helpers :]
    num_rows, num_helpers = matrix.label_IJ.shape
    rows, columns = np.divmod(np.arange(num_rows * num_helpers), num_helpers)
    features = PairFeatures(helped_ID, rows, helper_JD, columns)
    fitted = (seen[0][:, None] & seen[1]).ravel()
    ridge = additive_ridge(matrix.label_IJ.ravel(), features, fitted, 0)
    found = {RIDGE: ridge.reshape(num_rows, num_helpers)}
    starts = np.cumsum((0, *matrix.widths))
    names = ("embedding", *(block.name for block in FEATURE_BLOCKS))
    for name, start, width in zip(names, starts, matrix.widths, strict=False):
        block = slice(int(start), int(start) + width)
        found[f"cosine of {name}, untrained"] = helped_ID[:, block] @ helper_JD[:, block].T
    return found


def measure(
    matrix: Matrix, share: float, count: int, *, with_paper: bool
) -> dict[str, list[list[float]]]:
    """Return the measures of every model in Q4, by split."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    for seen_I, seen_J in splits(matrix, share, count):
        data = block_labels(matrix, seen_I, seen_J, cut=matrix.raw_ND.shape[1])
        models = {"pair network": predict(matrix, data, NetworkConfig())}
        embedding = block_labels(matrix, seen_I, seen_J, cut=matrix.widths[0])
        models["pair network, embedding alone"] = predict(matrix, embedding, NetworkConfig())
        if with_paper:
            models["paper's network"] = predict(matrix, embedding, PAPER)
        models |= rivals(matrix, data, (seen_I, seen_J))
        at = np.ix_(~seen_I, ~seen_J)
        for name, score_IJ in models.items():
            pair = matrix.label_IJ[at], score_IJ[at]
            found[name].append(
                [interaction_correlation(*pair), *(capture(*pair, s) for s in BEST.values())]
            )
    return dict(found)


def measure_points(folder: Path, share: float, count: int) -> dict[str, list[list[float]]]:
    """Return R2 and rank correlation of every model of SelectIT's ratings on unseen rows, by split.

    The best scalar of a profile is the one that tells labelled ratings best, by a straight line.
    """
    label_N, inputs = np.load(folder / "selectit.npy"), dict(np.load(folder / "inputs.npz"))
    embedding_ND = inputs["embedding"].astype(np.float32)
    scalar_NS = np.stack([inputs[name] for name in SCALARS], axis=1)
    found: dict[str, list[list[float]]] = defaultdict(list)
    for seed in range(count):
        order = np.random.default_rng(seed).permutation(len(label_N))
        seen, unseen = np.split(order, [round(share * len(label_N))])
        weight_D, constant = ridge_leaving_one_out(embedding_ND[seen], label_N[seen])
        told = [abs(np.corrcoef(scalar_N[seen], label_N[seen])[0, 1]) for scalar_N in scalar_NS.T]
        scalar_N = scalar_NS[:, int(np.argmax(told))]
        line = np.polyfit(scalar_N[seen], label_N[seen], 1)
        models = {
            "paper's pointwise network": predict_points(embedding_ND, label_N, seen)[unseen],
            "ridge, same inputs": embedding_ND[unseen] @ weight_D + constant,
            "best single scalar of the profile": np.polyval(line, scalar_N[unseen]),
            "a constant": np.full(len(unseen), label_N[seen].mean()),
        }
        for name, score in models.items():
            error = np.square(label_N[unseen] - score).mean()
            rank = float(spearmanr(label_N[unseen], score).statistic) if np.ptp(score) else 0.0
            found[name].append([1 - error / label_N[unseen].var(), rank])
    return dict(found)


def predict_points(embedding_ND: np.ndarray, label_N: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return the ratings [N] by the pointwise network trained on some rows."""
    held_out = np.random.default_rng(0).random(len(seen)) < VALIDATION_SHARE
    data = BlockLabels(
        helped_ED=embedding_ND[seen],
        helper_ED=None,
        sample_ND=embedding_ND,
        widths=embedding_ND.shape[1:],
        helped_pos=np.arange(len(seen)),
        helper_pos=None,
        helped_index=seen,
        helper_index=None,
        split=np.where(held_out, VALIDATION, TRAIN).astype(object),
        utility=label_N[seen].astype(np.float32),
    )
    made = fit_block(data, POINTS, PAPER).network
    return made.score_points(made.project_rows(embedding_ND))


def main() -> None:
    """Measure and write page and figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/influence_cpu"))
    parser.add_argument("--splits", type=int, default=8)
    parser.add_argument("--labels", nargs="*", default=["mixed"])
    parser.add_argument("--no-paper", action="store_true", help="it takes nearly all the time")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    options = parser.parse_args()
    lines: list[list[Any]] = []
    for labels in options.labels:
        name, _, by = labels.partition(":")
        if by == "selectit":
            points = measure_points(options.folder / name, MAIN_SHARE, options.splits)
            lines += [[labels, f"{MAIN_SHARE:.0%}", m, *cells(v), ""] for m, v in points.items()]
            keep_points(options.out.with_suffix(".json"), labels, points)
            write_table(options.out, lines)
            continue
        matrix, started = read_matrix(options.folder / name, by), time.perf_counter()
        for share in options.shares:
            with_paper = share == MAIN_SHARE and not options.no_paper
            found = measure(matrix, share, options.splits, with_paper=with_paper)
            lines += [[labels, f"{share:.0%}", model, *cells(v)] for model, v in found.items()]
            if share == MAIN_SHARE:
                keep(options.out.with_suffix(".json"), labels, options.splits, found)
            write_table(options.out, lines)
        print(f"{labels}: {matrix.label_IJ.shape}, {time.perf_counter() - started:.0f} s")


def write_table(out: Path, lines: list[list[Any]]) -> None:
    """Write what is measured so far, for the page."""
    table = markdown_table(["labels", "labelled", "model", *MEASURES], lines)
    out.with_suffix(".table.md").write_text(table + "\n")


def keep_points(path: Path, labels: str, found: Mapping[str, list[list[float]]]) -> None:
    """Add R2 and rank correlation of every model to the file of figures."""
    figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    of_models = figures.setdefault("other_labels", {})[labels] = {}
    for model, values in found.items():
        (r2, spearman), (r2_se, spearman_se) = (each.tolist() for each in mean_and_error(values))
        of_models[model] = {
            "r2": r2, "r2_se": r2_se, "spearman": spearman, "spearman_se": spearman_se,
        }  # fmt: skip
    path.write_text(json.dumps(figures, indent=1) + "\n")


def cells(values: list[list[float]]) -> list[str]:
    """Return the measures of a model as a table shows them."""
    return [f"{m:.3f} ± {e:.3f}" for m, e in zip(*mean_and_error(values), strict=True)]


def mean_and_error(values: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the means over splits and their standard errors; NaN where nothing is defined.

    A correlation that one split leaves undefined is 0: its model says nothing of pairs there.
    """
    table = np.array(values)
    known = np.isfinite(table).any(axis=0)
    table = np.nan_to_num(table)
    means, errors = table.mean(axis=0), table.std(axis=0) / len(table) ** 0.5
    return np.where(known, means, np.nan), np.where(known, errors, np.nan)


def keep(path: Path, labels: str, splits: int, found: Mapping[str, list[list[float]]]) -> None:
    """Add the figures of some labels to the file of figures; those of ``mixed`` are its own."""
    figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    named_figures: dict[str, Any] = {}
    for model, values in found.items():
        named_figures |= named(model, *mean_and_error(values))
    one, other = (np.array(found[model]) for model in ("pair network", RIDGE))
    gap = (one - other)[:, 1]
    named_figures["capture_over_ridge"] = float(gap.mean())
    named_figures["capture_over_ridge_se"] = float(gap.std() / len(gap) ** 0.5)
    if labels == "mixed":
        figures |= named_figures
    else:
        figures.setdefault("other_labels", {})[labels] = named_figures
    figures |= {"machine": describe_machine(), "splits": splits}
    path.write_text(json.dumps(figures, indent=1) + "\n")


def named(model: str, means: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    """Return the figures that others read of one model."""
    prefixes = {
        "pair network": "",
        "paper's network": "paper_",
        RIDGE: "ridge_",
        "cosine of embedding, untrained": "cosine_",
    }
    if model not in prefixes:
        return {}
    prefix, found = prefixes[model], {}
    for n, name in enumerate(("interaction_correlation", "capture")):
        value = float(means[n])
        found[prefix + name] = value if np.isfinite(value) else 0.0
        found[f"{prefix}{name}_se"] = float(errors[n]) if np.isfinite(errors[n]) else 0.0
    return found


if __name__ == "__main__":
    main()
