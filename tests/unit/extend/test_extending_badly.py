"""``nncift extend`` given what it cannot use: each says what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nncift_ray.cli import app
from nncift_ray.corpus.ingest import find_sources
from nncift_ray.engines.models import EMBEDDED_EMBEDDER
from nncift_ray.errors import ConfigError, DataError, ModelError, StageError, StorageError
from nncift_ray.extend import default_run_dir, find_embedder, prepare, recipe_of_union
from nncift_ray.runs import Run
from nncift_ray.runtime.output import MANIFEST_NAME, StageOutput
from tests.chain import MODEL
from tests.unit.extend.grown import NUM_OLD, grow, make_extension, make_parent, write_new


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_parent(tmp_path_factory.mktemp("parent"))


@pytest.fixture
def new(tmp_path: Path) -> str:
    return write_new(tmp_path / "new.jsonl", NUM_OLD, 30)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(
        app, ["extend", *arguments], env={"COLUMNS": "2000", "TERM": "dumb"}
    )
    return result.exit_code, result.output


def test_no_run_is_named(tmp_path: Path, new: str) -> None:
    code, output = invoke(str(tmp_path / "absent"), "--data", new)
    assert (code, "no run here" in output) == (6, True)


def test_a_missing_file_is_named(parent: str, tmp_path: Path) -> None:
    code, output = invoke(parent, "--data", str(tmp_path / "absent.jsonl"))
    assert (code, "absent.jsonl" in output) == (3, True)


def test_a_run_that_is_not_finished_names_the_stage(parent: str, new: str, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(parent, begun)
    manifest = next((begun / "score_pairs").glob(f"*/{MANIFEST_NAME}"))
    manifest.unlink()
    code, output = invoke(str(begun), "--data", new)
    assert code == 5
    assert "'score_pairs' of this run is not finished" in output
    assert "nncift run" in output


def test_a_directory_of_another_run_is_refused(parent: str, new: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(parent, other)
    for run_dir, words in ((parent, "is kept as it is"), (str(other), "holds a run that")):
        code, output = invoke(parent, "--data", new, "--run-dir", run_dir)
        assert (code, words in output) == (2, True)


def test_an_embedder_that_is_not_here_is_named(parent: str, new: str) -> None:
    code, output = invoke(parent, "--data", new)
    assert code == 4
    assert "its vectors are of the embedder hash (revision 1)" in output


def test_an_embedder_of_another_revision_is_refused(parent: str) -> None:
    run = Run.open(parent)
    embed = run.outputs["embed"]
    settings = embed.manifest.settings | {"model": EMBEDDED_EMBEDDER, "revision": "of old"}
    manifest = embed.manifest.model_copy(update={"settings": settings})
    run.outputs["embed"] = StageOutput(embed.folder, manifest)
    with pytest.raises(ModelError, match="revision of old"):
        find_embedder(run)


def test_a_parent_of_another_version_of_a_stage_is_refused(
    parent: str, new: str, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(parent, old)
    manifest = next((old / "project").glob(f"*/{MANIFEST_NAME}"))
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 0}))
    with pytest.raises(StageError, match="'project' is of version 0"):
        make_extension(str(old), new, str(tmp_path / "grown"))


def test_rows_of_no_known_layout_stop_it_and_name_their_columns(
    parent: str, tmp_path: Path
) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps({"colour": "red", "size": i}) + "\n" for i in range(9)))
    with pytest.raises(DataError, match=r"no known layout has the columns 'colour', 'size'"):
        grow(parent, str(path), str(tmp_path / "grown"))


def test_bad_rows_among_good_ones_are_set_aside(parent: str, new: str, tmp_path: Path) -> None:
    path = Path(new)
    path.write_text(path.read_text() + '{broken\n{"prompt": "no answer"}\n')
    grown = grow(parent, new, str(tmp_path / "grown"))
    assert grown["ingest"].manifest.num_failures == 2
    assert "not_json" in grown["ingest"].read("errors")["reason"].to_pylist()
    assert grown["deduplicate"].num_rows("candidates") == NUM_OLD + 30


def test_a_run_whose_parent_is_gone_says_which(new: str, tmp_path: Path) -> None:
    folder = tmp_path / "parent"
    parent = make_parent(folder)
    grow(parent, new, str(tmp_path / "grown"))
    shutil.rmtree(parent)
    with pytest.raises(StorageError, match="goes on from the run .*run, whose stage"):
        Run.open(str(tmp_path / "grown"))


def test_the_same_files_find_the_same_directory_and_others_another(
    new: str, tmp_path: Path
) -> None:
    other = write_new(tmp_path / "other.jsonl", NUM_OLD, 31)
    names = [default_run_dir("s3://b/run?region=x", find_sources([f], [])) for f in (new, other)]
    assert names[0] == default_run_dir("s3://b/run?region=x", find_sources([new], []))
    assert names[0] != names[1]
    assert names[0].startswith("s3://b/run-plus-")
    assert names[0].endswith("?region=x")


def test_a_dry_run_counts_and_starts_nothing(
    parent: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "nncift_ray.extend.find_embedder",
        lambda run: MODEL,
    )
    home = tmp_path / "grown"
    arguments = (parent, "--data", new, "--run-dir", str(home), "--dry-run", "--json")
    code, output = invoke(*arguments)
    plan = json.loads(output)
    assert code == 0
    assert (plan["num_old"], plan["num_new"]) == (NUM_OLD, 30)
    assert plan["num_pairs"] == 30 * (2 * NUM_OLD + 30) + 30 * 12
    assert not home.exists()


def test_keys_that_the_parent_depends_on_cannot_be_changed(parent: str, new: str) -> None:
    run = Run.open(parent)
    with pytest.raises(ConfigError, match="--set network.num_hidden: labels, network and scores"):
        recipe_of_union(run.config, [new], "elsewhere", ["network.num_hidden=9"])
    grown = recipe_of_union(run.config, [new], "elsewhere", ["selection.budget=0.5"])
    assert grown.selection.budget == 0.5
    assert grown.data.candidates == (*run.config.data.candidates, new)


def test_a_layout_of_new_files_may_be_given(parent: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    rows = [{"q": f"question {i}", "a": f"answer {i}"} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = "data.columns={prompt: q, response: a}"
    grown = grow(parent, str(path), str(tmp_path / "grown"), columns)
    assert grown["deduplicate"].num_rows("candidates") == NUM_OLD + 30


def test_new_data_are_held_against_the_benchmarks_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, new = make_parent(tmp_path), write_new(tmp_path / "new.jsonl", 300, 4)
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_text('{"prompt": "Who?", "response": "Nobody."}\n')
    file = Path(parent) / "run.json"
    record = json.loads(file.read_text())
    record["config"]["data"]["benchmarks"] = [str(benchmark)]
    file.write_text(json.dumps(record))
    monkeypatch.setattr("nncift_ray.extend.find_embedder", lambda run: MODEL)
    extension = prepare(parent, [new], None)
    assert [source.role for source in extension.sources] == ["candidate", "benchmark"]
    assert extension.config.run_dir == default_run_dir(parent, find_sources([new], []))
