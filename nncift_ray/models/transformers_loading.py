"""Loading a causal language model with transformers: dtype, 4-bit weights, LoRA adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from nncift_ray.errors import ModelError
from nncift_ray.models.model_files import Adapter

BITSANDBYTES = "bitsandbytes"


def pick_device(device: str) -> torch.device:
    """Return a device by name; "auto" is CUDA where there is one."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_language_model(
    model_path: str | Path,
    device: torch.device,
    *,
    dtype: str,
    revision: str | None = None,
    quantization: str | None = None,
    adapter: Adapter | None = None,
) -> Any:
    """Load a causal language model for scoring.

    Args:
        model_path: A local folder, or the id of a model on the hub.
        device: Where its weights go.
        dtype: A torch dtype by name: of the weights, or of the arithmetic where they are quantised.
        revision: Commit on the hub.
        quantization: "bitsandbytes" makes the linear layers 4-bit NF4 while loading.
        adapter: A LoRA adapter; merged into the weights unless those are quantised.

    Raises:
        ModelError: If the model cannot be loaded, does not fit into memory, or ``dtype`` or
            ``quantization`` is unknown here.
    """
    from transformers import AutoModelForCausalLM

    torch_dtype = find_dtype(dtype)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(model_path),
            revision=revision,
            dtype=torch_dtype,
            trust_remote_code=False,
            use_safetensors=True,  # never a pickle
            local_files_only=Path(model_path).is_dir(),
            quantization_config=_quantization_config(quantization, torch_dtype),
            device_map={"": device},
        )
        if torch_dtype == torch.float32:
            _multiply_in_float32(model)
        if adapter is not None:
            model = _add_adapter(model, adapter, device, merge=quantization is None)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{model_path} does not fit into the memory of {device}: set its quantization to "
            f"{BITSANDBYTES}, its dtype to bfloat16, or choose a smaller model"
        ) from error
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ModelError(f"no language model can be loaded from {model_path}: {error}") from error
    return model.eval()


def find_dtype(name: str) -> torch.dtype:
    """Return a torch dtype by name.

    Raises:
        ModelError: If there is none.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"dtype {name!r} is unknown; use float32, bfloat16 or float16")
    return dtype


def _quantization_config(quantization: str | None, dtype: torch.dtype) -> Any:
    if quantization is None:
        return None  # or as the model's own files say
    if quantization != BITSANDBYTES:
        raise ModelError(
            f"teacher.quantization {quantization!r} is not for the transformers engine: use "
            f"{BITSANDBYTES}, set teacher.engine to vllm, or leave it out for a model whose files "
            "are quantised already"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def _multiply_in_float32(model: Any) -> None:
    """Keep 4-bit layers from rounding their input to bfloat16 where float32 was asked for.

    On a CPU that multiplies bfloat16, bitsandbytes does so for every layer that is not being
    trained: log-likelihoods move in the third digit, and differ between kinds of machine.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _add_adapter(model: Any, adapter: Adapter, device: torch.device, *, merge: bool) -> Any:
    """Return the model with the adapter: as plain weights, or as layers beside 4-bit ones."""
    from peft import PeftModel

    dressed: Any = PeftModel.from_pretrained(model, str(adapter.path), torch_device=str(device))
    return dressed.merge_and_unload() if merge else dressed.get_base_model()
