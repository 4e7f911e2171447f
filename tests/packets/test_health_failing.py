"""Health of agents whose kernel refuses writes: a general failure, and a refused Service."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.lab.waiting import wait_until

from .cluster import Cluster
from .gate import Gate
from .health import CHECK_PORT, HEALTH_PORT, ask, balanced, status, wait_until_reported
from .modes import needs
from .objects import backed, node, port, service, slices

pytestmark = needs("is_iptables")

PATHS = ("/healthz", "/livez", "/readyz")
HEALTH_TIMEOUT_SECONDS = 2.0
"""Two sync periods of the agents behind a gate."""
QUARANTINED = 75
BAD = service("bad", QUARANTINED, port(80))


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster, gate: Gate) -> Iterator[None]:
    """Add a Service with a health check; the gate decides which writes succeed, at first all."""
    with cluster.having(balanced(), *slices(balanced(), "pod1-1")):
        wait_until_reported(cluster, (200, 1), (503, 0))
        yield
    gate.admit_all()


def answers(cluster: Cluster, path: str, code: int) -> bool:
    """Return whether a node answers a path with this status; an agent that has just started may have no server yet."""
    answer = ask(cluster, "node1", HEALTH_PORT, path)
    return answer is not None and answer.status == code


def test_nothing_can_be_written(cluster: Cluster, gate: Gate) -> None:
    """While nothing can be written, all health endpoints fail; they recover once writes succeed."""
    gate.be_busy()
    cluster.write([node("node1"), node("node2"), balanced()])
    for path in PATHS:
        wait_until(partial(answers, cluster, path, 503), f"{path} fails")
    answer = ask(cluster, "node1", CHECK_PORT)
    gate.admit_all()
    for path in PATHS:
        wait_until(partial(answers, cluster, path, 200), f"{path} succeeds")
    cluster.put(balanced())

    assert answer is not None
    assert (503, False) == (answer.status, answer.body["serviceProxyHealthy"])


def test_quarantine_is_not_pending_work(cluster: Cluster, gate: Gate) -> None:
    """A Service that the kernel refuses repeatedly does not make an agent unhealthy."""
    gate.refuse_cluster_ip(QUARANTINED)
    with cluster.having(*backed(BAD, by="pod1-1")):
        wait_until(lambda: "in quarantine" in cluster.agents["node1"].stderr, "a refusal")
        statuses: set[int] = set()
        end = time.monotonic() + 2 * HEALTH_TIMEOUT_SECONDS
        while time.monotonic() < end:
            statuses |= {status(cluster, "node1", path) for path in PATHS}
    gate.admit_all()

    assert {200} == statuses


def test_first_sync_that_fails(cluster: Cluster, gate: Gate) -> None:
    """A first sync that fails is pending work, although no change follows it."""
    flags = cluster.flags
    cluster.stop()
    gate.be_busy()
    cluster.write([node("node1"), node("node2"), balanced()])
    host = cluster.lab["node1"]
    agent = host.start(*cluster.command(host, *flags), env=cluster.env(host, gate.env))
    try:
        for path in PATHS:
            wait_until(partial(answers, cluster, path, 503), f"{path} fails")
        gate.admit_all()
        for path in PATHS:
            wait_until(partial(answers, cluster, path, 200), f"{path} succeeds")
    finally:
        gate.admit_all()
        agent.signal(15)
        agent.wait()
        cluster.start(*flags, env=gate.env)
        cluster.put(balanced())
