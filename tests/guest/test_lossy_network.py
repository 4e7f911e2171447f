"""A network that loses, delays and reorders packets: features that depend on connection tracking still work.

The machine's kernel may lack netem, the guest kernel has it. The tests run in each mode of the guest.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.lab import tcp
from tests.packets.cluster import Cluster, running_cluster
from tests.packets.health import CHECK_PORT, balanced, reported
from tests.packets.modes import IPVS, NFT, NFTABLES
from tests.packets.objects import port, service, slices, terminating

pytestmark = pytest.mark.needs_ipvs

NETEM = ("loss", "15%", "delay", "20ms", "15ms")
"""Applied to packets that leave a device; the variation of 15 ms reorders packets."""
PATIENCE_SECONDS = 40.0
"""Time-out of an answer: a lost SYN is retransmitted after 1 s, 3 s and 7 s."""
CLIENT = "outside1"
WEB = service("web", 170, port(80, node_port=30170))
PINNED = service(
    "pinned",
    171,
    port(80, node_port=30171),
    sessionAffinity="ClientIP",
    sessionAffinityConfig={"clientIP": {"timeoutSeconds": 10800}},
)


@pytest.fixture(scope="module", params=[IPVS, NFTABLES, NFT], ids=str)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Provide a cluster in each mode."""
    with running_cluster(request.param, Path(tmp_path_factory.mktemp("lossy"))) as running:
        yield running


@contextmanager
def lossy(cluster: Cluster) -> Iterator[None]:
    """Lose and delay packets between nodes, and from nodes to external hosts."""
    with ExitStack() as stack:
        for node in cluster.lab.nodes:
            node.run("tc", "qdisc", "add", "dev", "eth0", "root", "netem", *NETEM)
            stack.callback(node.run, "tc", "qdisc", "del", "dev", "eth0", "root")
        yield


def test_draining_endpoint_keeps_its_connections(cluster: Cluster) -> None:
    """A terminating endpoint answers on its open connection, and new connections go elsewhere."""
    with cluster.having(WEB, *slices(WEB, "pod2-1")), lossy(cluster):
        client, at = cluster.lab[CLIENT], cluster.lab["node1"].address(4)
        through_node = tcp(at, 30170, timeout_seconds=PATIENCE_SECONDS)
        with client.connect(through_node) as connection:
            cluster.put(WEB, *slices(WEB, terminating("pod2-1"), "pod2-2"))
            answers = {connection.ask().server for _ in range(5)}
            newcomers = {outcome.server for outcome in client.probe(*[through_node] * 5)}

    assert {"pod2-1"} == answers
    assert {"pod2-2"} == newcomers


def test_client_stays_pinned(cluster: Cluster) -> None:
    """With session affinity all connections of a client reach one endpoint, despite retransmissions."""
    with cluster.having(PINNED, *slices(PINNED, "pod1-1", "pod1-2", "pod2-1", "pod2-2")), lossy(cluster):
        client, at = cluster.lab[CLIENT], cluster.lab["node1"].address(4)
        probe = tcp(at, 30171, timeout_seconds=PATIENCE_SECONDS)
        [first] = client.probe(probe)
        later = client.probe(*[probe] * 12)

    assert first.server is not None
    assert {first.server} == {outcome.server for outcome in later}


def test_health_checks_are_answered(cluster: Cluster) -> None:
    """Health checks show which node has endpoints."""
    item = balanced()
    with cluster.having(item, *slices(item, "pod1-1")), lossy(cluster):
        assert [(200, 1), (503, 0)] == reported(cluster, CHECK_PORT)
