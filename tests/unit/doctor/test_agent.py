"""What the answers of an agent mean."""

import asyncio
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from pyproxy.config.config import Config
from pyproxy.doctor.agent import ask_agent, check_last_sync, check_quarantine, check_watches
from pyproxy.doctor.finding import Finding, NotCheckedError, Severity
from pyproxy.doctor.inputs import KUBE_PROXY, PYPROXY, AgentAnswers, Inputs
from pyproxy.model.address import ListenAddress, parse_ip
from pyproxy.model.node import Node

STATUS: dict[str, object] = {
    "IPv4": {"lastUpdated": "2026-01-01T00:00:00Z", "healthy": False},
    "IPv6": {"lastUpdated": "2026-01-01T00:00:00Z", "healthy": True},
}
METRICS = {
    'pyproxy_watch_up{kind="Service"}': 0.0,
    'pyproxy_watch_up{kind="Node"}': 1.0,
    'pyproxy_quarantined_service_ports{ip_family="IPv4"}': 2.0,
}


def inputs(readyz: dict[str, object], healthz: dict[str, object] | None = None, proxy: str = PYPROXY) -> Inputs:
    """Return inputs with these answers of an agent."""
    answers = AgentAnswers(proxy, "iptables", "http://m", "http://h", METRICS, healthz or {}, readyz)
    return Inputs(Config(), Node(name="node1"), agent=answers)


def shown(findings: list[Finding]) -> list[tuple[Severity, str]]:
    """Return severity and text of each finding."""
    return [(each.severity, each.text) for each in findings]


@pytest.mark.parametrize(
    ("readyz", "healthz", "text"),
    [
        ({}, {"status": STATUS}, "IPv4: changes are pending for too long; last sync 2026-01-01T00:00:00Z"),
        ({"firstSyncDone": False, "lastSyncGood": False}, {}, "the first sync is not complete"),
        ({"firstSyncDone": True, "lastSyncGood": False}, {}, "the last sync failed"),
    ],
)
def test_last_sync(readyz: dict[str, object], healthz: dict[str, object], text: str) -> None:
    """Pending changes of one family, a first sync that is not complete, and a failed sync are failures."""
    assert [(Severity.FAIL, text)] == shown(asyncio.run(check_last_sync(inputs(readyz, healthz))))


def test_good_sync() -> None:
    """A sync that succeeded is fine."""
    good: dict[str, object] = {"firstSyncDone": True, "lastSyncGood": True}

    assert [] == asyncio.run(check_last_sync(inputs(good, {"status": {"IPv6": STATUS["IPv6"]}})))


def test_watches() -> None:
    """A watch that is lost is named, with the time since when changes do not arrive."""
    text = "the watch of Service is lost, for 12 s: changes do not arrive"

    assert [(Severity.WARN, text)] == shown(asyncio.run(check_watches(inputs({"watchesLostSeconds": 12.5}))))


def test_quarantine() -> None:
    """Quarantined Service ports are counted."""
    text = "the kernel refused the rules of 2 Service ports, now quarantined"

    assert [(Severity.FAIL, text)] == shown(asyncio.run(check_quarantine(inputs({}))))


def test_kube_proxy() -> None:
    """The answers of kube-proxy are not checked."""
    with pytest.raises(NotCheckedError):
        asyncio.run(check_last_sync(inputs({}, {"status": STATUS}, KUBE_PROXY)))


def test_the_port_of_another_program() -> None:
    """A program that answers with HTML, or with numbers that are none, at the metrics address is not taken for a proxy."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<!DOCTYPE html>\nNot Found\nweird 1.2.3\nname 1e9\n")

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = ListenAddress(parse_ip("127.0.0.1"), server.server_address[1])
        found = asyncio.run(ask_agent(replace(Config(), metrics_bind_address=address)))
        server.shutdown()

    assert ("", {"name": 1e9}) == (found.proxy, found.metrics)
