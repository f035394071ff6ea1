"""``nncift extend`` from end to end in this process: files, report, and going on after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from nncift_ray import embedders
from nncift_ray import extend as extension
from nncift_ray.explain import query
from nncift_ray.extend import extend
from nncift_ray.pipeline import RunResult, run
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import Config
from nncift_ray.runs import Run
from nncift_ray.runtime.driver import execute_here
from nncift_ray.runtime.output import SHARD_FOLDER, ShardRecord
from nncift_ray.runtime.progress import SilentReporter
from tests.chain import MODEL, make_embedder
from tests.unit.extend.grown import NUM_NEW, NUM_OLD, grow, make_parent, write_new

SMALL_SHARDS = ("pair_scores.pool.shard_rows=1",)  # an atom of 256 rows each


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "find_embedder", lambda parent: MODEL)
    monkeypatch.setattr(embedders, "load_embedder", lambda model: make_embedder())


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_parent(tmp_path_factory.mktemp("parent"))


@pytest.fixture
def new(tmp_path: Path) -> str:
    return write_new(tmp_path / "new.jsonl", NUM_OLD, NUM_NEW, copies_of=(7,))


class Listener(SilentReporter):
    """Hears notices and skipped stages; may die once some shards of scoring are finished."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.notices: list[str] = []
        self.skipped: list[str] = []
        self._left = dies_after

    def notice(self, message: str) -> None:
        self.notices.append(message)

    def stage_skipped(self, name: str, num_items: int) -> None:
        self.skipped.append(name)

    def shard_finished(self, name: str, record: ShardRecord) -> None:
        if name == "score_pairs" and self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt


def go_on(parent: str, new: str, home: Path | None, listener: SilentReporter) -> RunResult:
    run_dir = None if home is None else str(home)
    return extend(
        parent, [new], run_dir=run_dir, overrides=SMALL_SHARDS, reporter=listener,
        execute=execute_here,
    )  # fmt: skip


def shard_times(home: Path) -> dict[str, int]:
    records = home.glob(f"score_pairs/*/{SHARD_FOLDER}/*.json")
    return {record.name: record.stat().st_mtime_ns for record in records}


def test_the_directory_holds_subset_and_report_of_the_union(
    parent: str, new: str, tmp_path: Path
) -> None:
    heard = Listener()
    result = go_on(parent, new, tmp_path / "grown", heard)
    assert result.report_data is not None
    assert result.report_data.num_candidates == NUM_OLD + NUM_NEW
    assert result.report_data.num_duplicates == 1
    assert (tmp_path / "grown" / "export" / "subset.jsonl").exists()
    page = (tmp_path / "grown" / "report.html").read_text()
    assert "Do the labels still fit the data?" in page
    assert f"goes on from {parent}" in page
    seconds = {stage.name: stage.seconds for stage in result.report_data.stages}
    assert seconds["label"] == seconds["fit"] == 0.0
    told = "\n".join(heard.notices)
    assert f"{NUM_NEW} new candidates after {NUM_OLD}; 1 exact copies collapsed" in told
    assert "relabelling is not due" in told


def test_by_itself_it_works_next_to_the_run_and_finds_its_work_again(parent: str, new: str) -> None:
    first = go_on(parent, new, None, SilentReporter())
    assert first.run_dir.path.startswith(f"{parent}-plus-")
    again = Listener()
    assert str(go_on(parent, new, None, again).run_dir) == str(first.run_dir)
    assert again.skipped == [
        name
        for name in first.outputs
        if name not in Run.open(str(first.run_dir)).record["inherited"]
    ]


def test_killed_while_it_scores_it_goes_on_from_the_finished_shards(
    parent: str, new: str, tmp_path: Path
) -> None:
    home = tmp_path / "grown"
    with pytest.raises(KeyboardInterrupt):
        go_on(parent, new, home, Listener(dies_after=2))
    finished = shard_times(home)
    assert len(finished) == 2
    assert "score_pairs" not in Run.open(str(home)).outputs
    resumed = go_on(parent, new, home, SilentReporter())
    assert finished.items() <= shard_times(home).items()
    assert len(shard_times(home)) > 2
    whole = grow(parent, new, str(tmp_path / "undisturbed"))
    assert resumed.outputs["select"].read("ranking").equals(whole["select"].read("ranking"))


def test_new_and_old_examples_of_an_extended_run_can_be_asked_about(
    parent: str, new: str, tmp_path: Path
) -> None:
    outputs = go_on(parent, new, tmp_path / "grown", SilentReporter()).outputs
    ids = outputs["deduplicate"].read("candidates", ["example_id"])["example_id"].to_pylist()
    run = Run.open(str(tmp_path / "grown"))
    kept = outputs["score_pairs"].read("within_top_helpers").to_pylist()
    for row in (3, NUM_OLD + 5):
        answer = query(run, ids[row])
        found = [near.example.row_index for near in answer.lists[0].neighbours]
        assert found[:9] == [column for column in kept[row]["helper_index"] if column != row][:9]


def test_a_run_by_cosines_goes_on_without_a_word_of_labels(tmp_path: Path) -> None:
    files = [write_new(tmp_path / f"{n}.jsonl", 60 * n, 60) for n in range(2)]

    def recipe(name: str, paths: list[str]) -> Config:
        tree = {"data": {"candidates": paths}, "run_dir": str(tmp_path / name)}
        tree |= {"embedder": {"model": "embedded:all-minilm-l6-v2"}}
        return make_config(tree | {"selection": {"budget": 12, "repeats": None}})

    run(recipe("parent", files[:1]), reporter=SilentReporter(), execute=execute_here)
    grown = extend(
        str(tmp_path / "parent"), files[1:], run_dir=str(tmp_path / "grown"),
        reporter=SilentReporter(), execute=execute_here,
    )  # fmt: skip
    whole = run(recipe("whole", files), reporter=SilentReporter(), execute=execute_here)
    assert not {"label", "drift"} & set(grown.outputs)
    ranked, once = (each.outputs["select"].read("ranking") for each in (grown, whole))
    assert ranked.equals(once)
    assert query(Run.open(str(tmp_path / "grown")), ranked["example_id"][0].as_py(), 3).lists
