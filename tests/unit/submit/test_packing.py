"""What a job takes along, and what stays behind."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from nncift_ray.errors import JobError
from nncift_ray.submit import RECIPE_NAME, list_tree, pack

TOKEN = "planted-0123456789abcdef"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working tree with what belongs to a job and what does not."""
    files = {
        "my_package/teacher.py": "class Mine: ...",
        "corpus/small.jsonl": '{"prompt": "a", "response": "b"}\n',
        ".env": "KEY=secret",
        "keys/server.pem": "x",
        ".aws/credentials": "x",
        ".venv/lib/torch.so": "x" * 1000,
        "runs/mine/report.html": "x",
        ".git/config": "x",
        "my_package/__pycache__/teacher.pyc": "x",
    }
    root = tmp_path / "tree"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def names_in(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        return set(opened.namelist())


def test_environments_results_histories_and_keys_stay_behind(tree: Path) -> None:
    assert set(list_tree(tree)) == {"my_package/teacher.py", "corpus/small.jsonl"}


def test_a_checkout_sends_what_git_would_take(tree: Path) -> None:
    (tree / ".git" / "config").unlink()
    (tree / ".git").rmdir()
    subprocess.run(["git", "init", "-q", str(tree)], check=True)  # noqa: S607
    (tree / ".gitignore").write_text("corpus/\n")
    assert set(list_tree(tree)) == {"my_package/teacher.py", ".gitignore"}


@pytest.mark.parametrize("pattern", ["corpus", "corpus/", "*.jsonl", "corpus/*"])
def test_a_glob_leaves_files_behind(tree: Path, pattern: str) -> None:
    assert list_tree(tree, [pattern]) == ["my_package/teacher.py"]


def test_links_that_lead_out_stay_behind(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("private")
    (tree / "link.txt").symlink_to(tmp_path / "outside.txt")
    (tree / "copy.py").symlink_to(tree / "my_package" / "teacher.py")
    sent = list_tree(tree)
    assert "link.txt" not in sent
    assert "copy.py" in sent


def test_the_package_that_runs_and_the_recipe_go_along(tmp_path: Path) -> None:
    package = pack(tmp_path / "job.zip", recipe="run_dir: s3://b/r\n")
    names = names_in(package.path)
    assert {RECIPE_NAME, "nncift_ray/cli.py", "nncift_ray/py.typed"} <= names
    assert {name.split("/")[0] for name in names} == {"nncift_ray", "nncift_job"}
    assert not [name for name in names if name.endswith(".pyc")]
    with zipfile.ZipFile(package.path) as opened:
        assert opened.read(RECIPE_NAME) == b"run_dir: s3://b/r\n"


def test_an_installed_package_is_not_sent(tmp_path: Path, tree: Path) -> None:
    package = pack(tmp_path / "job.zip", recipe="{}", tree=tree, with_package=False)
    assert set(package.names) == {RECIPE_NAME, "my_package/teacher.py", "corpus/small.jsonl"}


def test_a_wheel_takes_the_place_of_the_tree_s_package(tmp_path: Path, tree: Path) -> None:
    (tree / "nncift_ray").mkdir()
    (tree / "nncift_ray" / "__init__.py").write_text("__version__ = 'of the tree'")
    (tree / "nncift_ray" / "left_over.py").write_text("")
    wheel = tmp_path / "nncift_ray-9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as opened:
        opened.writestr("nncift_ray/__init__.py", "__version__ = '9'")
        opened.writestr("nncift_ray/../../escaped.py", "x")
        opened.writestr("nncift_ray-9.dist-info/METADATA", "x")
    package = pack(tmp_path / "job.zip", recipe=None, tree=tree, wheel=wheel)
    assert set(package.names) == {
        "nncift_ray/__init__.py",
        "my_package/teacher.py",
        "corpus/small.jsonl",
    }
    with zipfile.ZipFile(package.path) as opened:
        assert opened.read("nncift_ray/__init__.py") == b"__version__ = '9'"


def test_what_is_no_wheel_of_this_package_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "other.whl"
    wheel.write_text("no zip")
    with pytest.raises(JobError, match="not a wheel"):
        pack(tmp_path / "job.zip", recipe=None, wheel=wheel)
    with zipfile.ZipFile(wheel, "w") as opened:
        opened.writestr("other/__init__.py", "")
    with pytest.raises(JobError, match="holds no nncift_ray"):
        pack(tmp_path / "job.zip", recipe=None, wheel=wheel)


def test_equal_files_make_equal_archives(tmp_path: Path, tree: Path) -> None:
    first = pack(tmp_path / "a.zip", recipe="{}", tree=tree, with_package=False)
    (tree / "corpus" / "small.jsonl").touch()
    second = pack(tmp_path / "b.zip", recipe="{}", tree=tree, with_package=False)
    assert first.path.read_bytes() == second.path.read_bytes()


def test_too_much_is_refused_with_the_largest_files_and_a_way_out(
    tmp_path: Path, tree: Path
) -> None:
    (tree / "weights.bin").write_bytes(bytes(range(256)) * 4096)
    with pytest.raises(JobError, match=r"weights\.bin \(1\.0 MiB\).*--exclude") as caught:
        pack(tmp_path / "job.zip", recipe="{}", tree=tree, with_package=False, max_bytes=2000)
    assert "may send 0.0 MiB" in str(caught.value)
    assert not (tmp_path / "job.zip").exists()


def test_a_file_that_holds_the_token_is_named_and_the_token_is_not(
    tmp_path: Path, tree: Path
) -> None:
    (tree / "notes.md").write_text(f"the token is {TOKEN}")
    with pytest.raises(JobError, match=r"notes\.md: holds the cluster's token") as caught:
        pack(tmp_path / "job.zip", recipe="{}", tree=tree, secrets=[TOKEN])
    assert TOKEN not in str(caught.value)
    pack(tmp_path / "job.zip", recipe="{}", tree=tree, secrets=[TOKEN], excludes=["notes.md"])
