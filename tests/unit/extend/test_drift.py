"""Drift: what the measures are, and when the rule asks for new labels, both ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from nncift_ray import extend
from nncift_ray.extend import (
    MAX_FARTHER,
    MIN_EXAMPLES,
    MIN_RANGE_EXCESS,
    DistanceShift,
    RangeShare,
    compare_distances,
    find_reasons,
    nearest_distances,
    outside_shares,
)
from nncift_ray.labels.sample import TRAIN, VALIDATION
from nncift_ray.runtime.output import column_matrix
from tests import chain
from tests.hash_embedder import HashEmbedder
from tests.unit.extend import grown
from tests.unit.extend.grown import NUM_OLD, Outputs, grow, make_parent, write_new

DIMENSION = 16
DISTANCE_TOLERANCE = 1e-6  # float32 cosines


def unit_vectors(count: int, seed: int, centre: float = 0.0) -> np.ndarray:
    """Draw unit vectors around a direction; ``centre`` says how close together they lie."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, DIMENSION))
    vectors[:, 0] += centre
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def distances_of(new: np.ndarray, seed: int = 1) -> DistanceShift:
    """Compare new vectors with further ones of a corpus, from a labelled sample of it."""
    labelled, rest = unit_vectors(60, seed, centre=3), unit_vectors(400, seed + 1, centre=3)
    return compare_distances(nearest_distances(new, labelled), nearest_distances(rest, labelled))


def test_nearest_distance_is_the_least_of_all_cosine_distances() -> None:
    vectors, labelled = unit_vectors(2500, 0), unit_vectors(33, 1)
    wanted = (1 - vectors.astype(np.float64) @ labelled.T.astype(np.float64)).min(axis=1)
    found = nearest_distances(vectors, labelled)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=DISTANCE_TOLERANCE)


def test_farther_is_the_share_of_pairs_in_which_the_new_one_is_farther() -> None:
    rng = np.random.default_rng(0)
    new, reference = rng.integers(0, 9, 40) / 8, rng.integers(0, 7, 70) / 8
    statistic = mannwhitneyu(new, reference).statistic
    assert compare_distances(new, reference).farther == pytest.approx(statistic / (40 * 70))


def test_equal_samples_are_farther_with_chance_one_half() -> None:
    same = np.linspace(0, 1, 50)
    found = compare_distances(same, same)
    assert (found.farther, found.sigmas, found.ks) == (0.5, 0.0, 0.0)


def test_outside_counts_each_unit_on_each_side() -> None:
    activations = np.array([[-2, 0], [0, 5], [3, 9], [0, 1]], np.float32)
    shares = outside_shares(activations, np.float32([-1, 0]), np.float32([1, 4]))
    np.testing.assert_array_equal(shares, [0.5, 0.5, 1.0, 0.0])


@pytest.mark.parametrize("seed", range(5))
def test_more_of_the_same_corpus_asks_for_no_labels(seed: int) -> None:
    shift = distances_of(unit_vectors(300, 50 + seed, centre=3), seed=10 * seed)
    assert not find_reasons(shift, [RangeShare("within", "rows", 0.021, 0.02)])


def test_another_domain_asks_for_labels_and_says_why() -> None:
    reasons = find_reasons(distances_of(unit_vectors(300, 9, centre=-3)), [])
    assert len(reasons) == 1
    assert "farther from the labelled sample" in reasons[0]


def test_activations_out_of_range_ask_for_labels_and_say_where() -> None:
    reasons = find_reasons(None, [RangeShare("cross", "columns", 0.08, 0.02)])
    assert len(reasons) == 1
    assert "8.0% of the cross columns activations" in reasons[0]


@pytest.mark.parametrize(
    ("new", "reference", "due"),
    [
        (0.0, 0.0, False),
        (MIN_RANGE_EXCESS / 2, 0.0, False),  # nothing outside among the corpus: any share is twice
        (MIN_RANGE_EXCESS, 0.0, True),
        (0.07, 0.04, False),
        (0.08, 0.04, True),
    ],
)
def test_a_range_counts_from_both_its_bounds(new: float, reference: float, due: bool) -> None:
    assert bool(find_reasons(None, [RangeShare("within", "rows", new, reference)])) is due


def test_a_distance_counts_from_both_its_bounds() -> None:
    assert not find_reasons(DistanceShift(MAX_FARTHER + 0.2, 2.9, 0.5), [])
    assert not find_reasons(DistanceShift(MAX_FARTHER - 0.01, 20.0, 0.5), [])
    assert find_reasons(DistanceShift(MAX_FARTHER, 3.0, 0.5), [])


def test_a_handful_of_new_examples_is_never_enough() -> None:
    shares = [RangeShare("within", "rows", 0.9, 0.0)]
    assert not find_reasons(DistanceShift(1.0, 9.0, 1.0), shares, MIN_EXAMPLES - 1)
    assert find_reasons(DistanceShift(1.0, 9.0, 1.0), shares, MIN_EXAMPLES)


# The drift stage on runs gone on from: the same kind of data, another domain, and next to none.

FOREIGN = 4  # candidates numbered from here times NUM_OLD are of another domain
DOMAIN_WEIGHT = 1.5
DISTANCE_TOLERANCE = 1e-6  # float32 cosines


class DomainEmbedder(HashEmbedder):
    """Draws the vectors of two domains around two directions."""

    def embed(self, texts: list[str]) -> np.ndarray:  # type: ignore[override]
        vectors = super().embed(texts)
        foreign = [int(text.split("\n")[0].split()[-1]) >= FOREIGN * NUM_OLD for text in texts]
        vectors[:, 0] += np.where(foreign, -DOMAIN_WEIGHT, DOMAIN_WEIGHT)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_embedder() -> DomainEmbedder:
    return DomainEmbedder(chain.DIMENSION)


def grow_by(folder: Path, first: int, count: int, monkeypatch: pytest.MonkeyPatch) -> Outputs:
    """Make a run and go on from it with so many candidates numbered from ``first``."""
    for module in (chain, grown):
        monkeypatch.setattr(module, "make_embedder", make_embedder)
    parent = make_parent(folder, num_targets=12)
    return grow(parent, write_new(folder / "new.jsonl", first, count), str(folder / "grown"))


def test_more_of_the_same_needs_no_new_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = grow_by(tmp_path, NUM_OLD, 100, monkeypatch)["drift"].manifest.facts()
    assert facts["num_new"] == 100
    assert (facts["due"], facts["reasons"]) == (False, [])


def test_another_domain_needs_new_labels_by_distance_and_by_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = grow_by(tmp_path, FOREIGN * NUM_OLD, 100, monkeypatch)["drift"].manifest.facts()
    assert facts["due"]
    assert "farther from the labelled sample" in facts["reasons"][0]
    assert any("activations of new examples" in reason for reason in facts["reasons"])


def test_a_handful_of_another_domain_is_measured_but_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = grow_by(tmp_path, FOREIGN * NUM_OLD, 5, monkeypatch)["drift"].manifest.facts()
    assert facts["distance"]["farther"] > 0.9
    assert facts["due"] is False


def test_distances_and_ranges_are_those_of_the_labelled_sample(tmp_path: Path) -> None:
    parent = make_parent(tmp_path)
    outputs = grow(parent, write_new(tmp_path / "new.jsonl", NUM_OLD, 40), str(tmp_path / "grown"))
    pairs = [
        row
        for row in outputs["label"].read("labels").to_pylist()
        if row["split"] in (TRAIN, VALIDATION)
    ]
    helpers = {row["helper_index"] for row in pairs}
    labelled = sorted(helpers | {r["helped_index"] for r in pairs if r["block"] == "within"})
    vectors = column_matrix(outputs["embed"].read("candidates")["embedding"])
    wanted = 1 - (vectors @ vectors[labelled].T).max(axis=1)
    for row in outputs["drift"].read("distances").to_pylist():
        assert row["distance"] == pytest.approx(wanted[row["row_index"]], abs=DISTANCE_TOLERANCE)
        assert row["row_index"] not in labelled
    columns = column_matrix(outputs["project"].read("cross_columns")["activation"])
    seen = columns[sorted({r["helper_index"] for r in pairs if r["block"] == "cross"})]
    new = columns[NUM_OLD:]
    outside = (new < seen.min(axis=0)) | (new > seen.max(axis=0))
    (found,) = (
        row
        for row in outputs["drift"].manifest.facts()["ranges"]
        if (row["block"], row["side"]) == ("cross", "columns")
    )
    assert found["new"] == pytest.approx(outside.mean())


def test_batches_change_no_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = make_parent(tmp_path)
    new = write_new(tmp_path / "new.jsonl", NUM_OLD, 40)
    whole = grow(parent, new, str(tmp_path / "whole"))["drift"].manifest.facts()
    monkeypatch.setattr(extend, "BATCH_ROWS", 17)
    pieces = grow(parent, new, str(tmp_path / "pieces"))["drift"].manifest.facts()
    assert whole["ranges"]
    assert whole["ranges"] == pieces["ranges"]
