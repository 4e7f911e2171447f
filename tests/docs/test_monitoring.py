"""Dashboard and alerts query only existing metrics, and each alert links to its explanation.

Existing metrics are those in the registry of an agent, in any mode, and those that Prometheus adds.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from pyproxy.backends.registry import backend_class
from pyproxy.config.config import ProxyMode
from pyproxy.model.address import Family
from pyproxy.model.request_record import RequestRecord
from pyproxy.serve.metrics import Metrics

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "manifests" / "monitoring"
ADDED_LABELS = {"job", "instance", "node"}
"""Labels that Prometheus adds to each metric; `node` is added by scrape.yaml."""
GIVEN = {"up": ADDED_LABELS}
"""Metrics of Prometheus itself."""
WORDS = {"by", "or", "and", "unless", "bool"}
FUNCTIONS = {
    "absent",
    "changes",
    "count",
    "histogram_quantile",
    "increase",
    "max",
    "min",
    "rate",
    "sum",
    "time",
    "topk",
}
_RANGE = re.compile(r"\[[^\]]*\]")
_MATCHERS = re.compile(r"\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|on|without) ?\(([^)]*)\)")
_NAME = re.compile(r"(?<![\w.$])[a-zA-Z_]\w*")


def asked(expression: str) -> tuple[set[str], set[str]]:
    """Return the metrics and labels in a PromQL expression."""
    labels = {label for group in _GROUPING.findall(expression) for label in re.findall(r"\w+", group)}
    labels |= {label for group in _MATCHERS.findall(expression) for label in re.findall(r"(\w+)\s*(?:=|!)", group)}
    rest = _GROUPING.sub(" ", _RANGE.sub("", _MATCHERS.sub("", expression)))
    return set(_NAME.findall(rest)) - WORDS - FUNCTIONS, labels


@cache
def existing() -> dict[str, set[str]]:
    """Return the names of all series that an agent can have, each with its labels."""
    found = {name: set(labels) for name, labels in GIVEN.items()}
    for mode in ("iptables", "ipvs", "nftables"):
        metrics = Metrics(mode, backend_class(ProxyMode(mode)).metrics, Family)
        set_all_metrics(metrics, mode)
        for metric in metrics.registry.collect():
            for sample in metric.samples:
                found.setdefault(sample.name, set()).update(sample.labels, ADDED_LABELS)
    return found


def set_all_metrics(metrics: Metrics, mode: str) -> None:
    """Set a value of each metric with labels."""
    for family in Family:
        metrics.set_queued(family, 1)
        metrics.set_synced(family, 1)
        metrics.observe_programming(family, 1)
        metrics.observe_flow_cleaning(family, 1, 1)
        metrics.set_no_local_endpoints(family, "internal", 1)
        metrics.set_quarantined(family, 1)
        metrics.set_programmed(family, {"endpoint": 1})
        for full in (True, False):
            metrics.observe_sync(family, 1, full=full)
        if mode == "iptables":
            metrics.set_rules(family, {"nat": 1}, {"nat": 1})
    metrics.set_watch("Service", up=True)
    metrics.add_healthz(200)
    metrics.add_livez(200)
    metrics.rest.add(RequestRecord("GET", "api", "200", 1, 1, 1))


def rules() -> list[dict[str, Any]]:
    """Return the alerts."""
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> Iterator[tuple[str, str]]:
    """Yield each expression with its location."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            inside = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            assert inside, variable["definition"]
            yield variable["name"], f"sum by ({inside[2]}) ({inside[1]})"


@pytest.mark.parametrize("expression", [pytest.param(expression, id=where) for where, expression in queries()])
def test_queries_name_existing_metrics(expression: str) -> None:
    """Each metric in a query exists, and has the labels that the query names."""
    metrics, labels = asked(expression)
    known = existing()

    assert metrics
    assert set() == metrics - known.keys()
    assert set() == labels - set[str]().union(*(known[name] for name in metrics))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_each_alert_is_explained(rule: dict[str, Any]) -> None:
    """The runbook of an alert is a section with its meaning (its description), what to look at and what to do."""
    address, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    site, _, page = address.rpartition("/")
    sections = {
        title.lower(): text
        for title, text in re.findall(
            r"^### (\w+)$(.*?)(?=^#|\Z)",
            (ROOT / "docs" / page).with_suffix(".md").read_text(),
            re.MULTILINE | re.DOTALL,
        )
    }
    meaning = re.search(r"\*\*What it means\.\*\* (.*?)\n\n", sections[anchor], re.DOTALL)

    assert site == "https://example.com/pyproxy/docs"
    assert meaning
    assert rule["annotations"]["description"] == " ".join(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", meaning[1]).split())
    assert rule["alert"].lower() == anchor
    for part in ("What it means", "What to look at", "What to do"):
        assert f"**{part}.**" in sections[anchor]
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= labels_left(rule["expr"])


def labels_left(expression: str) -> set[str]:
    """Return the labels of the result of an alert."""
    grouped = [re.findall(r"\w+", group) for group in _GROUPING.findall(expression)]
    if grouped:
        return set(grouped[0]) - {"le"}
    metrics, _ = asked(expression)
    known = existing()
    return set.intersection(*(known[name] for name in metrics))


def test_every_alert_of_the_page_exists() -> None:
    """The operations page explains only existing alerts."""
    page = (ROOT / "docs" / "operations.md").read_text()

    assert {rule["alert"] for rule in rules()} == set(re.findall(r"^### (Pyproxy\w+)$", page, re.MULTILINE))


def test_every_metric_is_described() -> None:
    """Every metric is in the tables of docs/metrics.md."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in existing()}

    assert set() == {
        name for name in names if not name.startswith(("process_", "python_", "up")) and f"`{name}`" not in page
    }


def test_parsing_of_a_query() -> None:
    """Functions, numbers and ranges are not metrics; labels in matchers and groups are labels."""
    expression = 'histogram_quantile(0.99, sum by (a, le) (rate(x_bucket{b=~"$c",d!="e"}[5m]))) > 1e3 or y'

    assert ({"x_bucket", "y"}, {"a", "le", "b", "d"}) == asked(expression)


def test_panels_with_a_line_for_each_node_are_limited() -> None:
    """A panel with a line for each node shows only the highest, so that it can be read in a cluster of 500 nodes."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    per_node = [
        target["expr"]
        for panel in panels
        for target in panel.get("targets", ())
        if "{{node}}" in target["legendFormat"]
    ]

    assert per_node
    assert [] == [expression for expression in per_node if not expression.startswith("topk(10, ")]
