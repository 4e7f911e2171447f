"""Takeover from kube-proxy's IPVS mode, on a kernel with IPVS (`python -m tests.guest`)."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.lab.waiting import wait_until

from .controlplane import ControlPlane
from .kubeproxy import Backend
from .takeover import LEGACY_TOOLS, OneNode

pytestmark = pytest.mark.needs_ipvs
FOREIGN_SERVER = ("--tcp-service", "192.0.2.77:80")
KEEP_FOREIGN = "--ipvs-exclude-cidrs=192.0.2.0/24"
ITS = ("KUBE-PROXY-CANARY", "KUBE-NODE-PORT", "KUBE-LOAD-BALANCER", "KUBE-IPVS-OUT-FILTER")
"""Chains that pyproxy never creates."""


@pytest.fixture(scope="module")
def node(control_plane: ControlPlane) -> Iterator[OneNode]:
    """Provide a node without a proxy, with a foreign virtual server."""
    with OneNode(control_plane, tools=LEGACY_TOOLS, per_second=20) as made:
        made.load_foreign_rules()
        made.host.run("ipvsadm", "--add-service", *FOREIGN_SERVER)
        yield made


@pytest.fixture(autouse=True)
def _clean(node: OneNode) -> Iterator[None]:
    """Start each test without anything of either proxy, and check that foreign objects never change."""
    with node.cleaned_up():
        yield
    assert (["192.0.2.77:80"], "", "") == (servers(node), sets(node), device(node))
    assert not [text for text in (*ITS, "PYPROXY-CANARY") if text in node.rules()]


def servers(node: OneNode) -> list[str]:
    """Return the addresses of virtual servers."""
    return [words[2] for words in map(str.split, node.host.run("ipvsadm", "-Sn").splitlines()) if words[0] == "-A"]


def sets(node: OneNode) -> str:
    """Return the names of ipsets."""
    return node.host.run("ipset", "list", "-name")


def device(node: OneNode) -> str:
    """Return the addresses of the IPVS device."""
    return node.host.run("sh", "-c", "ip -oneline address show dev kube-ipvs0 2>/dev/null || true")


@pytest.mark.parametrize(
    ("its", "ours"),
    [("ipvs-legacy", "ipvs-legacy"), ("ipvs-legacy", "iptables-legacy"), ("iptables-legacy", "ipvs-legacy")],
)
def test_takeover_and_rollback(node: OneNode, its: Backend, ours: Backend) -> None:
    """No connection is lost during a takeover from kube-proxy to or from IPVS mode, and during the rollback."""
    # After a takeover by another mode, connections through IPVS keep the entries that they need until they end.
    drains = (its, ours) == ("ipvs-legacy", "iptables-legacy")
    with ExitStack() as before:
        before.enter_context(node.kube_proxy(its, KEEP_FOREIGN)).wait_synced(timeout_seconds=300.0)
        with node.traffic() as traffic:
            before.close()
            with node.pyproxy(ours) as agent:
                agent.wait_for_log("first sync done")
                for text in ITS:
                    node.wait_for_rules(without=text)
                traffic.note("pyproxy has synced")
                broken_there = traffic.broken()
                if not drains:
                    wait_until(lambda: "KUBE-" not in sets(node), "kube-proxy's sets are gone", timeout_seconds=60.0)
            lost_there = traffic.failures(outside=(0.0, 0.0))
            rollback_at = traffic.note("pyproxy has ended")
            with node.kube_proxy(its, KEEP_FOREIGN) as proxy:
                proxy.wait_synced(timeout_seconds=300.0)
                is_back_at = traffic.note("kube-proxy has started")
                # A cleanup removes virtual servers regardless of connections.
                broken = traffic.broken() if its != ours else []
                said = node.command("cleanup")
                proxy.wait_synced(timeout_seconds=300.0)
                broken += traffic.broken() if its == ours else []

    assert ([], []) == (broken_there, lost_there)
    # kube-proxy uses the same chains in both modes, and writes one table after the other.
    assert [] == traffic.failures(outside=(rollback_at, is_back_at) if its != ours else (0.0, 0.0)), (
        traffic.notes,
        said,
    )
    assert [] == broken
