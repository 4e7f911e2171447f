"""A Service that the kernel refuses disturbs no other, is named in the log, and recovers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from .cluster import CLUSTER_CIDR_FLAG, Cluster, wait_until
from .gate import Gate
from .modes import needs
from .objects import JsonObject, cluster_ips, port, service, slices
from .table import Row, rows

pytestmark = needs("is_iptables")

GOOD = [service(f"good-{number}", number, port(80)) for number in range(100, 110)]
BAD = service("bad", 110, port(80))
CHANGED = service("changed", 111, port(80))
LATER = service("later", 112, port(80))
SYNC_PERIOD_FLAG = "--iptables-sync-period=1s"


@pytest.fixture(scope="module")
def gate(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """Give the gate that the agents write through."""
    standing = Gate(cluster.mode, Path(tmp_path_factory.mktemp("gate")))
    flags = cluster.flags
    cluster.restart(CLUSTER_CIDR_FLAG, SYNC_PERIOD_FLAG, env=standing.env)
    yield standing
    cluster.restart(*flags)


@pytest.fixture(autouse=True)
def open_gate(gate: Gate) -> Iterator[None]:
    """Leave the gate open behind each test."""
    yield
    gate.admit_all()


def backed(*services: JsonObject, by: str = "pod1-1") -> list[JsonObject]:
    """Return Services and their endpoints."""
    return list(chain.from_iterable((each, *slices(each, by)) for each in services))


def refuse_service(gate: Gate, number: int) -> None:
    """Refuse what has the cluster IP of a number, in IPv4 only."""
    gate.refuse(f"-d {cluster_ips(number)[0]}/32")


def errors_of(cluster: Cluster, name: str) -> list[str]:
    """Return the errors that the first node's agent logged about a Service port."""
    return re.findall(rf"^E.*\b{name}\b.*", cluster.agents["node1"].stderr, re.MULTILINE)


OTHERS = """
client-pod  good-100:80/tcp  pod1-1   itself
client-pod  good-104:80/tcp  pod1-1   itself
client-pod  good-109:80/tcp  pod1-1   itself
client-pod  later:80/tcp     pod1-1   itself
"""
REFUSED = rows("client-pod  bad:80/tcp  nobody", [BAD], versions=[4])


@rows(OTHERS, [*GOOD, LATER])
def test_others_are_programmed(cluster: Cluster, gate: Gate, row: Row) -> None:
    """Services that came together with the refused one, and later ones, work."""
    refuse_service(gate, 110)
    with cluster.having(*backed(*GOOD, BAD)), cluster.having(*backed(LATER)):
        assert cluster.expected(row) == cluster.meet(row)


@rows("client-pod  bad:80/tcp  pod1-1  itself", [BAD], versions=[6])
def test_other_family_is_programmed(cluster: Cluster, gate: Gate, row: Row) -> None:
    """What is refused in IPv4 works in IPv6."""
    refuse_service(gate, 110)
    with cluster.having(*backed(BAD)):
        assert cluster.expected(row) == cluster.meet(row)


@REFUSED
def test_refused_service_is_named_in_the_log_once(cluster: Cluster, gate: Gate, row: Row) -> None:
    """The log has one error for it, with the rule; tries that fail in the same way add none."""
    refuse_service(gate, 110)
    with cluster.having(*backed(BAD)):
        known = len(errors_of(cluster, "default/bad"))
        count = gate.count
        wait_until(lambda: gate.count >= count + 4, "two more tries")

        assert cluster.expected(row) == cluster.meet(row)
        assert known == len(errors_of(cluster, "default/bad"))
        assert f"-d {cluster_ips(110)[0]}/32" in cluster.agents["node1"].stderr


@rows("client-pod  bad:80/tcp  pod1-1  itself", [BAD], versions=[4])
def test_refused_service_recovers_by_itself(cluster: Cluster, gate: Gate, row: Row) -> None:
    """Once the kernel takes it, a later try programs it, without a change of the Service."""
    refuse_service(gate, 110)
    with cluster.having(*backed(BAD)):
        gate.admit_all()
        cluster.wait_for_rules([rf"-d {cluster_ips(110)[0]}/32 .*-j KUBE-SVC-"])

        assert cluster.expected(row) == cluster.meet(row)


@rows("client-pod  bad:80/tcp  pod2-1  itself", [BAD], versions=[4])
def test_refused_service_recovers_by_its_next_change(cluster: Cluster, gate: Gate, row: Row) -> None:
    """A change of the Service is tried at once."""
    refuse_service(gate, 110)
    with cluster.having(*backed(BAD)):
        gate.admit_all()
        cluster.put(*backed(BAD, by="pod2-1"))

        assert cluster.expected(row) == cluster.meet(row)


@rows("client-pod  changed:80/tcp  pod1-1  itself", [CHANGED])
def test_refused_change_leaves_the_last_good_rules(cluster: Cluster, gate: Gate, row: Row) -> None:
    """A Service whose change is refused works on as it was."""
    cluster.put(*backed(CHANGED))
    endpoint = "10.244.2.11:8080" if row.version == 4 else "[fd00:10:244:2::11]:8080"
    gate.refuse(endpoint)

    with cluster.having(*backed(CHANGED, by="pod2-1")):
        assert cluster.expected(row) == cluster.meet(row)
