"""Marks and priorities that foreign rules set on a packet are kept on its way through a Service.

One namespace is a node, with a client next to it and a pod on it; foreign rules on the node set marks and count.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pyproxy.model.address import Family, ip_text
from pyproxy.model.names import Protocol
from pyproxy.plan.service_plan import ServicePlan
from tests.lab.namespace import Namespace, create, new_prefix, remove

from .nft_agent import NftAgent, cluster_ip, endpoints, node_namespace, node_settings, plan
from .own_namespace import run

pytestmark = pytest.mark.usefixtures("needs_root")

PREFIXES = {
    Family.IPV4: ("172.31.0.1/24", "172.31.0.2/24", "10.244.0.254/24", "10.244.0.1/24"),
    Family.IPV6: ("fd00:31::1/64", "fd00:31::2/64", "fd00:10:244::fe/112", "fd00:10:244::1/112"),
}
"""The addresses of the node and its neighbour, on the link to the client and on the link to the pod."""
OURS = 0x4000
THEIRS = 0x1234
SEND = """
import socket, sys
with socket.socket(int(sys.argv[1]), socket.SOCK_DGRAM) as client:
    client.setsockopt(socket.SOL_SOCKET, 36, int(sys.argv[4]))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 5)
    client.sendto(b"x", (sys.argv[2], int(sys.argv[3])))
"""
"""A program that sends a packet with a mark (SO_MARK is 36) and a priority."""
RULES = f"""
table inet foreign {{
    chain marks {{
        type filter hook prerouting priority -150
        iifname "client0" meta l4proto udp ct state new meta mark set {THEIRS:#x} meta priority set 1:7
    }}
    chain forward {{
        type filter hook forward priority 300
        ct status dnat ct direction original meta mark {THEIRS | OURS:#x} counter comment "both"
    }}
    chain input {{
        type filter hook input priority 300
        ct status dnat ct direction original meta mark & {~OURS & 0xFFFFFFFF:#x} == {THEIRS:#x} counter comment "arrived"
    }}
    chain postrouting {{
        type filter hook postrouting priority 300
        ct status dnat ct direction original meta mark {THEIRS:#x} counter comment "kept"
        ct status dnat ct direction original meta mark != {THEIRS:#x} counter comment "changed"
        ct status dnat ct direction original meta priority none counter comment "no priority"
        ct status dnat ct direction original meta priority != none counter comment "priority"
        ct status ! dnat meta mark {THEIRS:#x} meta priority 0:5 counter comment "as sent"
    }}
}}
"""


class Node:
    """The node, in whose namespace the test process is, and its neighbours."""

    def __init__(self, agent: NftAgent, client: Namespace) -> None:
        self.agent = agent
        self._family = agent.family
        self._client = client

    def send(self, *, from_node: bool, to: bytes | None = None) -> None:
        """Send a packet, by default to the Service; a packet from the node gets its mark from its socket."""
        words = (sys.executable, "-c", SEND, str(2 if self._family is Family.IPV4 else 10))
        target = (ip_text(to or cluster_ip(self._family, 1)), "80")
        if from_node:
            run(*words, *target, str(THEIRS))
        else:
            self._client.run([*words, *target, "0"])

    def counted(self) -> dict[str, int]:
        """Return the nonzero packet counts by the comments of the counting rules."""
        listing = run("nft", "list", "table", "inet", "foreign")
        found = re.findall(r'packets (\d+) bytes \d+ comment "([^"]+)"', listing)
        return {comment: int(packets) for packets, comment in found if int(packets)}


@pytest.fixture
def node(family: Family) -> Iterator[Node]:
    """Provide a node with an agent, a client and a pod."""
    prefix = new_prefix()
    try:
        names = [f"{prefix}{name}" for name in ("client", "pod")]
        client, pod = create(names)
        with node_namespace(node_settings(family)) as start:
            wire(family, client, pod)
            run("nft", "-f", "-", stdin=RULES)
            yield Node(start(), client)
    finally:
        remove(prefix)


def wire(family: Family, client: Namespace, pod: Namespace) -> None:
    """Connect the node, in whose namespace this process is, to its neighbours."""
    texts = PREFIXES[family]
    nodad = " nodad" if family is Family.IPV6 else ""
    lines = ["link set lo up"]
    for number, (name, neighbour) in enumerate((("client0", client), ("pod0", pod))):
        own, other = texts[2 * number : 2 * number + 2]
        lines += [
            f"link add {name} type veth peer name eth0 netns {neighbour.name}",
            f"link set {name} up",
            f"addr add {own} dev {name}{nodad}",
        ]
        run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")
        lines = [
            "link set lo up",
            "link set eth0 up",
            f"addr add {other} dev eth0{nodad}",
            f"route add default via {own.partition('/')[0]}",
        ]
        neighbour.run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")
        lines = []
    # Without a route the node's own packets do not reach the rules.
    run("ip", "route", "add", "default" if family is Family.IPV4 else "::/0", "dev", "client0")
    run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")


def service(family: Family, *pods: int, **fields: Any) -> ServicePlan:  # noqa: ANN401  # any field of a plan
    """Return the plan of the Service; its clients are masqueraded, because they are not pods."""
    return plan(family, 1, *pods, protocol=Protocol.UDP, **fields)


@pytest.mark.parametrize("seconds", [None, 100], ids=["any endpoint", "affinity"])
@pytest.mark.parametrize("from_node", [False, True], ids=["forwarded", "from the node"])
def test_marks_and_priority(node: Node, family: Family, seconds: int | None, *, from_node: bool) -> None:
    """A mark of a rule or socket is kept except for our bit, which is cleared at the end; the priority is not changed."""
    node.agent.put(service(family, 1, affinity_seconds=seconds))

    node.send(from_node=from_node)

    assert {"kept": 1, "no priority": 1, **({} if from_node else {"both": 1})} == node.counted()


@pytest.mark.parametrize("from_node", [False, True], ids=["forwarded", "from the node"])
def test_marks_without_masquerade(node: Node, family: Family, *, from_node: bool) -> None:
    """Without masquerading the mark never changes."""
    node.agent.configure(node_settings(family, local_traffic=None))
    node.agent.put(service(family, 1))

    node.send(from_node=from_node)

    assert {"kept": 1, "no priority": 1} == node.counted()


def test_mark_of_what_stays_on_the_node(node: Node, family: Family) -> None:
    """A packet to an endpoint on the node itself arrives with the foreign mark."""
    own = endpoints(family, 254)
    node.agent.put(service(family, cluster_endpoints=own, any_usable=True))

    node.send(from_node=False)

    assert {"arrived": 1} == node.counted()


def test_packet_of_no_service(node: Node, family: Family) -> None:
    """A packet that matches no Service leaves with its mark and priority."""
    node.agent.put(service(family, 1))

    node.send(from_node=True, to=endpoints(family, 1)[0].ip)

    assert {"as sent": 1} == node.counted()
