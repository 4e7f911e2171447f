"""An upgrade: rules that an older version wrote are adopted or replaced under traffic, with no moment without rules.

The rules are in `tests/inputs/previous`; `previous_rules.py` says how to renew them. They were written by commit 0641c5a.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.lab import Host, tcp
from tests.lab.waiting import wait_until

from .cluster import CLUSTER_CIDR_FLAG, PYPROXY, Cluster
from .modes import IS_GUEST
from .objects import cluster_ips
from .previous_rules import FOLDER, NODE, dumps
from .test_restart import OBJECTS

PER_SECOND = 20 if IS_GUEST else 100
_LOADERS = {
    "nft": ("nft", "-f", "-"),
    "ipset": ("ipset", "restore"),
    "ipvsadm": ("ipvsadm", "-R"),
    "ip": ("ip", "-batch", "-"),
}
_ORDER = ("ipset", "ipvsadm", "ip", "nft", "iptables", "ip6tables")
"""Rules name sets, and virtual servers need addresses."""


@pytest.fixture(autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Add the objects of the older version; on exit, restore the earlier flags."""
    with cluster.having(*OBJECTS), cluster.keeping_flags():
        yield


def load_previous(cluster: Cluster, host: Host) -> None:
    """Replace the rules of a node by those of the older version."""
    cluster.run(host, PYPROXY, "cleanup")
    mode = cluster.mode
    if mode.name.startswith("ipvs"):
        host.run("sh", "-c", "ip link show kube-ipvs0 || ip link add kube-ipvs0 up type dummy")
    for name in sorted(dumps(mode), key=_ORDER.index):
        loader = _LOADERS.get(name) or (dumps(mode)[name][0].replace("-save", "-restore"), "--noflush")
        cluster.run(host, *loader, stdin=(FOLDER / f"{mode.name}.{name}.txt").read_text())


def comparable(cluster: Cluster, host: Host) -> list[str]:
    """Return rules and elements of a node in an order that does not depend on when they were written."""
    text = re.sub(r"(?m)^#.*|\[\d+:\d+\]|hashsize \d+|bucketsize \d+ initval \w+", "", cluster.rules(host))
    return sorted(filter(None, map(str.strip, re.split(r"[\n,{}]", text))))


def test_rules_of_the_previous_version_are_replaced(cluster: Cluster) -> None:
    """While the new version starts, no connection fails, and it leaves the rules of a start on a node without rules."""
    host, client = cluster.lab[NODE], cluster.lab.client_pod
    cluster.stop()
    cluster.run(host, PYPROXY, "cleanup")
    cluster.start(CLUSTER_CIDR_FLAG)
    fresh = comparable(cluster, host)
    cluster.stop()
    load_previous(cluster, host)
    previous = comparable(cluster, host)
    to_services = [tcp(ip, 80) for ip in cluster_ips(130)]
    with (
        client.connect(to_services[0]) as connection,
        client.load(to_services[0], per_second=PER_SECOND) as load,
        client.load(to_services[1], per_second=PER_SECOND) as load6,
    ):
        server = connection.greeting.server
        cluster.start(CLUSTER_CIDR_FLAG)
        with suppress(TimeoutError):
            wait_until(lambda: fresh == comparable(cluster, host))
        found = comparable(cluster, host)
        reports = [load.report(), load6.report()]
        answer = connection.ask()

    assert previous != fresh
    assert fresh == found
    assert server == answer.server
    for report in reports:
        assert not report.failures
        assert {"pod1-1", "pod2-1"} == set(report.replies)
