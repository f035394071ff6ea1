"""Tiny tokenizers with chat templates in the formats of published models.

A template marks what the assistant writes, for transformers' own masks; ``write_chat_tokenizer``
takes the marks out, as most published templates have none.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.tiny_models import TRAINING_TEXT

LLAMA = """
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}
{%- else %}
{{- message['content'] | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}
{%- endif %}
"""
GEMMA = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}
{%- endif %}
{%- if message['role'] == 'assistant' %}
{{- '<start_of_turn>model\n' }}
{%- generation %}{{- message['content'] | trim + '<end_of_turn>\n' }}{%- endgeneration %}
{%- else %}
{{- '<start_of_turn>user\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}
"""
#: Trains of thought are written behind the last question only.
QWEN = """
{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- '# Tools\n<tools>' }}
{%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}
{{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set seen = namespace(question=0) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{%- set seen.question = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\n' }}
{%- generation %}
{%- if loop.index0 > seen.question and (loop.last or message.reasoning_content) %}
{{- '<think>\n' + (message.reasoning_content or '') + '\n</think>\n\n' }}
{%- endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endgeneration %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
MISTRAL = """
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}
{{- '[INST] ' + message['content'] + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{%- generation %}{{- ' ' + message['content'] + eos_token }}{%- endgeneration %}
{%- else %}
{{- raise_exception('only user and assistant') }}
{%- endif %}
{%- endfor %}
"""

#: The last answer is followed by the end of the text.
PHI = """
{%- for message in messages %}
{{- '<|' + message['role'] + '|>\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}
{{- message['content'] + '<|end|>\n' }}{% if loop.last %}{{- eos_token }}{% endif %}
{%- endgeneration %}
{%- else %}
{{- message['content'] + '<|end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}
"""

TEMPLATES = {"llama": LLAMA, "gemma": GEMMA, "qwen": QWEN, "mistral": MISTRAL, "phi": PHI}
#: The special tokens: what begins a text, what ends it, and the template's own.
SPECIAL = {
    "llama": ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    "gemma": ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    "qwen": ("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
    "mistral": ("<s>", "</s>"),
    "phi": ("<s>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
}
#: Where texts are split first: as in Llama 3 and Qwen, newlines stay together.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SENTENCEPIECE_LIKE = ("gemma", "mistral")
_MARKS = re.compile(r"\{%-? (end)?generation %\}")


def write_chat_tokenizer(folder: Path, name: str, *, marked: bool = False) -> int:
    """Write a tokenizer of a kind in TEMPLATES; returns its size."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    like_sentencepiece = name in SENTENCEPIECE_LIKE
    core = Tokenizer(models.BPE(byte_fallback=like_sentencepiece, unk_token="<unk>"))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if like_sentencepiece:
        first = [normalizers.Prepend("\u2581")] if name == "mistral" else []
        core.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "\u2581")])
        core.decoder = decoders.Replace("\u2581", " ")
        alphabet = sorted({chr(code) for code in range(32, 127)} | {"\n", "\u2581"})
    else:
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        core.decoder = decoders.ByteLevel()
    special = SPECIAL[name]
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 80,
        special_tokens=["<unk>", *special],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    # Texts with blank lines, so that a newline and what follows it can be one token.
    core.train_from_iterator([*TRAINING_TEXT, "\n\nuser\n\nassistant\n\n" * 9], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=special[0], eos_token=special[1], unk_token="<unk>"
    )
    template = TEMPLATES[name].strip("\n")
    tokenizer.chat_template = template if marked else _MARKS.sub("", template)
    tokenizer.save_pretrained(folder)
    return core.get_vocab_size()


def make_chat_llama(folder: Path, name: str = "qwen", *, max_positions: int = 640) -> Path:
    """Write a Llama of two layers with a chat template; returns the folder."""
    from tests.tiny_models import small_llama, write_model

    config = small_llama(write_chat_tokenizer(folder, name), max_positions, bos=1, eos=2)
    return write_model(folder, config)
