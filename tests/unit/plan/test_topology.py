"""The endpoints that a Service port may use, selected as in kube-proxy by readiness, termination, locality and hints."""

from typing import Any, NamedTuple

import pytest

from pyproxy.model.address import Family, parse_ip
from pyproxy.model.endpoint import Endpoint, EndpointSlice, SliceEndpoint, SlicePort
from pyproxy.model.names import Protocol
from pyproxy.plan.topology import Categorized, Place, categorize_endpoints, count_local_endpoints, merge_slices
from tests.unit.plan.building import endpoint_slice

HERE = Place("node1", "a")


class Conditions(NamedTuple):
    """Conditions of an endpoint."""

    ready: bool
    serving: bool
    terminating: bool


READY = Conditions(ready=True, serving=True, terminating=False)
NOT_READY = Conditions(ready=False, serving=True, terminating=False)
DRAINING = Conditions(ready=False, serving=True, terminating=True)
GONE = Conditions(ready=False, serving=False, terminating=True)
PUBLISHED = Conditions(ready=True, serving=False, terminating=True)
"""A terminating pod of a Service that publishes addresses that are not ready."""


def item(
    number: int,
    conditions: Conditions = READY,
    node: str = "node1",
    zones: tuple[str, ...] = (),
    nodes: tuple[str, ...] = (),
) -> SliceEndpoint:
    """Return an endpoint of a slice, given by its last octet, on a node and with hints for zones and nodes."""
    return SliceEndpoint(parse_ip(f"10.244.1.{number}"), node, *conditions, zones, nodes)


def categorized(*items: SliceEndpoint, place: Place = HERE, cluster: bool = True, local: bool = True) -> Categorized:
    """Sort endpoints for traffic of the given policies."""
    candidates = {Endpoint(one.ip, 80): one for one in items}
    return categorize_endpoints(candidates, place, uses_cluster_endpoints=cluster, uses_local_endpoints=local)


def numbers(endpoints: tuple[Endpoint, ...]) -> list[int]:
    """Return the last octets of endpoints."""
    return [endpoint.ip[-1] for endpoint in endpoints]


@pytest.mark.parametrize(
    ("items", "cluster", "local"),
    [
        pytest.param([item(1), item(2, node="node2")], [1, 2], [1], id="ready"),
        pytest.param([item(2, node="node2"), item(1)], [1, 2], [1], id="sorted"),
        pytest.param([item(1, NOT_READY)], [], [], id="neither ready nor going"),
        pytest.param([item(1, GONE)], [], [], id="no longer serving"),
        pytest.param([item(1, PUBLISHED), item(2, DRAINING)], [1], [1], id="ready while it terminates"),
        pytest.param([item(1, DRAINING), item(2, DRAINING, "node2"), item(3, GONE)], [1, 2], [1], id="all going"),
        pytest.param([item(1, DRAINING), item(2, node="node2")], [2], [1], id="each list falls back by itself"),
        pytest.param([item(1, DRAINING), item(2)], [2], [2], id="ready here beats going here"),
        pytest.param([item(1, node="")], [1], [], id="on no node"),
    ],
)
def test_conditions(items: list[SliceEndpoint], cluster: list[int], local: list[int]) -> None:
    """Ready endpoints are used; if there are none, those that still serve while they terminate."""
    found = categorized(*items)

    assert (cluster, local) == (numbers(found.cluster), numbers(found.local))


def zone(number: int, *zones: str) -> SliceEndpoint:
    """Return an endpoint that is hinted for zones."""
    return item(number, zones=zones)


def node(number: int, *nodes: str) -> SliceEndpoint:
    """Return an endpoint that is hinted for nodes."""
    return item(number, nodes=nodes)


@pytest.mark.parametrize(
    ("items", "place", "cluster"),
    [
        pytest.param([zone(1, "a"), zone(2, "b"), zone(3, "b", "a")], HERE, [1, 3], id="own zone"),
        pytest.param([zone(1, "b"), zone(2, "b")], HERE, [1, 2], id="none for this zone"),
        pytest.param([zone(1, "a"), item(2)], HERE, [1, 2], id="one ready endpoint has no hint"),
        pytest.param([zone(1, "a"), item(2, NOT_READY)], HERE, [1], id="one that is not ready has no hint"),
        pytest.param([zone(1, "a"), zone(2, "b")], Place("node1"), [1, 2], id="node without a zone"),
        pytest.param([item(1, DRAINING, zones=("b",))], HERE, [1], id="no hints among terminating ones"),
        pytest.param([item(1, DRAINING, zones=("a",)), zone(2, "b")], HERE, [2], id="hinted here, but going"),
        pytest.param([node(1, "node1"), node(2, "node2")], HERE, [1], id="own node"),
        pytest.param([node(1, "node2")], HERE, [1], id="none for this node"),
        pytest.param(
            [item(1, zones=("b",), nodes=("node1",)), item(2, zones=("a",), nodes=("node2",))],
            HERE,
            [1],
            id="node before zone",
        ),
        pytest.param(
            [item(1, zones=("b",), nodes=("node1",)), zone(2, "a")], HERE, [2], id="zone where one has no node hint"
        ),
    ],
)
def test_hints(items: list[SliceEndpoint], place: Place, cluster: list[int]) -> None:
    """Hints count only if every ready endpoint has them and one is meant for here."""
    assert cluster == numbers(categorized(*items, place=place).cluster)


def test_hints_do_not_narrow_local_traffic() -> None:
    """Local traffic uses an endpoint of this node that is hinted for elsewhere."""
    assert [1] == numbers(categorized(zone(1, "b"), item(2, node="node2", zones=("a",))).local)


@pytest.mark.parametrize(
    ("items", "any_usable"),
    [
        pytest.param([], False, id="none"),
        pytest.param([item(1, GONE), item(2, NOT_READY)], False, id="none that counts"),
        pytest.param([item(1, node="node2")], True, id="another node's"),
        pytest.param([item(1, DRAINING, "node2")], True, id="another node's, going"),
    ],
)
@pytest.mark.parametrize("policies", [{"cluster": False}, {"local": False}, {}], ids=["local", "cluster", "both"])
def test_any_usable(items: list[SliceEndpoint], any_usable: object, policies: dict[str, Any]) -> None:
    """What could answer on any node, whatever the policies, makes the difference between a drop and a rejection."""
    assert any_usable is categorized(*items, **policies).any_usable


def test_no_list_without_traffic_of_its_policy() -> None:
    """Endpoints are sorted only for the policies that some traffic of the port has."""
    assert ((), ()) == (categorized(item(1), cluster=False).cluster, categorized(item(1), local=False).local)


HTTP = SlicePort("http", Protocol.TCP, 8080)


@pytest.mark.parametrize(
    ("port", "family"),
    [
        (SlicePort("", Protocol.TCP, 8080), Family.IPV4),
        (SlicePort("http", Protocol.UDP, 8080), Family.IPV4),
        (HTTP, Family.IPV6),
    ],
)
def test_slices_of_others_are_passed_over(port: SlicePort, family: Family) -> None:
    """Name, protocol and family of a slice's port have to be the Service port's."""
    slices = [endpoint_slice(item(1), port=port, family=family)]

    assert {} == merge_slices(slices, Family.IPV4, "http", Protocol.TCP)


def test_one_address_with_two_port_numbers() -> None:
    """A named target port that differs between pods gives endpoints of several slices, each with its number."""
    slices = [
        endpoint_slice(item(1), port=HTTP),
        endpoint_slice(item(1), name="web-y", port=SlicePort("http", Protocol.TCP, 80)),
    ]

    assert [80, 8080] == sorted(one.port for one in merge_slices(slices, Family.IPV4, "http", Protocol.TCP))


@pytest.mark.parametrize(("first", "second"), [(DRAINING, READY), (READY, DRAINING)])
def test_address_that_a_running_pod_took_over(first: Conditions, second: Conditions) -> None:
    """Of two entries for one address the terminating one loses, whichever comes first."""
    slices = [endpoint_slice(item(1, first)), endpoint_slice(item(1, second), name="web-y")]
    (found,) = merge_slices(slices, Family.IPV4, "", Protocol.TCP).values()

    assert found.ready


@pytest.mark.parametrize(
    ("slices", "count"),
    [
        ([], 0),
        ([endpoint_slice(item(1), item(2))], 2),
        ([endpoint_slice(item(1), port=HTTP), endpoint_slice(item(1), item(2), name="web-y")], 2),
        ([endpoint_slice(item(1, NOT_READY), item(2, DRAINING), item(3, PUBLISHED))], 1),
        ([endpoint_slice(item(1, node="node2"), item(2, node=""))], 0),
        ([endpoint_slice(item(1)), endpoint_slice(item(1), item(2), family=Family.IPV6, name="web-6")], 2),
    ],
    ids=["none", "two", "two ports of one address", "conditions", "elsewhere", "both families"],
)
def test_endpoints_reported_to_load_balancers(slices: list[EndpointSlice], count: int) -> None:
    """Load balancers get the number of ready endpoints on this node, whatever their ports and families."""
    assert count == count_local_endpoints(slices, HERE.node_name)
