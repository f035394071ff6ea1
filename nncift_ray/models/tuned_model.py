"""A fine-tuned model on this machine, and how an engine loads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

TRANSFORMERS = "transformers"


class LoadOptions(TypedDict):
    """What an engine is told of its weights; keywords of ``make_engine`` and ``make_generator``."""

    model_path: str | Path
    adapter: Path | None
    quantization: str | None


@dataclass(frozen=True, slots=True)
class TunedModel:
    """The files of a tuning: an adapter for the base model, or a whole model."""

    folder: Path
    is_adapter: bool
    #: How the base was quantised while the adapter was trained.
    quantization: str | None = None


def load_options(tuned: TunedModel | None, base: str | Path, engine_kind: str) -> LoadOptions:
    """Say what an engine loads to be the tuned model, or the base where there is none.

    An adapter that was trained on a 4-bit base is put on one, where the engine is transformers.
    vLLM takes the base as it is: it needs a plugin to quantise while loading, and adapters are
    commonly served so.

    Args:
        tuned: The tuned model.
        base: Folder or hub id of the base model.
        engine_kind: "vllm" or "transformers".
    """
    if tuned is None:
        return LoadOptions(model_path=base, adapter=None, quantization=None)
    if not tuned.is_adapter:
        return LoadOptions(model_path=tuned.folder, adapter=None, quantization=None)
    quantization = tuned.quantization if engine_kind == TRANSFORMERS else None
    return LoadOptions(model_path=base, adapter=tuned.folder, quantization=quantization)
