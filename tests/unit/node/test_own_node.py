"""What becomes of the Node that an agent is on: waited for, kept while it is away, and warned about."""

from __future__ import annotations

import logging

import pytest

from pyproxy.config.config import Config
from pyproxy.model.address import ip_text, parse_ip, parse_network
from pyproxy.model.node import Node
from pyproxy.node.own_node import OwnNode

NODE = Node(name="node1", ips=(parse_ip("172.18.0.11"),), pod_cidrs=(parse_network("10.244.1.0/24"),), zone="a")
BARE = Node(name="node1")
FIX = "set --node-ip of the kubelet, or --bind-address of pyproxy, to the address at which other nodes reach this one"


def with_ips(*texts: str) -> Node:
    """Return a Node with these addresses."""
    return Node(name="node1", ips=tuple(map(parse_ip, texts)))


def listed(*nodes: Node | None, config: Config | None = None) -> OwnNode:
    """Return what is known after a series of objects."""
    own = OwnNode(config or Config(), "node1")
    for node in nodes:
        own.listed(node)
    return own


@pytest.mark.parametrize(
    ("nodes", "config", "is_awaited"),
    [
        ((), Config(), True),
        ((None,), Config(), True),
        ((BARE,), Config(), True),
        ((with_ips("127.0.0.1"),), Config(), True),
        ((BARE, NODE), Config(), False),
        ((BARE,), Config(bind_address=parse_ip("172.18.0.9")), False),
        ((None,), Config(manifests="/objects"), False),
    ],
    ids=["nothing heard", "no object", "no address", "loopback", "address later", "address given", "files"],
)
def test_waiting(nodes: tuple[Node | None, ...], config: Config, is_awaited: object) -> None:
    """An address is waited for, unless it was given, or files say all that there is to say."""
    assert is_awaited is listed(*nodes, config=config).is_awaited


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            None,
            (
                "node node1: there is no such Node object; going on without its addresses."
                " If it has another name, set --hostname-override"
            ),
        ),
        (BARE, f"node node1: has no address; going on without, until it has one; {FIX}"),
    ],
)
def test_an_end_to_waiting(node: Node | None, message: str, caplog: pytest.LogCaptureFixture) -> None:
    """After the waiting time the agent continues without an address and logs what to do; it never uses a loopback address."""
    own = listed(node)
    own.stop_waiting()
    own.stop_waiting()

    assert (False, ()) == (own.is_awaited, own.node.ips)
    assert [message] == [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("after", [None, BARE], ids=["gone", "made again, and bare"])
def test_what_was_known_stays(after: Node | None) -> None:
    """A Node that is deleted, and made again, keeps addresses and pod ranges until it has new ones."""
    own = listed(NODE, after)
    assert (NODE.ips, NODE.pod_cidrs) == (own.node.ips, own.node.pod_cidrs)

    new = Node(name="node1", ips=(parse_ip("172.18.0.12"),), pod_cidrs=(parse_network("10.244.2.0/24"),))
    own.listed(new)
    assert new == own.node


def test_changes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Each thing that changes packet paths is one line; the same again is none."""
    caplog.set_level(logging.INFO)
    no_zone = Node(name="node1", ips=NODE.ips, pod_cidrs=NODE.pod_cidrs)
    listed(None, NODE, NODE, None, no_zone)

    assert [
        "node node1: there is no such Node object; addresses none, podCIDRs none, zone none",
        "node node1: addresses 172.18.0.11, podCIDRs 10.244.1.0/24, zone a",
        "node node1: there is no such Node object; addresses 172.18.0.11, podCIDRs 10.244.1.0/24, zone a",
        "node node1: addresses 172.18.0.11, podCIDRs 10.244.1.0/24, zone none",
    ] == caplog.messages


@pytest.mark.parametrize(
    ("node", "config", "message"),
    [
        (
            with_ips("127.0.0.1", "172.18.0.11"),
            Config(),
            f"node node1: its address 127.0.0.1 is a loopback address, and not used; {FIX}",
        ),
        (
            with_ips("172.18.0.11"),
            Config(bind_address=parse_ip("::1")),
            f"--bind-address: ::1 is a loopback address, and not used; {FIX}",
        ),
    ],
)
def test_loopback_addresses(node: Node, config: Config, message: str, caplog: pytest.LogCaptureFixture) -> None:
    """A loopback address is not used, whatever its source, and is logged once."""
    own = listed(node, node, config=config)

    assert ["172.18.0.11"] == list(map(ip_text, own.node.ips))
    assert [message] == caplog.messages


@pytest.mark.parametrize(("bind_address", "count"), [("0.0.0.0", 1), ("192.168.56.11", 0)])  # noqa: S104  # unset
def test_address_of_virtualbox(bind_address: str, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """The address that every machine of VirtualBox has is used, with a warning, unless another one was given."""
    config = Config(bind_address=parse_ip(bind_address))
    own = listed(with_ips("10.0.2.15"), with_ips("10.0.2.15", "192.168.56.11"), config=config)

    message = (
        "node node1: its address is 10.0.2.15, which VirtualBox's NAT gives to every machine:"
        f" if other nodes cannot reach it, {FIX}"
    )
    assert [message] * count == caplog.messages
    assert ip_text(own.node.ips[0]) in {"10.0.2.15", bind_address}
