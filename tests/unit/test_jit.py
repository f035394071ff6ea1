"""Compiled kernels are cached under the state of all sources they may be made of."""

from __future__ import annotations

from pathlib import Path

import numba

from nncift_ray.jit import compiled, sources_digest
from nncift_ray.scores import kernel as pair_kernel


def test_a_change_of_any_source_is_another_digest(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text("a = 1\n")
    (tmp_path / "imported.py").write_text("b = 1\n")
    before = sources_digest(tmp_path)
    (tmp_path / "imported.py").write_text("b = 2\n")
    assert sources_digest(tmp_path) != before


def test_a_kernel_is_cached_under_the_digest_and_numbas_own_setting_stays() -> None:
    given = numba.config.CACHE_DIR

    @compiled
    def add(x: float, y: float) -> float:
        return x + y

    assert sources_digest() in add.stats.cache_path  # type: ignore[attr-defined]
    assert sources_digest() in pair_kernel.sum_tile.stats.cache_path
    assert numba.config.CACHE_DIR == given
    assert add(1.0, 2.0) == 3.0
