"""The tracked UDP flows that lead elsewhere than their destination does now."""

from collections.abc import Collection, Iterable, Sequence

import pytest
from msgspec.structs import replace

from pyproxy.model.address import Network, parse_network
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.flow import Destination, Flow
from pyproxy.model.names import Protocol
from pyproxy.plan.service_plan import ServicePlan
from pyproxy.plan.stale_flows import Frontends, NodeAddresses, StaleFlows, Touched
from tests.unit.plan.building import PLAN, endpoints, ips, port_name

CLUSTER_IP, OTHER_IP, EXTERNAL_IP, NODE_IP, LATER_IP, ELSEWHERE = ips(
    "10.96.0.53", "10.96.0.54", "203.0.113.53", "172.18.0.11", "172.18.0.12", "198.51.100.9"
)
STAYS, GOES, OTHERS = endpoints("10.244.1.11:53", "10.244.1.12:53", "10.244.1.13:53")
NODE = NodeAddresses([Network(NODE_IP, 32), parse_network("127.0.0.0/8")])
DNS = replace(PLAN, name=port_name("dns", protocol=Protocol.UDP), port=53, cluster_ip=CLUSTER_IP, node_port=30053)
BEFORE = replace(DNS, serving_endpoints=frozenset({STAYS, GOES}))
AFTER = replace(DNS, serving_endpoints=frozenset({STAYS}))
EMPTY = replace(DNS, serving_endpoints=frozenset())
OTHER = replace(
    PLAN,
    name=port_name("other", protocol=Protocol.UDP),
    port=30053,
    cluster_ip=OTHER_IP,
    serving_endpoints=frozenset({OTHERS}),
)
Change = tuple[ServicePlan | None, ServicePlan | None]


def flow(destination: bytes, port: int, answered_by: Endpoint) -> Flow:
    """Return a flow."""
    return Flow(destination, port, answered_by.ip, answered_by.port)


def touched_by(frontends: Frontends, *changes: Sequence[Change]) -> Touched:
    """Return what changes touched, after the first of them."""
    first, *rest = changes
    frontends.update(first)
    touched = Touched()
    for change in rest:
        touched.add(frontends.update(change))
    return touched


def after(*changes: Sequence[Change]) -> StaleFlows:
    """Return what to look for after changes, the first of which was looked after, on a node whose addresses stay."""
    frontends = Frontends()
    return frontends.stale(touched_by(frontends, *changes), NODE, NODE)


def found(stale: StaleFlows, flows: Iterable[Flow]) -> list[bool]:
    """Return for each flow whether it is stale; the destinations to examine must include each stale flow."""
    answers = []
    for each in flows:
        answers.append(stale.is_stale(each))
        covered = any(
            wanted.ip in (None, each.destination) and wanted.port in (None, each.destination_port)
            for wanted in stale.destinations
        )
        assert covered or not answers[-1]
    return answers


@pytest.mark.parametrize(
    ("destination", "port", "answered_by", "expected"),
    [
        pytest.param(CLUSTER_IP, 53, GOES, True, id="cluster IP, gone endpoint"),
        pytest.param(CLUSTER_IP, 53, STAYS, False, id="cluster IP, serving endpoint"),
        pytest.param(CLUSTER_IP, 53, Endpoint(CLUSTER_IP, 53), True, id="cluster IP, never translated"),
        pytest.param(CLUSTER_IP, 54, GOES, False, id="another port of the cluster IP"),
        pytest.param(NODE_IP, 30053, GOES, True, id="node port, gone endpoint"),
        pytest.param(NODE_IP, 30053, STAYS, False, id="node port, serving endpoint"),
        pytest.param(NODE_IP, 30053, Endpoint(NODE_IP, 30053), True, id="node port, never translated"),
        pytest.param(ips("127.8.9.10")[0], 30053, GOES, True, id="node port in a block that is local"),
        pytest.param(ELSEWHERE, 30053, Endpoint(ELSEWHERE, 30053), False, id="a flow to elsewhere"),
        pytest.param(ELSEWHERE, 30053, GOES, False, id="a flow that another agent translated"),
        pytest.param(OTHER_IP, 30053, OTHERS, False, id="another Service's port of the same number"),
        pytest.param(EXTERNAL_IP, 30053, OTHERS, False, id="its external IP"),
        pytest.param(NODE_IP, 30054, OTHERS, False, id="its port at an address of the node"),
    ],
)
def test_after_an_endpoint_went(destination: bytes, port: int, answered_by: Endpoint, *, expected: bool) -> None:
    """A flow goes if it is addressed to the Service and answered by no serving endpoint."""
    other = replace(OTHER, external_ips=(EXTERNAL_IP,))
    on_node = replace(OTHER, name=port_name("third", protocol=Protocol.UDP), port=30054, cluster_ip=NODE_IP)
    stale = after([(None, BEFORE), (None, other), (None, on_node)], [(BEFORE, AFTER)])

    assert [expected] == found(stale, [flow(destination, port, answered_by)])


def test_port_at_an_address_of_the_node() -> None:
    """A Service's port at an address of the node is not the node port of the same number, until it is given up."""
    other = replace(OTHER, external_ips=(NODE_IP,))
    flows = [flow(NODE_IP, 30053, answered_by) for answered_by in (OTHERS, GOES, STAYS)]

    assert [False, False, False] == found(after([(None, BEFORE), (None, other)], [(BEFORE, AFTER)]), flows)
    assert [True, False, False] == found(after([(None, BEFORE), (None, other)], [(other, OTHER)]), flows)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param([(None, AFTER), (OTHER, None)], [True, False], id="created again under another name"),
        pytest.param([(OTHER, None), (None, AFTER)], [True, False], id="in the other order"),
        pytest.param([(OTHER, replace(OTHER, cluster_ip=EXTERNAL_IP)), (None, AFTER)], [True, False], id="moved"),
        pytest.param([(OTHER, None)], [True, False], id="given up"),
        pytest.param([(OTHER, replace(OTHER, port=54))], [True, False], id="port given up"),
    ],
)
def test_address_changes_hands(changes: Sequence[Change], expected: list[bool]) -> None:
    """Flows to the endpoints of who had an address go; flows to those of who has it now stay."""
    other = replace(OTHER, cluster_ip=CLUSTER_IP, port=53)
    mine = [tuple(replace(p, cluster_ip=CLUSTER_IP, port=53) if p is OTHER else p for p in pair) for pair in changes]
    stale = after([(None, other)], mine)  # type: ignore[arg-type]  # pairs

    assert expected == found(stale, [flow(CLUSTER_IP, 53, answered_by) for answered_by in (OTHERS, STAYS)])


def test_exchange() -> None:
    """Two Services that exchange addresses have each other's flows taken away, in whichever order they are noted."""
    one, other = AFTER, replace(OTHER, port=53)
    swapped = [(one, replace(one, cluster_ip=OTHER_IP)), (other, replace(other, cluster_ip=CLUSTER_IP))]
    flows = [flow(ip, 53, answered_by) for ip in (CLUSTER_IP, OTHER_IP) for answered_by in (STAYS, OTHERS)]
    for changes in (swapped, swapped[::-1]):
        assert [True, False, False, True] == found(after([(None, one), (None, other)], changes), flows)


def test_given_up_address_keeps_flows_of_others() -> None:
    """Nothing is known of an address that no Service has: only flows to endpoints that it led to go."""
    untranslated = flow(CLUSTER_IP, 53, Endpoint(CLUSTER_IP, 53))

    assert [False, True] == found(after([(None, AFTER)], [(AFTER, None)]), [untranslated, flow(CLUSTER_IP, 53, STAYS)])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param((AFTER, AFTER), id="nothing"),
        pytest.param((AFTER, replace(AFTER, cluster_endpoints=(GOES,))), id="what policies and hints say"),
        pytest.param((AFTER, replace(AFTER, affinity_seconds=10)), id="what no frontend depends on"),
    ],
)
def test_no_reason_to_look(change: Change) -> None:
    """Flows are not examined if every frontend leads to the same endpoints as before."""
    assert not Frontends().update([(BEFORE, None)])
    assert () == after([(None, AFTER)], [change]).destinations


def test_only_what_changed_is_looked_for() -> None:
    """Of a Service that gets one more address, only flows to that are looked for."""
    stale = after([(None, AFTER)], [(AFTER, replace(AFTER, external_ips=(EXTERNAL_IP,)))])

    assert (Destination(EXTERNAL_IP, 53),) == stale.destinations


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.SCTP])
def test_other_protocols(protocol: Protocol) -> None:
    """Only UDP flows are looked at."""
    plan = replace(BEFORE, name=port_name("dns", protocol=protocol))

    assert not Frontends().update([(None, plan)])


def test_health_check_node_port() -> None:
    """The health check node port of a UDP Service is not a UDP frontend."""
    checked = replace(AFTER, health_check_node_port=31000)

    assert {Destination(None, 30053), Destination(CLUSTER_IP, 53)} == set(after([], [(None, checked)]).destinations)


def test_last_endpoint_is_gone() -> None:
    """Without any serving endpoint every flow of the port goes."""
    assert [True] == found(after([(None, AFTER)], [(AFTER, EMPTY)]), [flow(CLUSTER_IP, 53, STAYS)])


def test_repaired_port() -> None:
    """What began while rules were missing was not translated: all frontends of such a port are looked at."""
    stale = after([(None, AFTER)], [(None, AFTER)])

    assert [True, False] == found(
        stale, [flow(CLUSTER_IP, 53, answered_by) for answered_by in (Endpoint(CLUSTER_IP, 53), STAYS)]
    )


def test_changes_gather() -> None:
    """Until it is looked, changes add up: an address that was given up in between counts with what it led to."""
    other = replace(OTHER, port=53, cluster_ip=CLUSTER_IP)
    stale = after([(None, AFTER)], [(AFTER, None)], [(None, other)], [(other, None)])

    assert [True, True] == found(stale, [flow(CLUSTER_IP, 53, answered_by) for answered_by in (STAYS, OTHERS)])


LATER = NodeAddresses([*NODE.networks, Network(LATER_IP, 32)])


@pytest.mark.parametrize(
    ("known", "now", "expected"),
    [
        pytest.param(NODE, LATER, [True, False], id="gained"),
        pytest.param(LATER, NODE, [False, True], id="lost"),
        pytest.param(LATER, LATER, [False, False], id="had all the time"),
        pytest.param(None, LATER, [False, False], id="first look"),
    ],
)
def test_address_of_the_node(known: NodeAddresses | None, now: NodeAddresses, expected: Collection[bool]) -> None:
    """Node ports at an address are frontends that come and go with it."""
    frontends = Frontends()
    frontends.update([(None, AFTER), (None, OTHER)])
    stale = frontends.stale(Touched(addresses=True), now, known)
    flows = [flow(LATER_IP, 30053, answered_by) for answered_by in (Endpoint(LATER_IP, 30053), STAYS)]

    assert expected == found(stale, flows)


def test_link_local_address() -> None:
    """A new link-local address does not cause an examination: the interface of each pod has one."""
    frontends = Frontends()
    frontends.update([(None, AFTER)])
    now = NodeAddresses([*NODE.networks, parse_network("fe80::1/128")])

    assert () == frontends.stale(Touched(addresses=True), now, NODE).destinations


def test_lost_address_and_lost_endpoint() -> None:
    """Where an address went and then an endpoint, flows through that address to the endpoint go as well."""
    frontends = Frontends()
    touched = touched_by(frontends, [(None, BEFORE)], [(BEFORE, AFTER)])
    stale = frontends.stale(touched, NODE, LATER)

    assert [True, True] == found(stale, [flow(LATER_IP, 30053, answered_by) for answered_by in (STAYS, GOES)])


def test_addresses_are_read_for_node_ports_only() -> None:
    """The node's addresses matter where a node port does, and where one may inherit what a Service gives up."""
    plain = replace(AFTER, node_port=0)
    frontends = Frontends()
    touched = touched_by(frontends, [(None, plain)], [(plain, replace(plain, serving_endpoints=frozenset()))])
    answers = [frontends.needs_addresses(touched), frontends.needs_addresses(Touched(addresses=True))]
    touched = frontends.update([(None, OTHER), (None, AFTER)])

    assert [False, False, True] == [*answers, frontends.needs_addresses(touched)]
