"""Pruned scoring, from the index stage's decision to what the score stage leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift_ray.errors import ConfigError, DataError, StageError
from nncift_ray.recipe.sections import PairScoresConfig, PoolConfig
from nncift_ray.runtime.driver import (
    Executor,
    ShardOutcome,
    execute_here,
    run_stage,
    stage_fingerprint,
)
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Resources, Shard, Stage
from nncift_ray.scores import index_step
from nncift_ray.scores.exact import score_block
from nncift_ray.scores.index import SearchSettings
from nncift_ray.scores.index_step import (
    IndexStage,
    Speeds,
    draw_held_out,
    low_recall,
    read_decisions,
    read_final_recall,
)
from nncift_ray.scores.step import ScorePairsStage
from nncift_ray.selection.tables import ScoreTables
from tests.made import Made, make_stages

K = 10
PRUNED = PairScoresConfig(mode="pruned", top_k=K, min_recall=0.9, recall_rows=60)
LISTS = "within_top_helpers"
SLOW_PRUNING, SLOW_EXACT = Speeds(1e-9, 1e9), Speeds(1e9, 1e-9)


def vary(config: PairScoresConfig = PRUNED, **changes: Any) -> PairScoresConfig:
    return PairScoresConfig(**(config.model_dump() | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_stages(Location.of(str(tmp_path_factory.mktemp("made"))))


def finish(stage: Stage, folder: Path, *, threads: int = 1, execute: Executor = execute_here
           ) -> StageOutput:  # fmt: skip
    stage.resources = Resources(num_cpus=threads)
    location = Location.of(str(folder))
    return run_stage(stage, location, execute=execute, reporter=SilentReporter())


def index_stage(
    made: Made, config: PairScoresConfig = PRUNED, speeds: Speeds | None = None
) -> IndexStage:
    given = {} if speeds is None else {"measure": lambda *_: speeds}
    return IndexStage(made.activations, made.networks, ("within",), config, **given)


def score_stage(
    made: Made, index: StageOutput | None = None, config: PairScoresConfig = PRUNED,
    shard_rows: int | None = None,
) -> ScorePairsStage:  # fmt: skip
    config = vary(config, pool=PoolConfig(shard_rows=shard_rows))
    return ScorePairsStage(made.activations, made.networks, ("within",), config, index=index)


def run_pruned(
    made: Made, folder: Path, config: PairScoresConfig = PRUNED, threads: int = 1, **given: Any
) -> StageOutput:
    index = finish(index_stage(made, config), folder, threads=threads)
    return finish(score_stage(made, index, config, **given), folder, threads=threads)


def recall_by_hand(scores: StageOutput, exact: StageOutput, rows: np.ndarray) -> np.ndarray:
    """Return the share of found scores that reach the worst true one: a tie is as good."""
    found, true = (
        np.array(output.take_rows(LISTS, rows)["influence"].to_pylist())
        for output in (scores, exact)
    )
    return (found >= true[:, -1:]).mean(axis=1)


def probe_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def everything(k: int, num_columns: int, num_cells: int) -> list[SearchSettings]:
        return [SearchSettings(num_cells, num_columns)]

    monkeypatch.setattr(index_step, "listing_schedule", everything)


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> PairScoresConfig:
    """Search one cell only, so that lists miss some of the true helpers."""
    narrow = lambda *_, **__: [SearchSettings(1, K)]  # noqa: E731
    monkeypatch.setattr(index_step, "listing_schedule", narrow)
    return vary(min_recall=0.01)


def test_probing_every_cell_gives_the_exact_lists_bit_for_bit(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_all(monkeypatch)
    pruned, exact = run_pruned(made, tmp_path), finish(score_stage(made), tmp_path)
    assert pruned.folder.path != exact.folder.path
    assert pruned.read(LISTS).equals(exact.read(LISTS))


def test_shards_and_threads_change_no_row(
    made: Made, tmp_path: Path, lossy: PairScoresConfig
) -> None:
    one = run_pruned(made, tmp_path / "one", lossy, shard_rows=256)
    other = run_pruned(made, tmp_path / "other", lossy, threads=2, shard_rows=9999)
    assert len(one.manifest.shards) > len(other.manifest.shards)
    assert one.fingerprint == other.fingerprint
    for table in (LISTS, "recall"):
        assert one.read(table).equals(other.read(table))


def test_every_kept_score_is_exact(made: Made, tmp_path: Path) -> None:
    lists = run_pruned(made, tmp_path).read(LISTS)
    dense = score_block(made.a_IH, made.b_JH, made.network.w_H, made.network.bias)
    helpers, influence = (
        np.array(lists[name].to_pylist()) for name in ("helper_index", "influence")
    )
    np.testing.assert_allclose(
        np.take_along_axis(dense, helpers, axis=1), influence, rtol=0, atol=1e-5
    )


def test_recall_is_that_of_the_lists_on_rows_that_nothing_was_tuned_on(
    made: Made, tmp_path: Path, lossy: PairScoresConfig
) -> None:
    scores, exact = run_pruned(made, tmp_path, lossy), finish(score_stage(made), tmp_path)
    tuning, final = draw_held_out(700, lossy.recall_rows, lossy.seed)
    measured = scores.read("recall")
    assert not set(tuning) & set(final)
    np.testing.assert_array_equal(measured["row_index"], final)
    by_hand = recall_by_hand(scores, exact, final)
    assert 0.1 < by_hand.mean() < 1
    np.testing.assert_allclose(measured["recall"], by_hand, atol=1e-12)
    assert read_final_recall(scores)["within"].recall == pytest.approx(by_hand.mean())


def test_the_scale_holds_every_kept_score_and_counts_each_pair_of_held_out_rows(
    made: Made, tmp_path: Path
) -> None:
    scores = run_pruned(made, tmp_path)
    scale = ScoreTables.open(scores, 700).scale
    kept = np.concatenate(scores.read(LISTS)["influence"].to_pylist())
    assert scale.min <= kept.min()
    assert kept.max() <= scale.max
    statistics = scores.read("statistics").to_pylist()
    assert sum(row["num_pairs"] for row in statistics) == PRUNED.recall_rows * 700
    assert 0 < sum(row["num_scored"] for row in statistics) <= 700 * 700


def test_the_index_records_each_setting_it_tried_and_marks_the_chosen(
    made: Made, tmp_path: Path
) -> None:
    index = finish(index_stage(made, vary(min_recall=1.0)), tmp_path)
    tried = index.read("recall").to_pylist()
    decision = read_decisions(index)["within"]
    assert [row["chosen"] for row in tried] == [False] * (len(tried) - 1) + [True]
    assert decision.num_probes == tried[-1]["num_probes"]
    assert tried[-1]["recall"] - 2 * tried[-1]["standard_error"] >= 1.0
    assert decision.exact_seconds is not None
    assert decision.pruned_seconds is not None


def test_too_little_found_stops_with_key_and_remedy(
    made: Made, tmp_path: Path, lossy: PairScoresConfig
) -> None:
    with pytest.raises(StageError, match=r"pair_scores.min_recall is 0.999.*on_low_recall"):
        finish(index_stage(made, vary(lossy, min_recall=0.999)), tmp_path)


def test_too_little_found_goes_exact_where_the_recipe_says_so(
    made: Made, tmp_path: Path, lossy: PairScoresConfig
) -> None:
    config = vary(lossy, min_recall=0.999, on_low_recall="exact")
    index = finish(index_stage(made, config), tmp_path)
    decision = read_decisions(index)["within"]
    assert decision.mode == "exact"
    assert "on_low_recall is exact" in decision.reason
    assert stage_fingerprint(score_stage(made, index, config)) == stage_fingerprint(
        score_stage(made)
    )


def test_low_recall_on_the_final_rows_is_told(
    made: Made, tmp_path: Path, lossy: PairScoresConfig
) -> None:
    scores = run_pruned(made, tmp_path, lossy)
    recall = read_final_recall(scores)["within"].recall
    assert recall < 1
    assert low_recall(scores, recall) == ""
    assert "less than pair_scores.min_recall = 1" in low_recall(scores, 1.0)
    assert low_recall(finish(score_stage(made), tmp_path), 1.0) == ""


@pytest.mark.parametrize(
    ("speeds", "mode"), [(SLOW_PRUNING, "exact"), (SLOW_EXACT, "pruned")], ids=["exact", "pruned"]
)
def test_auto_takes_what_is_predicted_to_be_faster(
    made: Made, tmp_path: Path, speeds: Speeds, mode: str
) -> None:
    index = finish(index_stage(made, vary(mode="auto"), speeds), tmp_path)
    decision = read_decisions(index)["within"]
    assert decision.mode == mode
    assert "predicted to be" in decision.reason
    assert bool(index.manifest.table_parts("files")) == (mode == "pruned")


def test_speeds_do_not_decide_how_widely_to_search(made: Made, tmp_path: Path) -> None:
    auto = vary(mode="auto")
    one = finish(index_stage(made, auto, SLOW_EXACT), tmp_path / "one")
    other = finish(index_stage(made, auto, Speeds(1e9, 1e-3)), tmp_path / "two")
    searches = [read_decisions(index)["within"].search for index in (one, other)]
    assert searches[0] == searches[1]


def test_auto_builds_no_index_for_a_few_rows(tmp_path: Path) -> None:
    made = make_stages(Location.of(str(tmp_path)), num_candidates=200)
    index = finish(index_stage(made, vary(mode="auto")), tmp_path)
    decision = read_decisions(index)["within"]
    assert (decision.mode, decision.exact_seconds) == ("exact", None)
    assert decision.reason == "there are too few rows for an index to pay"


def test_an_index_of_other_content_never_mixes_with_old_lists(made: Made, tmp_path: Path) -> None:
    one = finish(index_stage(made), tmp_path / "one")
    other = finish(index_stage(made, vary(seed=5)), tmp_path / "two")
    stages = [score_stage(made, index) for index in (one, other)]
    assert stage_fingerprint(stages[0]) != stage_fingerprint(stages[1])


def test_killed_between_shards_a_pruned_run_goes_on_on_another_shape(
    made: Made, tmp_path: Path
) -> None:
    whole = run_pruned(made, tmp_path / "whole").read(LISTS)
    index = finish(index_stage(made), tmp_path / "killed")

    def killed(stage: Stage, folder: Location, shards: list[Shard]) -> Iterator[ShardOutcome]:
        yield next(iter(execute_here(stage, folder, shards)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(score_stage(made, index, shard_rows=256), tmp_path / "killed", execute=killed)
    resumed = finish(score_stage(made, index, shard_rows=9999), tmp_path / "killed", threads=2)
    assert [(s.start, s.stop) for s in resumed.manifest.shards] == [(0, 1), (1, 4)]
    assert resumed.read(LISTS).equals(whole)


@pytest.mark.parametrize("num_candidates", [1, 2, 5, 11])
def test_fewer_candidates_than_places_give_short_exact_lists(
    tmp_path: Path, num_candidates: int
) -> None:
    made = make_stages(Location.of(str(tmp_path)), num_candidates=num_candidates)
    pruned, exact = run_pruned(made, tmp_path), finish(score_stage(made), tmp_path)
    assert pruned.read(LISTS).equals(exact.read(LISTS))
    assert len(pruned.read(LISTS)["helper_index"][0]) == min(K, num_candidates)


def test_ties_go_to_the_smaller_column_as_in_the_exact_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_all(monkeypatch)
    made = make_stages(Location.of(str(tmp_path)), copies=7)
    pruned, exact = run_pruned(made, tmp_path), finish(score_stage(made), tmp_path)
    assert pruned.read(LISTS).equals(exact.read(LISTS))


def test_nothing_to_score_is_scored_exactly(tmp_path: Path) -> None:
    made = make_stages(Location.of(str(tmp_path)), num_candidates=0)
    index = finish(index_stage(made), tmp_path)
    assert read_decisions(index)["within"].reason == "there is no pair to score"
    assert finish(score_stage(made, index), tmp_path).num_rows(LISTS) == 0


@pytest.mark.parametrize("pruned", [False, True])
def test_an_activation_that_is_nan_stops_and_names_its_row(tmp_path: Path, pruned: bool) -> None:
    good = make_stages(Location.of(str(tmp_path / "good")))
    index = finish(index_stage(good), tmp_path) if pruned else None
    bad = make_stages(Location.of(str(tmp_path / "bad")), bad_rows=(613,))
    with pytest.raises(DataError, match=r"row \(helped\) 613 are not finite .*embed it anew"):
        finish(score_stage(bad, index), tmp_path)


def test_an_index_too_large_for_a_worker_is_refused_with_the_key(made: Made) -> None:
    with pytest.raises(ConfigError, match=r"pair_scores.max_worker_bytes: 1,000 bytes"):
        index_stage(made, vary(max_worker_bytes=1000))


def test_auto_goes_exact_where_an_index_does_not_fit(made: Made, tmp_path: Path) -> None:
    index = finish(index_stage(made, vary(mode="auto", max_worker_bytes=1000)), tmp_path)
    decision = read_decisions(index)["within"]
    assert decision.mode == "exact"
    assert decision.reason.startswith("pair_scores.max_worker_bytes")
