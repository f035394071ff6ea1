"""Figures of runs and evaluations in a tracker: MLflow, Weights & Biases or TensorBoard.

Which server and project is the tracker's own to know, by its environment variables.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nncift_ray.errors import ConfigError
from nncift_ray.recipe.sections import Recipe
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.progress import Reporter

if TYPE_CHECKING:
    from nncift_ray.report.data import ReportData

PROJECT = "nncift"
TRACKED_NAME = "tracked.json"

Figures = Mapping[str, float]


def check_tracker(recipe: Recipe) -> None:
    """Look for the tracker's package.

    Raises:
        ConfigError: If it is not installed, with what to install.
    """
    name = recipe.report.tracking
    if name is not None and importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"report.tracking: {name} is not installed: pip install 'nncift_ray[{name}]'"
        )


def run_figures(data: ReportData) -> dict[str, float]:
    """Return the figures of a run, those of fidelity among them, by names with slashes."""
    from nncift_ray.report import data as figures  # with compiled kernels

    found: dict[str, float | None] = {
        "candidates": data.num_candidates,
        "picks": figures.num_picks(data),
        "labelled": data.num_labelled_pairs,
        "objective": figures.final_objective(data),
        "objective_of_random": data.random_objective,
        "coverage": figures.mean_coverage(data),
        "seconds": figures.total_seconds(data),
        "usd": figures.total_cost(data) or None,  # 0 without prices
        **{f"seconds/{stage.name}": stage.seconds for stage in data.stages},
    }
    if (fidelity := figures.headline_fidelity(data)) is not None:
        found |= {
            "interaction_correlation": fidelity.beyond,
            "interaction_correlation_of_cosine": fidelity.cosine,
            "spearman": fidelity.spearman,
        }
    return _known(found)


def evaluation_figures(summary: Any) -> dict[str, float]:
    """Return the means of an evaluation's summary (SUMMARY), and what is above random."""
    found: dict[str, float | None] = {}
    for row in summary.to_pylist():
        keys = ("test", "mode", "metric", "method", "budget")
        name = "/".join(str(row[key]) for key in keys if row[key] is not None)
        found |= {name: row["mean"], f"{name}/above_random": row["difference"]}
    return _known(found)


def track(recipe: Recipe, found: Figures, folder: Location, reporter: Reporter) -> None:
    """Log figures to the recipe's tracker, once; a tracker that fails costs a notice, no run.

    Args:
        recipe: Its ``report.tracking`` names the tracker; all keys that it sets are logged.
        found: The figures.
        folder: Of the run or the evaluation, where it is noted what was logged.
        reporter: Hears of a failure.
    """
    name, note = recipe.report.tracking, folder / TRACKED_NAME
    content = json.dumps([name, found], sort_keys=True).encode()
    if name is None or (note.exists() and note.read_bytes() == content):
        return
    try:
        _LOG[name](folder, recipe.model_dump(mode="json", exclude_unset=True), found)
    except Exception as error:  # noqa: BLE001  (any of a foreign client and its network)
        reporter.notice(f"report.tracking: {name} took no figures ({error})")
    else:
        note.write_bytes(content)


def _known(found: Mapping[str, float | None]) -> dict[str, float]:
    return {
        re.sub(r"[^\w./ -]", "_", name): float(value)  # MLflow takes no others
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the keys of a recipe by their paths."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        found |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return found


def _log_to_mlflow(folder: Location, recipe: Mapping[str, Any], found: Figures) -> None:
    import mlflow  # pyright: ignore[reportMissingImports]

    with mlflow.start_run(run_name=folder.name):
        mlflow.log_params({key: str(value)[:500] for key, value in _flat(recipe).items()})
        mlflow.log_metrics(dict(found))
        mlflow.set_tag("nncift_folder", str(folder))


def _log_to_wandb(folder: Location, recipe: Mapping[str, Any], found: Figures) -> None:
    import wandb  # pyright: ignore[reportMissingImports]

    config = {**_flat(recipe), "nncift_folder": str(folder)}
    with wandb.init(project=PROJECT, name=folder.name, config=config) as run:
        run.log(dict(found))


def _log_to_tensorboard(folder: Location, recipe: Mapping[str, Any], found: Figures) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        writer.add_text("recipe", f"```\n{json.dumps(recipe, indent=1)}\n```")
        for name, value in found.items():
            writer.add_scalar(name, value)


_LOG: Mapping[str, Callable[[Location, Mapping[str, Any], Figures], None]] = {
    "mlflow": _log_to_mlflow,
    "wandb": _log_to_wandb,
    "tensorboard": _log_to_tensorboard,
}
