"""Run directories: private where they are made, and no way out of them where they are read."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from nncift_ray.errors import StorageError
from nncift_ray.pipeline import publish_exports
from nncift_ray.runtime.driver import execute_here, run_stage, stage_folder
from nncift_ray.runtime.files import Location, resolve
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from tests.unit.runtime.test_driver import SquareStage


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_run_directory_is_for_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "runs" / "mine"
    Location.of(str(home)).make_folder()
    assert mode(home) == 0o700
    stage = SquareStage(4, 2)
    output = run_stage(stage, Location.of(str(home)), execute=execute_here,
                       reporter=SilentReporter())  # fmt: skip
    assert mode(Path(output.folder.path)) == 0o700


def test_a_directory_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o750)
    Location.of(str(tmp_path / "shared")).make_folder()
    assert mode(tmp_path / "shared") == 0o750


@pytest.mark.parametrize("name", ["files/../../../../owned", "/tmp/owned", "..\\owned"])  # noqa: S108
def test_a_manifest_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    stage, home = SquareStage(4, 4), Location.of(str(tmp_path / "run"))
    run_stage(stage, home, execute=execute_here, reporter=SilentReporter())
    file = Path((stage_folder(stage, home) / "manifest.json").path)
    tree = json.loads(file.read_text())
    tree["shards"][0]["parts"][0] |= {"name": name, "table": "files"}
    file.write_text(json.dumps(tree))
    with pytest.raises(StorageError, match="outside its stage's folder"):
        StageOutput.open(stage_folder(stage, home))
    with pytest.raises(StorageError, match="outside its stage's folder"):
        run_stage(stage, home, execute=execute_here, reporter=SilentReporter())


def test_exports_are_published_below_the_run_directory(tmp_path: Path) -> None:
    class FileStage(SquareStage):
        def make_worker(self):  # noqa: ANN202
            return lambda shard, sink: sink.write_file("dataset/a.txt", b"text")

    home = Location.of(str(tmp_path / "run"))
    output = run_stage(FileStage(1, 1), home, execute=execute_here, reporter=SilentReporter())
    publish_exports(output, home)
    assert (tmp_path / "run" / "export" / "dataset" / "a.txt").read_text() == "text"


@pytest.mark.parametrize(
    "uri", ["s3://KEY:sEcReT77@bucket/run", "https://user:sEcReT77@host/x", "gs://sEcReT77@b/x"]
)
def test_an_address_with_credentials_opens_nothing_and_is_not_repeated(uri: str) -> None:
    with pytest.raises(StorageError, match="holds credentials") as caught:
        resolve(uri)
    assert "sEcReT77" not in str(caught.value)
