"""The dashboard and the alerts: each expression is PromQL, of metrics and labels that a training has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml

from trainer.training.progress.metrics import METRICS, PREFIX

FOLDER = Path(__file__).resolve().parents[1] / "infra/monitoring"
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text("utf-8"))
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text("utf-8"))["groups"][0]["rules"]
# With the labels that the training gives them; Ray adds some of its own.
EXPORTED = {f"ray_{PREFIX}{name}": {"run", "worker", label} - {None} for name, (_, label) in METRICS.items()}
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def nodes(expression) -> Iterator:
    """An expression and all within it."""
    yield expression
    for name in ("expr", "lhs", "rhs", "param", "vector_selector", "vs"):
        if isinstance(inner := getattr(expression, name, None), promql_parser.Expr | promql_parser.VectorSelector):
            yield from nodes(inner)
    for inner in getattr(expression, "args", []):
        yield from nodes(inner)


def check(query: str) -> set[str]:
    """The metrics of a query; raises what is wrong with it."""
    names = set()
    for node in nodes(promql_parser.parse(query.replace("$run", "x"))):
        if isinstance(node, promql_parser.VectorSelector):
            labels = {matcher.name for matcher in node.matchers.matchers}
            assert labels <= EXPORTED[node.name], query
            names.add(node.name)
    return names


def test_every_query_is_of_metrics_that_are_exported():
    found = set().union(*map(check, QUERIES), *(check(rule["expr"]) for rule in ALERTS))
    assert found == set(EXPORTED)  # and each of them is looked at


@pytest.mark.parametrize("query", ["ray_pconv_train_stepp", 'ray_pconv_train_step{job="x"}', "max by (run", "rate(1)"])
def test_wrong_queries_are_found(query):
    with pytest.raises((AssertionError, KeyError, ValueError)):
        check(query)


def test_the_alerts_say_which_run_and_what_to_do():
    assert [rule["alert"] for rule in ALERTS] == ["TrainingStandsStill", "CheckpointOverdue", "WorkersWait"]
    for rule in ALERTS:
        assert "{{ $labels.run }}" in rule["annotations"]["summary"] and rule["annotations"]["action"]
        assert "by (run)" in rule["expr"] and rule["for"].endswith("m") and rule["labels"]["severity"]


def test_the_panels_lie_beside_each_other_and_say_what_they_show():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24 and panel["description"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "run"}
