"""Switching the mode at a restart: the old rules are removed after the new ones are complete; no connection fails."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.lab import tcp
from tests.lab.waiting import wait_until

from .cluster import CLUSTER_CIDR_FLAG, Cluster, running_cluster
from .modes import IPVS, IPVS_NFT, IS_GUEST, LEGACY, NFT, NFTABLES, Mode
from .objects import port, service, slices

WEB = service("web", 140, port(80, node_port=30140))
WITH_IPVS = (LEGACY, IPVS, NFTABLES, IPVS_NFT, NFT, IPVS, LEGACY)
"""All switches between the IPVS mode and another, with its helper rules in either variant."""
CIRCLE = WITH_IPVS if IS_GUEST else (LEGACY, NFTABLES, NFT, LEGACY, NFT, NFTABLES, LEGACY)
"""All switches between modes and variants; those without IPVS run on the machine's kernel, which is faster."""
PER_SECOND = 20 if IS_GUEST else 100
OURS = ('"default/web', "table ip", "-A -t")
"""Patterns of pyproxy's rules: in iptables, in nftables, and in ``ipvsadm``."""


@pytest.fixture(scope="module")
def switched(tmp_path_factory: pytest.TempPathFactory, needs_root: None) -> Iterator[Cluster]:  # noqa: ARG001 - skips without root
    """Provide a cluster that no fixed mode applies to."""
    with running_cluster(CIRCLE[0], Path(tmp_path_factory.mktemp("switched"))) as running:
        running.put(WEB, *slices(WEB, "pod1-1", "pod2-1"))
        yield running


def own_rules(cluster: Cluster, mode: Mode) -> list[str]:
    """Return the lines of pyproxy's rules in a mode on a node."""
    node = cluster.lab["node1"]
    lines = "".join(cluster.run(node, *dump) for dump in mode.dumps).splitlines()
    return [line for line in lines if any(word in line for word in OURS)]


def switch(cluster: Cluster, mode: Mode) -> None:
    """Restart the agents in another mode, and wait until the rules of the previous mode are gone.

    The virtual servers of IPVS mode stay until the last connection has ended; `tests/cluster/test_takeover_ipvs.py`
    waits for that.
    """
    before = cluster.mode
    cluster.stop()
    cluster.mode = mode
    cluster.start(CLUSTER_CIDR_FLAG)
    if before not in {IPVS, IPVS_NFT}:
        wait_until(lambda: not own_rules(cluster, before), f"the rules of {before} are gone")


@pytest.mark.parametrize(("before", "after"), list(pairwise(CIRCLE)), ids=str)
def test_switch_loses_no_connection(switched: Cluster, before: Mode, after: Mode) -> None:
    """While the mode changes, open connections keep their endpoints, and no new connection fails."""
    if switched.mode is not before:
        switch(switched, before)
    client = switched.lab.client_pod
    to_service = tcp(WEB["spec"]["clusterIPs"][0], 80)
    with client.connect(to_service) as connection, client.load(to_service, per_second=PER_SECOND) as load:
        server = connection.greeting.server
        switch(switched, after)
        report = load.report()
        answer = connection.ask()

    assert server == answer.server
    assert not report.failures
    assert {"pod1-1", "pod2-1"} >= set(report.replies)
    assert own_rules(switched, after)
