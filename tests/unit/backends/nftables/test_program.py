"""Elements of Service ports in unusual cases; `tests.properties` tests the invariants of all elements."""

import pytest
from msgspec.structs import replace

from pyproxy.backends.nftables.elements import (
    ADDRESSED,
    ALLOWED_SOURCES,
    CLUSTER_IPS,
    FIREWALL,
    HAIRPIN,
    ID_BIT,
    NODE_PORTS,
    PICK,
    ElementSet,
    pack_number,
    pack_port,
    pack_protocol,
    unpack_number,
)
from pyproxy.backends.nftables.layout import NftablesSettings
from pyproxy.backends.nftables.program import NftablesProgram, PortElements, element
from pyproxy.model.address import Family, ip_text, parse_network
from pyproxy.model.names import NamespacedName, Protocol, ServicePortName
from pyproxy.plan.service_plan import ServicePlan
from tests.unit.plan.building import PLAN, endpoints, ips, port_name

AT_80 = pack_protocol(Protocol.TCP) + pack_port(80)
[IP, OTHER_IP, LB_IP] = ips("10.96.0.10", "10.96.0.11", "203.0.113.1")
TWO = endpoints("10.244.1.11:8080", "10.244.1.12:8080")
COLLIDING = endpoints("10.155.87.236:59196", "10.160.182.133:5282")
"""Two endpoints whose hashes collide in default/web over TCP."""
WEB = replace(PLAN, cluster_ip=IP, cluster_endpoints=TWO, any_usable=True)
PINNED = replace(WEB, affinity_seconds=10800)
EXTERNAL = replace(PLAN, load_balancer_ips=(LB_IP,), any_usable=True, cluster_endpoints=TWO)


def values(plan: ServicePlan, kind: ElementSet) -> dict[bytes, bytes]:
    """Return the elements of a Service port in one set."""
    compiled = PortElements(plan)
    entries = {**compiled.own, **dict.fromkeys(compiled.shared, b"")}
    return {key[1:]: value for key, value in entries.items() if key[0] == kind.number}


def ids(plan: ServicePlan) -> list[int]:
    """Return the IDs of a plan's endpoints, by slot."""
    return [unpack_number(value) for _, value in sorted(values(plan, ADDRESSED.main.slots).items())]


# -- names


@pytest.mark.parametrize(("length", "expected"), [(119, 127), (120, 127), (200, 127), (10, 18)])
def test_longest_comment(length: int, expected: int) -> None:
    """A name that is too long for a comment is cut and ends with dots."""
    name = ServicePortName(NamespacedName("default", "s" * length), "", Protocol.TCP)
    [value] = values(replace(WEB, name=name), ADDRESSED.main.counts).values()
    comment = value[4:].decode()

    assert expected == len(comment)
    assert (str(name) == comment) == (length <= 119)
    assert comment.endswith("...") == (length > 119)


# -- endpoints and ids


def test_endpoints_by_slot() -> None:
    """Slots are numbered from 0, and the count is the number of endpoints."""
    key = IP + AT_80

    assert {key: pack_number(2) + b"default/web"} == values(WEB, ADDRESSED.main.counts)
    assert {
        key + pack_number(slot): endpoint.ip + pack_port(endpoint.port) for slot, endpoint in enumerate(TWO)
    } == values(WEB, ADDRESSED.main.endpoints)


def test_ids_are_stable() -> None:
    """An endpoint has the same ID for any set and order of endpoints, and at all addresses of its Service port."""
    more = endpoints("10.244.1.10:8080", "10.244.1.12:8080", "10.244.1.11:8080")
    first, second = ids(PINNED)

    assert [second, first] == ids(replace(PINNED, cluster_endpoints=more))[1:]
    assert {first, second} == set(
        map(unpack_number, values(replace(PINNED, node_port=30000), NODE_PORTS.main.slots).values())
    )


def test_ids_differ_from_slots() -> None:
    """IDs have a bit that slots do not have, because a map can contain both for a moment."""
    assert all(number & ID_BIT for number in ids(PINNED))


def test_ports_of_a_service_have_ids_of_their_own() -> None:
    """The same endpoint has different IDs in different ports and protocols."""
    names = (port_name(), port_name(port="other"), port_name(protocol=Protocol.UDP))

    assert 6 == len({number for name in names for number in ids(replace(PINNED, name=name))})


def test_colliding_ids_are_made_distinct() -> None:
    """Of two endpoints with the same hash the first keeps its ID, and the second gets the next number."""
    first, second = ids(replace(PINNED, cluster_endpoints=COLLIDING))

    assert (
        [first]
        == ids(replace(PINNED, cluster_endpoints=COLLIDING[:1]))
        == ids(replace(PINNED, cluster_endpoints=COLLIDING[1:]))
    )
    assert first + 1 == second
    assert 2 == len(values(replace(PINNED, cluster_endpoints=COLLIDING), ADDRESSED.main.endpoints))


def test_affinity_needs_no_slot_chain() -> None:
    """Session affinity has its own chains, which also draw slots."""
    assert {} == values(PINNED, PICK)
    assert {pack_number(2): b""} == values(PINNED, ADDRESSED.main.find)
    assert {pack_number(10800): b""} == values(PINNED, ADDRESSED.main.sticky)


# -- source ranges


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        (["192.0.2.0/24", "192.0.2.0/25"], ["192.0.2.0-192.0.2.255"]),
        (["192.0.2.0/25", "192.0.2.128/25"], ["192.0.2.0-192.0.2.255"]),
        (["192.0.2.0/24", "192.0.2.0/24"], ["192.0.2.0-192.0.2.255"]),
        (["192.0.2.7/32", "192.0.2.9/32"], ["192.0.2.7-192.0.2.7", "192.0.2.9-192.0.2.9"]),
        (["0.0.0.0/0", "192.0.2.0/24"], ["0.0.0.0-255.255.255.255"]),
    ],
)
def test_source_ranges_do_not_overlap(ranges: list[str], expected: list[str]) -> None:
    """Source ranges that overlap are joined, because the kernel refuses them."""
    plan = replace(EXTERNAL, source_ranges=tuple(map(parse_network, ranges)))
    key = LB_IP + AT_80
    found = [
        f"{ip_text(pair[len(key) : len(key) + 4])}-{ip_text(pair[-4:])}"
        for pair in sorted(values(plan, ALLOWED_SOURCES))
    ]

    assert expected == found
    assert {key: b""} == values(plan, FIREWALL)


@pytest.mark.parametrize("text", ["2001:db8::/32", "::/0"])
def test_source_ranges_of_ipv6(text: str) -> None:
    """IPv6 ranges have ends of 16 bytes."""
    [lb_ip] = ips("2001:db8:113::1")
    plan = replace(EXTERNAL, family=Family.IPV6, load_balancer_ips=(lb_ip,), source_ranges=(parse_network(text),))
    plan = replace(plan, cluster_endpoints=endpoints("[fd00::1]:80"))
    [key] = values(plan, ALLOWED_SOURCES)

    assert 2 * (16 + 4 + 4 + 16) == len(key)


def test_own_address_as_source() -> None:
    """If the load balancer IP may be the source, it is an allowed range, or part of one."""
    plan = replace(EXTERNAL, source_ranges=(parse_network("192.0.2.0/24"),), allow_load_balancer_ips_as_source=True)

    assert 2 == len(values(plan, ALLOWED_SOURCES))
    plan = replace(plan, source_ranges=(parse_network("203.0.113.0/24"),))
    assert 1 == len(values(plan, ALLOWED_SOURCES))


# -- addresses


def test_external_ip_that_is_the_cluster_ip() -> None:
    """An address that is both is treated as a cluster IP, not as an external one."""
    plan = replace(WEB, external_ips=(IP,), external_local=True)

    assert {} == values(plan, ADDRESSED.external_local)
    assert {IP + AT_80} == values(plan, ADDRESSED.main.counts).keys()


def test_external_ip_that_is_a_load_balancer_ip() -> None:
    """An address that is in both fields has its elements once."""
    plan = replace(EXTERNAL, external_ips=(LB_IP,))

    assert {LB_IP + AT_80} == values(plan, ADDRESSED.external_cluster).keys()


def test_hairpin_is_about_endpoints_of_this_node() -> None:
    """Only local endpoints have hairpin elements, with their protocol and their own port."""
    plan = replace(WEB, node_endpoints=TWO[:1])

    assert {TWO[0].ip * 2 + pack_protocol(Protocol.TCP) + pack_port(8080): b""} == values(plan, HAIRPIN)


@pytest.mark.parametrize(
    ("plan", "rejected", "dropped"),
    [
        (replace(WEB, cluster_endpoints=(), any_usable=False), 1, 0),
        (replace(WEB, cluster_endpoints=(), internal_local=True), 0, 1),
        (WEB, 0, 0),
    ],
)
def test_what_has_no_endpoint_is_refused(plan: ServicePlan, rejected: int, dropped: int) -> None:
    """Without any endpoint traffic is rejected, without a local one dropped; the element has the Service port's name."""
    found = values(plan, ADDRESSED.rejected), values(plan, ADDRESSED.dropped)

    assert (rejected, dropped) == tuple(map(len, found))
    assert {b"default/web"} >= {value for elements in found for value in elements.values()}


# -- from port to port


def program_with(*plans: ServicePlan) -> NftablesProgram:
    """Return a program with plans."""
    program = NftablesProgram(NftablesSettings(family=Family.IPV4))
    for plan in plans:
        program.put(plan.name, plan)
    return program


def owner(program: NftablesProgram) -> str | None:
    """Return the name of the Service port that owns the frontend."""
    value = program.value(element(ADDRESSED.main.counts, IP + AT_80))
    return value[4:].decode().removeprefix("default/") if isinstance(value, bytes) else None


def having(name: str, ip: bytes | None = IP) -> ServicePlan:
    """Return the plan of a Service port of that name with that cluster IP."""
    return replace(WEB, name=port_name(name), cluster_ip=ip)


def test_address_moves_if_the_old_port_is_removed_first() -> None:
    """The new Service port owns the frontend after the old one was removed."""
    assert "b" == owner(program_with(having("a"), having("a", None), having("b")))


def test_address_moves_if_the_old_port_is_removed_last() -> None:
    """The new Service port waits until the old one is removed, and then owns all of its elements."""
    program = program_with(having("a"), having("b"))
    before = owner(program)
    program.put(port_name("a"), None)

    assert ("a", "b") == (before, owner(program))
    assert set(program_with(having("b")).keys()) == set(program.keys())


def test_waiting_port_that_is_removed() -> None:
    """If a waiting Service port no longer wants the address, the present owner keeps it."""
    program = program_with(having("a"), having("b"), having("b", OTHER_IP))

    assert "a" == owner(program)
    program.put(port_name("a"), None)
    assert owner(program) is None


def test_several_waiting_ports() -> None:
    """If several Service ports wait, the address goes to the first one that still wants it."""
    program = program_with(having("a"), having("b"), having("c"), having("b", OTHER_IP))

    assert "a" == owner(program)
    program.put(port_name("a"), None)
    assert "c" == owner(program)


def test_waiting_port_with_new_endpoints() -> None:
    """A waiting Service port whose endpoints change gets the address with its latest endpoints."""
    one = replace(having("b"), cluster_endpoints=TWO[:1])
    program = program_with(having("a"), having("b"), one, replace(having("a"), cluster_ip=None))

    assert program.value(element(ADDRESSED.main.counts, IP + AT_80)) == pack_number(1) + b"default/b"
    assert program.value(element(ADDRESSED.main.endpoints, IP + AT_80 + pack_number(1))) is None


def test_shared_elements_are_counted() -> None:
    """A cluster IP of two Service ports exists until both are removed."""
    ports = [replace(WEB, name=port_name(port=name), port=number) for name, number in (("a", 80), ("b", 81))]
    program = program_with(*ports)
    key = element(CLUSTER_IPS, IP)
    found = [program.value(key)]
    for each in ports:
        program.put(each.name, None)
        found.append(program.value(key))

    assert [b"", b"", None] == found
