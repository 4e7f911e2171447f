"""A kernel without xt_bpf: a chain for each endpoint matches hairpin traffic, as in kube-proxy.

This kernel has the module, so a gate refuses the probe of the rule. The gate wraps iptables' own programs, so
python-iptables is hidden from the agent, which would otherwise bypass them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import CLUSTER_CIDR_FLAG, PYPROXY, Cluster
from .gate import Gate
from .modes import needs
from .objects import JsonObject, port, service, slices
from .table import Row, rows

pytestmark = needs("is_iptables")

HAIRPIN = service("hairpin", 160, port(80, "TCP", name="t"), port(80, "UDP", name="u"), port(80, "SCTP", name="s"))
WEB = service("web", 161, port(80, node_port=30161), type="NodePort")
OBJECTS: list[JsonObject] = [
    *(HAIRPIN, *slices(HAIRPIN, "pod1-1")),
    *(WEB, *slices(WEB, "pod1-1", "pod2-1")),
]


@pytest.fixture(scope="module", autouse=True)
def cluster_without_bpf(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run agents that start without rules and whose probe is refused; on exit, restore their earlier flags."""
    flags, directory = cluster.flags, Path(tmp_path_factory.mktemp("gate"))
    gate = Gate(cluster.mode, directory)
    gate.refuse("-m bpf")
    (directory / "iptc.py").write_text("raise ImportError('libiptc is missing')")
    start_afresh(cluster)
    cluster.start(CLUSTER_CIDR_FLAG, env={**gate.env, "PYTHONPATH": str(directory)})
    with cluster.having(*OBJECTS):
        yield
    start_afresh(cluster)
    cluster.start(*flags)


def start_afresh(cluster: Cluster) -> None:
    """Stop the agents and remove their rules."""
    cluster.stop()
    for node in cluster.lab.nodes:
        cluster.run(node, PYPROXY, "cleanup")


@rows(
    """
pod1-1      hairpin:80/tcp    pod1-1          node1
pod1-1      hairpin:80/udp    pod1-1          node1
pod1-1      hairpin:80/sctp   pod1-1          node1
pod1-2      hairpin:80/tcp    pod1-1          itself
client-pod  web:80/tcp        pod1-1 pod2-1   itself
node1       web:80/tcp        pod1-1 pod2-1   node1
outside1    node1:30161/tcp   pod1-1 pod2-1   node1
""",
    OBJECTS,
)
def test_packet(cluster: Cluster, row: Row) -> None:
    """Packets have the same results as with xt_bpf."""
    assert cluster.expected(row) == cluster.observe(row)


def test_each_endpoint_has_a_chain(cluster: Cluster) -> None:
    """Instead of a rule with xt_bpf each endpoint of each port has a chain in each family; the log has the reason."""
    rules = cluster.rules(cluster.lab["node1"])

    assert "-m bpf" not in rules
    assert 2 * (3 + 2) <= len(re.findall(r"^-A KUBE-SEP-\S+ -s ", rules, re.MULTILINE))
    assert "hairpin traffic is matched in a chain for each endpoint: xt_bpf: " in cluster.agents["node1"].stderr
