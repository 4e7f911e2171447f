"""How much of connection tracking is looked at, in a network namespace of the test's own."""

from collections.abc import Iterator

import pytest

from pyproxy.linux.conntrack import Cleaned, delete_udp_flows
from pyproxy.linux.netlink import NETLINK_NETFILTER, Message, NetlinkSocket, attribute, nest, nfgenmsg
from pyproxy.model.address import Family, parse_ip
from pyproxy.model.flow import Destination
from tests.packets.own_namespace import own_namespace

pytestmark = pytest.mark.usefixtures("needs_root")

CLIENTS = {Family.IPV4: parse_ip("10.244.2.0"), Family.IPV6: parse_ip("fd00:10:244:2::")}
SERVICES = {Family.IPV4: parse_ip("10.96.0.0"), Family.IPV6: parse_ip("fd00:10:96::")}
SERVICE_COUNT = 50
FLOWS_EACH = 40
TOTAL = SERVICE_COUNT * FLOWS_EACH
FIRST_PORT = 1000
# linux/netfilter/nfnetlink_conntrack.h
_NEW_ENTRY, _CREATE, _EXCLUSIVE = 0x100, 0x400, 0x200
_ORIGINAL, _REPLY, _STATUS, _TIMEOUT, _ZONE = 1, 2, 3, 7, 18
_CONFIRMED_AND_REPLIED = 0x8 | 0x2
_HOUR = 3600
_NETLINK_FAMILY = {Family.IPV4: 2, Family.IPV6: 10}


def numbered(ip: bytes, number: int) -> bytes:
    """Return the address of a number in a range."""
    return (int.from_bytes(ip) + number).to_bytes(len(ip))


def _tuple(kind: int, source: tuple[bytes, int], destination: tuple[bytes, int], protocol: int) -> bytes:
    first = 1 if len(source[0]) == 4 else 3  # of IPv4 and IPv6, CTA_IP_V4_SRC and CTA_IP_V6_SRC
    ip = nest(1, attribute(first, source[0]), attribute(first + 1, destination[0]))
    ports = attribute(2, source[1].to_bytes(2)), attribute(3, destination[1].to_bytes(2))
    return nest(kind, ip, nest(2, attribute(1, bytes([protocol])), *ports))


def add_flows(family: Family, *, protocol: int = 17, zone: int = 0) -> None:
    """Have flows to Services with a port each, every one from a client address of its own."""
    messages = []
    for number in range(TOTAL):
        service = (numbered(SERVICES[family], number % SERVICE_COUNT), FIRST_PORT + number % SERVICE_COUNT)
        client = (numbered(CLIENTS[family], number), 5000)
        body = _tuple(_ORIGINAL, client, service, protocol) + _tuple(_REPLY, service, client, protocol)
        body += attribute(_STATUS, _CONFIRMED_AND_REPLIED.to_bytes(4)) + attribute(_TIMEOUT, _HOUR.to_bytes(4))
        if protocol == 6:  # TCP has a state: CTA_PROTOINFO, CTA_PROTOINFO_TCP, established
            body += nest(4, nest(1, attribute(1, b"\3")))
        body += attribute(_ZONE, zone.to_bytes(2)) if zone else b""
        messages.append(Message(_NEW_ENTRY, _CREATE | _EXCLUSIVE, nfgenmsg(_NETLINK_FAMILY[family]) + body))
    with NetlinkSocket(NETLINK_NETFILTER) as netlink:
        assert [] == netlink.send(messages)


@pytest.fixture
def family(request: pytest.FixtureRequest) -> Iterator[Family]:
    """Be in an empty namespace."""
    with own_namespace():
        yield request.param


families = pytest.mark.parametrize("family", Family, indirect=True, ids=str)


def everywhere(family: Family, count: int) -> list[Destination]:
    """Return the first Services' addresses and ports."""
    return [Destination(numbered(SERVICES[family], number), FIRST_PORT + number) for number in range(count)]


@families
def test_a_change_looks_at_its_own_flows(family: Family) -> None:
    """Of all flows, the kernel sends those of the frontends that changed, and they are deleted."""
    add_flows(family)
    add_flows(family, zone=7)
    add_flows(family, protocol=6)

    assert Cleaned(2 * FLOWS_EACH, 2 * FLOWS_EACH) == delete_udp_flows(family, everywhere(family, 1), lambda _: True)
    assert Cleaned(4 * FLOWS_EACH, 0) == delete_udp_flows(family, everywhere(family, 3), lambda _: False)


@families
def test_many_changes_are_one_walk(family: Family) -> None:
    """Many frontends are looked for in one dump of UDP flows, each of which is seen once; all may go at once."""
    add_flows(family)
    add_flows(family, protocol=6)
    everything = everywhere(family, SERVICE_COUNT)

    assert Cleaned(TOTAL, 0) == delete_udp_flows(family, everything, lambda _: False)
    assert Cleaned(TOTAL, TOTAL) == delete_udp_flows(family, everything, lambda _: True)
    assert Cleaned(0, 0) == delete_udp_flows(family, everything, lambda _: True)


@families
def test_port_at_any_address(family: Family) -> None:
    """A node port's flows are found by their port."""
    add_flows(family)

    assert Cleaned(FLOWS_EACH, FLOWS_EACH) == delete_udp_flows(family, [Destination(None, FIRST_PORT)], lambda _: True)


@pytest.mark.parametrize("family", [Family.IPV4], indirect=True, ids=str)
def test_address_with_any_port(family: Family) -> None:
    """All flows to an address are found by it."""
    add_flows(family)
    wanted = [Destination(numbered(SERVICES[family], 3), None)]

    assert Cleaned(FLOWS_EACH, 0) == delete_udp_flows(family, wanted, lambda _: False)
