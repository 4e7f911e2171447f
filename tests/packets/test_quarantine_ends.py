"""A refused Service keeps its last good rules, and recovers once the kernel accepts it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.lab.waiting import wait_until

from .cluster import Cluster
from .gate import Gate
from .modes import needs
from .objects import VERSIONS, backed, cluster_ips, port, service
from .table import Row, rows

pytestmark = needs("is_iptables")

GOING = service("going", 114, port(80))
COMING = service("coming", 115, port(80))
BAD = service("bad", 113, port(80))
CHANGED = service("changed", 111, port(80))


@pytest.fixture(autouse=True)
def open_gate(gate: Gate) -> Iterator[None]:
    """Open the gate after each test."""
    yield
    gate.admit_all()


@rows("client-pod  bad:80/tcp  pod1-1  itself", [BAD], versions=[4])
def test_refused_service_recovers_by_itself(cluster: Cluster, gate: Gate, row: Row) -> None:
    """Once the kernel accepts it, a retry programs the Service, without a change of it."""
    gate.refuse_cluster_ip(113)
    with cluster.having(*backed(BAD, by="pod1-1")):
        gate.admit_all()
        cluster.wait_for_rules([rf"-d {cluster_ips(113)[0]}/32 .*-j KUBE-SVC-"])

        assert cluster.expected(row) == cluster.observe(row)


@rows("client-pod  bad:80/tcp  pod2-1  itself", [BAD], versions=[4])
def test_refused_service_recovers_by_its_next_change(cluster: Cluster, gate: Gate, row: Row) -> None:
    """A change of the Service is tried immediately."""
    gate.refuse_cluster_ip(113)
    with cluster.having(*backed(BAD, by="pod1-1")):
        gate.admit_all()
        cluster.put(*backed(BAD, by="pod2-1"))
        # In a separate transaction, which may come after that of the marker.
        cluster.wait_for_rules([rf"-d {cluster_ips(113)[0]}/32 .*-j KUBE-SVC-", "10.244.2.11:8080"])

        assert cluster.expected(row) == cluster.observe(row)


@rows("client-pod  changed:80/tcp  pod1-1  itself", [CHANGED])
def test_refused_change_leaves_the_last_good_rules(cluster: Cluster, gate: Gate, row: Row) -> None:
    """A Service whose change is refused keeps its last good rules."""
    cluster.put(*backed(CHANGED, by="pod1-1"))
    gate.refuse("10.244.2.11:8080" if row.version == 4 else "[fd00:10:244:2::11]:8080")

    with cluster.having(*backed(CHANGED, by="pod2-1")):
        assert cluster.expected(row) == cluster.observe(row)


@rows("client-pod  coming:80/tcp  pod1-1  itself", [COMING])
def test_chain_with_a_foreign_jump_affects_no_other_change(cluster: Cluster, row: Row) -> None:
    """If the kernel refuses to delete a chain with a foreign jump, other changes are still written."""
    node, iptables = cluster.lab["node1"], cluster.mode.iptables[VERSIONS.index(row.version)]
    cluster.put(*backed(GOING, by="pod1-1"))
    [chain] = set(
        re.findall(rf"-d {cluster_ips(114)[VERSIONS.index(row.version)]}/.* -j (KUBE-SVC-\w+)", cluster.rules(node))
    )
    jump = ("-p", "sctp", "--dport", "9", "-j", chain)
    cluster.run(node, iptables, "-t", "nat", "-A", "OUTPUT", *jump)
    try:
        cluster.remove(*backed(GOING, by="pod1-1"))
        with cluster.having(*backed(COMING, by="pod1-1")):
            assert cluster.expected(row) == cluster.observe(row)
            assert f":{chain} " in cluster.rules(node)
    finally:
        cluster.run(node, iptables, "-t", "nat", "-D", "OUTPUT", *jump)

    wait_until(lambda: f":{chain} " not in cluster.rules(node), "the deletion of the chain")
