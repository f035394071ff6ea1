"""The KubeRay files against the schemas of its custom resources."""

from __future__ import annotations

import functools
import gzip
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from nncift_ray.recipe.loading import make_config
from tests.unit.cluster.files import CLUSTER, ROOT, ray_cluster, read_yaml, recipe_map_and_job

SCHEMAS = ROOT.parent / "shared" / "schemas"
needs_schemas = pytest.mark.skipif(
    not SCHEMAS.is_dir(), reason=f"no KubeRay schemas: {SCHEMAS} is not there"
)
SPOT = "spot"


@functools.cache
def schema_of(kind: str) -> dict[str, Any]:
    """Return the schema of version v1 of a kind, closed: Kubernetes drops unknown fields unsaid."""
    path: Path = SCHEMAS / f"ray.io_{kind.lower()}s.crd.yaml.gz"
    # The plain loader takes 15 seconds for a megabyte of schema, the compiled one takes one.
    crd = yaml.load(gzip.decompress(path.read_bytes()), Loader=yaml.CSafeLoader)  # noqa: S506
    version = next(item for item in crd["spec"]["versions"] if item["name"] == "v1")
    return close(version["schema"]["openAPIV3Schema"])


def close(schema: Any) -> Any:
    """Forbid fields that a schema does not name, wherever it names any."""
    if isinstance(schema, list):
        return [close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(value) for key, value in schema.items()}
    if "properties" in closed and "x-kubernetes-preserve-unknown-fields" not in closed:
        if closed.get("type") == "object":
            closed.setdefault("additionalProperties", False)
    return closed


def check(resource: dict[str, Any]) -> None:
    """Validate what lies below ``spec``; metadata belong to Kubernetes itself."""
    schema = schema_of(resource["kind"])["properties"]["spec"]
    # Without a look at the schema itself, which is a megabyte and Kubernetes' own affair.
    error = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(schema).iter_errors(resource["spec"])
    )
    if error is not None:
        raise error


@needs_schemas
def test_the_cluster_keeps_to_its_schema() -> None:
    check(ray_cluster())


@needs_schemas
def test_the_job_keeps_to_its_schema() -> None:
    check(recipe_map_and_job()[1])


@needs_schemas
def test_the_schema_refuses_a_field_that_it_does_not_know() -> None:
    cluster = ray_cluster()
    cluster["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        check(cluster)


def test_the_job_s_workers_are_those_of_the_cluster() -> None:
    job = recipe_map_and_job()[1]["spec"]["rayClusterSpec"]
    cluster = ray_cluster()["spec"]
    for key in ("rayVersion", "authOptions", "autoscalerOptions", "workerGroupSpecs"):
        assert job[key] == cluster[key]


def test_a_token_is_asked_for() -> None:
    for spec in (ray_cluster()["spec"], recipe_map_and_job()[1]["spec"]["rayClusterSpec"]):
        assert spec["authOptions"]["mode"] == "token"
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_the_ray_of_the_files_is_the_ray_of_the_pins() -> None:
    pins = (ROOT / "requirements" / "cpu.txt").read_text(encoding="utf-8")
    assert f"\nray=={ray_cluster()['spec']['rayVersion']}\n" in pins


def test_only_the_spot_group_goes_to_spot_nodes() -> None:
    for group in ray_cluster()["spec"]["workerGroupSpecs"]:
        pod = json.dumps(group["template"]["spec"])
        is_spot = group["labels"]["ray.io/market-type"] == SPOT
        assert ("gke-spot" in pod) == is_spot
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
        assert "nodeAffinity" in pod or not is_spot


def test_containers_run_as_an_ordinary_user() -> None:
    spec = ray_cluster()["spec"]
    pods = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    containers = [item for pod in pods for item in pod["template"]["spec"]["containers"]]
    assert len(containers) == 4
    for container in containers:
        assert container["securityContext"]["runAsNonRoot"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]


def test_every_pod_has_the_account_the_secret_and_the_log_volume_that_kuberay_knows() -> None:
    for name, spec in (
        ("raycluster", ray_cluster()["spec"]),
        ("rayjob", recipe_map_and_job()[1]["spec"]["rayClusterSpec"]),
    ):
        account = read_yaml(f"kubernetes/{name}.yaml")[-1]
        assert account["kind"] == "ServiceAccount"
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            assert pod["serviceAccountName"] == account["metadata"]["name"]
            (container,) = pod["containers"]
            assert container["envFrom"] == [{"secretRef": {"name": "nncift-env", "optional": True}}]
            assert {"name": "RAY_process_group_cleanup_enabled", "value": "1"} in container["env"]
            assert {"name": "ray-logs", "mountPath": "/tmp/ray"} in container["volumeMounts"]  # noqa: S108
            assert {"name": "ray-logs", "emptyDir": {}} in pod["volumes"]


def test_the_job_s_recipe_is_a_recipe_and_lies_where_the_job_reads_it() -> None:
    config_map, job = recipe_map_and_job()
    recipe = make_config(yaml.safe_load(config_map["data"]["recipe.yaml"]))
    assert recipe.run_dir.startswith("s3://")
    assert job["spec"]["entrypoint"].endswith(" run /etc/nncift/recipe.yaml")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "recipe", "configMap": {"name": config_map["metadata"]["name"]}} in head[
        "volumes"
    ]
    mounts = head["containers"][0]["volumeMounts"]
    assert {"name": "recipe", "mountPath": "/etc/nncift", "readOnly": True} in mounts


def test_files_name_no_registry() -> None:
    texts = [path.read_text(encoding="utf-8") for path in CLUSTER.rglob("*.yaml")]
    images = {image for text in texts for image in re.findall(r"image: ([^\s,}]+)", text)}
    assert images == {"nncift-ray:cpu", "nncift-ray:cuda"}
