"""The public functions: data in, a run out; the command line calls these."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nncift_ray import runs
from nncift_ray.corpus.export import SUBSET_PARQUET
from nncift_ray.corpus.ingest import expand_sources
from nncift_ray.errors import ConfigError, DataError, StorageError
from nncift_ray.pipeline import EXPORT_FOLDER, REPORT_NAME, RunResult, run
from nncift_ray.plan import make_plan
from nncift_ray.recipe.loading import apply_override, make_config, read_recipe
from nncift_ray.recipe.sections import REGISTERED_TEACHERS, Recipe
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.progress import Reporter
from nncift_ray.terminal import progress

if TYPE_CHECKING:
    import datasets

    from nncift_ray.evaluation.run import EvaluationResult
    from nncift_ray.explain import Explanation, QueryAnswer
    from nncift_ray.report.data import ReportData

DATA_FOLDER = "data"
BATCH_ROWS = 1000
DIGEST_CHARS = 8


@dataclass(frozen=True)
class Report:
    """The page of a run: one file that needs nothing else."""

    path: str

    def open(self) -> None:
        """Show it in a browser."""
        webbrowser.open(self.path if "://" in self.path else Path(self.path).resolve().as_uri())


class Run(runs.Run):
    """A run and what can be asked of it."""

    @cached_property
    def subset(self) -> datasets.Dataset:
        """The picks as a ``datasets.Dataset``, best first: the records as they came, plus columns.

        ``rank`` from 1, ``gain`` (what the pick added to the objective) and ``source``
        ("file:line"); a column of that name in the records makes ours "nncift_rank" and so on.

        Raises:
            StageError: If nothing is selected yet.
        """
        import datasets  # takes a second
        from datasets.table import InMemoryTable

        picks = self.table("export/subset").select(["rank", "gain", "source", "line", "record"])
        whole = self._typed_records(picks)
        if whole is None:
            records = [json.loads(str(text)) for text in picks["record"].to_pylist()]
            names = dict.fromkeys(name for record in records for name in record)
            rows = [{name: record.get(name) for name in names} for record in records]
            try:
                whole = datasets.Dataset.from_list(rows)
            except pa.ArrowException:  # a field of several types
                whole = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
        else:
            whole = datasets.Dataset(InMemoryTable(whole))
        places = zip(picks["source"].to_pylist(), picks["line"].to_pylist(), strict=True)
        columns = {
            "rank": picks["rank"].to_pylist(),
            "gain": picks["gain"].to_pylist(),
            "source": [f"{source}:{line}" for source, line in places],
        }
        taken = set(whole.column_names)
        for name, values in columns.items():
            whole = whole.add_column(f"nncift_{name}" if name in taken else name, values)
        return whole

    def _typed_records(self, picks: pa.Table) -> pa.Table | None:
        """Return the records with their types, of data that was given in memory as a table."""
        own, (given, *more) = f"{self.run_dir / DATA_FOLDER}/", self.config.data.candidates
        if more or not (given.startswith(own) and given.endswith(".parquet")):
            return None
        (source,) = expand_sources([given])
        with source.fs.open_input_file(source.path) as file:
            return pq.read_table(file).take(pc.subtract(picks["line"], 1))

    def table(self, name: str) -> pa.Table:
        """Return a table that a step wrote, e.g. "ranking", "labels" or "deduplicate/candidates".

        Raises:
            DataError: If there is none of that name, or several; the message lists them.
        """
        if name == "export/subset":
            self.need("export")
            data = self.outputs["export"].read_file(SUBSET_PARQUET)
            return pq.read_table(pa.BufferReader(data))
        step, table = self._find_table(name)
        return self.outputs[step].read(table)

    def _find_table(self, name: str) -> tuple[str, str]:
        """Return the step and the table of a name."""
        step = name.rpartition("/")[0]
        known = {
            f"{of}/{part.name.split('/')[0]}"
            for of, output in self.outputs.items()
            for shard in output.manifest.shards
            for part in shard.parts
            if part.name.endswith(".parquet")
        }
        found = [each for each in known if each == name or (not step and each.endswith(f"/{name}"))]
        if len(found) != 1:
            listed = ", ".join(sorted(found or {*known, "export/subset"}))
            raise DataError(f"'{name}' names {len(found)} tables of this run; name one of {listed}")
        step, _, table = found[0].partition("/")
        return step, table

    def to_ray(self, name: str | None = None) -> Any:
        """Return the picks, or a table by its name, as a ``ray.data.Dataset``.

        A table is read by Ray's workers, from where it lies, and never whole in this process.

        Raises:
            DataError: If there is no such table; see ``table``.
        """
        import ray.data

        if name is not None:
            step, table = self._find_table(name)
            parts = [part for part, _ in self.outputs[step].table_parts(table)]
            return ray.data.read_parquet([part.path for part in parts], filesystem=parts[0].fs)
        return ray.data.from_arrow(self.subset.data.table.combine_chunks())

    def explain(self, example_id: str, top: int = 5) -> Explanation:
        """Return why an example was picked or not; see ``nncift explain``."""
        from nncift_ray.explain import explain  # with compiled kernels, as below

        return explain(self, example_id, top)

    def query(self, example_id: str, top: int = 10) -> QueryAnswer:
        """Return what helps an example most and what it helps most; see ``nncift query``."""
        from nncift_ray.explain import query

        return query(self, example_id, top)

    @property
    def report(self) -> Report:
        """The run's page.

        Raises:
            StorageError: If the run has none yet.
        """
        page = self.run_dir / REPORT_NAME
        if not page.exists():
            raise StorageError(f"{page}: the run has no report yet; it is written behind export")
        return Report(str(page))

    @property
    def path(self) -> str:
        """The exported subset, JSON Lines."""
        return str(self.run_dir / EXPORT_FOLDER / "subset.jsonl")

    def __repr__(self) -> str:
        """Name the directory and how many were picked."""
        picked, pool = len(self.subset_ranks), "?"
        if "deduplicate" in self.outputs:
            pool = f"{self.outputs['deduplicate'].num_rows('candidates'):,}"
        return f"Run({str(self.run_dir)!r}: {picked:,} of {pool} candidates picked)"


def select(
    data: Any = None,
    *,
    budget: float | int | Mapping[str, Any] | None = None,
    targets: Any = None,
    existing: Any = None,
    teacher: str | type | Mapping[str, Any] | None = None,
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    run_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    until: str = "export",
    **sections: Any,
) -> Run:
    """Return a finished run over some data; finished work is never done again.

    Args:
        data: What to choose from: a ``datasets`` Dataset or IterableDataset, a table (pandas,
            Polars, Arrow), a ``ray.data.Dataset``, a list of records, or paths (files, globs,
            folders, ``hf:`` names). None: what the recipe names.
        budget: A share below 1, a number of picks, or ``{"tokens": "5M"}``; the recipe's (0.1)
            when None.
        targets: What the model should be good at, as ``data``; the candidates when None.
        existing: What the model has been trained on already, as ``data``.
        teacher: "cosine" (the default: sentence embeddings, no language model), "delift" (asks a
            language model), "less", "selectit", a class of your own, or the whole section.
        recipe: A recipe or its file, which all else overrides.
        run_dir: Where the run lives; the same data resume there. By default ``runs/`` and the name
            of the file, or of the data's content.
        overrides: ``key.path=value`` lines, as of ``nncift --set``.
        until: The last step to run.
        sections: Sections of the recipe: ``cluster="local"``, ``network={"kind": "paper"}``.

    Raises:
        NnciftError: With what is wrong and the remedy; what is finished is kept.
    """
    made = make_recipe(
        data,
        budget=budget,
        targets=targets,
        existing=existing,
        teacher=teacher,
        recipe=recipe,
        run_dir=run_dir,
        overrides=overrides,
        **sections,
    )
    run_recipe(made, until=until)
    return Run.open(made.run_dir)


def run_recipe(recipe: Recipe, *, until: str = "export") -> RunResult:
    """Run a recipe, tell its progress, and return what it left behind; errors are ``select``'s."""
    # Our own lines tell of progress, in workers too; who has imported the hub's client has read it.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "huggingface_hub" in sys.modules:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    check_tracker(recipe)
    with progress() as reporter:
        with contextlib.suppress(DataError):  # the run reads all rows and says it better
            plan = make_plan(recipe, glance=True)
            reporter.expect({stage.name: stage.seconds for stage in plan.stages})
        result = run(recipe, reporter=reporter, until=until)
        if result.report_data is not None and recipe.report.tracking:
            track(recipe, run_figures(result.report_data), result.run_dir, reporter)
        return result


def make_recipe(
    data: Any = None,
    *,
    budget: float | int | Mapping[str, Any] | None = None,
    targets: Any = None,
    existing: Any = None,
    teacher: str | type | Mapping[str, Any] | None = None,
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    run_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    **sections: Any,
) -> Recipe:
    """Return the recipe that ``select`` runs; data of this process are written to its directory."""
    tree, origin = _tree_of(recipe)
    for name, section in sections.items():
        tree[name] = _merged(tree.get(name), section)
    if teacher is not None:
        if isinstance(teacher, type):
            teacher = f"{teacher.__module__}:{teacher.__qualname__}"
        own = {"kind": teacher} if isinstance(teacher, str) else teacher
        tree["teacher"] = _merged(tree.get("teacher"), own)
    if budget is not None:
        tree["selection"] = _merged(tree.get("selection"), {"budget": budget})
    for override in overrides:
        apply_override(tree, override)
    if run_dir is not None:
        tree["run_dir"] = str(run_dir)
    for role, given in (("candidates", data), ("targets", targets), ("existing", existing)):
        if given is not None:
            files = _paths_of(given, role, tree)
            tree["data"] = _merged(tree.get("data"), {role: files})
    return make_config(tree, origin)


def _tree_of(recipe: Recipe | Mapping[str, Any] | str | Path | None) -> tuple[dict[str, Any], str]:
    if isinstance(recipe, str | Path):
        return read_recipe(recipe), str(recipe)
    if isinstance(recipe, Recipe):
        tree = recipe.model_dump(mode="json", exclude_unset=True)
        if not recipe.data.candidates:  # its run_dir was named before there were any
            tree.pop("run_dir", None)
        return tree, "recipe"
    return dict(recipe or {}), "recipe"


def _merged(base: Any, more: Any) -> Any:
    """Return a section with another's keys over it, section by section."""
    if hasattr(more, "model_dump"):
        more = more.model_dump(mode="json", exclude_unset=True)
    if not isinstance(more, Mapping) or not isinstance(base, Mapping):
        return more
    return {**base, **{key: _merged(base.get(key), value) for key, value in more.items()}}


def _paths_of(given: Any, role: str, tree: dict[str, Any]) -> list[str]:
    """Return the files of some data, written below the run directory where they are in memory."""
    if isinstance(given, str | Path):
        return [str(given)]
    if isinstance(given, list | tuple) and given and isinstance(given[0], str | Path):
        return [str(path) for path in given]
    with tempfile.TemporaryDirectory(prefix="nncift-") as folder:
        file = _write(given, Path(folder))
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()[:DIGEST_CHARS]
        tree["run_dir"] = tree.get("run_dir") or f"runs/data-{digest}"
        home = Location.of(tree["run_dir"]) / DATA_FOLDER / f"{role}-{digest}{file.suffix}"
        if not home.exists():
            with file.open("rb") as stream, home.open_whole() as copy:
                shutil.copyfileobj(stream, copy)
    return [str(home)]


def _write(given: Any, folder: Path) -> Path:
    """Write data of this process to a file: Parquet where they have types, else JSON Lines."""
    schema, batches = _batches_of(given)
    if schema is None:
        file = folder / "rows.jsonl"
        with file.open("w", encoding="utf-8") as out:
            for row in batches:
                out.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        return file
    file = folder / "rows.parquet"
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(batch.cast(schema))
    return file


def _batches_of(given: Any) -> tuple[pa.Schema | None, Iterable[Any]]:
    """Return (schema, tables) of typed data, or (None, records).

    Raises:
        DataError: If it is nothing that holds records.
    """
    library, kind = type(given).__module__.partition(".")[0], type(given).__name__
    if library == "datasets" and kind == "Dataset":
        arrow = given.with_format("arrow")
        return given.features.arrow_schema, arrow.iter(batch_size=BATCH_ROWS)
    if library == "pandas" and kind == "DataFrame":
        given = pa.Table.from_pandas(given, preserve_index=False)
    if library == "ray" and hasattr(given, "iter_batches"):
        tables = given.iter_batches(batch_format="pyarrow", batch_size=BATCH_ROWS)
        first = next(iter(tables), None)
        return (None, ()) if first is None else (first.schema, itertools.chain((first,), tables))
    if hasattr(given, "__arrow_c_stream__") and kind != "IterableDataset":
        table = pa.table(given)
        return table.schema, [table]
    if kind in ("DatasetDict", "IterableDatasetDict"):
        names = ", ".join(given)
        raise DataError(
            f"a {kind} has several splits ({names}): give one, data['{next(iter(given))}']"
        )
    if isinstance(given, Iterable) and not isinstance(given, Mapping | bytes):
        return None, _records(cast("Iterable[object]", given))
    raise DataError(
        f"{kind} is no data to choose from: give a Dataset, a table, a list of records, or paths"
    )


def _records(rows: Iterable[object]) -> Iterator[Mapping[str, Any]]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DataError(f"row {number} of the data is a {type(row).__name__}, no record")
        yield row


def evaluate(
    recipe: Recipe | Mapping[str, Any] | str | Path | Run,
    *,
    tests: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    **keys: Any,
) -> EvaluationResult:
    """Return how well subsets of several methods teach; see ``nncift evaluate``.

    Args:
        recipe: A recipe, its file, or a run whose recipe it is.
        tests: Held-out rows by a name of your own, as ``data`` of ``select``.
        overrides: ``key.path=value`` lines, as of ``nncift --set``.
        keys: Of the section ``evaluation``: ``methods=["random", "nn_cift+delift"]``, ...

    Raises:
        NnciftError: With what is wrong and the remedy; what is finished is kept.
    """
    tree, origin = _tree_of(recipe.config if isinstance(recipe, Run) else recipe)
    tree["evaluation"] = _merged(tree.get("evaluation"), keys)
    for name, given in (tests or {}).items():
        files = {name: _paths_of(given, f"test-{name}", tree)}
        tree["evaluation"] = _merged(tree["evaluation"], {"tests": files})
    for override in overrides:
        apply_override(tree, override)
    from nncift_ray.evaluation.run import evaluate as run_evaluation

    made = make_config(tree, origin)
    check_tracker(made)
    with progress() as reporter:
        result = run_evaluation(made, reporter=reporter)
        if made.report.tracking:
            track(made, evaluation_figures(result.data.summary), result.folder, reporter)
        return result


def register_teacher(name: str, teacher: type) -> None:
    """Let recipes name a teacher of your own: ``teacher: {kind: name}``.

    The class has the members of ``nncift_ray.teachers.Teacher`` and can be imported by its module.

    Raises:
        ConfigError: If it lacks members, or the name is a built-in one's.
    """
    from nncift_ray.recipe.sections import BUILT_IN_TEACHERS
    from nncift_ray.teachers.base import load_teacher_class

    if name in BUILT_IN_TEACHERS or not name.isidentifier():
        raise ConfigError(f"'{name}' cannot name a teacher of your own: give another word")
    path = f"{teacher.__module__}:{teacher.__qualname__}"
    load_teacher_class(path)
    REGISTERED_TEACHERS[name] = path


# Figures of runs and evaluations in a tracker. Which server and project is its own to know, by its
# environment variables.

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
    found: dict[str, float | None] = {
        "candidates": data.num_candidates,
        "picks": data.num_picks,
        "labelled": data.num_labelled_pairs,
        "objective": data.final_objective,
        "objective_of_random": data.random_objective,
        "coverage": data.mean_coverage,
        "seconds": data.total_seconds,
        "usd": data.total_cost or None,  # 0 without prices
        **{f"seconds/{stage.name}": stage.seconds for stage in data.stages},
    }
    if (fidelity := data.headline_fidelity) is not None:
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
