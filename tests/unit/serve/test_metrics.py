"""Metrics over real HTTP on loopback: kube-proxy's names, the values that were handed in, and a server that does no harm."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import NamedTuple

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from pyproxy.config import ProxyMode
from pyproxy.flags import ListenAddress
from pyproxy.model.address import Family, ip_text, parse_ip
from pyproxy.serve.exporter import Exporter, application
from pyproxy.serve.metrics import Metrics

LOOPBACK = parse_ip("127.0.0.1")
IPV4, IPV6 = {"ip_family": "IPv4"}, {"ip_family": "IPv6"}
# Types as kube-proxy exposes them; the name of a counter is without its _total.
KUBE_PROXY = {
    "kubeproxy_sync_proxy_rules_duration_seconds": "histogram",
    "kubeproxy_sync_full_proxy_rules_duration_seconds": "histogram",
    "kubeproxy_sync_partial_proxy_rules_duration_seconds": "histogram",
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds": "gauge",
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds": "gauge",
    "kubeproxy_sync_proxy_rules_endpoint_changes": "counter",
    "kubeproxy_sync_proxy_rules_service_changes": "counter",
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending": "gauge",
    "kubeproxy_sync_proxy_rules_service_changes_pending": "gauge",
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total": "gauge",
    "kubeproxy_conntrack_reconciler_deleted_entries": "counter",
    "kubeproxy_conntrack_reconciler_sync_duration_seconds": "histogram",
}
MODES = {
    ProxyMode.IPTABLES: {
        "kubeproxy_sync_proxy_rules_iptables_total": "gauge",
        "kubeproxy_sync_proxy_rules_iptables_last": "gauge",
        "kubeproxy_sync_proxy_rules_iptables_restore_failures": "counter",
    },
    ProxyMode.NFTABLES: {"kubeproxy_sync_proxy_rules_nftables_sync_failures": "counter"},
    ProxyMode.IPVS: {"kubeproxy_sync_proxy_rules_iptables_restore_failures": "counter"},
}
OWN = {"pyproxy_quarantined_service_ports": "gauge", "pyproxy_repaired_entries": "counter"}


class Answer(NamedTuple):
    """What the server said."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Served:
    """Metrics behind a server."""

    metrics: Metrics
    address: ListenAddress

    def connected(self) -> socket.socket:
        """Connect to a server that may have yet to bind: its thread does that."""
        found: list[socket.socket] = []

        def connects() -> bool:
            try:
                found.append(socket.create_connection((ip_text(self.address.ip), self.address.port), timeout=10))
            except ConnectionRefusedError:
                return False
            return True

        wait_until(connects)
        return found[0]

    def get(self, path: str) -> Answer:
        """Ask for a path."""
        with closing(HTTPConnection(ip_text(self.address.ip), self.address.port)) as connection:
            connection.sock = self.connected()
            connection.request("GET", path)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())

    def families(self) -> list[Metric]:
        """Return what is served under /metrics."""
        return list(text_string_to_metric_families(self.get("/metrics").body.decode()))

    def samples(self) -> list[Sample]:
        """Return all values."""
        return [sample for family in self.families() for sample in family.samples]

    def value(self, name: str, labels: dict[str, str]) -> float | None:
        """Return the value of a sample, or None if it is not there."""
        return next((sample.value for sample in self.samples() if (sample.name, sample.labels) == (name, labels)), None)


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask again and again until the condition holds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def free_address(ip: bytes = LOOPBACK) -> ListenAddress:
    """Return an address that nobody listens on."""
    domain = socket.AF_INET if len(ip) == len(LOOPBACK) else socket.AF_INET6
    with socket.socket(domain) as probe:
        probe.bind((ip_text(ip), 0))
        return ListenAddress(ip, probe.getsockname()[1])


@contextmanager
def served(mode: str = "iptables", ip: bytes = LOOPBACK) -> Iterator[Served]:
    """Serve the metrics of an agent with both families."""
    metrics = Metrics(mode, Family)
    address = free_address(ip)
    exporter = metrics.serve(address)
    try:
        yield Served(metrics, address)
    finally:
        exporter.close()


def with_values(metrics: Metrics) -> None:
    """Tell of one of everything that there is to tell."""
    metrics.add_service_changes(1)
    metrics.add_endpoint_changes(1)
    for family in Family:
        metrics.set_queued(family, 1e9)
        metrics.observe_sync(family, 0.5, full=True)
        metrics.observe_sync(family, 0.5, full=False)
        metrics.set_synced(family, 1e9)
        metrics.set_no_local_endpoints(family, "internal", 1)
        metrics.set_quarantined(family, 1)
        metrics.observe_flow_cleaning(family, 1, 0.5)


@pytest.mark.parametrize("mode", [ProxyMode.IPTABLES, ProxyMode.NFTABLES, ProxyMode.IPVS], ids=lambda mode: mode.value)
def test_names_and_types_are_kube_proxys(mode: ProxyMode) -> None:
    """What is served under kube-proxy's prefix has its names and types, and each mode has its own."""
    with served(mode.value) as server:
        with_values(server.metrics)
        if mode is ProxyMode.IPTABLES:
            server.metrics.set_rules(Family.IPV4, {"nat": 1}, {"nat": 1})
        types = {family.name: family.type for family in server.families()}

    kube_proxy = {name: kind for name, kind in types.items() if name.startswith("kubeproxy_")}
    assert KUBE_PROXY | MODES[mode] == kube_proxy
    assert OWN == {name: kind for name, kind in types.items() if name.startswith("pyproxy_")}
    assert "process_resident_memory_bytes" in types


def test_counters_are_there_before_their_first_count() -> None:
    """A failure that happens once is seen as an increase, because its counter was there with 0."""
    with served() as server:
        for name in (
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            "kubeproxy_conntrack_reconciler_deleted_entries_total",
            "pyproxy_repaired_entries_total",
        ):
            assert [0.0, 0.0] == [server.value(name, labels) for labels in (IPV4, IPV6)]


def test_a_sync_is_full_or_partial() -> None:
    """A sync counts among all syncs and, with the same duration, among the full or the partial ones, in its family."""
    with served() as server:
        server.metrics.observe_sync(Family.IPV4, 0.25, full=True)
        server.metrics.observe_sync(Family.IPV4, 0.003, full=False)
        names = [f"kubeproxy_sync_{kind}proxy_rules_duration_seconds" for kind in ("", "full_", "partial_")]

        assert [2, 1, 1] == [server.value(f"{name}_count", IPV4) for name in names]
        assert [0.253, 0.25, 0.003] == [server.value(f"{name}_sum", IPV4) for name in names]
        assert [None, None, None] == [server.value(f"{name}_count", IPV6) for name in names]


def test_the_buckets_of_a_sync_are_kube_proxys() -> None:
    """Durations are told apart in fifteen steps from 1 ms to 16.384 s."""
    with served() as server:
        server.metrics.observe_sync(Family.IPV4, 0.002, full=True)
        name = "kubeproxy_sync_proxy_rules_duration_seconds_bucket"
        counts = {bound: server.value(name, IPV4 | {"le": bound}) for bound in ("0.001", "0.002", "16.384", "+Inf")}
        buckets = [sample for sample in server.samples() if sample.name == name]

    assert {"0.001": 0, "0.002": 1, "16.384": 1, "+Inf": 1} == counts
    assert len(buckets) == 15 + 1


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


def test_ipv6() -> None:
    """An IPv6 address is as good as any other."""
    with served(ip=parse_ip("::1")) as server:
        assert server.get("/healthz").body == b"ok"


def test_a_client_that_says_nothing_keeps_nobody_waiting() -> None:
    """While one client holds its connection open without a word, others are answered."""
    with (
        served() as server,
        closing(server.connected()),
        closing(server.connected()) as reset,
    ):
        # A client that goes away in the middle, by a reset, is no more than a line in the log.
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reset.sendall(b"GET /metrics HTTP/1.1\r\n")
        reset.close()

        assert server.get("/healthz").body == b"ok"


def test_an_address_that_is_taken_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Where another program has the port, one error says so, and metrics are served once it is free."""
    address = free_address()
    with socket.create_server((ip_text(address.ip), address.port)) as other:
        exporter = Exporter(address, application("iptables", Metrics("iptables", Family).wsgi_app()), 0.01)
        exporter.start()
        wait_until(lambda: bool(caplog.messages))
        other.close()
        assert Served(Metrics("iptables", ()), address).get("/healthz").body == b"ok"
        exporter.close()

    assert [f"metrics cannot be served on {address}, trying on: Address already in use"] == [
        record.getMessage() for record in caplog.records if record.levelname == "ERROR"
    ]


def test_after_a_close_the_address_is_free() -> None:
    """A closed server has given its address back when `close` returns."""
    with served() as server:
        server.get("/healthz")

    with socket.create_server((ip_text(server.address.ip), server.address.port)):
        pass
