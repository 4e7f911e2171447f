"""Metrics of kube-proxy and pyproxy, scraped in one run: names, types, labels and bucket bounds, as text.

docs/metrics.md lists each difference with its reason; a row that is no longer a difference is also an error.
"""

import fnmatch
import json
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.packets.objects import endpoint_slice

from .agent import Agent
from .api import ApiError, exchange
from .controlplane import ControlPlane
from .kubeproxy import Backend, KubeProxy
from .namespace import call_inside, fresh_namespace
from .objects import SERVICES, SLICES
from .relay import LOOPBACK

ROOT = Path(__file__).parents[2]
METRICS = ROOT / "docs" / "metrics.md"
NODE = "metrics"
BACKENDS: tuple[Backend, ...] = ("iptables-nft", "nftables")
"""The modes that the kernel of the tests supports."""
PATHS = ("/metrics", "/healthz", "/proxyMode", "/configz")
MISSING, MORE = "### Not in pyproxy", "### Only in pyproxy"
"""Headings of tables in docs/metrics.md."""
PATIENCE_SECONDS = 60.0
_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? \S+")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass
class Shape:
    """The properties of a metric, apart from its values."""

    type: str
    labels: set[str] = field(default_factory=set)
    bounds: list[str] = field(default_factory=list)
    """The bucket bounds of the first series of a histogram, as text."""


def shapes(text: str) -> dict[str, Shape]:
    """Return the metrics in a text, by name."""
    found: dict[str, Shape] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            found[name] = Shape(kind)
        elif sample := _SAMPLE.fullmatch(line):
            assert sample["name"].startswith(name), line
            labels = dict(_LABEL.findall(sample["labels"] or ""))
            bound = labels.pop("le", None)
            if bound is not None and bound not in found[name].bounds:
                found[name].bounds.append(bound)
            found[name].labels |= labels.keys()
    return found


@cache
def rows(heading: str) -> tuple[tuple[str, ...], ...]:
    """Return the name patterns in the first column of the table under a heading of docs/metrics.md, by row."""
    section = METRICS.read_text().split(f"\n{heading}\n")[1].split("\n#")[0]
    cells = (line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    return tuple(tuple(re.findall(r"`([^`]+)`", cell)) for cell in cells)


def without_row(names: set[str], heading: str) -> set[str]:
    """Return the names that no row of a table matches."""
    patterns = [pattern for row in rows(heading) for pattern in row]
    return {name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)}


@dataclass(frozen=True)
class Scraped:
    """The answers of one program, by path."""

    pages: Mapping[str, str]

    @property
    def metrics(self) -> dict[str, Shape]:
        """Return the properties of its metrics."""
        return shapes(self.pages["/metrics"])


class Both(NamedTuple):
    """The answers of both programs in one mode."""

    kube_proxy: Scraped
    pyproxy: Scraped


def get(namespace: str, path: str, port: int = 10249) -> str:
    """Return a path of the program in a namespace."""
    return call_inside(namespace, lambda: exchange(HTTPConnection(LOOPBACK, port, timeout=10), "GET", path))


def scrape(namespace: str) -> Scraped:
    """Return all pages of a program."""
    for path in ("/healthz", "/livez"):
        get(namespace, path, 10256)
    return Scraped({path: get(namespace, path) for path in PATHS})


def has_counted(namespace: str) -> bool:
    """Return whether a program has measured a single change in both families, and has searched for stale flows."""
    text = get(namespace, "/metrics")
    return all(
        f'kubeproxy_{name}{{ip_family="{family}"}}' in text
        for name in (
            "network_programming_duration_seconds_count",
            "sync_partial_proxy_rules_duration_seconds_count",
            "conntrack_reconciler_sync_duration_seconds_count",
            "conntrack_reconciler_deleted_entries_total",
        )
        for family in ("IPv4", "IPv6")
    )


def change_until_counted(control_plane: ControlPlane, namespaces: Collection[str], stack: ExitStack) -> None:
    """Make changes, each with a new Service, until the programs in all namespaces have counted one.

    A change that arrives together with the first list of ServiceCIDRs is not measured separately.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    for number in count():
        if all(map(has_counted, namespaces)):
            return
        assert time.monotonic() < deadline
        stack.callback(delete, control_plane, f"changed-{number}")
        create(control_plane, f"changed-{number}")
        time.sleep(1)


def create(control_plane: ControlPlane, name: str) -> None:
    """Create a Service with TCP and UDP endpoints that have just changed."""
    ports = [{"name": "tcp", "port": 80}, {"name": "udp", "port": 53, "protocol": "UDP"}]
    spec = {"type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack", "ports": ports}
    control_plane.request("POST", SERVICES, {"metadata": {"name": name}, "spec": spec})
    for kind, address in (("IPv4", "10.244.0.5"), ("IPv6", "fd00:10:244::5")):
        body = endpoint_slice(name, kind, [address], [{**port, "port": 8080} for port in ports], suffix=kind.lower())
        body["metadata"]["annotations"] = {
            "endpoints.kubernetes.io/last-change-trigger-time": datetime.now(UTC).isoformat()
        }
        control_plane.request("POST", SLICES, body)


def delete(control_plane: ControlPlane, name: str) -> None:
    """Delete the objects, also if not all were created."""
    for path in (f"{SERVICES}/{name}", f"{SLICES}/{name}-ipv4", f"{SLICES}/{name}-ipv6"):
        with suppress(ApiError):
            control_plane.request("DELETE", path)


@pytest.fixture(scope="module")
def scraped(control_plane: ControlPlane) -> Mapping[Backend, Both]:
    """Run both programs in each mode, each in its own namespace, and scrape them."""
    return {backend: run_both(control_plane, backend) for backend in BACKENDS}


def run_both(control_plane: ControlPlane, backend: Backend) -> Both:
    """Run both programs until they have been scraped."""
    with ExitStack() as stack:
        control_plane.create_node(NODE, ["192.0.2.11", "2001:db8::11"], pod_cidrs=["10.244.0.0/24", "fd00:10:244::/64"])
        stack.callback(control_plane.request, "DELETE", f"/api/v1/nodes/{NODE}")
        theirs, ours = (stack.enter_context(fresh_namespace()) for _ in range(2))
        proxy = stack.enter_context(KubeProxy(control_plane, theirs, node=NODE, backend=backend))
        proxy.wait_synced()
        agent = stack.enter_context(Agent(control_plane, ours, node=NODE, backend=backend))
        agent.wait_for_log("first sync done")
        change_until_counted(control_plane, (theirs, ours), stack)
        return Both(scrape(theirs), scrape(ours))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_kube_proxy_has(scraped: Mapping[Backend, Both], backend: Backend) -> None:
    """Each metric of kube-proxy exists in pyproxy with the same name, type, labels and bounds."""
    theirs, ours = (each.metrics for each in scraped[backend])

    assert set() == without_row(theirs.keys() - ours.keys(), MISSING)
    for name in theirs.keys() & ours.keys():
        assert (name, theirs[name]) == (name, ours[name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_kube_proxy_has_not(scraped: Mapping[Backend, Both], backend: Backend) -> None:
    """Additional metrics of pyproxy have its prefix, or a documented reason."""
    theirs, ours = (each.metrics for each in scraped[backend])

    others = {name for name in ours.keys() - theirs.keys() if not name.startswith("pyproxy_")}
    assert set() == without_row(others, MORE)


def test_every_reason_is_needed(scraped: Mapping[Backend, Both]) -> None:
    """Each row of either table matches a metric that only one program has, in one of the modes."""
    missing = {name for theirs, ours in scraped.values() for name in theirs.metrics.keys() - ours.metrics.keys()}
    more = {name for theirs, ours in scraped.values() for name in ours.metrics.keys() - theirs.metrics.keys()}

    assert [] == [pattern for row in rows(MISSING) for pattern in row if not fnmatch.filter(missing, pattern)]
    assert [] == [pattern for row in rows(MORE) for pattern in row if not fnmatch.filter(more, pattern)]


@pytest.mark.parametrize("path", ["/healthz", "/proxyMode"])
def test_pages_are_the_same(scraped: Mapping[Backend, Both], path: str) -> None:
    """Plain text pages are the same, byte for byte."""
    for both in scraped.values():
        assert both.kube_proxy.pages[path] == both.pyproxy.pages[path]


@pytest.mark.parametrize("backend", BACKENDS)
def test_configurations_have_the_same_fields(scraped: Mapping[Backend, Both], backend: Backend) -> None:
    """/configz has the same fields on both sides, with the same JSON types."""
    theirs, ours = (json.loads(each.pages["/configz"])["kubeproxy.config.k8s.io"] for each in scraped[backend])

    assert dict(fields(theirs)) == dict(fields(ours))


def fields(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of each field, and the type of its value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from fields(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", "number" if type(value) in {int, float} else type(value).__name__


def test_monitoring_is_rendered(control_plane: ControlPlane) -> None:
    """The directory for Prometheus and Grafana is a kustomization with the complete dashboard."""
    rendered = list(yaml.safe_load_all(control_plane.kubectl("kustomize", str(ROOT / "manifests" / "monitoring"))))

    assert {"ConfigMap", "PrometheusRule", "Service", "ServiceMonitor"} == {item["kind"] for item in rendered}
    [board] = [item["data"]["pyproxy.json"] for item in rendered if item["kind"] == "ConfigMap"]
    assert "pyproxy" == json.loads(board)["uid"]
