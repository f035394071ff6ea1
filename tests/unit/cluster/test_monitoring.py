"""The dashboard, the alerts and the scrape configuration speak of metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.dashboard.modules.reporter.reporter_agent as rays_own
import yaml

from nncift_ray.runtime.ray_pool import metric_names
from tests.unit.cluster.files import CLUSTER

FOLDER = CLUSTER / "monitoring"
HISTOGRAM_SUFFIXES = ("_bucket", "_sum", "_count")
#: Counted by Ray's C++ core, so not in a list that Python could read.
OF_RAYS_CORE = {"ray_object_store_memory"}


def dashboard() -> dict[str, Any]:
    return json.loads((FOLDER / "grafana_dashboard.json").read_text(encoding="utf-8"))


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]
    yield from (rule["expr"] for rule in alert_rules())


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", expression))


def known_metrics() -> set[str]:
    own = set(metric_names())
    own |= {name + suffix for name in own for suffix in HISTOGRAM_SUFFIXES}
    return own | {f"ray_{name}" for name in rays_own.METRICS_GAUGES} | OF_RAYS_CORE


def test_every_metric_exists() -> None:
    used = set[str]().union(*(metrics_in(expression) for expression in expressions()))
    assert used
    assert used - known_metrics() == set()


def test_every_metric_of_the_project_is_shown_or_watched() -> None:
    used = set[str]().union(*(metrics_in(expression) for expression in expressions()))
    plain = {name.removesuffix("_bucket") for name in used}
    unseen = set(metric_names()) - plain
    assert unseen <= {"ray_nncift_shards_reused_total", "ray_nncift_worker_seconds_total"}


def test_parentheses_and_brackets_of_every_expression_close() -> None:
    for expression in expressions():
        for left, right in ("()", "[]", "{}"):
            assert expression.count(left) == expression.count(right), expression


def test_panels_have_their_own_place_and_number() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_prometheus_reads_ray_s_list_of_nodes_and_the_alerts() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    (target,) = job["file_sd_configs"]
    assert target["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]  # noqa: S108
    assert [(FOLDER / name).is_file() for name in config["rule_files"]] == [True]


def test_nothing_is_fetched_from_elsewhere() -> None:
    for path in Path(FOLDER).iterdir():
        assert "http" not in path.read_text(encoding="utf-8"), path
