"""Health of agents whose kernel refuses what they write: which failure is theirs, and which is a Service's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest

from .cluster import Cluster, wait_until
from .gate import Gate
from .health import CHECK_PORT, HEALTH_PORT, ask, balanced, status, wait_until_told
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
    """Have a Service that load balancers ask for; the gate, which lets all through, decides what the kernel takes."""
    with cluster.having(balanced(), *slices(balanced(), "pod1-1")):
        wait_until_told(cluster, (200, 1), (503, 0))
        yield
    gate.admit_all()


def answers(cluster: Cluster, path: str, code: int) -> bool:
    """Say whether a node answers a path with a code; one that has just started may have no server yet."""
    answer = ask(cluster, "node1", HEALTH_PORT, path)
    return answer is not None and answer.status == code


def test_work_that_cannot_be_done(cluster: Cluster, gate: Gate) -> None:
    """While nothing can be written all endpoints come to say no, and yes again once it can."""
    gate.be_busy()
    cluster.write([node("node1"), node("node2"), balanced()])
    for path in PATHS:
        wait_until(partial(answers, cluster, path, 503), f"{path} says no")
    answer = ask(cluster, "node1", CHECK_PORT)
    gate.admit_all()
    for path in PATHS:
        wait_until(partial(answers, cluster, path, 200), f"{path} says yes")
    cluster.put(balanced())

    assert answer is not None
    assert (503, False) == (answer.status, answer.body["serviceProxyHealthy"])


def test_quarantine_is_no_pending_work(cluster: Cluster, gate: Gate) -> None:
    """A Service that the kernel refuses, again and again, makes nobody unhealthy."""
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
    """Rules that were never written are pending work, though no change came since."""
    flags = cluster.flags
    cluster.stop()
    gate.be_busy()
    cluster.write([node("node1"), node("node2"), balanced()])
    host = cluster.lab["node1"]
    agent = host.start(*cluster.command(host, *flags), env=cluster.env(host, gate.env))
    try:
        for path in PATHS:
            wait_until(partial(answers, cluster, path, 503), f"{path} says no")
        gate.admit_all()
        for path in PATHS:
            wait_until(partial(answers, cluster, path, 200), f"{path} says yes")
    finally:
        gate.admit_all()
        agent.signal(15)
        agent.wait()
        cluster.start(*flags, env=gate.env)
        cluster.put(balanced())
