"""Elements as text. `tests.properties` tests that `nft` reads the text as the same elements."""

import pytest
from msgspec.structs import replace

from pyproxy.backends.nftables.elements import (
    ADDRESSED,
    ALLOWED_SOURCES,
    LAYOUT,
    NODE_PORTS,
    PICK,
    PINS,
    ElementKey,
    ElementSet,
    Layout,
    Value,
    pack_number,
    pack_port,
    pack_protocol,
)
from pyproxy.backends.nftables.layout import NftablesSettings, layout_text
from pyproxy.backends.nftables.program import PortElements, element
from pyproxy.backends.nftables.text import element_text, elements_text, table_text
from pyproxy.model.address import Family, parse_ip, parse_network
from pyproxy.model.names import Protocol
from tests.unit.plan.building import PLAN, endpoints, ips

AT_80 = pack_protocol(Protocol.TCP) + pack_port(80)
IP = parse_ip("10.96.0.10")
TARGET = parse_ip("10.244.1.11") + pack_port(8080)
TARGET6 = parse_ip("fd00::11") + pack_port(8080)


@pytest.mark.parametrize(
    ("kind", "key", "value", "text"),
    [
        (ADDRESSED.external_local, IP + AT_80, b"", "10.96.0.10 . tcp . 80"),
        (ADDRESSED.main.counts, IP + AT_80, pack_number(3) + b"a/b", '10.96.0.10 . tcp . 80 comment "a/b" : 0:3'),
        (ADDRESSED.main.endpoints, IP + AT_80 + pack_number(2), TARGET, "10.96.0.10 . tcp . 80 . 0:2 : 10.244.1.11 . 8080"),
        (ADDRESSED.main.slots, IP + AT_80 + pack_number(11), pack_number(0x8001_000A), "10.96.0.10 . tcp . 80 . 0:b : 8001:a"),
        (NODE_PORTS.rejected, AT_80, b"a/b:c", 'tcp . 80 comment "a/b:c"'),
        (PICK, pack_number(300), b"", "0:12c : jump slot-of-300"),
        (NODE_PORTS.local.sticky, pack_number(10800), b"", "0:2a30 : goto nodeport-local-sticky-10800"),
        (PINS, IP + pack_number(0xFFFF0001), b"", "10.96.0.10 . ffff:1"),
    ],
)  # fmt: skip
def test_element(kind: ElementSet, key: bytes, value: bytes, text: str) -> None:
    """Fields are separated by dots, data follows a colon, and the name is a comment."""
    assert text == element_text(kind, key, value, Family.IPV4)


def test_element_of_ipv6() -> None:
    """IPv6 addresses are compressed and have no brackets."""
    key = parse_ip("fd00:10:96::10") + AT_80 + pack_number(0)

    assert "fd00:10:96::10 . tcp . 80 . 0:0 : fd00::11 . 8080" == element_text(
        ADDRESSED.main.endpoints, key, TARGET6, Family.IPV6
    )


@pytest.mark.parametrize(("last", "text"), [("192.0.2.127", "192.0.2.0-192.0.2.127"), ("192.0.2.0", "192.0.2.0")])
def test_interval(last: str, text: str) -> None:
    """A range is written with both ends, or as one address if they are equal."""
    key = IP + AT_80 + parse_ip("192.0.2.0") + IP + AT_80 + parse_ip(last)

    assert f"10.96.0.10 . tcp . 80 . {text}" == element_text(ALLOWED_SOURCES, key, b"", Family.IPV4)


def test_unknown_protocol_is_a_number() -> None:
    """An element with a protocol that pyproxy does not use can be printed."""
    assert "99 . 80" == element_text(NODE_PORTS.external_local, b"\x63\0\0\0" + pack_port(80), b"", Family.IPV4)


def test_elements_of_a_port() -> None:
    """Each element of a Service port with source ranges is printed under its set; the layout is left out."""
    plan = replace(
        PLAN,
        cluster_ip=IP,
        load_balancer_ips=ips("203.0.113.1"),
        source_ranges=(parse_network("192.0.2.0/24"),),
        cluster_endpoints=endpoints("10.244.1.11:8080"),
        any_usable=True,
    )
    compiled = PortElements(plan)
    entries: dict[ElementKey, Value] = {LAYOUT: Layout("x"), **dict.fromkeys(compiled.shared, b""), **compiled.own}

    assert [
        ("cluster-ips", "10.96.0.10"),
        ("firewall", "203.0.113.1 . tcp . 80"),
        ("allowed-sources", "203.0.113.1 . tcp . 80 . 192.0.2.0-192.0.2.255"),
        ("pick", "0:1 : jump slot-of-1"),
        ("external-cluster", "203.0.113.1 . tcp . 80"),
        ("counts", '10.96.0.10 . tcp . 80 comment "default/web" : 0:1'),
        ("counts", '203.0.113.1 . tcp . 80 comment "default/web" : 0:1'),
        ("endpoints", "10.96.0.10 . tcp . 80 . 0:0 : 10.244.1.11 . 8080"),
        ("endpoints", "203.0.113.1 . tcp . 80 . 0:0 : 10.244.1.11 . 8080"),
    ] == list(elements_text(Family.IPV4, entries))


def test_table_has_chains_before_elements_that_lead_there() -> None:
    """Each chain is in the table once, before the elements that lead to it."""
    text = table_text(
        Family.IPV6, layout_text(NftablesSettings(family=Family.IPV6)), {element(PICK, pack_number(2)): b""}
    )

    assert text.startswith("table ip6 pyproxy {\n")
    assert 1 == text.count("\tchain slot-of-2 {\n")
    assert text.endswith("}\nadd element ip6 pyproxy pick { 0:2 : jump slot-of-2 }\n")
