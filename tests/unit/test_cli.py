"""The command line: help, plan, errors and exit codes; no Ray is started."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from nncift_ray.cli import app
from nncift_ray.errors import ConfigError
from nncift_ray.recipe.loading import load_config, make_config
from nncift_ray.terminal import excerpt
from tests.unit.explain.test_status import write_run
from tests.unit.runtime.test_driver import SquareStage

COMMANDS = (
    "run",
    "plan",
    "stage",
    "status",
    "sweep",
    "evaluate",
    "query",
    "explain",
    "diff",
    "extend",
    "submit",
    "jobs",
    "show-config",
    "doctor",
    "init",
    "schema",
    "open",
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(60)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree: dict[str, Any] = {
        "run_dir": str(tmp_path / "run"),
        "data": {"candidates": [str(tmp_path / "corpus.jsonl")]},
        "teacher": {"kind": "delift_se"},
        "embedder": {"model": "embedded:all-minilm-l6-v2"},
        "selection": {"objective": "facility_location", "budget": 0.1},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})
    return result.exit_code, result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    code, output = invoke(command, "--help")
    assert code == 0
    assert f"nncift {command}" in output.split("Usage")[1].split("Example")[1]


def test_plan_counts_and_starts_nothing(recipe: Path) -> None:
    code, output = invoke("plan", str(recipe), "--json")
    plan = json.loads(output)
    assert code == 0
    assert plan["corpus"]["num_candidates"] == 60
    assert plan["num_pairs_to_score"] == 3600
    assert {stage["state"] for stage in plan["stages"]} == {"to do"}
    assert not (recipe.parent / "run").exists()


def test_data_alone_are_enough(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(recipe.parent)
    options = ["--data", "corpus.jsonl", "--budget", "7", "-s", "cluster=local"]
    code, output = invoke("plan", *options, "--json")
    plan = json.loads(output)
    assert (code, plan["budget"]) == (0, "7 picks of 60")
    assert plan["run_dir"].endswith("/runs/corpus")
    assert "12 tokens" in invoke("plan", *options, "--budget", "12K")[1].replace(",000", "")
    assert invoke("plan")[0] == ConfigError.exit_code


def test_init_writes_a_recipe_of_defaults_and_schema_takes_it(tmp_path: Path) -> None:
    code, text = invoke("init", "--data", "corpus.jsonl")
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = load_config(tmp_path / "recipe.yaml")
    assert code == 0
    assert recipe == make_config({"data": {"candidates": ["corpus.jsonl"]}})
    keys = re.findall(r"^ *(?:# )?(\w+):", text, re.MULTILINE)
    assert {"budget", "num_hidden", "placement_timeout", "rubric"} <= set(keys)
    schema = json.loads(invoke("schema")[1])
    assert set(schema["properties"]) == set(type(recipe).model_fields)
    assert {"type": "string"} in schema["$defs"]["TeacherConfig"]["anyOf"]


def test_open_without_a_report_says_so(tmp_path: Path) -> None:
    code, output = invoke("open", str(tmp_path))
    assert (code, "no run here" in output) == (6, True)


def test_dry_run_is_the_plan(recipe: Path) -> None:
    code, output = invoke("run", str(recipe), "--dry-run")
    assert code == 0
    assert "Nothing was started" in " ".join(output.split())
    assert not (recipe.parent / "run").exists()


def test_show_config_prints_a_recipe_that_loads(recipe: Path) -> None:
    code, output = invoke("show-config", str(recipe), "-s", "network.num_hidden=7")
    assert code == 0
    assert yaml.safe_load(output)["network"]["num_hidden"] == 7


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("data.candidats=[x]", 2, "did you mean 'candidates'"),
        ("selection.budget=2.5", 2, "selection.budget"),
        ("teacher.kind=selectit", 2, "must be top_k"),
        ("teacher.kind=nowhere.to:Find", 2, "working folder"),
        ("data.candidates=[absent.jsonl]", 3, "absent.jsonl"),
        ("embedder.model=./no/such/folder", 4, "no/such/folder"),
    ],
)
def test_what_is_wrong_is_named_before_anything_starts(
    recipe: Path, override: str, code: int, words: str
) -> None:
    found, output = invoke("plan", str(recipe), "-s", override)
    assert found == code
    assert words in output


def test_a_run_with_a_missing_file_leaves_no_run(recipe: Path) -> None:
    code, output = invoke("run", str(recipe), "-s", "selection.objective=coverage")
    assert (code, "facility_location" in output) == (2, True)
    assert not (recipe.parent / "run").exists()


def test_status_of_no_run_says_so(tmp_path: Path) -> None:
    code, output = invoke("status", str(tmp_path))
    assert code == 6
    assert "no run here" in output


def test_doctor_reports_every_part(recipe: Path) -> None:
    _, output = invoke("doctor", "--json")
    names = {finding["name"] for finding in json.loads(output)}
    assert {"python", "GPU", "ray", "teacher engine", "embedder (auto)"} <= names


def test_an_excerpt_is_one_short_line_that_a_terminal_does_not_act_on() -> None:
    assert excerpt("two\n lines \x1b[31m red", 80) == "two lines \ufffd[31m red"
    assert excerpt("abcdef", 4) == "abc…"


def test_status_tells_what_is_done_and_what_it_cost(tmp_path: Path) -> None:
    write_run(tmp_path, SquareStage(count=40, shard=10), halt_after=3)
    code, output = invoke("status", str(tmp_path))
    assert code == 0
    assert "30/40 rows" in " ".join(output.split())
    assert "not running" in output
    code, output = invoke("status", str(tmp_path), "--json")
    found = json.loads(output)
    assert (found["stages"][0]["units_done"], found["complete"]) == (30, False)


def test_status_names_every_stage_in_full_on_a_narrow_terminal(tmp_path: Path) -> None:
    stage = SquareStage(count=40, shard=10)
    names = ["square", "select_partitions", "retrieve"]
    write_run(tmp_path, stage, halt_after=3)
    record = json.loads((tmp_path / "run.json").read_text()) | {"stage_names": names}
    (tmp_path / "run.json").write_text(json.dumps(record))
    environment = {"COLUMNS": "80", "TERM": "dumb"}
    result = CliRunner().invoke(app, ["status", str(tmp_path)], env=environment)
    assert all(word in result.output for word in [*names, "missing", "begun"])


def test_status_that_watches_ends_with_the_run(tmp_path: Path) -> None:
    write_run(tmp_path, SquareStage(count=40, shard=10), halt_after=3)
    code, output = invoke("status", str(tmp_path), "--watch", "--json")
    assert (code, len(output.strip().splitlines())) == (0, 1)
