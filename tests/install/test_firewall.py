"""A node with Debian's firewalld, rules of Docker, and dozens of native nft rules in the same tables.

Whatever an agent does there, Services are served, each hook exists once, and all foreign rules stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pyproxy.model.address import Family
from tests.lab import Lab, tcp
from tests.lab.waiting import wait_until
from tests.packets.cluster import PYPROXY, Cluster
from tests.packets.foreign import DOCKER, EVERYDAY, hooks_of, nft_word, uncounted
from tests.packets.modes import LEGACY, NFT, NFTABLES, Mode
from tests.packets.objects import PLAN, JsonObject, port, service, slices

from .machine import Machine

# Programs of iptables cannot list the tables with all these rules.
READABLE_NFT = replace(NFT, dumps=tuple(("nft", "list", "ruleset", nft_word(family)) for family in Family))
WEB = service("web", 150, port(80))
HOOKS = {"iptables-legacy": 14, "iptables-nft": 14, "nftables": 0}
"""Jumps to our chains in each family: 12, and 2 to the chain that is shared with the kubelet."""
GUARD = (
    '-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" '
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n"
)
KUBELET = """\
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
{guard}COMMIT
"""
KUBE_PROXY_IS_BACK = "".join(
    f"*{table}\n:PYPROXY-CANARY - [0:0]\n:KUBE-PROXY-CANARY - [0:0]\n-X PYPROXY-CANARY\nCOMMIT\n"
    for table in ("filter", "nat")
)


@dataclass
class Node:
    """The first node of a cluster, with foreign rules."""

    cluster: Cluster
    machine: Machine

    def run(self, *argv: str, stdin: str = "") -> str:
        """Run a command in the node's network, outside the machine."""
        return self.cluster.run(self.cluster.lab["node1"], *argv, stdin=stdin)

    def add_foreign(self) -> None:
        """Start firewalld, and add foreign rules, in the iptables variant of the mode."""
        self.machine.start("firewalld")
        self.machine.run("firewall-cmd", "--quiet", "--set-default-zone=trusted")
        self.machine.run("firewall-cmd", "--quiet", "--reload")
        for mode in self.variants:
            self.add_kubelet(mode)
        self.add_rules(*self.variants)

    def add_kubelet(self, mode: Mode) -> None:
        """Add the kubelet's rules."""
        for restore, guard in zip(mode.restores, (GUARD, ""), strict=True):
            self.run(restore, "--noflush", stdin=KUBELET.format(guard=guard))

    @property
    def variants(self) -> tuple[Mode, ...]:
        """The iptables variants with foreign rules."""
        return (LEGACY, NFT) if self.cluster.mode is LEGACY else (NFT,)

    def add_rules(self, *modes: Mode) -> None:
        """Add rules as Docker and an administrator do, also after a reload of firewalld."""
        for restore in (restore for mode in modes for restore in mode.restores):
            self.run(restore, "--noflush", stdin=DOCKER)
        for family in Family:
            self.run("nft", "-f", "-", stdin="\n".join(EVERYDAY).replace("{f}", nft_word(family)) + "\n")

    def rules(self) -> list[str]:
        """Return all rules of both variants, sorted, because restored rules are at other positions."""
        legacy = [self.run(*dump) for dump in LEGACY.dumps] if self.cluster.mode is LEGACY else []
        tables = sorted(self.run("nft", "list", "tables").splitlines())
        found = uncounted("".join((*legacy, *(self.run("nft", "list", *table.split()) for table in tables))))
        return sorted(found.splitlines())

    def hooks(self) -> set[tuple[int, int]]:
        """Return, for both families, the number of our hooks, and the highest count of one hook."""
        found = []
        for dump in self.cluster.mode.dumps:
            counts = hooks_of(self.run(*dump))
            found.append((counts.total(), max(counts.values(), default=0)))
        return set(found)

    def servers(self) -> set[str | None]:
        """Return the servers that answer at the addresses of the Service."""
        outcomes = self.cluster.lab.client_pod.probe(
            *(tcp(ip, 80) for ip in WEB["spec"]["clusterIPs"] for _ in "12345678")
        )
        return {outcome.server for outcome in outcomes}


@pytest.fixture(params=[LEGACY, READABLE_NFT, NFTABLES], ids=str)
def node(request: pytest.FixtureRequest, debian: None, tmp_path: Path) -> Iterator[Node]:  # noqa: ARG001 - needs the machine
    """Provide a node with foreign rules, without an agent."""
    mode: Mode = request.param
    with Lab(PLAN.shape, timeout_seconds=4.0) as lab, Machine(lab["node1"], {}) as machine:
        found = Node(Cluster(lab, mode, tmp_path), machine)
        found.add_foreign()
        yield found
        found.cluster.stop()


def test_everyday_firewall(node: Node) -> None:
    """Start, restart, change, reload of the firewall, takeover and cleanup work as on a node without foreign rules."""
    cluster = node.cluster
    objects: list[JsonObject] = [WEB, *slices(WEB, "pod1-1", "pod2-1")]
    hooks = {(HOOKS[cluster.mode.name], min(HOOKS[cluster.mode.name], 1))}
    assert 50 <= len(EVERYDAY) * len(Family)
    others = node.rules()
    cluster.put(*objects)

    cluster.start()
    assert ({"pod1-1", "pod2-1"}, hooks) == (node.servers(), node.hooks())
    started = node.rules()

    cluster.restart(*cluster.flags)
    assert started == node.rules()

    cluster.put(*slices(WEB, "pod1-2", "pod2-1"))
    assert ({"pod1-2", "pod2-1"}, hooks) == (node.servers(), node.hooks())

    # The reload flushes and deletes all rules of iptables in the nft variant.
    node.machine.run("firewall-cmd", "--quiet", "--reload")
    wait_until(lambda: node.hooks() == hooks, "the repair of the hooks")
    if cluster.mode is not READABLE_NFT:
        node.add_kubelet(NFT)
    node.add_rules(NFT)
    cluster.put(*objects)
    assert ({"pod1-1", "pod2-1"}, hooks) == (node.servers(), node.hooks())

    cluster.stop()
    if cluster.mode.is_iptables:
        for restore in cluster.mode.restores:
            node.run(restore, "--noflush", stdin=KUBE_PROXY_IS_BACK)
        plan = node.run(
            PYPROXY,
            *("takeover", "--dry-run", f"--manifests={cluster.manifests}"),
            *cluster.mode.flags,
            "--hostname-override=node1",
        )
        assert re.search(r"^Plan: \d+ to change, 0 to add, ", plan, re.MULTILINE)
    cluster.start()
    assert ({"pod1-1", "pod2-1"}, hooks) == (node.servers(), node.hooks())

    cluster.stop()
    node.run(PYPROXY, "cleanup")
    # The hooks of the kubelet stay.
    assert {(2, 1) if cluster.mode.is_iptables else (0, 0)} == node.hooks()
    assert others == node.rules()
