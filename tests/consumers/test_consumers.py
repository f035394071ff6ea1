"""The exports, read by datasets, TRL, LLaMA-Factory and Axolotl: every row, nothing missing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pytest

from nncift_ray.corpus.export import write_exports
from nncift_ray.corpus.ingest import expand_sources, read_examples
from nncift_ray.runtime import schemas

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".venv-consumers"

TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": name, "parameters": {"type": "object"}},
    }
    for name in ("weather", "add")
]
CALLS = [
    {
        "id": "c1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"at": "Rome"}'},
    },
    {"id": "c2", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}},
]
ROWS: list[dict[str, Any]] = [
    {"prompt": "plain question", "completion": "plain answer"},
    {
        "instruction": "Asked last.",
        "input": "",
        "output": "Said last.",
        "system": "Be kind.",
        "history": [["Asked first.", "Said first."]],
    },
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Rain?"},
            {
                "role": "assistant",
                "content": "I look.",
                "reasoning_content": "two calls",
                "tool_calls": CALLS,
            },
            {"role": "tool", "content": "dry", "tool_call_id": "c1"},
            {"role": "tool", "content": "2", "tool_call_id": "c2"},
            {"role": "assistant", "content": "No rain."},
        ],
        "tools": TOOLS,
    },
    {
        "conversations": [
            {"from": "human", "value": "Snow?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"at": "Oslo"}}'},
            {"from": "observation", "value": "white"},
            {"from": "gpt", "value": "Much snow."},
        ],
        "system": "Be cold.",
        "tools": json.dumps(TOOLS),
    },
    {
        "messages": [
            {"role": "assistant", "content": "Hello there."},
            {"role": "user", "content": "One."},
            {"role": "user", "content": "Two."},
            {"role": "assistant", "content": "Three."},
        ]
    },
]
#: What each row's readers must find, in this order.
TEXTS = [
    ["plain question", "plain answer"],
    ["Be kind.", "Asked first.", "Said first.", "Asked last.", "Said last."],
    ["Be short.", "Rain?", "two calls", "I look.", "weather", "add", "dry", "2", "No rain."],
    ["Be cold.", "Snow?", "weather", "Oslo", "white", "Much snow."],
    ["Hello there.", "One.", "Two.", "Three."],
]
PAIRS = [
    {
        side: [
            {"role": "user", "content": f"question {at}"},
            {"role": "assistant", "content": f"{side} {at}"},
        ]
        for side in ("chosen", "rejected")
    }
    for at in range(8)
]


def export(folder: Path, *corpora: list[dict[str, Any]], candidates: tuple[int, ...] = ()) -> Path:
    """Write records as corpora, read them, export them in their order; returns the folder."""
    out, paths = folder / "export", [folder / f"corpus{at}.jsonl" for at in range(len(corpora))]
    for path, records in zip(paths, corpora, strict=True):
        path.write_text("\n".join(map(json.dumps, records)))
    read = [
        row
        for source in expand_sources(list(map(str, paths)))
        for row in read_examples(source, "candidate")
    ]
    rows = [
        {name: value for name, value in row.items() if name in schemas.EXAMPLES.names}
        | {"row_index": at, "num_duplicates": 0, "rank": at + 1, "gain": 1.0}
        for at, row in enumerate(read)
    ]
    added = [pa.field("rank", pa.int32()), pa.field("gain", pa.float64())]
    table = pa.Table.from_pylist(rows, schema=pa.schema([*schemas.EXAMPLES, *added]))
    opened: list[BinaryIO] = []

    def open_output(name: str) -> BinaryIO:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        opened.append(cast(BinaryIO, (out / name).open("wb")))
        return opened[-1]

    whole = dict(zip(map(str, paths), candidates, strict=True)) if candidates else None
    write_exports(lambda: [table], open_output, candidates=whole)
    for file in opened:
        file.close()
    return out


def run_in(environment: str, script: str, folder: Path) -> Any:
    """Run a script with a consumer's own Python; returns what it found."""
    python = ENVIRONMENTS / environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{environment} is not installed: .ci/setup-consumers makes its environment")
    home = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1"}
    done = subprocess.run(  # noqa: S603  (our own script)
        [python, HERE / script, folder],
        env={**os.environ, **home, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


def in_order(texts: list[str], whole: str) -> bool:
    """Whether texts stand in another one after the other."""
    at = 0
    for text in texts:
        at = whole.find(text, at)
        if at < 0:
            return False
        at += len(text)
    return True


def test_llamafactory_reads_every_row_with_its_roles_tools_and_calls(tmp_path: Path) -> None:
    found = run_in("llamafactory", "read_llamafactory.py", export(tmp_path, ROWS))
    shared = found["nncift_sharegpt"]
    assert len(shared["texts"]) == len(found["nncift_alpaca"]["texts"]) == len(ROWS)
    for texts, whole in zip(TEXTS, shared["texts"], strict=True):
        assert in_order(texts, whole), whole
    aligned = shared["aligned"][2]
    assert aligned["_system"] == "Be short."
    assert json.loads(aligned["_tools"]) == TOOLS
    roles = [turn["role"] for turn in aligned["_prompt"] + aligned["_response"]]
    assert roles == ["user", "function", "observation", "assistant"]
    assert in_order(['"name": "weather"', '{"at": "Rome"}', '{"x": 1}'], shared["texts"][2])
    asked = found["nncift_alpaca"]["aligned"][1]
    assert (asked["_system"], len(asked["_prompt"])) == ("Be kind.", 3)


def test_llamafactory_reads_preference_pairs(tmp_path: Path) -> None:
    found = run_in("llamafactory", "read_llamafactory.py", export(tmp_path, PAIRS))
    aligned = found["nncift_preference"]["aligned"]
    assert [row["_response"][1]["content"] for row in aligned] == [
        f"rejected {i}" for i in range(8)
    ]
    assert all("chosen" in text for text in found["nncift_preference"]["texts"])


def test_llamafactory_mixes_whole_sources_by_their_weights(tmp_path: Path) -> None:
    out = export(tmp_path, ROWS[:2], ROWS[2:4], candidates=(30, 10))
    weights = json.loads((out / "dataset_info.json").read_text())["nncift_sources"].values()
    assert [weight["repeat"] for weight in weights] == [0.6667, 2.0]
    mixture, info = tmp_path / "mixture", {}
    mixture.mkdir()
    for name, weight in zip("ab", weights, strict=True):
        texts = [f"{name}{at}" for at in range(weight["candidates"])]
        rows = [{"instruction": text, "input": "", "output": "r"} for text in texts]
        (mixture / f"{name}.json").write_text(json.dumps(rows))
        wanted = round(weight["repeat"] * len(rows))
        info[name] = {"file_name": f"{name}.json", "num_samples": wanted}
    (mixture / "dataset_info.json").write_text(json.dumps(info))
    found = run_in("llamafactory", "read_llamafactory.py", mixture)
    texts = [found[name]["texts"] for name in "ab"]
    assert [(len(each), len(set(each))) for each in texts] == [(20, 20), (20, 10)]


def test_axolotl_reads_every_row_and_learns_every_answer(tmp_path: Path) -> None:
    found = run_in("axolotl", "read_axolotl.py", export(tmp_path, ROWS))
    for way in ("dataset", "messages"):
        for texts, (whole, _) in zip(TEXTS, found[way], strict=True):
            assert in_order(texts, whole), (way, whole)
        assert in_order(["two calls", "I look.", "CALL weather", "No rain."], found[way][2][1])
        assert "dry" not in found[way][2][1]
        assert found[way][2][0].startswith("TOOLS ")


def test_axolotl_reads_preference_pairs(tmp_path: Path) -> None:
    found = run_in("axolotl", "read_axolotl.py", export(tmp_path, PAIRS))
    asked, chosen, rejected = found["dpo"][0]
    assert "question 0" in asked
    assert (chosen[:8], rejected[:10]) == ("chosen 0", "rejected 0")
    assert len(found["dpo"]) == len(PAIRS)


def test_trl_trains_on_conversations_with_tools(tmp_path: Path) -> None:
    found = run_in("trl", "train_trl.py", export(tmp_path, ROWS))
    assert found["sft"]["loss"] > 0
    for texts, whole in zip(TEXTS, found["sft"]["texts"], strict=True):
        assert in_order(texts, whole), whole


def test_trl_trains_on_preference_pairs_and_on_their_chosen_side(tmp_path: Path) -> None:
    found = run_in("trl", "train_trl.py", export(tmp_path, PAIRS))
    assert found["dpo"]["loss"] > 0
    assert [text[:8] for text in found["dpo"]["texts"]] == [f"chosen {at}" for at in range(8)]
    assert len(found["sft"]["texts"]) == len(PAIRS)
