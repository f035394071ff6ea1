"""A tokenizer of bytes and a chat template, for programs that have transformers but not us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

END = "<|im_end|>"
TEMPLATE = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}<{{ message['role'] }}>"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message['content'] }}"
    "{% if 'tool_calls' in message %}{% for call in message.tool_calls %}"
    "CALL {{ call.function.name }} {{ call.function.arguments.items() | list }}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer() -> Any:
    """Return a tokenizer with a token a byte, which decodes to what was written."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={one: at for at, one in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token="<|pad|>")
    made.chat_template = TEMPLATE
    return made


def make_model(folder: Path) -> Path:
    """Write a Llama of one layer and random weights with the tokenizer; returns the folder."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
