from __future__ import annotations

from pathlib import Path

import pytest

from nncift_ray.engines import models
from nncift_ray.engines.models import convert_once


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

    monkeypatch.setattr(models, "_convert", counting)
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

    monkeypatch.setattr(models, "_convert", failing)
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

    monkeypatch.setattr(models, "_convert", overtaken)
    convert_once(source, final)
    assert (final / "model.safetensors").read_bytes() == b"of the other process"
    assert list(final.parent.iterdir()) == [final]
