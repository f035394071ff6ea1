"""`ray up` takes the launcher files, and shows nothing to the world."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler._private.util import validate_config

from tests.unit.cluster.files import LAUNCHER_FILES, launcher_config, read_yaml


@pytest.fixture(params=LAUNCHER_FILES)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return launcher_config(request.param)


def test_ray_s_own_schema_takes_the_file(config: dict[str, Any]) -> None:
    validate_config(config)


def test_the_schema_refuses_a_key_that_ray_does_not_know() -> None:
    config = launcher_config("aws.yaml")
    config["available_node_types"]["gpu_spot"]["prioritty"] = 1
    with pytest.raises(Exception, match="prioritty"):
        validate_config(config)


def test_the_head_does_no_stage_s_work(config: dict[str, Any]) -> None:
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]


def test_dashboard_and_job_server_stay_on_loopback(config: dict[str, Any]) -> None:
    hosts = re.findall(r"--dashboard-host[= ](\S+)", " ".join(config["head_start_ray_commands"]))
    assert hosts == ["127.0.0.1"]


def test_every_node_asks_for_the_token_and_has_it(config: dict[str, Any]) -> None:
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert re.search(r"RAY_AUTH_MODE=token .*ray start", commands[-1])
    assert config["file_mounts"]["/home/ray/.ray/auth_token"].endswith(".ray/auth_token")


def test_every_node_has_the_users_variables_and_ends_what_dead_workers_started(
    config: dict[str, Any],
) -> None:
    assert config["file_mounts"]["/home/ray/.nncift.env"].endswith(".nncift.env")
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert re.search(
            r"set -a; \. ~/\.nncift\.env; set \+a; .*process_group_cleanup_enabled=1 .*ray start",
            commands[-1],
        )


def test_variables_of_the_file_reach_what_is_started(tmp_path: Path) -> None:
    command = read_yaml("aws.yaml")[0]["worker_start_ray_commands"][-1]
    (tmp_path / ".nncift.env").write_text("HF_TOKEN=secret\n")
    (tmp_path / "ray").write_text('#!/bin/bash\necho "$HF_TOKEN $RAY_AUTH_MODE $*"\n')
    (tmp_path / "ray").chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_HEAD_IP": "h"}
    done = subprocess.run(
        ["bash", "-c", command.replace("ulimit -n 65536; ", "")],  # noqa: S607
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("secret token start --address=h:6379")


def test_every_node_may_use_the_bucket() -> None:
    aws, gcp = (read_yaml(name)[0]["available_node_types"] for name in LAUNCHER_FILES)
    for name in aws:
        assert "Arn" in aws[name]["node_config"]["IamInstanceProfile"]
        (account,) = gcp[name]["node_config"]["serviceAccounts"]
        assert account["scopes"] == ["https://www.googleapis.com/auth/cloud-platform"]


def test_every_node_names_an_image_and_gpu_nodes_wait_for_their_driver() -> None:
    aws, gcp = (read_yaml(name)[0]["available_node_types"] for name in LAUNCHER_FILES)
    for name in aws:
        assert "nvidia-driver" in aws[name]["node_config"]["ImageId"]
        (disk,) = gcp[name]["node_config"]["disks"]
        assert "nvidia-580" in disk["initializeParams"]["sourceImage"]
        if "GPU" in gcp[name]["resources"]:
            items = gcp[name]["node_config"]["metadata"]["items"]
            assert {"key": "install-nvidia-driver", "value": "True"} in items
            assert "nvidia-smi" in gcp[name]["initialization_commands"][0]


def test_both_clouds_have_the_same_groups() -> None:
    aws, gcp = (read_yaml(name)[0]["available_node_types"] for name in LAUNCHER_FILES)
    keys = ("min_workers", "max_workers", "priority", "resources", "labels", "docker")
    assert {name: [group.get(key) for key in keys] for name, group in aws.items()} == {
        name: [group.get(key) for key in keys] for name, group in gcp.items()
    }


def test_spot_machines_are_asked_for_as_spot_and_the_others_are_not() -> None:
    aws, gcp = (read_yaml(name)[0]["available_node_types"] for name in LAUNCHER_FILES)
    for name in aws:
        market = aws[name]["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
        scheduling = gcp[name]["node_config"].get("scheduling", [{}])[0]
        is_spot = aws[name]["labels"]["ray.io/market-type"] == "spot"
        assert (market == "spot") == is_spot
        assert (scheduling.get("provisioningModel") == "SPOT") == is_spot
