from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nncift_ray import factories
from nncift_ray.engines.models import EMBEDDED_LANGUAGE_MODEL, resolve_language_model
from nncift_ray.recipe.sections import JudgeConfig


def test_a_packaged_language_model_can_be_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []

    def make_generator(kind: str, path: str, **options: Any) -> object:
        loaded.append((kind, Path(path), options["max_length"]))
        return object()

    monkeypatch.setattr(factories, "make_generator", make_generator)
    model = resolve_language_model(EMBEDDED_LANGUAGE_MODEL)
    judge = JudgeConfig(model=EMBEDDED_LANGUAGE_MODEL)
    factories.JudgeFactory(model, "transformers", "float32", judge)()
    ((kind, path, max_length),) = loaded
    assert (kind, max_length) == ("transformers", judge.max_length)
    assert (path / "config.json").exists()
