"""The drift stage on runs gone on from: the same kind of data, another domain, and next to none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nncift_ray.labels.sample import TRAIN, VALIDATION
from nncift_ray.network import drift
from nncift_ray.runtime.output import column_matrix
from tests import chain
from tests.hash_embedder import HashEmbedder
from tests.unit.extend import grown
from tests.unit.extend.grown import NUM_OLD, Outputs, grow, make_parent, write_new

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
    rows = [
        row
        for row in outputs["drift"].read("activation_ranges").to_pylist()
        if (row["block"], row["side"]) == ("cross", "columns")
    ]
    assert [row["low"] for row in rows] == seen.min(axis=0).tolist()
    np.testing.assert_allclose(
        [row["new_above"] for row in rows], (new > seen.max(axis=0)).mean(axis=0)
    )


def test_batches_change_no_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = make_parent(tmp_path)
    new = write_new(tmp_path / "new.jsonl", NUM_OLD, 40)
    whole = grow(parent, new, str(tmp_path / "whole"))["drift"].read("activation_ranges")
    monkeypatch.setattr(drift, "BATCH_ROWS", 17)
    pieces = grow(parent, new, str(tmp_path / "pieces"))["drift"].read("activation_ranges")
    np.testing.assert_allclose(whole["reference_above"], pieces["reference_above"])
    np.testing.assert_allclose(whole["new_below"], pieces["new_below"])
