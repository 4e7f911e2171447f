"""The conntrack entries that a change examines and deletes, in a separate network namespace."""

import socket
from collections.abc import Iterator

import pytest

from pyproxy.linux.conntrack import Cleaned, delete_udp_flows
from pyproxy.linux.netlink import CREATE, EXCL, NETLINK_NETFILTER, Message, NetlinkSocket, attribute, nest, nfgenmsg
from pyproxy.linux.uapi.nfnetlink import NfnlSubsys
from pyproxy.linux.uapi.nfnetlink_conntrack import Cta, CtaIp, CtaProto, CtaTuple, IpctnlMsgCt
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
_NEW_ENTRY = NfnlSubsys.CTNETLINK << 8 | IpctnlMsgCt.NEW
_STATUS, _TIMEOUT = 3, 7
"""CTA_STATUS and CTA_TIMEOUT in `linux/netfilter/nfnetlink_conntrack.h`."""
_CONFIRMED_AND_REPLIED = 0x8 | 0x2
_HOUR = 3600
_NETLINK_FAMILY = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


def numbered(ip: bytes, number: int) -> bytes:
    """Return the address of a number in a range."""
    return (int.from_bytes(ip) + number).to_bytes(len(ip))


def _tuple(kind: int, source: tuple[bytes, int], destination: tuple[bytes, int], protocol: int) -> bytes:
    kinds = (CtaIp.V4_SRC, CtaIp.V4_DST) if len(source[0]) == 4 else (CtaIp.V6_SRC, CtaIp.V6_DST)
    ip = nest(CtaTuple.IP, attribute(kinds[0], source[0]), attribute(kinds[1], destination[0]))
    ports = (
        attribute(CtaProto.SRC_PORT, source[1].to_bytes(2)),
        attribute(CtaProto.DST_PORT, destination[1].to_bytes(2)),
    )
    return nest(kind, ip, nest(CtaTuple.PROTO, attribute(CtaProto.NUM, bytes([protocol])), *ports))


def add_flows(family: Family, *, protocol: int = 17, zone: int = 0) -> None:
    """Create flows to Services that have one port each; each flow has its own client address."""
    messages = []
    for number in range(TOTAL):
        service = (numbered(SERVICES[family], number % SERVICE_COUNT), FIRST_PORT + number % SERVICE_COUNT)
        client = (numbered(CLIENTS[family], number), 5000)
        body = _tuple(Cta.TUPLE_ORIG, client, service, protocol) + _tuple(Cta.TUPLE_REPLY, service, client, protocol)
        body += attribute(_STATUS, _CONFIRMED_AND_REPLIED.to_bytes(4)) + attribute(_TIMEOUT, _HOUR.to_bytes(4))
        if protocol == 6:  # TCP has a state: CTA_PROTOINFO, CTA_PROTOINFO_TCP, established
            body += nest(4, nest(1, attribute(1, b"\3")))
        body += attribute(Cta.ZONE, zone.to_bytes(2)) if zone else b""
        messages.append(Message(_NEW_ENTRY, CREATE | EXCL, nfgenmsg(_NETLINK_FAMILY[family]) + body))
    with NetlinkSocket(NETLINK_NETFILTER) as netlink:
        assert [] == netlink.send(messages)


@pytest.fixture
def family(request: pytest.FixtureRequest) -> Iterator[Family]:
    """Enter an empty network namespace and return the family of the test."""
    with own_namespace():
        yield request.param


families = pytest.mark.parametrize("family", Family, indirect=True, ids=str)


def everywhere(family: Family, count: int) -> list[Destination]:
    """Return address and port of the first Services."""
    return [Destination(numbered(SERVICES[family], number), FIRST_PORT + number) for number in range(count)]


@families
def test_change_examines_its_own_flows(family: Family) -> None:
    """The kernel sends only the flows of the frontends that changed, and they are deleted."""
    add_flows(family)
    add_flows(family, zone=7)
    add_flows(family, protocol=6)

    assert Cleaned(2 * FLOWS_EACH, 2 * FLOWS_EACH) == delete_udp_flows(family, everywhere(family, 1), lambda _: True)
    assert Cleaned(4 * FLOWS_EACH, 0) == delete_udp_flows(family, everywhere(family, 3), lambda _: False)


@families
def test_many_changes_are_one_dump(family: Family) -> None:
    """Many frontends take one dump of UDP flows, which has each flow once; all flows can be deleted in one call."""
    add_flows(family)
    add_flows(family, protocol=6)
    everything = everywhere(family, SERVICE_COUNT)

    assert Cleaned(TOTAL, 0) == delete_udp_flows(family, everything, lambda _: False)
    assert Cleaned(TOTAL, TOTAL) == delete_udp_flows(family, everything, lambda _: True)
    assert Cleaned(0, 0) == delete_udp_flows(family, everything, lambda _: True)


@families
def test_port_at_any_address(family: Family) -> None:
    """A filter without an address finds the flows of a node port."""
    add_flows(family)

    assert Cleaned(FLOWS_EACH, FLOWS_EACH) == delete_udp_flows(family, [Destination(None, FIRST_PORT)], lambda _: True)


@pytest.mark.parametrize("family", [Family.IPV4], indirect=True, ids=str)
def test_address_with_any_port(family: Family) -> None:
    """A filter without a port finds all flows to an address."""
    add_flows(family)
    wanted = [Destination(numbered(SERVICES[family], 3), None)]

    assert Cleaned(FLOWS_EACH, 0) == delete_udp_flows(family, wanted, lambda _: False)
