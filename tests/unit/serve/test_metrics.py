"""Metrics over real HTTP on loopback: the values that were handed in, and the pages beside them.

That names and types are kube-proxy's is held by `tests/cluster/test_metrics_of_both.py`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from wsgiref.types import WSGIApplication

import msgspec
import pytest
from msgspec.structs import replace
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from pyproxy.agent.metrics_server import metrics_server
from pyproxy.backends.registry import backend_class
from pyproxy.config.config import OPTIONS, Config, ProxyMode
from pyproxy.model.address import Family, ListenAddress
from pyproxy.model.request_record import RequestRecord
from pyproxy.serve.agent_status import AgentStatus, ServicePage
from pyproxy.serve.listeners import HttpService, Listeners
from pyproxy.serve.metrics import Metrics

from .http_client import Answer, free_address, get
from .status import status

IPV4, IPV6 = {"ip_family": "IPv4"}, {"ip_family": "IPv6"}


@dataclass
class Served:
    """Metrics behind a server."""

    metrics: Metrics
    address: ListenAddress

    def get(self, path: str, **headers: str) -> Answer:
        """Get a path."""
        return get(self.address, path, **headers)

    def families(self) -> list[Metric]:
        """Return what is served under /metrics."""
        return list(text_string_to_metric_families(self.get("/metrics").body.decode()))

    def samples(self) -> list[Sample]:
        """Return all values."""
        return [sample for family in self.families() for sample in family.samples]

    def value(self, name: str, labels: dict[str, str]) -> float | None:
        """Return the value of a sample, or None if it is not there."""
        return next((sample.value for sample in self.samples() if (sample.name, sample.labels) == (name, labels)), None)


def server_of(metrics: Metrics, mode: str = "iptables") -> WSGIApplication:
    """Return what answers on the port of an agent."""
    config = Config(proxy_mode=ProxyMode(mode), hostname_override="node-1", v=3)

    def status_of(query: str, page: int) -> AgentStatus:
        return replace(status(), services=ServicePage(query, 0, 0, page, 9, [], ""))

    return metrics_server(metrics, status_of, config, 0.0)


@contextmanager
def served(mode: str = "iptables") -> Iterator[Served]:
    """Serve the metrics of an agent with both families."""
    metrics = Metrics(mode, backend_class(ProxyMode(mode)).metrics, Family)
    address = free_address()
    listeners = Listeners()
    listeners.serve("metrics", HttpService(server_of(metrics, mode), [address]))
    listeners.start()
    try:
        yield Served(metrics, address)
    finally:
        listeners.close()


def test_counters_are_there_before_their_first_count() -> None:
    """A failure that happens once is seen as an increase, because its counter was there with 0."""
    with served() as server:
        for name in (
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            "kubeproxy_conntrack_reconciler_deleted_entries_total",
            "pyproxy_repaired_entries_total",
        ):
            assert [0.0, 0.0] == [server.value(name, labels) for labels in (IPV4, IPV6)]


def test_ipvs_mode_has_its_own() -> None:
    """What kube-proxy's IPVS mode does not register is not there (its RegisterMetrics): the cluster tests have no IPVS."""
    metrics = Metrics("ipvs", backend_class(ProxyMode.IPVS).metrics, Family)
    for full in (True, False):
        metrics.observe_sync(Family.IPV4, 0.1, full=full)
    names = {metric.name for metric in metrics.registry.collect() if metric.name.startswith("kubeproxy_sync_")}

    sync = "kubeproxy_sync_proxy_rules_"
    changes = {f"{sync}{kind}_changes{end}" for kind in ("endpoint", "service") for end in ("", "_pending")}
    times = {f"{sync}last_timestamp_seconds", f"{sync}last_queued_timestamp_seconds", f"{sync}duration_seconds"}
    others = {f"{sync}no_local_endpoints_total", f"{sync}iptables_restore_failures"}
    assert changes | times | others == names


def test_a_sync_is_full_or_partial() -> None:
    """A sync counts among all syncs and, with the same duration, among the full or the partial ones, in its family."""
    with served() as server:
        server.metrics.observe_sync(Family.IPV4, 0.25, full=True)
        server.metrics.observe_sync(Family.IPV4, 0.003, full=False)
        names = [f"kubeproxy_sync_{kind}proxy_rules_duration_seconds" for kind in ("", "full_", "partial_")]

        assert [2, 1, 1] == [server.value(f"{name}_count", IPV4) for name in names]
        assert [0.253, 0.25, 0.003] == [server.value(f"{name}_sum", IPV4) for name in names]
        assert [None, None, None] == [server.value(f"{name}_count", IPV6) for name in names]


def test_network_programming_is_told_by_family() -> None:
    """A change that took 0.75 s counts up to the bound of 1 s; one that clocks made negative counts in the first bucket."""
    with served() as server:
        for seconds in (0.75, -0.5):
            server.metrics.observe_programming(Family.IPV6, seconds)
        name = "kubeproxy_network_programming_duration_seconds_bucket"
        counts = {bound: server.value(name, IPV6 | {"le": bound}) for bound in ("0", "0.5", "1", "300", "+Inf")}

    assert {"0": 1, "0.5": 1, "1": 2, "300": 2, "+Inf": 2} == counts


def test_failures_of_partial_syncs_count_twice() -> None:
    """A failure counts as such, and in iptables mode among those of partial syncs if it was in one."""
    with served() as server:
        for full in (True, False):
            server.metrics.add_failure(Family.IPV4, full=full)
        names = [f"kubeproxy_sync_proxy_rules_iptables_{kind}restore_failures_total" for kind in ("", "partial_")]

        assert [2, 1] == [server.value(name, IPV4) for name in names]


def test_answers_about_health_are_counted() -> None:
    """Each probe's answer counts by its code."""
    with served() as server:
        server.metrics.add_healthz(503)
        server.metrics.add_livez(200)

        assert 1 == server.value("kubeproxy_proxy_healthz_total", {"code": "503"})
        assert 1 == server.value("kubeproxy_proxy_livez_total", {"code": "200"})


def test_requests_to_the_api_server() -> None:
    """A list has a duration and a size; a watch, and a request without an answer, is only counted."""
    with served() as server:
        server.metrics.rest.add(RequestRecord("GET", "api:6443", "200", 0.02, 0, 5000))
        server.metrics.rest.add(RequestRecord("GET", "api:6443", "<error>"))
        labels = {"host": "api:6443", "verb": "GET"}

        for code in ("200", "<error>"):
            requests = {"code": code, "host": "api:6443", "method": "GET"}
            assert 1 == server.value("rest_client_requests_total", requests)
        assert 1 == server.value("rest_client_request_duration_seconds_count", labels)
        assert 0 == server.value("rest_client_response_size_bytes_bucket", labels | {"le": "4096"})
        assert 1 == server.value("rest_client_response_size_bytes_bucket", labels | {"le": "16384"})


def test_numbers_are_written_as_go_does() -> None:
    """The answer is text 0.0.4 with Go's numbers and without creation times, whatever format the client prefers."""
    with served() as server:
        server.metrics.set_synced(Family.IPV4, 1795284991.467042)
        server.metrics.observe_programming(Family.IPV4, 0.75)
        answer = server.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
        lines = answer.body.decode().splitlines()

    assert "text/plain; version=0.0.4; charset=utf-8" == answer.headers["Content-Type"]
    assert 'kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1.795284991467042e+09' in lines
    assert 'kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="1"} 1' in lines
    assert [] == [line for line in lines if "_created" in line]
    assert sorted(types := [line for line in lines if line.startswith("# TYPE")]) == types


def test_compressed_metrics() -> None:
    """A client that accepts gzip gets it."""
    with served() as server:
        answer = server.get("/metrics", Accept_Encoding="gzip")

    assert b"process_cpu_seconds_total" in gzip.decompress(answer.body)


def test_service_level_indicators() -> None:
    """/metrics/slis has the start of the process, as kube-proxy's has, and nothing else."""
    with served() as server:
        body = server.get("/metrics/slis").body.decode()

    assert ["process_start_time_seconds"] == [
        line.split()[2] for line in body.splitlines() if line.startswith("# TYPE")
    ]


def test_what_is_pending_is_pending_until_a_sync_takes_it_up() -> None:
    """Changes are counted for ever, and pending until all of them are taken up at once."""
    with served() as server:
        names = [f"kubeproxy_sync_proxy_rules_{kind}_changes_" for kind in ("service", "endpoint")]
        server.metrics.add_service_changes(2)
        server.metrics.add_endpoint_changes(3)
        before = [server.value(name + "pending", {}) for name in names]
        server.metrics.set_nothing_pending()

        assert ([2, 3], [0, 0]) == (before, [server.value(name + "pending", {}) for name in names])
        assert [2, 3] == [server.value(name + "total", {}) for name in names]


def test_rules_are_told_by_table() -> None:
    """A table that the last sync left alone has its rules, and none written."""
    with served() as server:
        server.metrics.set_rules(Family.IPV6, {"filter": 12, "nat": 34}, {"nat": 5})
        tables = [IPV6 | {"table": table} for table in ("filter", "nat")]

        assert [12, 34] == [server.value("kubeproxy_sync_proxy_rules_iptables_total", labels) for labels in tables]
        assert [0, 5] == [server.value("kubeproxy_sync_proxy_rules_iptables_last", labels) for labels in tables]


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [("/healthz", 200, b"ok"), ("/proxyMode", 200, b"nftables"), ("/debug/pprof/", 404, b"404 page not found\n")],
)
def test_other_paths(path: str, status: int, body: bytes) -> None:
    """The other paths of kube-proxy's metrics server answer in plain text that no browser takes for anything else."""
    with served("nftables") as server:
        answer = server.get(path)

    assert (status, body) == (answer.status, answer.body)
    assert ("text/plain; charset=utf-8", "nosniff") == (
        answer.headers["Content-Type"],
        answer.headers["X-Content-Type-Options"],
    )


def test_effective_configuration() -> None:
    """/configz has every field of kube-proxy's configuration under kube-proxy's name for it, and our own flags beside it."""
    with served("nftables") as server:
        answer = server.get("/configz")
        tree = json.loads(answer.body)

    assert "application/json" == answer.headers["Content-Type"]
    assert {"kubeproxy.config.k8s.io", "pyproxy.io"} == tree.keys()
    shown = tree["kubeproxy.config.k8s.io"]
    assert ("nftables", "node-1", 3) == (shown["mode"], shown["hostnameOverride"], shown["logging"]["verbosity"])
    assert "auto" == tree["pyproxy.io"]["iptables-variant"]


def test_flags_in_effect() -> None:
    """/flagz has every flag, with its value."""
    with served("nftables") as server:
        lines = server.get("/flagz").body.decode().splitlines()

    assert {"proxy-mode nftables", "hostname-override node-1", "v 3", "iptables-masquerade-bit 14"} <= set(lines)
    assert len(OPTIONS) == len(lines) - 2


CSP = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
KUBERNETES = "application/json;v=v1beta1;g=config.k8s.io;as=Statusz"


@pytest.mark.parametrize("path", ["/", "/statusz"])
@pytest.mark.parametrize("accept", [BROWSER, "*/*", "", "text/plain"])
def test_page_for_people(path: str, accept: str) -> None:
    """A browser gets a page that may load nothing from anywhere; other clients get plain text."""
    with served("ipvs") as server:
        answer = server.get(path, Accept=accept)

    kind = "html" if accept == BROWSER else "plain"
    assert (f"text/{kind}; charset=utf-8", CSP) == (
        answer.headers["Content-Type"],
        answer.headers["Content-Security-Policy"],
    )
    assert b"pyproxy" in answer.body
    assert (kind == "html") == answer.body.startswith(b"<!DOCTYPE html>")


def test_index_lists_every_page() -> None:
    """/ names every path, each of which answers, and nothing else."""
    with served() as server:
        paths = [line.split()[0] for line in server.get("/").body.decode().splitlines()[2:]]
        statuses = {path: server.get(path).status for path in paths}

    assert {"/statusz", "/metrics", "/metrics/slis", "/configz", "/flagz", "/proxyMode", "/healthz"} == set(paths)
    assert {200} == set(statuses.values())


def test_status_for_programs() -> None:
    """A client that accepts JSON gets the document of the schema, with the page of Services that the query selects."""
    with served() as server:
        answer = server.get("/statusz?service=a%20b&page=3&x=1", Accept="application/json")

    found = msgspec.json.decode(answer.body, type=AgentStatus)
    assert ("application/json", "a b", 3) == (answer.headers["Content-Type"], found.services.query, found.services.page)


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", ("", 1)),
        ("?page=-1", ("", 1)),
        ("?page=1234567", ("", 1)),
        ("?page=%D9%A1", ("", 1)),
        ("?page=x&service=%00%FF", ("\x00\ufffd", 1)),
        (f"?service={'a' * 1000}", ("a" * 256, 1)),
        (f"?{'a=1&' * 50}service=b", ("", 1)),
        ("?service=a&service=b", ("b", 1)),
    ],
)
def test_queries_that_are_no_queries(query: str, wanted: tuple[str, int]) -> None:
    """A query without meaning is answered with the first page; its length is limited."""
    with served() as server:
        found = json.loads(server.get(f"/statusz{query}", Accept="application/json").body)["services"]

    assert wanted == (found["query"], found["page"])


@pytest.mark.parametrize("version", ["v1beta1", "v1alpha1"])
def test_status_in_the_form_of_kubernetes(version: str) -> None:
    """A client that names kube-proxy's Statusz document gets that, with its fields."""
    with served() as server:
        found = json.loads(server.get("/statusz", Accept=KUBERNETES.replace("v1beta1", version)).body)

    names = [
        "kind",
        "apiVersion",
        "metadata",
        "startTime",
        "uptimeSeconds",
        "goVersion",
        "binaryVersion",
        "emulationVersion",
        "paths",
    ]
    assert names == list(found)
    assert ("Statusz", f"config.k8s.io/{version}", "1.37") == (
        found["kind"],
        found["apiVersion"],
        found["emulationVersion"],
    )
    assert ["/configz", "/flagz", "/healthz", "/metrics", "/proxyMode", "/statusz"] == found["paths"]
