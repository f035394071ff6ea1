"""The shipped cluster files, and what Ray's own autoscaler makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
LAUNCHER_FILES = ("aws.yaml", "gcp.yaml")
TEXT_FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())


def read_yaml(name: str) -> list[Any]:
    """Return the documents of a YAML file below ``cluster/``."""
    return list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))


def launcher_config(name: str) -> dict[str, Any]:
    """Return a launcher file as ``ray up`` sees it, with the provider's defaults filled in."""
    return prepare_config(read_yaml(name)[0])


def ray_cluster() -> dict[str, Any]:
    """Return the RayCluster."""
    return read_yaml("kubernetes/raycluster.yaml")[0]


def recipe_map_and_job() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ConfigMap and the RayJob."""
    config_map, job, _ = read_yaml("kubernetes/rayjob.yaml")
    return config_map, job


def kuberay_config() -> dict[str, Any]:
    """Return the autoscaler's view of the RayCluster."""
    cluster = ray_cluster()
    cluster["metadata"]["namespace"] = "default"
    return _derive_autoscaling_config_from_ray_cr(cluster)
