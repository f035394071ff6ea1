"""Secrets planted in the environment and in errors: none is found in what a run writes or says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nncift_ray.cli import explained
from nncift_ray.errors import StageError
from nncift_ray.recipe.loading import make_config
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, describe_environment
from nncift_ray.runtime.progress import LineReporter, SilentReporter
from nncift_ray.runtime.session import LOG_FOLDER, observed
from nncift_ray.runtime.step import Shard, Worker
from tests.chain import run_chain
from tests.unit.explain.recorded import record_run
from tests.unit.recipe.test_secrets import PLANTED, recipe
from tests.unit.runtime.test_driver import SquareStage

URL = "https://user:sEcReT77@host/model"
SECRETS = (*PLANTED.values(), "sEcReT77")


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


def texts_below(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the text of every file, of tables as JSON: Parquet packs what it holds."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            yield path, json.dumps(pq.read_table(path).to_pylist(), default=str)
            yield path, str(pq.read_schema(path).metadata)
        elif path.is_file():
            yield path, path.read_bytes().decode("utf-8", errors="replace")


def leaks(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


class ChattyStage(SquareStage):
    """Meets an error that quotes everything it should not, as libraries do."""

    def make_worker(self) -> Worker:
        def work(shard: Shard, sink: Sink) -> None:
            quoted = f"403 for {URL}: {' '.join(PLANTED.values())}"
            if shard.start in self.fail_at:
                raise RuntimeError(quoted)
            sink.error("refused", quoted, source="a.jsonl", line=1)

        return work


def test_nothing_that_a_run_writes_holds_a_secret(tmp_path: Path) -> None:
    outputs = run_chain(tmp_path, num_candidates=60, num_targets=0,
                        objective="facility_location", budget=5)  # fmt: skip
    record_run(tmp_path, outputs)
    found = [(path.name, leaks(text)) for path, text in texts_below(tmp_path) if leaks(text)]
    assert found == []
    assert {path.name for path, _ in texts_below(tmp_path)} >= {"manifest.json", "run.json"}


def test_the_recorded_environment_is_versions_alone() -> None:
    assert leaks(json.dumps(describe_environment())) == []
    assert all("/" not in value for value in describe_environment().values())


def test_errors_of_libraries_are_masked_in_rows_logs_messages_and_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = Location.of(str(tmp_path / "run"))
    run_dir.make_folder()
    lines: list[str] = []
    stage = ChattyStage(count=4, shard=1)
    stage.fail_at = {2}
    config = make_config(recipe(run_dir=str(run_dir)))
    with (
        pytest.raises(StageError) as caught,
        observed(config, run_dir, LineReporter(lines.append)) as heard,
    ):  # noqa: E501
        run_stage(stage, run_dir, execute=execute_here, reporter=heard)
    told = str(caught.value)
    assert "Traceback" in told
    assert "***@host" in told
    assert leaks(told + "\n".join(lines)) == []
    stage.fail_at = set()
    run_stage(stage, run_dir, execute=execute_here, reporter=SilentReporter())
    written = dict(texts_below(tmp_path))
    assert [path.name for path, text in written.items() if leaks(text)] == []
    log = next((tmp_path / "run" / LOG_FOLDER).iterdir()).read_text()
    assert '"shard_failed"' in log
    assert '"run_failed"' in log
    capsys.readouterr()


def test_a_message_on_the_terminal_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    with pytest.raises(typer.Exit), explained():
        raise StageError(f"cannot read {URL} with {PLANTED['HF_TOKEN']}")
    told = capsys.readouterr().err
    assert "cannot read" in told
    assert leaks(told) == []


def test_json_lines_on_standard_error_replace_the_lines_for_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = Location.of(str(tmp_path / "mine"))
    run_dir.make_folder()
    lines: list[str] = []
    config = make_config(recipe(run_dir=str(run_dir), cluster__log_format="json"))
    with observed(config, run_dir, LineReporter(lines.append)) as heard:
        run_stage(SquareStage(4, 2), run_dir, execute=execute_here, reporter=heard)
    told: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines == []
    assert [event["event"] for event in told] == [
        "stage_begun", "shard_finished", "shard_finished", "stage_finished"
    ]  # fmt: skip
    assert {event["run"] for event in told} == {"mine"}
    (log,) = (tmp_path / "mine" / LOG_FOLDER).iterdir()
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in logged][1:-1] == [event["event"] for event in told]
