from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nncift_ray.engines import gguf as gguf_conversion
from nncift_ray.engines import models as embedded
from nncift_ray.engines import models as hub
from nncift_ray.engines.models import (
    NOT_FETCHED,
    ResolvedModel,
    locate_model,
    resolve_embedder,
    resolve_language_model,
)
from nncift_ray.errors import ModelError

NAME = "owner/model"
OLD, NEW = "a" * 40, "b" * 40


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError(f"called with {args} {kwargs}")


def _make_folder(folder: Path, weights: bytes = b"1234") -> Path:
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling": "cls"}')
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds two commits of one model, the older one tagged v1."""
    store = tmp_path / "models--owner--model"
    for commit in (OLD, NEW):
        _make_folder(store / "snapshots" / commit)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text(NEW)
    (store / "refs" / "v1").write_text(OLD)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return store


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """What was asked of the hub; it answers with the newest commit."""
    asked: list[tuple[str, str | None]] = []

    def download(name: str, revision: str | None = None) -> Path:
        asked.append((name, revision))
        return Path("/cache/snapshots") / NEW

    monkeypatch.setattr(hub, "download_snapshot", download)
    monkeypatch.setattr(hub, "is_offline", lambda: False)
    return asked


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("revision", "commit"), [(None, NEW), ("main", NEW), ("v1", OLD), (OLD, OLD)]
)
def test_a_revision_in_the_cache_is_found_offline(
    monkeypatch: pytest.MonkeyPatch, revision: str | None, commit: str
) -> None:
    monkeypatch.setattr(hub, "is_offline", lambda: True)
    monkeypatch.setattr(hub, "download_snapshot", _refuse)
    for resolve in (resolve_embedder, resolve_language_model):
        found = resolve(NAME, revision)
        assert found.revision == commit
        assert Path(found.path).name == commit


@pytest.mark.usefixtures("hub_cache")
def test_a_branch_is_asked_of_the_hub_and_a_cached_commit_is_not(
    downloads: list[tuple[str, str | None]],
) -> None:
    assert resolve_embedder(NAME, OLD).revision == OLD
    assert downloads == []
    assert resolve_embedder(NAME, "v1").revision == NEW
    resolve_language_model(NAME)
    resolve_language_model(NAME, "c" * 40)
    assert downloads == [(NAME, "v1"), (NAME, None), (NAME, "c" * 40)]


@pytest.mark.usefixtures("hub_cache")
def test_cache_and_hub_are_asked_for_the_same_files_and_revision(
    monkeypatch: pytest.MonkeyPatch, hub_cache: Path
) -> None:
    calls: list[dict[str, Any]] = []

    def snapshot(name: str, **options: Any) -> str:
        calls.append(options)
        return str(hub_cache / "snapshots" / OLD)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    hub.cached_snapshot(NAME, "v1")
    hub.download_snapshot(NAME, "v1")
    # Looked up with other patterns, what was downloaded would count as incomplete.
    assert calls[0].pop("local_files_only")
    assert calls[0] == calls[1]
    assert calls[0]["revision"] == "v1"


def test_a_snapshot_without_weights_is_not_whole(hub_cache: Path) -> None:
    (hub_cache / "snapshots" / NEW / "model.safetensors").unlink()
    assert hub.cached_snapshot(NAME) is None
    assert hub.cached_snapshot(NAME, "v1") is not None


@pytest.mark.parametrize("kind", ["auto", "folder", "embedded:all-minilm-l6-v2"])
def test_a_revision_of_anything_but_a_hub_id_is_refused(tmp_path: Path, kind: str) -> None:
    name = str(_make_folder(tmp_path / "m")) if kind == "folder" else kind
    for resolve in (resolve_embedder, resolve_language_model):
        with pytest.raises(ModelError, match="hub ids"):
            resolve(name, "main")


def test_an_unreachable_hub_names_model_revision_and_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import httpx

    def unreachable(name: str, **options: Any) -> str:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    monkeypatch.setattr(hub, "cached_snapshot", lambda name, revision: None)
    with pytest.raises(ModelError, match=r"owner/model at revision v1 .*no route.*local folder"):
        resolve_embedder(NAME, "v1")


@pytest.mark.parametrize(("offline", "words"), [(False, "would be downloaded"), (True, "forbids")])
def test_without_fetching_an_absent_hub_model_has_no_path_and_a_notice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, offline: bool, words: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "is_offline", lambda: offline)
    monkeypatch.setattr(hub, "download_snapshot", _refuse)
    found = resolve_language_model(NAME, "v1", fetch=False)
    assert (found.name, found.path, found.revision) == (NAME, "", NOT_FETCHED)
    assert found.notice is not None
    assert words in found.notice


@pytest.mark.usefixtures("hub_cache")
def test_without_fetching_the_cached_state_of_a_branch_is_taken(
    downloads: list[tuple[str, str | None]],
) -> None:
    assert resolve_embedder(NAME, fetch=False).revision == NEW
    assert downloads == []


def test_auto_without_fetching_asks_whether_the_hub_answers_and_fetches_nothing(
    monkeypatch: pytest.MonkeyPatch, downloads: list[tuple[str, str | None]]
) -> None:
    monkeypatch.setattr(hub, "cached_snapshot", lambda name, revision: None)
    monkeypatch.setattr(hub, "hub_answers", lambda name: True)
    found = resolve_embedder("auto", fetch=False)
    assert (found.name, found.path) == (embedded.PAPER_EMBEDDER, "")
    assert found.revision == NOT_FETCHED
    assert downloads == []


@pytest.fixture
def gguf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package with a GGUF file; returns the cache of converted models."""

    class Package:
        version = "1.2"

        def locate_file(self, file: str) -> Path:
            return tmp_path / "model.gguf"

    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(embedded, "distribution", lambda name: Package())
    monkeypatch.setenv("NNCIFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_without_fetching_a_gguf_is_not_converted_but_its_revision_is_known(
    monkeypatch: pytest.MonkeyPatch, gguf: Path
) -> None:
    monkeypatch.setattr(embedded, "_has_cuda", lambda: False)
    monkeypatch.setattr(gguf_conversion, "_convert", _refuse)
    before = resolve_language_model("auto", fetch=False)
    assert before.path == ""
    assert before.notice is not None
    assert "no GPU" in before.notice
    assert "converted once" in before.notice
    assert not gguf.exists()
    monkeypatch.setattr(gguf_conversion, "_convert", _write_weights)
    after = resolve_language_model(embedded.EMBEDDED_LANGUAGE_MODEL)
    assert after.revision == before.revision != NOT_FETCHED
    assert resolve_language_model(embedded.EMBEDDED_LANGUAGE_MODEL, fetch=False) == after


def _write_weights(gguf_path: Path, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(gguf_path.read_bytes())


def test_copies_of_a_folder_are_the_same_model_whatever_their_times(tmp_path: Path) -> None:
    first = _make_folder(tmp_path / "a")
    second = Path(shutil.copytree(first, tmp_path / "b"))
    os.utime(second / "model.safetensors", (1, 1))
    (second / ".cache").mkdir()
    (second / ".cache" / "state.json").write_text("{}")
    assert resolve_embedder(str(first)).revision == resolve_embedder(str(second)).revision


def _train_in_place(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def _change_pooling(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").write_text('{"pooling": "avg"}')


@pytest.mark.parametrize("change", [_train_in_place, _change_pooling])
def test_a_folder_changed_in_place_is_another_model_and_is_refused(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = _make_folder(tmp_path / "m", bytes(3 * embedded.DIGESTED_BYTES))
    model = resolve_embedder(str(folder))
    assert locate_model(model, "embedder") == model
    change(folder)
    with pytest.raises(ModelError, match="make both the same"):
        locate_model(model, "embedder")


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_model_is_located_at_the_commit_it_was_resolved_to(
    downloads: list[tuple[str, str | None]],
) -> None:
    here = locate_model(ResolvedModel(NAME, "/elsewhere", OLD), "embedder")
    assert here.revision == OLD
    assert Path(here.path).is_dir()
    assert downloads == []
    with pytest.raises(ModelError, match="make both the same"):
        locate_model(ResolvedModel(NAME, "/elsewhere", "c" * 40), "embedder")
    assert downloads == [(NAME, "c" * 40)]
