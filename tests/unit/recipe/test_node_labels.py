"""Labels of nodes: what a recipe may say of them is what Ray takes."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from ray._private.label_utils import validate_label_selector

from nncift_ray.recipe.sections import PoolConfig

KEY = "ray.io/market-type"
GOOD = ["spot", "!spot", "in(spot, on-demand)", "in(spot,on-demand)", "!in(spot, a.b_c)", "x" * 63]
BAD = ["", "a b", "in()", "in(a,", "-spot", "=spot", "!!spot", "x" * 64]


@pytest.mark.parametrize("value", GOOD)
def test_what_ray_selects_by_is_taken(value: str) -> None:
    assert validate_label_selector({KEY: value}) is None
    assert PoolConfig(labels={KEY: value}).labels == {KEY: value}


@pytest.mark.parametrize("value", BAD)
def test_what_selects_nothing_is_refused_with_an_example(value: str) -> None:
    with pytest.raises(ValidationError, match="on-demand"):
        PoolConfig(labels={KEY: value})


@pytest.mark.parametrize("key", ["", "a/b/c", "-a", "a b"])
def test_a_key_that_is_no_label_is_refused(key: str) -> None:
    assert validate_label_selector({key: "spot"}) is not None
    with pytest.raises(ValidationError, match="selects no nodes"):
        PoolConfig(labels={key: "spot"})
