"""Which engine a recipe asks for, and what loads it inside an actor.

What is pickled to an actor is small, and unpickling it imports no torch.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift_ray.engines.base import Engine
from nncift_ray.engines.chat import writing_settings
from nncift_ray.engines.memory import gpu_share
from nncift_ray.engines.models import (
    ResolvedModel,
    folder_digest,
    locate_model,
    resolve_language_model,
)
from nncift_ray.engines.vllm import VllmEngine, vllm_available
from nncift_ray.errors import ModelError
from nncift_ray.recipe.sections import EngineConfig, LessConfig, ServerConfig, TaughtTurns, Template

if TYPE_CHECKING:
    from nncift_ray.engines.lora import LoraModel  # with torch, which takes seconds

TRANSFORMERS, SERVER = "transformers", "server"


def resolve_engine_kind(kind: str | ServerConfig) -> str:
    """Return "vllm", "transformers" or "server"; "auto" is vLLM where it is installed."""
    if not isinstance(kind, str):
        return SERVER
    if kind != "auto":
        return kind
    return "vllm" if vllm_available() else TRANSFORMERS


def auto_dtype(*, has_gpu: bool) -> str:
    """Return what the dtype "auto" means."""
    return "bfloat16" if has_gpu else "float32"


def load_engine(
    model_path: str | Path,
    options: EngineConfig,
    *,
    generates: bool = False,
    num_threads: int | None = None,
) -> Engine:
    """Return an engine with a language model loaded.

    Args:
        model_path: Folder of the model.
        options: The recipe's section; its ``model`` and ``revision`` are not read.
        generates: Whether it will generate answers; else it scores.
        num_threads: CPU threads of torch; None leaves them alone.

    Raises:
        ModelError: If the engine is not installed, cannot do what is asked, or the model cannot be
            loaded.
    """
    kind = resolve_engine_kind(options.engine)
    if kind == "vllm":
        return VllmEngine(model_path, options, generates=generates, num_threads=num_threads)
    if kind == SERVER:
        from nncift_ray.engines.server import ServerEngine

        return ServerEngine(model_path, options)
    # Imported here because torch takes seconds, and most callers only ask for the kind.
    from nncift_ray.engines.transformers import TransformersEngine

    return TransformersEngine(model_path, options, generates=generates, num_threads=num_threads)


@dataclass(frozen=True, slots=True)
class TunedModel:
    """The files of a fine-tuning: an adapter for the base model, or a whole model."""

    folder: Path
    is_adapter: bool
    #: How the base was quantised while the adapter was trained.
    quantization: str | None = None


def apply_tuning(
    base: str | Path, options: EngineConfig, tuned: TunedModel | None
) -> tuple[str | Path, EngineConfig]:
    """Return the folder and the options that load a tuned model, or the base for None.

    An adapter that was trained on a 4-bit base is put on one, where the engine is transformers.
    vLLM takes the base as it is: it needs a plugin to quantise while loading, and adapters are
    commonly served so.
    """
    if tuned is None:
        return base, options
    if not tuned.is_adapter:
        return tuned.folder, options
    quantization = tuned.quantization if options.engine == TRANSFORMERS else None
    update = {"adapter": str(tuned.folder), "quantization": quantization}
    return base, options.model_copy(update=update)


@dataclass(frozen=True)
class EngineFactory:
    """Loads a language model in the actor that it is called in."""

    model: ResolvedModel
    options: EngineConfig  # engine and dtype are settled, once for all nodes
    generates: bool = False

    def __call__(self, tuned: TunedModel | None = None) -> Engine:
        """Return the engine with the model, or with the tuned one."""
        weights = self.options.server is None
        base = locate_model(self.model, "language model", weights=weights).path
        path, options = apply_tuning(base, self.options, tuned)
        # Processes that share a GPU share its memory.
        utilization = options.gpu_memory_utilization * gpu_share()
        options = options.model_copy(update={"gpu_memory_utilization": utilization})
        return load_engine(path, options, generates=self.generates, num_threads=actor_threads())

    def settings(self) -> dict[str, Any]:
        """Return what of it shapes numbers and answers."""
        options = self.options
        written = writing_settings(options.template, options.turns)
        model = {"model": self.model.name, "revision": self.model.revision}
        if options.server is not None:  # wherever it is: the model there makes the numbers
            served = {"engine": SERVER, "served": options.served_name}
            return model | served | {"max_length": options.max_length} | written
        return {
            **model,
            "engine": options.engine,
            "dtype": options.dtype,
            # Where a model's output layer is not quantised, its logits are of 32 bits.
            **({} if options.dtype == "float32" else {"head_dtype": "float32"}),
            "max_length": options.max_length,
            "quantization": options.quantization,
            "tensor_parallel_size": options.tensor_parallel_size,
            "adapter": folder_digest(Path(options.adapter)) if options.adapter else None,
        } | written


@dataclass(frozen=True)
class LoraFactory:
    """Loads the language model that LESS warms up and takes gradients of."""

    model: ResolvedModel
    dtype: str
    less: LessConfig
    template: Template
    turns: TaughtTurns

    def __call__(self) -> LoraModel:
        """Load it."""
        from nncift_ray.engines.lora import LoraModel

        return LoraModel(
            locate_model(self.model, "language model").path,
            self.less,
            dtype=self.dtype,
            num_threads=actor_threads(),
            template=self.template,
            turns=self.turns,
        )

    def settings(self) -> dict[str, Any]:
        """Settings that enter the cache key."""
        model = {"model": self.model.name, "revision": self.model.revision, "dtype": self.dtype}
        keys = {"quantization", "rank", "alpha", "dropout", "target_modules", "max_length"}
        adapter = self.less.model_dump(mode="json", include=keys)
        return model | adapter | writing_settings(self.template, self.turns)


def find_engine(options: EngineConfig, *, has_gpu: bool, generates: bool = False) -> EngineFactory:
    """Return what loads the language model of a section.

    Args:
        options: The section.
        has_gpu: What its model and its dtype "auto" are chosen by.
        generates: Whether it will generate answers; else it scores.

    Raises:
        ModelError: If the model cannot be found.
    """
    model = resolve_language_model(options.model, options.revision, has_gpu=has_gpu)
    return EngineFactory(model, settle(options, auto_dtype(has_gpu=has_gpu)), generates)


def settle(options: EngineConfig, dtype: str) -> EngineConfig:
    """Return the options with no "auto" left: engine by what is installed, dtype as given."""
    if options.dtype != "auto":
        dtype = options.dtype
    engine = options.server or resolve_engine_kind(options.engine)
    return options.model_copy(update={"engine": engine, "dtype": dtype})


def actor_threads() -> int | None:
    """Return the threads that Ray gave this actor: untold, a library takes every core there is."""
    return int(os.environ.get("OMP_NUM_THREADS", "0")) or None


def need_packages(extra: str, wanted_by: str, *packages: str) -> None:
    """Check that packages of an extra are installed.

    Raises:
        ModelError: Naming the first that is missing, and what to install.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModelError(
                f"{wanted_by} needs {package}, which is not installed: "
                f"pip install 'nncift_ray[{extra}]'"
            )
