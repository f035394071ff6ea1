"""From a recipe to a job's command; what means nothing on the cluster is refused here."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import yaml

from nncift_ray.errors import ConfigError
from nncift_ray.recipe.loading import make_config
from nncift_ray.submit import RECIPE_NAME, extend_request, recipe_request


def config(**changes: Any) -> Any:
    tree: dict[str, Any] = {
        "run_dir": "s3://bucket/runs/mine",
        "data": {"candidates": ["/shared/a.jsonl"]},
        "teacher": {"kind": "delift_se"},
        "selection": {"objective": "facility_location", "budget": 0.1},
        **changes,
    }
    return make_config(tree)


def test_the_job_runs_the_checked_recipe_on_the_cluster_it_is_on() -> None:
    request = recipe_request(config(cluster={"address": "10.0.0.7:6379", "worker_logs": True}))
    assert shlex.split(request.entrypoint) == [
        *("python", "-m", "nncift_ray.cli", "run", RECIPE_NAME)
    ]
    there = make_config(yaml.safe_load(request.recipe or ""))
    assert (there.cluster.address, there.cluster.worker_logs) == ("auto", True)
    here = config(cluster={"address": "auto", "worker_logs": True})
    assert there == here


def test_further_arguments_reach_the_command_as_they_are() -> None:
    request = recipe_request(config(), "evaluate", extra=["--only", "a b; rm -rf /"])
    assert shlex.split(request.entrypoint)[3:] == [
        *("evaluate", RECIPE_NAME, "--only", "a b; rm -rf /")
    ]


@pytest.mark.parametrize("run_dir", ["runs/mine", "./mine", "mine"])
def test_a_run_directory_in_the_job_s_own_folder_is_refused(run_dir: str) -> None:
    with pytest.raises(ConfigError, match=r"run_dir: .*would lie in the job's own folder"):
        recipe_request(config(run_dir=run_dir))


def test_credentials_in_the_run_directory_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="credentials") as caught:
        recipe_request(config(run_dir="s3://key:s3cr3t@bucket/run"))
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("source", ["corpus/a.jsonl", "./corpus/*.jsonl", "corpus", "corpus/"])
def test_a_relative_corpus_must_go_along(source: str) -> None:
    wanted = config(data={"candidates": ["s3://b/a.jsonl"], "targets": [source]})
    with pytest.raises(ConfigError, match=r"data\.targets: .*path on this machine"):
        recipe_request(wanted, sent_files=["other/a.jsonl", "corpus_2/a.jsonl"])
    assert recipe_request(wanted, sent_files=["corpus/a.jsonl"]).recipe


def test_the_test_sets_of_an_evaluation_must_be_seen_there_too() -> None:
    wanted = config(evaluation={"tests": {"gsm8k": ["gsm8k_test.jsonl"]}})
    with pytest.raises(ConfigError, match=r"evaluation\.tests\.gsm8k: gsm8k_test\.jsonl"):
        recipe_request(wanted, "evaluate")


def test_ids_name_the_run_and_are_used_once() -> None:
    requests = [recipe_request(config(run_dir=f"s3://b/My run{q}")) for q in ("/", "?region=x")]
    ids = {request.new_id() for request in requests for _ in range(3)}
    assert len(ids) == 6
    assert {name.rpartition("-")[0] for name in ids} == {"nncift-My-run"}


def test_extend_goes_on_from_a_run_that_the_cluster_sees() -> None:
    request = extend_request("s3://b/runs/a", ["selection.budget=9"], ["--data", "s3://b/n.jsonl"])
    assert request.recipe is None
    assert shlex.split(request.entrypoint)[3:] == [
        *("extend", "s3://b/runs/a", "--data", "s3://b/n.jsonl", "-s", "selection.budget=9")
    ]
    with pytest.raises(ConfigError, match="needs new data"):
        extend_request("s3://b/runs/a", [], [])
    with pytest.raises(ConfigError, match="would lie in the job's own folder"):
        extend_request("runs/a", [], ["--data", "x"])
    with pytest.raises(ConfigError, match=r"write key\.path=value"):
        extend_request("s3://b/runs/a", ["selection.budget"], ["--data", "x"])
