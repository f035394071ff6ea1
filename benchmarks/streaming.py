"""Stages that write what they make, beside one streaming plan of Ray Data with its checkpoints.

    python -m benchmarks.streaming --data FOLDER    # of t0_train.jsonl.gz; --rows 10000 --rounds 2

The same rows go the same way twice: read from JSON lines, embedded, scored against fixed columns by
a fixed network, the best 64 columns of each written. Once in three stages as this package runs
them, each of which writes its table before the next begins; once as one plan of Ray Data (read,
two actor pools, write), whose ``checkpoint_config`` notes the ids of written rows. Both use the
same functions, two actors of one thread that embed, 256 rows a batch and 512 a shard or file, on
the same cluster. Each is run undisturbed, and again with its driver killed once half of the rows
were embedded and the same command given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import torch

from benchmarks.chaos.cluster import spot_cluster
from benchmarks.machine import describe_commit, describe_machine
from benchmarks.pages import markdown_table
from nncift_ray.embedders import load_embedder
from nncift_ray.engines.models import EMBEDDED_EMBEDDER, resolve_embedder
from nncift_ray.recipe.sections import ClusterConfig
from nncift_ray.runtime.driver import run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput, vectors_to_arrow
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.ray_pool import execute_on_ray, ray_session
from nncift_ray.runtime.step import Resources, RowAtoms, RowStage, Shard, Worker
from nncift_ray.scores.exact import top_k_rows

BATCH_ROWS, SHARD_ROWS = 256, 512
NUM_COLUMNS, NUM_HIDDEN, WIDTH, K = 16_384, 100, 384, 64
NUM_ACTORS, CPUS = 2, 0.5  # so that all actors and readers fit the cluster
TEXT_LENGTH = 300  # characters of a row
KILLED_AT = 0.5  # of the rows, embedded
STAGES, PLAN = "stages", "one plan"
PAGE = Path(__file__).parent / "streaming_cpu"


class Embed:
    """Adds the vectors of texts; how many it made is told by files in a folder."""

    def __init__(self, tally: Path) -> None:
        """Load the model."""
        self._tally = tally
        torch.set_num_threads(1)
        self._embedder = load_embedder(resolve_embedder(EMBEDDED_EMBEDDER))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Embed a batch."""
        vectors_ND = self._embedder.embed(table["text"].to_pylist())
        (self._tally / f"{table.num_rows}.{time.time_ns()}").touch()
        return table.append_column("embedding", vectors_to_arrow(vectors_ND, "float32"))


class Score:
    """Adds the best columns of embedded rows, by a network whose weights a seed draws."""

    def __init__(self) -> None:
        """Draw network and columns."""
        draw = np.random.default_rng(0)
        self._row_DH = draw.normal(size=(WIDTH, NUM_HIDDEN)).astype(np.float32)
        self._b_JH = draw.normal(size=(NUM_COLUMNS, NUM_HIDDEN)).astype(np.float32)
        self._w_H = draw.normal(size=NUM_HIDDEN).astype(np.float32)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score a batch."""
        vectors = table["embedding"].combine_chunks()
        e_ID = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, WIDTH)
        best = top_k_rows(e_ID @ self._row_DH, self._b_JH, self._w_H, 0.0, K)
        lists = {"helper_index": best.index_IK, "influence": best.score_IK}
        for name, values_IK in lists.items():
            flat = pa.array(np.ascontiguousarray(values_IK).reshape(-1))
            table = table.append_column(name, pa.FixedSizeListArray.from_arrays(flat, K))
        return table


class TableStage(RowStage):
    """Writes one table, made of that of the stage before, or of files; a batch is an item."""

    consumed: ClassVar[tuple[str, ...]] = ("example_id", "embedding")

    def __init__(self, rows: int, before: StageOutput | None, tally: Path, files: Path) -> None:
        """Take the number of rows and where they come from."""
        self._rows, self._before, self._tally, self._files = rows, before, tally, files
        self._atoms, self._shard_rows = RowAtoms((("rows", rows),), BATCH_ROWS), SHARD_ROWS
        self.resources = Resources(CPUS, min_actors=NUM_ACTORS, max_actors=NUM_ACTORS)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """One table, of which ``check_schema`` takes any."""
        return {"rows": pa.schema([])}

    def check_schema(self, table: str, schema: pa.Schema) -> None:
        """Take any."""

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The stage before."""
        return {} if self._before is None else {"before": self._before}

    def settings(self) -> dict[str, Any]:
        """The rows."""
        return {"rows": self._rows}

    def make(self) -> Any:
        """Load what turns a batch of rows into another; inside an actor."""
        raise NotImplementedError

    def read(self, start: int, stop: int) -> pa.Table:
        """Return some rows of the stage before."""
        assert self._before is not None  # noqa: S101
        return self._before.read_range("rows", start, stop, self.consumed)

    def make_worker(self) -> Worker:
        """Load."""
        make = self.make()

        def work(shard: Shard, sink: Sink) -> None:
            for span in self._atoms.spans(shard.start, shard.stop):
                sink.write("rows", make(self.read(span.start, span.stop)))

        return work


class ReadStage(TableStage):
    """Reads the files, each of which is a shard."""

    name: ClassVar[str] = "read"

    def read(self, start: int, stop: int) -> pa.Table:
        """Return some rows of a file."""
        lines = (self._files / file_name(start // SHARD_ROWS)).read_text().splitlines()
        first = start % SHARD_ROWS
        return pa.Table.from_pylist([json.loads(line) for line in lines[first:][: stop - start]])

    def make(self) -> Any:
        """Nothing to load."""
        return lambda table: table


class EmbedStage(TableStage):
    """Embeds what was read."""

    name: ClassVar[str] = "embed"
    consumed = ("example_id", "text")

    def make(self) -> Any:
        """Load the model."""
        embed = Embed(self._tally)
        return lambda table: embed(table).drop_columns(["text"])


class ScoreStage(TableStage):
    """Scores what was embedded."""

    name: ClassVar[str] = "score"

    def make(self) -> Any:
        """Draw network and columns."""
        score = Score()
        return lambda table: score(table).drop_columns(["embedding"])


def file_name(number: int) -> str:
    """Name a file of the corpus."""
    return f"{number:05d}.jsonl"


def run_stages(rows: int, files: Path, folder: Path) -> None:
    """Run the three stages; what was done is found by itself."""
    before: StageOutput | None = None
    for kind in (ReadStage, EmbedStage, ScoreStage):
        stage = kind(rows, before, folder / "tally", files)
        run_dir = Location.of(str(folder / "out"))
        before = run_stage(stage, run_dir, execute=execute_on_ray, reporter=SilentReporter())


def run_plan(rows: int, files: Path, folder: Path) -> None:
    """Run the plan, with a checkpoint of the ids that were written."""
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
        id_column="example_id",
        checkpoint_path=str(folder / "checkpoint"),
        delete_checkpoint_on_success=False,  # or a plan that is done is run again as a whole
    )
    actor = {"batch_size": BATCH_ROWS, "batch_format": "pyarrow", "num_cpus": CPUS}
    pools = [ray.data.ActorPoolStrategy(size=size) for size in (NUM_ACTORS, 1)]
    (
        ray.data.read_json(str(files), override_num_blocks=-(-rows // SHARD_ROWS))
        .map_batches(Embed, fn_constructor_args=(folder / "tally",), compute=pools[0], **actor)
        .map_batches(Score, compute=pools[1], **actor)
        .drop_columns(["text"])
        .write_parquet(str(folder / "out"))
    )


@dataclasses.dataclass(frozen=True)
class Record:
    """What a way of running cost."""

    seconds: float  # of both drivers where one was killed
    rows_embedded: int
    written_bytes: int  # with records, manifests and checkpoints
    num_files: int
    lists_differing: int  # rows whose list is not that of the first run, bit for bit
    vectors_differing: int
    again_seconds: float  # the same command, when all is done


def drive(way: str, rows: int, files: Path, folder: Path, address: str) -> subprocess.Popen[bytes]:
    """Start a driver."""
    command = [sys.executable, "-m", "benchmarks.streaming", "--way", way, "--rows", str(rows)]
    command += ["--files", str(files), "--folder", str(folder), "--address", address]
    log = (folder / "log.txt").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603


def num_embedded(folder: Path) -> int:
    """Count the rows that were embedded, some of them twice."""
    return sum(int(path.name.partition(".")[0]) for path in (folder / "tally").iterdir())


def read_rows(way: str, folder: Path) -> pa.Table:
    """Return the rows that a run wrote, by id."""

    def table_of(where: Path) -> pa.Table:
        parts = sorted(where.rglob("*.parquet"))
        return pads.dataset([str(part) for part in parts]).to_table().sort_by("example_id")

    if way == PLAN:
        return table_of(folder / "out")
    embedded, scored = (table_of(folder / "out" / name) for name in ("embed", "score"))
    assert embedded["example_id"].equals(scored["example_id"])  # noqa: S101
    return scored.append_column("embedding", embedded["embedding"])


def measure(
    way: str, rows: int, files: Path, folder: Path, address: str, *, is_killed: bool
) -> Record:
    """Run one way; returns what it cost, with nothing compared yet."""
    (folder / "tally").mkdir(parents=True)
    started = time.monotonic()
    driver = drive(way, rows, files, folder, address)
    if is_killed:
        while num_embedded(folder) < KILLED_AT * rows and driver.poll() is None:
            time.sleep(0.05)
        driver.kill()
        driver.wait()
        driver = drive(way, rows, files, folder, address)
    if driver.wait():
        raise RuntimeError((folder / "log.txt").read_text()[-4000:])
    seconds, embedded = time.monotonic() - started, num_embedded(folder)
    started = time.monotonic()
    drive(way, rows, files, folder, address).wait()
    written = [path for name in ("out", "checkpoint") for path in (folder / name).rglob("*")]
    sizes = [path.stat().st_size for path in written if path.is_file()]
    again = time.monotonic() - started
    return Record(seconds, embedded, sum(sizes), len(sizes), 0, 0, again)


def num_differing(first: pa.Table, other: pa.Table, *columns: str) -> int:
    """Count rows that are not the same bit for bit in some columns."""
    assert first["example_id"].equals(other["example_id"])  # noqa: S101
    differs = np.zeros(first.num_rows, bool)
    for name in columns:
        a, b = (
            table[name].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
            for table in (first, other)
        )
        differs |= (a != b).any(axis=1)
    return int(differs.sum())


def write_corpus(data: Path, rows: int, files: Path) -> None:
    """Write the first rows of T0, their texts cut, in files of a shard each."""
    files.mkdir()
    with gzip.open(data / "t0_train.jsonl.gz", "rt", encoding="utf-8") as lines:
        read = (json.loads(line) for line in itertools.islice(lines, rows))
        texts = [f"{row['prompt']} {row['completion']}"[:TEXT_LENGTH] for row in read]
    for number, start in enumerate(range(0, rows, SHARD_ROWS)):
        cut = enumerate(texts[start : start + SHARD_ROWS], start)
        made = [json.dumps({"example_id": f"{at:08d}", "text": text}) for at, text in cut]
        (files / file_name(number)).write_text("\n".join(made) + "\n", encoding="utf-8")


def write_page(records: Mapping[str, Record], rows: int) -> None:
    """Write the page and the figures beside it."""
    header = ["way", "seconds", "rows embedded twice", "MB written", "files",
              "rows with other vectors", "with other lists", "seconds when done"]  # fmt: skip
    lines = [
        [name, f"{record.seconds:.0f}", record.rows_embedded - rows,
         f"{record.written_bytes / 1e6:.1f}", record.num_files, record.vectors_differing,
         record.lists_differing, f"{record.again_seconds:.0f}"]
        for name, record in records.items()
    ]  # fmt: skip
    text = [
        "# Stages, or one streaming plan",
        "",
        f"`python -m benchmarks.streaming` on {describe_machine()}, commit {describe_commit()}: "
        f"{rows:,} rows of T0 ({TEXT_LENGTH} characters each at most), {NUM_COLUMNS:,} columns, "
        f"lists of {K}.",
        "",
        (__doc__ or "").strip().split("\n\n")[-1],
        "",
        markdown_table(header, lines),
        "",
        "Seconds are those of the whole command, imports and the wait for actors included, on a "
        "machine that others use: ways were run in turn. Vectors and lists are compared with those "
        "of the first row of the table, bit for bit. The last column is the command given once "
        "more, when nothing is left to do.",
    ]
    PAGE.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")
    figures = {name: dataclasses.asdict(record) for name, record in records.items()}
    PAGE.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Measure every way in turn, print, write; or be the driver of one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streaming",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder of t0_train.jsonl.gz")
    parser.add_argument("--rows", type=int, default=10_240)
    parser.add_argument("--rounds", type=int, default=2, help="of undisturbed runs")
    parser.add_argument("--folder", help="where to keep runs, and go on (default: nowhere)")
    for name in ("--way", "--files", "--address"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        work = run_stages if options.way == STAGES else run_plan
        with ray_session(ClusterConfig(address=options.address)):
            work(options.rows, Path(options.files), Path(options.folder))
        return 0
    runs = [(way, f"run {turn + 1}") for turn in range(options.rounds) for way in (STAGES, PLAN)]
    runs += [(way, "driver killed") for way in (STAGES, PLAN)]
    records: dict[str, Record] = {}
    first: pa.Table | None = None
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name, spot_cluster(0) as cluster:
        folder = Path(options.folder or name).absolute()
        files = folder / "files"
        if not files.exists():
            write_corpus(options.data, options.rows, files)
        for way, what in runs:
            own = folder / f"{way} {what}"
            known = own / "record.json"  # of a measurement that was broken off
            if not known.exists():
                is_killed = what == "driver killed"
                measured = measure(
                    way, options.rows, files, own, cluster.address, is_killed=is_killed
                )
                known.write_text(json.dumps(dataclasses.asdict(measured)))
            record, rows = Record(**json.loads(known.read_text())), read_rows(way, own)
            first = rows if first is None else first
            records[f"{way}, {what}"] = dataclasses.replace(
                record,
                lists_differing=num_differing(first, rows, "helper_index", "influence"),
                vectors_differing=num_differing(first, rows, "embedding"),
            )
            print(f"{way}, {what}: {records[f'{way}, {what}']}", flush=True)
            write_page(records, options.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
