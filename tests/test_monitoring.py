"""Alert rules and the dashboard name only metrics, labels and endpoints that the backend exports."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask import Flask
from prometheus_client.metrics import MetricWrapperBase

from backend.metrics import Metrics

MONITORING = Path(__file__).parents[1] / "deploy/monitoring"
MOST_LABELS = 4
ADDED_BY_PROMETHEUS = {"job", "instance", "le"}
SELECTOR = re.compile(r"\b(sspsam_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|without)\s*\(([^)]*)\)")


def alert_expressions() -> Iterator[tuple[str, str]]:
    rules: dict[str, Any] = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert {"summary", "action"} <= rule["annotations"].keys()
            yield rule["alert"], rule["expr"]


def panel_expressions() -> Iterator[tuple[str, str]]:
    dashboard: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]


EXPRESSIONS = dict([*alert_expressions(), *panel_expressions()])


def exported_labels() -> dict[str, set[str]]:
    """Name of a sample -> its labels, once every metric has counted something."""
    metrics = Metrics()
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            count_something(metric)
    return {
        sample.name: set(sample.labels) for family in metrics.registry.collect() for sample in family.samples
    }


def count_something(metric: MetricWrapperBase) -> None:
    """Gives a metric one series: it takes as many label values as it has labels."""
    for number in range(MOST_LABELS + 1):
        with contextlib.suppress(ValueError):
            metric.labels(*["any"] * number)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_expression_names_metrics_and_labels_that_exist(name: str) -> None:
    exported, expression = exported_labels(), EXPRESSIONS[name]
    selectors = SELECTOR.findall(expression)
    available = set(ADDED_BY_PROMETHEUS)
    for metric, matchers in selectors:
        assert metric in exported, metric
        assert {label for label, _ in MATCHER.findall(matchers)} <= exported[metric] | ADDED_BY_PROMETHEUS
        available |= exported[metric]
    assert selectors or "up{" in expression
    for grouping in GROUPING.findall(expression):
        assert {label.strip() for label in grouping.split(",")} <= available


def test_every_endpoint_in_an_expression_is_a_route(app: Flask) -> None:
    names = {rule.endpoint.rpartition(".")[2] for rule in app.url_map.iter_rules()}
    matched = [
        value
        for expression in EXPRESSIONS.values()
        for label, value in MATCHER.findall(expression)
        if label == "endpoint"
    ]
    assert matched
    assert set(matched) <= names


def test_no_two_panels_overlap() -> None:
    panels = json.loads((MONITORING / "grafana-dashboard.json").read_text())["panels"]
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
