"""The kernel refuses every write for a while: rules stay as they are, and the changes arrive afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import tcp
from tests.lab.waiting import wait_until

from .cluster import CLUSTER_CIDR_FLAG, Cluster
from .gate import SYNC_PERIOD_FLAG
from .kernel_errors import KernelErrors
from .kernel_state import NODES, kernel_state, start_fresh
from .modes import needs
from .objects import JsonObject, port, service, slices

WEB = service("web", 190, port(80))
PINNED = service("pinned", 191, port(80), sessionAffinity="ClientIP")
OBJECTS: list[JsonObject] = [WEB, *slices(WEB, "pod1-1"), PINNED, *slices(PINNED, "pod1-1", "pod1-2")]
TRIES = 3


@dataclass
class Node:
    """The first node, with an agent whose writes can fail."""

    cluster: Cluster
    errors: KernelErrors
    full: list[str]
    """The state with the objects."""
    empty: list[str]

    @property
    def state(self) -> list[str]:
        """The state now."""
        return kernel_state(self.cluster, self.cluster.lab["node1"])


@pytest.fixture(scope="module")
def node(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Run agents whose writes can fail."""
    errors = KernelErrors(Path(tmp_path_factory.mktemp("errors")))
    with cluster.keeping_flags():
        flags = (CLUSTER_CIDR_FLAG, SYNC_PERIOD_FLAG)
        full, empty = (start_fresh(cluster, objects, *flags, env=errors.env) for objects in (OBJECTS, ()))
        yield Node(cluster, errors, full, empty)
    cluster.put()


@pytest.mark.parametrize("errno", ["ENOBUFS", "ENOMEM", "EBUSY"])
def test_no_write_succeeds(node: Node, errno: str) -> None:
    """While all writes fail, the rules stay, and the agent retries; afterwards the change arrives without a quarantine."""
    cluster, errors = node.cluster, node.errors
    agent = cluster.agents["node1"]
    before, logged, refused = node.state, len(agent.stderr), errors.count

    with errors.failing(errno, agent.pid):
        cluster.write([*NODES, *OBJECTS])
        wait_until(lambda: errors.count >= refused + TRIES, "some refused writes")
        meanwhile = node.state
    wait_until(lambda: node.full == node.state, "the rules of the change", poll_seconds=0.1)

    log = agent.stderr[logged:]
    assert (node.empty, node.empty) == (before, meanwhile)
    assert (False, False) == ("Traceback" in log, "quarantine" in log), log
    [outcome] = cluster.lab.client_pod.probe(tcp(WEB["spec"]["clusterIP"], 80))
    assert "pod1-1" == outcome.server
    cluster.write(NODES)
    wait_until(lambda: node.empty == node.state, "the deletion of the rules", poll_seconds=0.1)


@needs("nft_tables")
def test_answers_are_lost(node: Node) -> None:
    """While all answers of the kernel are lost, the agent retries, whether or not it has written; then the rules are right."""
    cluster, errors = node.cluster, node.errors
    agent = cluster.agents["node1"]
    logged, lost = len(agent.stderr), errors.count

    with errors.failing("ENOBUFS", agent.pid, "recvfrom"):
        cluster.write([*NODES, *OBJECTS])
        wait_until(lambda: errors.count >= lost + TRIES, "some lost answers")
    wait_until(lambda: node.full == node.state, "the rules of the change", poll_seconds=0.1)

    log = agent.stderr[logged:]
    assert (False, False) == ("Traceback" in log, "quarantine" in log), log
    cluster.write(NODES)
    wait_until(lambda: node.empty == node.state, "the deletion of the rules", poll_seconds=0.1)
