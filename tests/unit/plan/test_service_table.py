"""Rows of the table of Services: which frontends there are, what each leads to, and why one does not work."""

from collections.abc import Iterable, Mapping

import pytest
from msgspec.structs import replace

from pyproxy.model.address import Family, parse_ip, parse_network, socket_text
from pyproxy.model.change import Kind, Replaced
from pyproxy.model.endpoint import EndpointSlice, SliceEndpoint, SlicePort
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.model.node import Node
from pyproxy.model.service import NoPacketPath, Service, ServicePort
from pyproxy.model.tracker import Tracker
from pyproxy.model.unserved import UnservedService
from pyproxy.plan.planner import Planner
from pyproxy.plan.reasons import ReasonCode
from pyproxy.plan.service_table import ServiceRow, State, service_rows, unserved_row
from pyproxy.plan.service_values import is_problem, service_values
from tests.unit.plan.building import SERVICE, endpoint_slice, ips

NODE = Node(name="node1", ips=ips("172.18.0.11"))
NODE_PORT_IPS: Mapping[Family, tuple[bytes, ...] | None] = {Family.IPV4: ips("172.18.0.11"), Family.IPV6: None}
HERE = SliceEndpoint(parse_ip("10.244.1.1"), "node1")
ELSEWHERE = SliceEndpoint(parse_ip("10.244.2.1"), "node2")
NOT_READY = SliceEndpoint(parse_ip("10.244.1.9"), "node1", ready=False, serving=False)
EVERYTHING = replace(
    SERVICE,
    ports=(ServicePort("", Protocol.TCP, 80, 30080),),
    external_ips=ips("203.0.113.1"),
    load_balancer_ips=ips("198.51.100.1"),
)


def rows(
    *services: Service,
    slices: Iterable[EndpointSlice] = (),
    node_port_ips: Mapping[Family, tuple[bytes, ...] | None] = NODE_PORT_IPS,
) -> list[ServiceRow]:
    """Return the rows of all these Services."""
    tracker, planner = Tracker(), Planner(Family)
    tracker.apply(Replaced(Kind.SERVICE, services))
    tracker.apply(Replaced(Kind.ENDPOINT_SLICE, tuple(slices)))
    list(planner.plan(tracker.services, tracker, NODE))
    return [
        row
        for service in services
        for row in service_rows(service, tracker.slices(service.name), NODE, planner, node_port_ips)
    ]


def frontends(found: Iterable[ServiceRow]) -> list[tuple[str, str]]:
    """Return type and address of each row."""
    return [
        (row.frontend.type.value, socket_text(row.frontend.ip, row.frontend.port)) if row.frontend else ("", "")
        for row in found
    ]


def states(found: Iterable[ServiceRow]) -> list[tuple[State, list[ReasonCode]]]:
    """Return the state of each row, and the codes of its reasons."""
    return [(row.state, [reason.code for reason in row.reasons]) for row in found]


def test_a_row_for_each_frontend() -> None:
    """A Service has a row for each of its addresses, the cluster IP first and the node port last."""
    assert [
        ("ClusterIP", "10.96.0.10:80"),
        ("ExternalIP", "203.0.113.1:80"),
        ("LoadBalancer", "198.51.100.1:80"),
        ("NodePort", "172.18.0.11:30080"),
    ] == frontends(rows(EVERYTHING))


def test_each_family_has_its_frontends() -> None:
    """A dual-stack Service has rows in both families; a node port that all addresses serve has the unspecified address."""
    service = replace(
        SERVICE,
        families=(Family.IPV4, Family.IPV6),
        cluster_ips=ips("10.96.0.10", "fd00:96::10"),
        ports=(ServicePort("", Protocol.TCP, 80, 30080),),
    )

    assert [
        ("ClusterIP", "10.96.0.10:80"),
        ("NodePort", "172.18.0.11:30080"),
        ("ClusterIP", "[fd00:96::10]:80"),
        ("NodePort", "[::]:30080"),
    ] == frontends(rows(service))


def test_counts_of_endpoints() -> None:
    """A row counts the endpoints that its traffic may use, those of them on this node, and all that there are."""
    service = replace(EVERYTHING, external_policy_local=True)
    found = rows(service, slices=[endpoint_slice(HERE, ELSEWHERE, NOT_READY)])

    counts = [(row.is_local, len(row.endpoints), row.local_count, row.total_count) for row in found]
    assert [(False, 2, 1, 3), *[(True, 1, 1, 3)] * 3] == counts


def test_endpoints_of_a_slice_without_the_port_count() -> None:
    """Endpoints count as existing even if their slice has no port of the right name."""
    port = SlicePort("web", Protocol.TCP, 8080)
    (row,) = rows(SERVICE, slices=[endpoint_slice(HERE, port=port), endpoint_slice(ELSEWHERE, name="web-y")])

    assert (1, 2) == (len(row.endpoints), row.total_count)


@pytest.mark.parametrize(
    ("service", "endpoint", "expected"),
    [
        (EVERYTHING, HERE, [(State.OK, [])] * 4),
        (EVERYTHING, NOT_READY, [(State.REJECT, [ReasonCode.NOT_READY])] * 4),
        (
            replace(EVERYTHING, external_policy_local=True),
            ELSEWHERE,
            [(State.OK, []), *[(State.DROP, [ReasonCode.NO_LOCAL_ENDPOINTS_EXTERNAL])] * 3],
        ),
        (
            replace(EVERYTHING, internal_policy_local=True),
            ELSEWHERE,
            [(State.DROP, [ReasonCode.NO_LOCAL_ENDPOINTS]), *[(State.OK, [])] * 3],
        ),
        (
            replace(EVERYTHING, internal_policy_local=True, external_policy_local=True),
            ELSEWHERE,
            [
                (State.DROP, [ReasonCode.NO_LOCAL_ENDPOINTS]),
                *[(State.DROP, [ReasonCode.NO_LOCAL_ENDPOINTS_EXTERNAL])] * 3,
            ],
        ),
    ],
    ids=["ok", "not ready", "external local", "internal local", "both local"],
)
def test_states(service: Service, endpoint: SliceEndpoint, expected: list[tuple[State, list[ReasonCode]]]) -> None:
    """The state of a frontend is that of its traffic policy, with the reason of that policy alone."""
    assert expected == states(rows(service, slices=[endpoint_slice(endpoint)]))


def test_an_address_of_another_service() -> None:
    """Of two Services with one external IP the older one has it; the other one's row says so and is a problem."""
    older = replace(SERVICE, external_ips=ips("203.0.113.1"), created="2026-01-01T00:00:00Z")
    younger = replace(
        older,
        name=NamespacedName("default", "younger"),
        cluster_ips=ips("10.96.0.11"),
        created="2026-02-01T00:00:00Z",
    )
    *_, lost = rows(older, younger, slices=[endpoint_slice(HERE)])

    assert (State.NO_RULES, [ReasonCode.CLAIMED]) == (lost.state, [reason.code for reason in lost.reasons])
    assert "Service default/web has the same address and port" == lost.reasons[0].text
    assert is_problem(service_values(lost))


def test_a_node_port_without_an_address() -> None:
    """A node port that no address of the node serves has a row without a frontend."""
    service = replace(SERVICE, cluster_ips=(), ports=(ServicePort("", Protocol.TCP, 80, 30080),))

    assert [(State.NO_RULES, [ReasonCode.NO_NODE_PORT_ADDRESS])] == states(
        rows(service, slices=[endpoint_slice(HERE)], node_port_ips={Family.IPV4: ()})
    )


@pytest.mark.parametrize("service", [replace(SERVICE, ports=()), replace(SERVICE, cluster_ips=())])
def test_a_service_without_frontends(service: Service) -> None:
    """A Service without ports or addresses still has a row."""
    assert [(State.NO_RULES, [ReasonCode.NO_FRONTEND])] == states(rows(service))


def test_source_ranges_are_those_of_load_balancer_addresses() -> None:
    """Only the row of a load balancer IP has the source ranges."""
    block = parse_network("192.0.2.0/24")
    found = rows(replace(EVERYTHING, load_balancer_source_ranges=(block,)), slices=[endpoint_slice(HERE)])

    assert [(), (), (block,), ()] == [row.source_ranges for row in found]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (NoPacketPath.HEADLESS, False),
        (NoPacketPath.EXTERNAL_NAME, False),
        (NoPacketPath.OTHER_PROXY, False),
        (None, True),
    ],
)
def test_services_without_rules(kind: NoPacketPath | None, expected: bool) -> None:  # noqa: FBT001
    """A Service that is meant to have no rules is not a problem; an invalid one is."""
    row = unserved_row(UnservedService(NamespacedName("default", "web"), kind, "" if kind else "spec: wrong"))

    assert (State.NO_RULES if kind else State.INVALID, expected) == (row.state, is_problem(service_values(row)))


@pytest.mark.parametrize(
    ("ranges", "state", "codes"),
    [
        (("198.51.100.0/24",), State.OK, []),
        (("0.0.0.0/32", "127.0.0.0/8"), State.DROP, ["source-ranges"]),
        (("0.0.0.0/32", "198.51.100.0/24"), State.OK, []),
        (("2001:db8::/32",), State.OK, ["open"]),
    ],
)
def test_source_ranges(ranges: tuple[str, ...], state: State, codes: list[str]) -> None:
    """A load balancer IP is closed if no client can be in the ranges, and open to all without a range of its family."""
    service = replace(EVERYTHING, load_balancer_source_ranges=tuple(map(parse_network, ranges)))

    found = rows(service, slices=[endpoint_slice(HERE)])

    assert [(State.OK, []), (State.OK, []), (state, list(map(ReasonCode, codes))), (State.OK, [])] == states(found)


def test_load_balancer_without_an_address() -> None:
    """A Service whose load balancer has no address yet has a row that says so."""
    found = rows(replace(SERVICE, is_load_balancer_pending=True), slices=[endpoint_slice(HERE)])

    assert [(State.OK, []), (State.NO_RULES, [ReasonCode.LOAD_BALANCER_PENDING])] == states(found)
    assert is_problem(service_values(found[-1]))


def test_address_of_a_proxying_load_balancer() -> None:
    """An address with ipMode Proxy has a row without rules, and is not a problem."""
    found = rows(replace(SERVICE, proxied_ips=ips("198.51.100.9", "fd00::9")), slices=[endpoint_slice(HERE)])

    assert ("LoadBalancer", "198.51.100.9:80") == frontends(found)[-1]
    assert [(State.OK, []), (State.NO_RULES, [ReasonCode.LOAD_BALANCER_PROXIES])] == states(found)
    assert not is_problem(service_values(found[-1]))


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        ("127.0.0.1", "endpoint 127.0.0.1:8080 is a loopback address"),
        ("10.96.0.77", "endpoint 10.96.0.77:8080 is the cluster IP of default/other"),
    ],
)
def test_endpoint_that_no_connection_reaches(endpoint: str, text: str) -> None:
    """The kernel translates a connection once: an endpoint cannot be a cluster IP, nor a loopback address."""
    other = replace(
        SERVICE,
        name=NamespacedName("default", "other"),
        cluster_ips=ips("10.96.0.77"),
        ports=(ServicePort("", Protocol.TCP, 8080, 0),),
    )

    found, _ = rows(SERVICE, other, slices=[endpoint_slice(SliceEndpoint(parse_ip(endpoint), "node1"))])

    assert (State.OK, [text]) == (found.state, [reason.text for reason in found.reasons])
    assert is_problem(service_values(found))
