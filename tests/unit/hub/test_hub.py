"""Data sets of the hub are read and pushed, against a server of our own, in a process of its own.

huggingface_hub reads its endpoint when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nncift_ray.corpus.hub import check_repo, commit_of
from nncift_ray.corpus.ingest import expand_sources
from nncift_ray.errors import DataError
from nncift_ray.runtime.files import Location
from tests.unit.hub.fake_hub import COMMIT, TOKEN, FakeHub, serve

ROWS = b"".join(
    json.dumps({"prompt": f"Question {i}?", "response": f"Answer {i}."}).encode() + b"\n"
    for i in range(3)
)
CARD = b"---\nlicense: mit\n---\n# Data\n"

READ = """
from nncift_ray.corpus.ingest import IngestStage, find_sources
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.progress import SilentReporter
stage = IngestStage(find_sources(["hf:me/data"], []))
output = run_stage(stage, Location.of(sys.argv[1]), execute=execute_here,
                   reporter=SilentReporter())
rows = output.read("records").to_pylist()
tell(settings=output.manifest.settings["sources"],
     rows=[[row["prompt"], row["source"], row["line"]] for row in rows])
"""
REFUSED = """
from nncift_ray.corpus.ingest import expand_sources
from nncift_ray.errors import DataError
for pattern in sys.argv[1:]:
    try:
        tell(sources=[source.uri for source in expand_sources([pattern])])
    except DataError as error:
        tell(error=str(error))
"""
PUSH = """
from nncift_ray.runs import push_dataset
for upload in (False, True):
    pushed = push_dataset(sys.argv[1], "me/picked", upload=upload)
    tell(files=pushed.files, address=pushed.address)
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    repos = {
        "me/data": {"README.md": CARD, "train.jsonl": ROWS},
        "me/splits": {"README.md": CARD, "train.jsonl": ROWS, "test.jsonl": ROWS},
        "me/private": {"train.jsonl": ROWS},
    }
    with serve(FakeHub(repos)) as served:
        yield served


def at_hub(
    endpoint: str, home: Path, script: str, *arguments: str, **env: str
) -> list[dict[str, Any]]:
    """Run a script that talks to an endpoint; return what it tells."""
    head = "import json, sys\ndef tell(**facts): print('>' + json.dumps(facts))\n"
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
        "HF_TOKEN": "",
    }
    run = subprocess.run(
        [sys.executable, "-c", head + script, *arguments],
        env={**os.environ, "HF_HUB_DISABLE_XET": "1", **settings, **env},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return [json.loads(line[1:]) for line in run.stdout.splitlines() if line.startswith(">")]


def test_rows_are_streamed_and_the_manifest_names_the_commit(hub: FakeHub, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (told,) = at_hub(hub.endpoint, tmp_path / "home", READ, str(run_dir), HF_TOKEN=TOKEN)
    uri = f"hf:me/data:train@{COMMIT}"
    assert told["rows"] == [[f"Question {i}?", uri, i + 1] for i in range(3)]
    (source,) = told["settings"]
    assert (source["source"], source["content"]) == (uri, f"commit:{COMMIT}")
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert files
    assert not any(TOKEN.encode() in path.read_bytes() for path in files)


def test_what_cannot_be_read_is_said_with_a_remedy(hub: FakeHub, tmp_path: Path) -> None:
    patterns = [
        "hf:me/splits",
        "hf:me/splits:dev",
        "hf:me/private",
        "hf:me/none",
        "hf:me/splits:test",
    ]
    told = at_hub(hub.endpoint, tmp_path, REFUSED, *patterns)
    errors = [each.get("error", "") for each in told]
    assert "several splits" in errors[0]
    assert "'hf:me/splits:t" in errors[0]
    assert "no such split (" in errors[1]
    assert "set HF_TOKEN" in errors[2]
    assert "set HF_TOKEN" in errors[3]
    assert told[4] == {"sources": [f"hf:me/splits:test@{COMMIT}"]}


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_a_network_the_remedy_is_to_save_and_copy(tmp_path: Path, offline: str) -> None:
    nobody = "http://127.0.0.1:9"  # the port of a service that nobody runs
    (told,) = at_hub(nobody, tmp_path, REFUSED, "hf:me/data/plain:train", HF_HUB_OFFLINE=offline)
    assert "cannot be read from here" in told["error"]
    assert "load_dataset('me/data', 'plain', split='train').save_to_disk" in told["error"]


def test_a_push_says_what_it_would_send_and_sends_it_when_told(
    hub: FakeHub, tmp_path: Path
) -> None:
    run_dir = make_run(tmp_path / "run")
    told = at_hub(hub.endpoint, tmp_path / "home", PUSH, run_dir, HF_TOKEN=TOKEN)
    sizes = {"README.md": len(CARD), "data/train.parquet": 4}
    assert told[0] == {"files": sizes, "address": None}
    assert told[1]["address"] == f"{hub.endpoint}/datasets/me/picked"
    assert hub.repos["me/picked"] == {"README.md": CARD, "data/train.parquet": b"PAR1"}
    (created,) = hub.created
    assert created["visibility"] == "private"


def make_run(folder: Path) -> str:
    """Write what a finished run leaves of its data set."""
    config = {
        "run_dir": str(folder),
        "data": {"candidates": ["a.jsonl"]},
        "teacher": {"kind": "delift_se"},
        "selection": {"objective": "facility_location", "budget": 0.1},
    }
    record = {"version": "1", "config": config, "stage_names": [], "stages": {}}
    home = Location.of(str(folder))
    (home / "run.json").write_bytes(json.dumps(record).encode())
    (home / "export/dataset/README.md").write_bytes(CARD)
    (home / "export/dataset/data/train.parquet").write_bytes(b"PAR1")
    return str(folder)


@pytest.mark.parametrize("pattern", ["hf:", "hf:alone", "hf:a/b/c/d:e:f", "hf:a/b:"])
def test_what_is_no_name_is_refused_without_asking(pattern: str) -> None:
    with pytest.raises(DataError, match=r"write hf:owner/name"):
        expand_sources([pattern])


def test_the_commit_is_read_off_the_name() -> None:
    assert commit_of("hf:a/b/c:train@abc") == "commit:abc"


@pytest.mark.parametrize("repo", ["alone", "a/b/c", "a b/c", "hf:a/b"])
def test_a_push_wants_owner_and_name(repo: str) -> None:
    with pytest.raises(DataError, match="write owner/name"):
        check_repo(repo)
