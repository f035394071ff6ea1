"""Read every entry of an export folder's dataset_info.json with LLaMA-Factory; print the rows.

    python read_llamafactory.py EXPORT_FOLDER

Each row as LLaMA-Factory aligned it, and as the text that its tokens decode to. Only torchaudio,
which reads sounds, is a stub.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import peft  # noqa: F401  (transformers looks for torchaudio before the stub is there)
import transformers
import trl  # noqa: F401

sys.modules["torchaudio"] = types.ModuleType("torchaudio")

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer  # noqa: E402
from llamafactory.data.loader import _get_merged_dataset  # noqa: E402
from llamafactory.hparams import DataArguments, ModelArguments  # noqa: E402
from tokenizer import make_tokenizer  # noqa: E402


def main(folder: Path) -> None:
    """Print {entry: {"aligned": [...], "texts": [...]}}."""
    info = json.loads((folder / "dataset_info.json").read_text())
    found = {}
    for name, entry in info.items():
        if "file_name" not in entry:
            continue
        stage = "rm" if entry.get("ranking") else "sft"
        data = DataArguments(
            dataset_dir=str(folder), dataset=name, template="qwen", cutoff_len=4096
        )
        model = ModelArguments(model_name_or_path="none", cache_dir=str(folder / "cache"))
        training = transformers.Seq2SeqTrainingArguments(str(folder / "out"), use_cpu=True)
        tokenizer = make_tokenizer()
        template = get_template_and_fix_tokenizer(tokenizer, data)
        aligned = _get_merged_dataset(data.dataset, model, data, training, stage)
        made = get_dataset(template, model, data, training, stage, tokenizer)["train_dataset"]
        ids = "chosen_input_ids" if stage == "rm" else "input_ids"
        texts = [tokenizer.decode(row[ids]) for row in made]
        found[name] = {"aligned": aligned.to_list(), "texts": texts}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
