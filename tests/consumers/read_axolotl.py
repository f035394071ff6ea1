"""Read an export folder with Axolotl's own loaders, by the axolotl.yaml in it; print the rows.

python read_axolotl.py EXPORT_FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import yaml
from axolotl.utils.data import sft
from axolotl.utils.data.rl import prepare_preference_datasets
from axolotl.utils.dict import DictDefault
from tokenizer import make_model, make_tokenizer

ONE = {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "num_epochs": 1, "batch_size": 1}


def main(folder: Path) -> None:
    """Print the tokens' texts of each way to read the folder."""
    os.chdir(folder)
    sft.save_preprocessed_dataset = lambda *_: None  # it starts processes of its own
    tokenizer = make_tokenizer()
    model = str(make_model(Path(tempfile.mkdtemp())))
    base = DictDefault(
        base_model=model,
        tokenizer_config=model,
        dataset_prepared_path=tempfile.mkdtemp(),
        sequence_len=4096,
        val_set_size=0,
        learning_rate=1e-4,
        world_size=1,
        sample_packing_eff_est=1,
        **ONE,
    )
    written = yaml.safe_load(Path("axolotl.yaml").read_text())
    ways = {
        "dataset": written["datasets"],
        "messages": [{"path": "messages.jsonl", "ds_type": "json", "type": "chat_template"}],
    }
    found = {}
    for name, datasets in ways.items():
        rows, *_ = sft.prepare_datasets(DictDefault(base | {"datasets": datasets}), tokenizer)
        found[name] = [
            (
                tokenizer.decode(row["input_ids"]),
                tokenizer.decode([one for one in row["labels"] if one != -100]),
            )
            for row in rows
        ]
    if Path("preference.json").exists():
        entry = {"path": "dataset", "split": "train", "type": "chat_template.argilla_chat"}
        cfg = DictDefault(base | {"rl": "dpo", "datasets": [entry]})
        rows, _ = prepare_preference_datasets(cfg, tokenizer)
        found["dpo"] = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    Path("found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
