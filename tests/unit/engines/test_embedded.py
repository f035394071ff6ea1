from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nncift_ray.engines import embedded
from nncift_ray.engines.embedded import convert_once


def _write_model(gguf_path: Path, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(gguf_path.read_bytes())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    return path


def test_a_model_is_converted_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def counting(gguf_path: Path, folder: Path) -> None:
        calls.append(folder)
        _write_model(gguf_path, folder)

    monkeypatch.setattr(embedded, "_convert", counting)
    folder = source.parent / "cache" / "model"
    assert convert_once(source, folder) == convert_once(source, folder) == folder
    assert len(calls) == 1
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_a_conversion_that_fails_leaves_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(gguf_path: Path, folder: Path) -> None:
        _write_model(gguf_path, folder)
        raise RuntimeError("disk full")

    monkeypatch.setattr(embedded, "_convert", failing)
    with pytest.raises(RuntimeError, match="disk full"):
        convert_once(source, source.parent / "cache" / "model")
    assert list((source.parent / "cache").iterdir()) == []


def test_the_first_of_two_racing_conversions_wins(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = source.parent / "cache" / "model"

    def overtaken(gguf_path: Path, folder: Path) -> None:
        _write_model(gguf_path, folder)
        final.mkdir()
        (final / "model.safetensors").write_bytes(b"of the other process")

    monkeypatch.setattr(embedded, "_convert", overtaken)
    convert_once(source, final)
    assert (final / "model.safetensors").read_bytes() == b"of the other process"
    assert list(final.parent.iterdir()) == [final]


def test_rotary_rows_go_from_side_by_side_to_half_a_head_apart() -> None:
    # Two heads of four rows; GGUF writes the halves of pair p of a head as rows 2p and 2p + 1.
    interleaved = np.array([[0], [2], [1], [3], [4], [6], [5], [7]], dtype=np.float32)
    restored = embedded._undo_rotary_interleaving(interleaved, num_heads=2)
    assert restored[:, 0].tolist() == list(range(8))
