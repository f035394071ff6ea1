"""A tiny language model that a test makes itself: random weights, a tokenizer of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

END = "<|end|>"
TRAINING_TEXT = [
    "Instruction: Please generate a response to the following query. Query: What is two and two?",
    "Use the following example as a guide to answer the query in the same format and style.",
    "The capital of France is Paris. 1. one 2. two 3. three 4. four",
]


def small_llama(vocab_size: int, max_positions: int, *, bos: int = 0, eos: int = 0) -> Any:
    """Return the configuration of a Llama of two layers."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=max_positions,
        eos_token_id=eos,
        bos_token_id=bos,
        # Larger than usual, so that probabilities differ by context.
        initializer_range=0.2,
    )


def make_tiny_llama(
    folder: Path, *, vocabulary_size: int = 320, max_positions: int = 640, seed: int = 0
) -> Path:
    """Write a Llama of two layers and its byte-level tokenizer; returns the folder."""
    config = small_llama(write_tokenizer(folder, vocabulary_size), max_positions)
    return write_model(folder, config, seed)


def write_model(folder: Path, config: Any, seed: int = 0) -> Path:
    """Write a causal language model of random weights in float32; returns the folder."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path, vocabulary_size: int = 320) -> int:
    """Train a byte-level tokenizer with one end token and write it; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TRAINING_TEXT, trainer)
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END).save_pretrained(folder)
    return core.get_vocab_size()


def make_tiny_adapter(base: Path, folder: Path, *, rank: int = 4, seed: int = 1) -> Path:
    """Write a LoRA adapter of random weights for a tiny model; returns the folder."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,  # both matrices random: an adapter that changes something
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    model.save_pretrained(str(folder))
    return folder


def poison_weights(folder: Path) -> Path:
    """Overwrite one row of a model's output layer with NaN; returns the folder."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"][5] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    return folder
