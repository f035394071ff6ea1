"""Train one step on an export folder with TRL's SFTTrainer, and its DPOTrainer where it has pairs.

python train_trl.py EXPORT_FOLDER
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from datasets import load_dataset
from tokenizer import make_model, make_tokenizer
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer


def main(folder: Path) -> None:
    """Print the losses, the rows and the texts that were tokenized."""
    model, tokenizer = make_model(Path(tempfile.mkdtemp())), make_tokenizer()
    rows = load_dataset(str(folder / "dataset"), split="train", cache_dir=str(folder / "cache"))
    kinds = {"sft": (SFTConfig, SFTTrainer)}
    if "chosen" in rows.column_names:
        kinds["dpo"] = (DPOConfig, DPOTrainer)
    found = {}
    for name, (config, trainer) in kinds.items():
        made = trainer(
            model=AutoModelForCausalLM.from_pretrained(model),
            args=config(tempfile.mkdtemp(), max_steps=1, use_cpu=True, bf16=False, report_to=[]),
            train_dataset=rows,
            processing_class=tokenizer,
        )
        loss = made.train().training_loss
        ids = "chosen_ids" if name == "dpo" else "input_ids"
        texts = [tokenizer.decode(row[ids]) for row in made.train_dataset]
        found[name] = {"loss": loss, "texts": texts}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
