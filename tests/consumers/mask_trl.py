"""Print the tokens that TRL's SFTTrainer trains on, and which of them its loss is on.

python mask_trl.py JOBS.json

A job is a tokenizer's folder, rows, and whether the loss is on all turns of the assistant; without
that rows are prompts with completions.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from trl import SFTConfig, SFTTrainer


def prepare(job: dict[str, Any]) -> list[dict[str, list[int]]]:
    """Return what a trainer makes of the rows of a job."""
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=1, **shape)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_config(config),
        args=SFTConfig(
            tempfile.mkdtemp(), use_cpu=True, bf16=False, report_to=[], max_length=None,
            assistant_only_loss=job["all_turns"],
        ),
        train_dataset=Dataset.from_list(job["rows"]),
        processing_class=tokenizer,
    )  # fmt: skip
    return [{"ids": row["input_ids"], "taught": taught(row)} for row in trainer.train_dataset]


def taught(row: dict[str, Any]) -> list[int]:
    """Return the places that the loss is on."""
    if "labels" in row:
        return [at for at, label in enumerate(row["labels"]) if label != -100]
    mask = row.get("assistant_masks") or row["completion_mask"]
    return [at for at, wanted in enumerate(mask) if wanted]


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[1]).write_text(json.dumps([prepare(job) for job in jobs]))
