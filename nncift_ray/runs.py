"""Find an example of a run by the beginning of its id."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nncift_ray.corpus.export import ADDED_KEY
from nncift_ray.errors import DataError
from nncift_ray.network.factored import FactoredNetwork, read_network
from nncift_ray.pipeline import OpenedRun, Record, home_of, open_run, read_record
from nncift_ray.recipe.sections import ClusterConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import record_files, without_overlaps
from nncift_ray.runtime.files import Location, is_locked
from nncift_ray.runtime.output import (
    BEGUN_NAME,
    ShardRecord,
    StageBegun,
    StageOutput,
    column_matrix,
    sum_counts,
)
from nncift_ray.runtime.schemas import CANDIDATE, POINTS, TABLE_OF_ROLE, TARGET, helped_role
from nncift_ray.scores.exact import TopKState, top_k_rows, top_k_vector
from nncift_ray.selection.objectives import coverage
from nncift_ray.selection.redundancy import Standing, stand
from nncift_ray.selection.tables import (
    NETWORK_SCORES,
    TEACHER_SCORES,
    TOP_K,
    ScoreTables,
    SelectionPlan,
    build_objective,
    cosines,
    scored_blocks,
    scores_of,
    selection_plan,
)

NUM_NEAR, MAX_AMBIGUOUS = 3, 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where an example stands: its role and its number in that role."""

    role: str
    row_index: int


def find_example(examples: StageOutput, wanted: str) -> list[Place]:
    """Find an example by the beginning of its id, as candidate, target, or both.

    Raises:
        DataError: With ids near it if there is none, or those it could be if there are several.
    """
    found: dict[str, list[Place]] = {}
    for role, row_index, name in _matching(examples, wanted.strip().lower()):
        found.setdefault(name, []).append(Place(role, row_index))
        if len(found) > MAX_AMBIGUOUS:
            break
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        shown = ", ".join(list(found)[:MAX_AMBIGUOUS])
        more = ", ..." if len(found) > MAX_AMBIGUOUS else ""
        raise DataError(f"'{wanted}' begins several ids: {shown}{more}. Give more of it.")
    raise DataError(
        f"no example of this run has an id that begins with '{wanted}'. Ids are the 32 hexadecimal "
        "digits under `_nncift.example_id` in export/subset.jsonl and `example_id` in the tables "
        f"of deduplicate; near it are: {', '.join(_nearest(examples, wanted.strip().lower()))}"
    )


def _ids(examples: StageOutput) -> Iterator[tuple[str, int, pa.Array]]:
    """Yield (role, row of the first id, ids) batch by batch, candidates first."""
    for role in (CANDIDATE, TARGET):
        first = 0
        for batch in examples.iter_batches(f"{role}s", ["example_id"]):
            yield role, first, batch.column(0)
            first += batch.num_rows


def _matching(examples: StageOutput, prefix: str) -> Iterator[tuple[str, int, str]]:
    for role, first, ids in _ids(examples):
        for row in np.flatnonzero(pc.starts_with(ids, prefix).to_numpy(zero_copy_only=False)):
            yield role, first + int(row), str(ids[int(row)])


def _nearest(examples: StageOutput, wanted: str) -> list[str]:
    """Return the ids that share the longest beginning with what was asked for."""

    def shared(name: str) -> int:
        pairs = enumerate(zip(wanted, name, strict=False))
        return next((at for at, (a, b) in pairs if a != b), min(len(wanted), len(name)))

    best: list[str] = []
    for _, _, ids in _ids(examples):
        names = {*best, *cast("list[str]", ids.to_pylist())}
        best = sorted(names, key=lambda name: (-shared(name), name))[:NUM_NEAR]
    return best


# What a run directory holds, and how fast a run that works in it gets on.

SECONDS_PER_HOUR = 3600.0
#: The rate of a stage is that of its last minutes: workers come and go.
RATE_WINDOW_SECONDS = 300.0
#: Of what another run did and paid for.
NO_PRICES = ClusterConfig(price_per_gpu_hour=0, price_per_cpu_hour=0)

#: "running" where the run's process is seen at work; "begun" where it is not, or cannot be seen.
State = Literal["done", "running", "begun", "missing"]


@dataclass(frozen=True)
class StageStatus:
    """One stage of a run."""

    name: str
    state: State
    num_items: int = 0  # finished so far
    num_shards: int = 0
    seconds: float = 0.0  # of its workers
    num_failures: int = 0
    num_rows: int = 0  # of all tables but the errors
    counts: dict[str, int] | None = None  # e.g. tokens, cached_tokens
    cost_usd: float = 0.0  # of the workers' seconds
    folder: str = ""
    unit: str = ""  # of a stage in progress, like all that follows
    units_done: int = 0
    units: int = 0
    units_per_second: float | None = None
    seconds_left: float | None = None
    last_sign: str = ""  # when the stage began, or its latest shard was finished; UTC


@dataclass(frozen=True)
class RunStatus:
    """A run directory."""

    run_dir: str
    config: dict[str, Any]
    running: bool | None  # None: cannot be seen, e.g. on an object store
    cost_usd: float
    stages: tuple[StageStatus, ...]

    @property
    def complete(self) -> bool:
        """Whether every stage is finished."""
        return all(stage.state == "done" for stage in self.stages)


def read_status(run_dir: str) -> RunStatus:
    """Read the state of a run from its directory.

    Raises:
        StorageError: If there is no run.
    """
    return StatusReader(run_dir).read()


class StatusReader:
    """Reads the state of a run again and again; what it has read once it does not read again."""

    def __init__(self, run_dir: str) -> None:
        """Read from a run directory."""
        self._run_dir = Location.of(run_dir)
        self._shards: dict[str, ShardRecord] = {}
        self._outputs: dict[str, StageOutput] = {}

    def read(self, now: datetime | None = None) -> RunStatus:
        """Read the state at a time.

        Raises:
            StorageError: If there is no run.
        """
        now = now or datetime.now(UTC)
        record = read_record(self._run_dir)
        running = is_locked(self._run_dir)
        prices = _prices(record["config"])
        stages = tuple(
            self._read_stage(record, name, bool(running), prices, now)
            for name in record["stage_names"]
        )
        cost = sum(stage.cost_usd for stage in stages)
        return RunStatus(str(self._run_dir), record["config"], running, cost, stages)

    def _read_stage(
        self, record: Record, name: str, running: bool, prices: ClusterConfig, now: datetime
    ) -> StageStatus:
        fingerprint = record["stages"].get(name)
        if fingerprint is None:
            return StageStatus(name, "missing")
        inherited = name in record.get("inherited", ())
        folder = home_of(self._run_dir, record, name) / name / fingerprint
        output = self._outputs.get(str(folder)) or StageOutput.open(folder)
        if output is not None:
            self._outputs[str(folder)] = output
            return _finished(name, output, NO_PRICES if inherited else prices)
        begun = _read_begun(folder)
        shards = without_overlaps(self._read_shards(folder))
        if begun is None and not shards:
            return StageStatus(name, "missing", folder=str(folder))
        return _in_progress(name, folder, begun, shards, running, prices, now)

    def _read_shards(self, folder: Location) -> Iterable[ShardRecord]:
        for file in record_files(folder):
            if str(file) not in self._shards:
                self._shards[str(file)] = ShardRecord.read(file.read_bytes(), str(file))
            yield self._shards[str(file)]


def _prices(config: dict[str, Any]) -> ClusterConfig:
    # Of a recipe that another version may have written, only what is needed.
    wanted = ("price_per_gpu_hour", "price_per_cpu_hour")
    section = config.get("cluster", {})
    return ClusterConfig(**{key: section[key] for key in wanted if key in section})


def _read_begun(folder: Location) -> StageBegun | None:
    file = folder / BEGUN_NAME
    return StageBegun.read(file.read_bytes(), str(file)) if file.exists() else None


def _finished(name: str, output: StageOutput, prices: ClusterConfig) -> StageStatus:
    manifest = output.manifest
    hourly = prices.hourly_price(manifest.num_cpus, manifest.num_gpus)
    return StageStatus(
        name,
        "done",
        num_items=manifest.num_items,
        num_shards=len(manifest.shards),
        seconds=manifest.worker_seconds,
        num_failures=manifest.num_failures,
        num_rows=sum(shard.num_rows for shard in manifest.shards),
        counts=manifest.counts(),
        cost_usd=manifest.worker_seconds / SECONDS_PER_HOUR * hourly,
        folder=str(output.folder),
    )


def _in_progress(
    name: str,
    folder: Location,
    begun: StageBegun | None,
    shards: list[ShardRecord],
    running: bool,
    prices: ClusterConfig,
    now: datetime,
) -> StageStatus:
    seconds = sum(shard.seconds for shard in shards)
    done = sum(shard.units for shard in shards)
    hourly = 0.0 if begun is None else prices.hourly_price(begun.num_cpus, begun.num_gpus)
    units = done if begun is None else begun.units
    rate = None if begun is None else units_per_second(begun, shards, now)
    signs = [shard.finished_at for shard in shards] + ([begun.started_at] if begun else [])
    return StageStatus(
        name,
        "running" if running and begun is not None else "begun",
        num_items=sum(shard.stop - shard.start for shard in shards),
        num_shards=len(shards),
        seconds=seconds,
        num_failures=sum(shard.num_failures for shard in shards),
        num_rows=sum(shard.num_rows for shard in shards),
        counts=sum_counts(shards),
        cost_usd=seconds / SECONDS_PER_HOUR * hourly,
        folder=str(folder),
        unit="" if begun is None else begun.unit,
        units_done=done,
        units=units,
        units_per_second=rate,
        seconds_left=(units - done) / rate if rate else None,
        last_sign=max(signs),
    )


def units_per_second(
    begun: StageBegun, shards: Iterable[ShardRecord], now: datetime
) -> float | None:
    """Return how fast a stage gets on: in its last minutes, or since it began if none ended then.

    None before the first shard of this run is finished. A worker's clock may differ from this one:
    what it dates later than now ended now.
    """
    started = datetime.fromisoformat(begun.started_at)
    ended = [
        (min(datetime.fromisoformat(shard.finished_at), now), shard.units)
        for shard in shards
        if shard.finished_at >= begun.started_at
    ]
    if not ended:
        return None
    window = min(RATE_WINDOW_SECONDS, (now - started).total_seconds())
    recent = sum(units for at, units in ended if (now - at).total_seconds() <= window)
    if not recent:
        window = (now - started).total_seconds()
        recent = sum(units for _, units in ended)
    return recent / window if window > 0 else None


# How two selections differ: of two runs, or of files with their subsets.

DEPTHS = (0.01, 0.05, 0.10, 0.30)  # of the candidates
FILE_ENDINGS = (".jsonl", ".parquet", ".txt")


@dataclass(frozen=True, slots=True)
class Picks:
    """A ranking: ids and their sources, best first."""

    name: str
    ids: tuple[str, ...]
    sources: tuple[str, ...]  # "" where not known
    num_candidates: int | None  # None where not known


@dataclass(frozen=True, slots=True)
class Overlap:
    """What the heads of two rankings share."""

    share: float | None  # of the candidates; None: both whole
    num_a: int
    num_b: int
    shared: int
    jaccard: float  # shared / either
    contained: float  # shared / the smaller of the two


@dataclass(frozen=True, slots=True)
class SourceRow:
    """Picks of one source."""

    source: str
    num_a: int
    num_b: int
    shared: int


@dataclass(frozen=True, slots=True)
class OnlyPick:
    """A pick of one ranking that the other lacks."""

    rank: int
    example_id: str
    source: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two rankings side by side."""

    a: str
    b: str
    num_a: int
    num_b: int
    measured_by: str  # what the depths are shares of
    overlaps: tuple[Overlap, ...]
    rank_correlation: float | None  # Spearman over shared picks; None below two
    sources: tuple[SourceRow, ...]
    num_only_a: int
    num_only_b: int
    only_a: tuple[OnlyPick, ...]
    only_b: tuple[OnlyPick, ...]


def compare(first: str, second: str, top: int = 10) -> Comparison:
    """Compare two selections.

    Args:
        first: A run directory, or a file: subset.jsonl, subset.parquet or ids.txt of an export.
        second: Another.
        top: Examples of each side to name.

    Raises:
        DataError: If a file is no such export.
        StageError: If a run has no finished selection.
        StorageError: If there is nothing.
    """
    a, b = read_picks(first), read_picks(second)
    sizes = [picks.num_candidates for picks in (a, b) if picks.num_candidates]
    pool = max(sizes, default=max(len(a.ids), len(b.ids)))
    shared = set(a.ids) & set(b.ids)
    return Comparison(
        a=a.name,
        b=b.name,
        num_a=len(a.ids),
        num_b=len(b.ids),
        measured_by="candidates" if sizes else "the longer ranking",
        overlaps=tuple(_overlaps(a, b, pool)),
        rank_correlation=_rank_correlation(a, b, shared),
        sources=tuple(_by_source(a, b, shared)),
        num_only_a=len(a.ids) - len(shared),
        num_only_b=len(b.ids) - len(shared),
        only_a=tuple(_only(a, shared, top)),
        only_b=tuple(_only(b, shared, top)),
    )


def read_picks(place: str) -> Picks:
    """Read a ranking from a run directory or from an exported file.

    Raises:
        DataError: If a file is no export, or names an example twice.
    """
    picks = _of_file(place) if place.endswith(FILE_ENDINGS) else _of_run(place)
    twice = [name for name, count in Counter(picks.ids).items() if count > 1]
    if twice:
        raise DataError(f"{place}: the example {twice[0]} is listed twice ({len(twice)} such)")
    return picks


def _of_run(place: str) -> Picks:
    run = open_run(place)
    run.need("deduplicate", "select")
    examples, ranking = (
        run.outputs["deduplicate"],
        run.outputs["select"].read("ranking", ["row_index", "example_id"], schemas.RANKING),
    )
    rows = np.asarray(ranking["row_index"].to_numpy())
    sources = examples.take_rows("candidates", rows, ["source"])["source"] if len(rows) else []
    return Picks(
        place,
        tuple(cast("list[str]", ranking["example_id"].to_pylist())),
        tuple(str(source).rsplit("/", 1)[-1] for source in sources),
        examples.num_rows("candidates"),
    )


def _of_file(place: str) -> Picks:
    location = Location.of(place)
    data = location.read_bytes()
    try:
        if place.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(data), columns=["example_id", "source"])
            rows = cast("list[dict[str, Any]]", table.to_pylist())
        elif place.endswith(".jsonl"):
            rows = [json.loads(line)[ADDED_KEY] for line in data.decode().splitlines() if line]
        else:
            rows = [{"example_id": line.strip()} for line in data.decode().split() if line.strip()]
        ids = tuple(str(row["example_id"]) for row in rows)
        sources = tuple(str(row.get("source", "")).rsplit("/", 1)[-1] for row in rows)
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(
            f"{place}: not the subset of a run ({type(error).__name__}: {error}); give a run "
            "directory, or subset.jsonl, subset.parquet or ids.txt of its export folder"
        ) from error
    return Picks(place, ids, sources, None)


def _overlaps(a: Picks, b: Picks, pool: int) -> list[Overlap]:
    """Compare the heads of both at each depth that one of them reaches, then the whole."""
    found: list[Overlap] = []
    for share in DEPTHS:
        depth = max(1, round(share * pool))
        if depth <= max(len(a.ids), len(b.ids)):
            found.append(_overlap(share, a.ids[:depth], b.ids[:depth]))
    return [*found, _overlap(None, a.ids, b.ids)]


def _overlap(share: float | None, a: Sequence[str], b: Sequence[str]) -> Overlap:
    both, either = len(set(a) & set(b)), len(set(a) | set(b))
    smaller = min(len(a), len(b))
    return Overlap(
        share,
        len(a),
        len(b),
        both,
        both / either if either else 0.0,
        both / smaller if smaller else 0.0,
    )


def _rank_correlation(a: Picks, b: Picks, shared: set[str]) -> float | None:
    """Return Spearman's correlation of the order in which both have what they share."""
    if len(shared) < 2:
        return None
    place_a = {name: at for at, name in enumerate(name for name in a.ids if name in shared)}
    order = np.array([place_a[name] for name in b.ids if name in shared], np.float64)
    return float(np.corrcoef(order, np.arange(len(order)))[0, 1])


def _by_source(a: Picks, b: Picks, shared: set[str]) -> list[SourceRow]:
    source = dict(zip(b.ids, b.sources, strict=True)) | dict(zip(a.ids, a.sources, strict=True))
    in_a, in_b = (Counter(source[name] for name in picks.ids) for picks in (a, b))
    in_both = Counter(source[name] for name in shared)
    names = sorted({*in_a, *in_b}, key=lambda name: (-in_a[name] - in_b[name], name))
    return [
        SourceRow(name or "(not known)", in_a[name], in_b[name], in_both[name]) for name in names
    ]


def _only(picks: Picks, shared: set[str], top: int) -> list[OnlyPick]:
    rows = zip(picks.ids, picks.sources, strict=True)
    mine = [
        OnlyPick(rank, name, source)
        for rank, (name, source) in enumerate(rows, start=1)
        if name not in shared
    ]
    return mine[:top]


# Where the influence of single pairs is looked up: scored anew, or read from the labels.

TILE_ROWS = 65_536


@dataclass(frozen=True, slots=True, eq=False)
class FoundPairs:
    """The best partners of an example, best first, equal influence by smaller index.

    Where both sides are one table the example itself may be among them.
    """

    index: np.ndarray
    influence: np.ndarray
    num_scored: int  # partners that there is an influence for, the example itself left out


class PairLookup(Protocol):
    """Finds an example's best partners in a block."""

    def helpers_of(self, block: str, row: int, top: int) -> FoundPairs:
        """Return the columns that help a row most."""
        ...

    def helped_by(self, block: str, column: int, top: int) -> FoundPairs:
        """Return the rows that a column helps most."""
        ...


def pair_lookup(outputs: Mapping[str, StageOutput]) -> PairLookup:
    """Return what knows the pairs of a run: its network, or its teacher's labels."""
    if TEACHER_SCORES in outputs:
        return LabelledPairs(outputs["label"])
    return PredictedPairs(outputs["project"], outputs["fit"])


@dataclass(frozen=True)
class PredictedPairs:
    """Scores pairs from the projected activations, by the kernel that scored the run.

    So they are exact, also where the run kept no lists (``top_k``) or shorter ones. Activations are
    streamed: memory is one tile of them.
    """

    activations: StageOutput
    networks: StageOutput

    def helpers_of(self, block: str, row: int, top: int) -> FoundPairs:
        """Return the columns that help a row most."""
        network = read_network(self.networks, block)
        found = score_helpers(self.activations, network, block, row, top)
        return FoundPairs(*found, self._num_others(block, f"{block}_columns"))

    def helped_by(self, block: str, column: int, top: int) -> FoundPairs:
        """Return the rows that a column helps most."""
        network = read_network(self.networks, block)
        found = score_helped(self.activations, network, block, column, top)
        return FoundPairs(*found, self._num_others(block, f"{block}_rows"))

    def _num_others(self, block: str, table: str) -> int:
        return self.activations.num_rows(table) - (helped_role(block) == CANDIDATE)


@dataclass(frozen=True)
class LabelledPairs:
    """Reads pairs from the labels of the ``label`` stage; others are not known.

    Memory: the labels of one example and a batch.
    """

    labels: StageOutput

    def helpers_of(self, block: str, row: int, top: int) -> FoundPairs:
        """Return the columns that help a row most."""
        return self._find(block, "helped_index", row, "helper_index", top)

    def helped_by(self, block: str, column: int, top: int) -> FoundPairs:
        """Return the rows that a column helps most."""
        return self._find(block, "helper_index", column, "helped_index", top)

    def _find(self, block: str, of: str, index: int, partner: str, top: int) -> FoundPairs:
        indices, values = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        for batch in self.labels.iter_batches("labels", ["block", of, partner, "utility"]):
            in_block = pc.equal(batch.column("block"), pa.scalar(block))
            wanted = pc.equal(batch.column(of), pa.scalar(index, pa.int64()))
            here = batch.filter(pc.and_(in_block, wanted))
            indices.append(here.column(partner).to_numpy())
            values.append(here.column("utility").to_numpy())
        index_P, value_P = np.concatenate(indices), np.concatenate(values)
        best = np.lexsort((index_P, -value_P))[:top]
        return FoundPairs(index_P[best], value_P[best], len(index_P))


def score_helpers(
    activations: StageOutput, network: FactoredNetwork, block: str, row: int, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Score one row against all columns of a block; return the best columns and their influence.

    Equal scores stand by smaller column, as in the lists of the run.
    """
    a_1H = column_matrix(
        activations.read_range(f"{block}_rows", row, row + 1, ["activation"])["activation"]
    )
    state: TopKState | None = None
    index, score = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for start, b_JH in _tiles(activations, f"{block}_columns"):
        found = top_k_rows(
            a_1H, b_JH, network.w_H, network.bias, top, column_offset=start, state=state
        )
        state = found.state
        kept = found.index_IK[0] >= 0
        index, score = found.index_IK[0][kept], found.score_IK[0][kept]
    return index, score


def score_helped(
    activations: StageOutput, network: FactoredNetwork, block: str, column: int, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Score all rows of a block against one column; return the best rows and their influence.

    Equal scores stand by smaller row.
    """
    b_1H = column_matrix(
        activations.read_range(f"{block}_columns", column, column + 1, ["activation"])["activation"]
    )
    index, score = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for start, a_IH in _tiles(activations, f"{block}_rows"):
        score_I = top_k_rows(a_IH, b_1H, network.w_H, network.bias, 1).score_IK[:, 0]
        index = np.r_[index, np.arange(start, start + len(a_IH))]
        place, score = top_k_vector(np.r_[score, score_I], top)
        index = index[place]
    return index, score


def _tiles(activations: StageOutput, table: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, activations [N, H]) of a table, tile by tile."""
    start = 0
    for batch in activations.iter_batches(table, ["activation"], TILE_ROWS):
        tile = pa.Table.from_batches([batch])
        yield start, column_matrix(tile["activation"])
        start += batch.num_rows


# Ask a finished run about one example: what helps it most, and what it helps most.

TEXT_COLUMNS = ["row_index", "example_id", "prompt", "response", "source", "line"]
BY_TEACHER = (
    "the run has no network: influence is the teacher's own label, and a pair without one is not "
    "listed"
)
#: What a label of a built-in teacher is measured in.
UNITS = {
    "delift": "difference of DELIFT distances, from -1 to 1",
    "delift_se": "cosine of the two embeddings, from -1 to 1",
    "less": "cosine of gradients, averaged over checkpoints by learning rate",
    "selectit": "SelectIT rating",
}


@dataclass(frozen=True, slots=True)
class FoundExample:
    """An example of the run; ``subset_rank`` is None where it was not selected."""

    role: str
    row_index: int
    example_id: str
    prompt: str
    response: str
    source: str
    line: int
    subset_rank: int | None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One example of a list; influence is raw and signed, in the unit of the labels."""

    rank: int
    influence: float
    example: FoundExample


@dataclass(frozen=True, slots=True)
class InfluenceList:
    """Who helps an example ("helpers"), or whom it helps ("helped"), best first."""

    direction: Literal["helpers", "helped"]
    block: str
    of_role: str  # as what the example asked about was taken
    num_scored: int
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """What an example is ranked by where the objective is ``top_k``."""

    value: float
    rank: int  # 1-based, among all candidates; equal scores share the best rank
    num_candidates: int
    meaning: str


@dataclass(frozen=True, slots=True)
class QueryAnswer:
    """What a run knows of one example."""

    run_dir: str
    unit: str
    found_as: tuple[FoundExample, ...]  # a target that is also a candidate is found as both
    score: Score | None
    lists: tuple[InfluenceList, ...]
    notes: tuple[str, ...]


def query(run: OpenedRun, example_id: str, top: int = 10) -> QueryAnswer:
    """Answer for one example of a run that is scored.

    Args:
        run: The run.
        example_id: An id, or the beginning of one that no other id shares.
        top: Neighbours of each list; the example itself is never one.

    Raises:
        DataError: If no id or several ids begin so.
        StageError: If the run is not scored yet.
    """
    run.need("deduplicate", "label", "fit", "project", NETWORK_SCORES, TEACHER_SCORES)
    places = find_example(run.outputs["deduplicate"], example_id)
    blocks = list(scored_blocks(run.outputs))
    ranks = _subset_ranks(run.outputs.get("select"))
    lists = [
        made
        for block in blocks
        if block != POINTS
        for place in places
        for made in _lists_of(run, block, place, top, ranks)
    ]
    notes = _notes(run, blocks, places)
    if "select" not in run.outputs:
        notes.append("nothing is selected yet, so no example is marked as in the subset")
    return QueryAnswer(
        run_dir=str(run.run_dir),
        unit=UNITS.get(run.config.teacher.kind, f"labels of {run.config.teacher.kind}"),
        found_as=tuple(
            find_texts(run.outputs["deduplicate"], place.role, [place.row_index], ranks)[0]
            for place in places
        ),
        score=_score(run, blocks, places),
        lists=tuple(lists),
        notes=tuple(notes),
    )


def _lists_of(
    run: OpenedRun, block: str, place: Place, top: int, ranks: dict[int, int]
) -> Iterator[InfluenceList]:
    """Make the lists in which an example at one place has a part in a block."""
    row_role, pairs = helped_role(block), pair_lookup(run.outputs)
    more = top + (row_role == CANDIDATE)  # the example itself may be among them
    if place.role == row_role:
        found = pairs.helpers_of(block, place.row_index, more)
        yield _make_list(run, "helpers", block, place, top, CANDIDATE, found, ranks)
    if place.role == CANDIDATE:
        found = pairs.helped_by(block, place.row_index, more)
        yield _make_list(run, "helped", block, place, top, row_role, found, ranks)


def _make_list(
    run: OpenedRun,
    direction: Literal["helpers", "helped"],
    block: str,
    place: Place,
    top: int,
    role: str,
    found: FoundPairs,
    ranks: dict[int, int],
) -> InfluenceList:
    others = (found.index != place.row_index) | (role != place.role)
    index, influence = found.index[others][:top], found.influence[others][:top]
    texts = find_texts(run.outputs["deduplicate"], role, index.tolist(), ranks)
    return InfluenceList(
        direction=direction,
        block=block,
        of_role=place.role,
        num_scored=found.num_scored,
        neighbours=tuple(
            Neighbour(at + 1, float(value), text)
            for at, (value, text) in enumerate(zip(influence, texts, strict=True))
        ),
    )


def _subset_ranks(select: StageOutput | None) -> dict[int, int]:
    """Return the rank of every selected candidate."""
    if select is None:
        return {}
    ranking = select.read("ranking", ["row_index", "rank"], schemas.RANKING)
    return {row["row_index"]: row["rank"] for row in ranking.to_pylist()}


def find_texts(
    examples: StageOutput, role: str, rows: list[int], ranks: dict[int, int]
) -> list[FoundExample]:
    """Look up the examples of some rows of a role, in the order given."""
    if not rows:
        return []
    found = examples.take_rows(TABLE_OF_ROLE[role], np.asarray(rows), TEXT_COLUMNS).to_pylist()
    return [
        FoundExample(
            role=role,
            subset_rank=ranks.get(row["row_index"]) if role == CANDIDATE else None,
            **cast("dict[str, Any]", row),
        )
        for row in found
    ]


def _score(run: OpenedRun, blocks: list[str], places: list[Place]) -> Score | None:
    """Return what a candidate is ranked by, of a run that ranks by score."""
    at = [place.row_index for place in places if place.role == CANDIDATE]
    scores = scores_of(run.outputs)
    if not at or scores.num_rows("column_sums") == 0:
        return None
    num_candidates = run.outputs["deduplicate"].num_rows("candidates")
    score_J = ScoreTables.open(scores, num_candidates).raw_scores()
    value = float(score_J[at[0]])
    if np.isnan(value):  # the teacher said nothing of it
        return None
    if POINTS in blocks:
        who = "teacher" if TEACHER_SCORES in run.outputs else "network"
        meaning = f"what the {who} says of the example"
    elif run.config.data.subtask_by:
        meaning = "mean influence on the rows of the subtask that it helps most"
    else:
        meaning = f"mean influence on all {helped_role(blocks[0])}s"
    return Score(value, int((score_J > value).sum()) + 1, len(score_J), meaning)


def _notes(run: OpenedRun, blocks: list[str], places: list[Place]) -> list[str]:
    """Say what was not scored in this run, so is not listed."""
    objective = run.config.objective
    notes = [BY_TEACHER] if TEACHER_SCORES in run.outputs else []
    if blocks == [POINTS]:
        return [
            *notes,
            f"the teacher '{run.config.teacher.kind}' scores examples, not pairs, so there is no "
            "influence of one on another",
        ]
    roles = {place.role for place in places}
    if CANDIDATE in roles and schemas.WITHIN not in blocks:
        notes.append(
            f"the objective {objective} scores what candidates do for targets; what helps a "
            "candidate was not scored"
        )
    if TARGET in roles and schemas.CROSS not in blocks:
        notes.append(f"the objective {objective} does not score what helps a target")
    return notes


# Why an example of a finished run was picked, or why it was not.

ROLE_OF_TABLE = {table: role for role, table in TABLE_OF_ROLE.items()}


@dataclass(frozen=True, slots=True)
class Covered:
    """A row for which the pick is the best of all picks."""

    coverage: float  # scaled influence of the pick on it, 0..1
    example: FoundExample


@dataclass(frozen=True, slots=True)
class Taker:
    """A pick that took some of what a candidate is worth alone."""

    share: float  # of that worth
    cosine: float  # of the two embeddings
    example: FoundExample


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a candidate was picked or not."""

    run_dir: str
    objective: str
    example: FoundExample
    picked: bool
    num_picks: int
    num_candidates: int
    #: What it added as a pick; of one that was not picked, what it would add to all picks.
    gain: float
    #: What it is worth as the only pick; under top_k its score.
    alone_gain: float
    last_gain: float  # of the last pick; under top_k the cut-off
    place: int  # rank of a pick; else the earliest rank it could still have
    num_covered: int
    covers: tuple[Covered, ...]
    taken_by: tuple[Taker, ...]
    stands_for: tuple[Taker, ...]  # skipped candidates whose place this pick took
    reasons: tuple[str, ...]


def explain(run: OpenedRun, example_id: str, top: int = 5) -> Explanation:
    """Explain one candidate of a finished selection.

    Args:
        run: The run.
        example_id: An id, or the beginning of one that no other id shares.
        top: Rows and picks to name.

    Raises:
        DataError: If no id or several ids begin so, or the example is no candidate.
        StageError: If the run has no finished selection.
    """
    run.need("deduplicate", "embed", "project", NETWORK_SCORES, TEACHER_SCORES, "select")
    places = find_example(run.outputs["deduplicate"], example_id)
    rows = [place.row_index for place in places if place.role == CANDIDATE]
    if not rows:
        raise DataError(
            f"the example '{example_id}' is a {places[0].role}, so it could not be selected; "
            f"`nncift query {run.run_dir} --id {example_id}` says what helps it"
        )
    return _Explainer(run).explain(rows[0], top)


class _Explainer:
    """The selection of a run, replayed."""

    def __init__(self, run: OpenedRun) -> None:
        """Build the objective and replay the picks."""
        self._run, self._examples = run, run.outputs["deduplicate"]
        self._select, self._embeddings = run.outputs["select"], run.outputs["embed"]
        self._plan: SelectionPlan = selection_plan(run.config, scored_blocks(run.outputs))
        num_candidates = self._examples.num_rows("candidates")
        tables = ScoreTables.open(scores_of(run.outputs), num_candidates)
        self._unranked = frozenset(tables.unranked().tolist())
        objective = build_objective(self._plan, tables, self._embeddings.num_rows("existing"))
        ranking = self._select.read("ranking", schema=schemas.RANKING)
        self._gain_S = ranking["gain"].to_numpy()
        order_S = np.asarray(ranking["row_index"].to_numpy(), np.int64)
        self._best_I, self._value_I = coverage(objective, order_S)
        self._standing: Standing = stand(objective.problem(), order_S, self._best_I)
        self._ranks = {int(row): at + 1 for at, row in enumerate(order_S)}

    def explain(self, row: int, top: int) -> Explanation:
        """Explain the candidate of a row."""
        standing = self._standing
        rank = self._ranks.get(row)
        gain = float(standing.gain_J[row] if rank is None else self._gain_S[rank - 1])
        covered = np.flatnonzero(self._best_I == row)
        last = float(self._gain_S[-1]) if len(self._gain_S) else 0.0
        return Explanation(
            run_dir=str(self._run.run_dir),
            objective=self._plan.objective,
            example=self._texts(CANDIDATE, [row])[0],
            picked=rank is not None,
            num_picks=len(self._gain_S),
            num_candidates=len(standing.rank_J),
            gain=gain,
            alone_gain=float(standing.alone_J[row]),
            last_gain=last,
            place=self._next_place(row) if rank is None else rank,
            num_covered=len(covered),
            covers=self._covers(covered, top),
            taken_by=self._takers(row, top),
            stands_for=() if rank is None else self._stands_for(row, top),
            reasons=tuple(self._reasons(row, rank, gain, last)),
        )

    def _texts(self, role: str, rows: list[int]) -> list[FoundExample]:
        return find_texts(self._examples, role, rows, self._ranks)

    def _next_place(self, row: int) -> int:
        """Return the rank after the picks and all that would add more now."""
        standing = self._standing
        left = standing.rank_J < 0
        ahead = int((standing.gain_J[left] > standing.gain_J[row]).sum())
        return len(standing.order_S) + ahead + 1

    def _covers(self, covered: np.ndarray, top: int) -> tuple[Covered, ...]:
        best = covered[np.argsort(-self._value_I[covered], kind="stable")][:top]
        role = ROLE_OF_TABLE.get(self._select.manifest.facts()["covers"], CANDIDATE)
        texts = self._texts(role, best.tolist())
        return tuple(
            Covered(float(self._value_I[row]), text) for row, text in zip(best, texts, strict=True)
        )

    def _takers(self, row: int, top: int) -> tuple[Taker, ...]:
        picks, amount = self._standing.takers(row)
        if not len(picks):
            return ()
        worth = float(self._standing.alone_J[row])
        picks, amount = picks[:top], amount[:top]
        cosine = cosines(self._embeddings, np.full(len(picks), row), picks)
        texts = self._texts(CANDIDATE, picks.tolist())
        shares = amount / worth if worth > 0 else np.zeros(len(amount))
        return tuple(
            Taker(float(share), float(near), text)
            for share, near, text in zip(shares, cosine, texts, strict=True)
        )

    def _stands_for(self, row: int, top: int) -> tuple[Taker, ...]:
        skipped = self._select.read("skipped", schema=schemas.SKIPPED).to_pylist()
        mine = [other for other in skipped if other["taken_by"] == row][:top]
        texts = self._texts(CANDIDATE, [other["row_index"] for other in mine])
        return tuple(
            Taker(other["taken_share"], other["cosine"], text)
            for other, text in zip(mine, texts, strict=True)
        )

    def _reasons(self, row: int, rank: int | None, gain: float, last: float) -> list[str]:
        plan, standing = self._plan, self._standing
        name = self._texts(CANDIDATE, [row])[0].example_id
        if rank is not None:
            if name in plan.include:
                return ["selection.include asked for it"]
            if plan.objective == TOP_K:
                return [f"its score {gain:.4g} is the {rank:,}. highest"]
            return [f"no other candidate added more at rank {rank:,}"]
        if name in plan.exclude:
            return ["selection.exclude named it"]
        if row in self._unranked:
            return ["the teacher gave it no label, so it has no rank and could not be picked"]
        if standing.alone_J[row] <= 0:
            return ["it is in no row's list of best helpers, so it would add nothing"]
        if plan.objective == TOP_K:
            return [f"its score {gain:.4g} is below the cut-off {last:.4g}"]
        if gain > last and (plan.quotas.given or plan.tokens is not None):
            return ["it would add more than the last pick did: a quota or its tokens kept it out"]
        lost = 1 - gain / float(standing.alone_J[row])
        return [
            f"the picks already give {max(lost, 0.0):.0%} of what it is worth alone; what is left, "
            f"{gain:.4g}, is no more than what the last pick added, {last:.4g}"
        ]
