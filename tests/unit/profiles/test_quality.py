"""Quality: a gate against wrong answers that leaves a clean corpus and its hard rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift_ray.corpus.examples import Example
from nncift_ray.profiles.quality import (
    beside_neighbours,
    deviations,
    group_rows,
    nearest_rows,
    quality_of,
    suspicion,
)
from nncift_ray.profiles.quality_step import Ask, NeighboursStage, QualityStage, context_requests
from nncift_ray.runtime.output import StageOutput
from tests.chain import MODEL
from tests.fake_engines import FakeEngine
from tests.hash_embedder import HashEmbedder
from tests.unit.profiles.test_profile_step import ROWS, TinyFactory, examples, run

ROWS_OF_WORLD = 2000


def world(seed: int, wrong_share: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Losses and cosines of a corpus whose wrong answers neither neighbours nor prompts explain."""
    random = np.random.default_rng(seed)
    wrong = random.random(ROWS_OF_WORLD) < wrong_share
    alone = random.lognormal(1.0, 0.3, ROWS_OF_WORLD)
    ratio = np.where(wrong, 1.0, 0.6) + random.normal(0, 0.1, ROWS_OF_WORLD)
    cosine = np.where(wrong, 0.1, 0.5) + random.normal(0, 0.1, ROWS_OF_WORLD)
    nll = 0.8 * alone
    return {"nll": nll, "nll_alone": alone, "nll_shown": ratio * alone, "cosine": cosine}, wrong


def test_a_clean_corpus_keeps_its_worth() -> None:
    measures, _ = world(0, 0.0)
    quality = quality_of(suspicion(**measures))
    assert quality.mean() > 0.97
    assert (quality < 0.5).mean() < 0.02


def test_wrong_answers_lose_theirs_whatever_their_share() -> None:
    for share in (0.02, 0.15, 0.3):
        measures, wrong = world(1, share)
        quality = quality_of(suspicion(**measures))
        assert quality[wrong].mean() < 0.2, share
        assert quality[~wrong].mean() > 0.95, share


def test_a_kind_of_task_that_looks_odd_as_a_whole_is_half_forgiven() -> None:
    suspicions = np.array([4.0, 4.0, 4.0, 0.0, np.nan, 5.0])
    near = np.array([[1, 2], [0, 2], [0, 1], [3, 4], [0, -1], [-1, -1]])
    found = beside_neighbours(suspicions, near)
    np.testing.assert_array_equal(found, [2.0, 2.0, 2.0, 0.0, np.nan, 5.0])


def test_hard_rows_are_not_marked_down_and_easy_ones_not_up() -> None:
    measures, _ = world(2, 0.0)
    quality = quality_of(suspicion(**measures))
    # Selecting by ease keeps the least consistent quarter out; a gate does not.
    ratio = measures["nll_shown"] / measures["nll_alone"]
    easy, hard = ratio < np.quantile(ratio, 0.25), ratio > np.quantile(ratio, 0.75)
    assert quality[easy].mean() > 0.99
    assert quality[hard].mean() > 0.9
    by_ease = np.argsort(ratio)[: ROWS_OF_WORLD // 2]
    assert not hard[by_ease].any()  # the failure that a prize for easy rows would be


def test_deviation_counts_spreads_of_the_lower_side() -> None:
    lower = -np.arange(0.0, 101.0)
    found = deviations(np.r_[lower, 1e6])
    assert found[-1] > 1e4  # one outlier above widens nothing
    assert abs(np.median(found)) < 0.05


def test_what_was_not_measured_is_judged_by_the_rest_or_not_at_all() -> None:
    measures, _ = world(3, 0.1)
    measures["nll_shown"][0] = np.nan
    measures["nll"][1] = measures["nll_alone"][1] = measures["cosine"][1] = np.nan
    measures["nll_shown"][1] = np.nan
    found = suspicion(**measures)
    assert np.isfinite(found[0])
    assert np.isnan(found[1])
    assert np.isnan(quality_of(found)[1])
    assert (quality_of(suspicion(*(np.ones(5) for _ in range(4)))) == 1).all()


def test_nearest_rows_are_the_best_by_inner_product_without_the_row_itself() -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2)
    assert (nearest_rows(vectors, 5) == np.argsort(-cosines, axis=1)[:, :5]).all()
    same = np.tile(vectors[:1], (4, 1))
    assert all(row not in near for row, near in enumerate(nearest_rows(same, 2)))


def test_every_row_is_in_one_group_and_is_never_shown_itself() -> None:
    vectors = np.random.default_rng(1).normal(size=(200, 8)).astype(np.float32)
    groups = group_rows(nearest_rows(vectors, 32), 5)
    seen: list[int] = []
    for group in range(len(groups.members)):
        for context, members in groups.contexts(group):
            assert len(context) == 5
            assert not set(context.tolist()) & set(members.tolist())
            seen += members.tolist()
    assert sorted(seen) == list(range(200))
    new = group_rows(nearest_rows(vectors, 32), 5, np.arange(150, 200))
    assert sorted(np.concatenate(new.members).tolist()) == list(range(150, 200))


def test_a_context_holds_whole_examples_and_all_share_it() -> None:
    engine = FakeEngine(max_length=60)
    texts = {row: Example(str(row), f"p{row}", "x" * 10) for row in range(6)}
    run_of_two = [(0, Ask(0, (2, 3, 4, 5))), (1, Ask(1, (2, 3, 4, 5)))]
    requests = [request for _, request in context_requests(engine, run_of_two, texts)]
    heads = {tuple(request.prompt_ids[: request.prefix_length]) for request in requests}
    assert len(heads) == 1
    assert all(request.num_tokens <= 60 for request in requests)
    one = len(engine.encode("p2\nxxxxxxxxxx\n\n"))
    assert requests[0].prefix_length % one in (0, 1)
    assert context_requests(engine, [(0, Ask(0, ()))], texts) == []


def judged(corpus: StageOutput, folder: Path, tiny: Any, **options: Any) -> StageOutput:
    from nncift_ray.embedders import EmbedStage
    from nncift_ray.profiles.step import ProfileStage

    def embedder() -> HashEmbedder:
        return HashEmbedder(8)

    embeddings = run(EmbedStage(corpus, MODEL, make_embedder=embedder), folder)
    profiles = run(ProfileStage(corpus, tiny), folder)
    num_neighbours = options.pop("num_neighbours", 2)
    search = NeighboursStage(embeddings, num_neighbours, options.get("parent"))
    stage = QualityStage(
        *(corpus, profiles, run(search, folder), tiny, {"model": "tiny"}, MODEL),
        make_embedder=embedder,
        **options,
    )
    return run(stage, folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFactory:
    from tests.tiny_models import make_tiny_llama

    return TinyFactory(make_tiny_llama(tmp_path_factory.mktemp("tiny")))


def test_the_step_judges_every_candidate_in_row_order(tiny: Any, tmp_path: Path) -> None:
    corpus = examples(tmp_path, [*ROWS, ("Say much.", "word " * 900)])
    table = judged(corpus, tmp_path, tiny).read("candidates").to_pylist()
    assert [row["row_index"] for row in table] == list(range(12))
    assert all(row["row_index"] not in row["neighbours"] for row in table[:-1])
    assert all(row["consistency"] > 0 for row in table[:-1])
    assert table[-1]["consistency"] is None
    without = judged(corpus, tmp_path, tiny, num_neighbours=0).read("candidates").to_pylist()
    assert all(row["consistency"] is None for row in without)


def test_new_candidates_are_measured_and_old_ones_kept(tiny: Any, tmp_path: Path) -> None:
    old = judged(examples(tmp_path / "old", ROWS[:6]), tmp_path / "old", tiny)
    both = judged(examples(tmp_path / "all", ROWS), tmp_path / "all", tiny, parent=old)
    assert both.num_rows("measured") == len(ROWS) - 6
    kept = both.read("candidates")["consistency"].to_pylist()[:6]
    assert kept == pytest.approx(old.read("candidates")["consistency"].to_pylist())
    assert both.num_rows("candidates") == len(ROWS)
