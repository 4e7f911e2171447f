"""What becomes of a Service port's traffic: from Service, slices and node to a plan. Not here: the choice of endpoints."""

from dataclasses import replace

import pytest
from msgspec import structs

from pyproxy.model.address import Family, parse_network
from pyproxy.model.endpoint import SliceEndpoint, SlicePort
from pyproxy.model.names import Protocol
from pyproxy.model.node import Node
from pyproxy.model.service import Service, ServicePort
from pyproxy.plan.service_plan import Claim, ServicePlan, Verdict, plan_service
from tests.unit.plan.building import PLAN, SERVICE, endpoint_slice, endpoints, ips

CLUSTER_IP, EXTERNAL_IP, LOAD_BALANCER_IP = ips("10.96.0.10", "203.0.113.1", "203.0.113.10")
CLUSTER_IP6, EXTERNAL_IP6 = ips("fd00:10:96::10", "2001:db8:113::1")
HERE, ELSEWHERE = (
    SliceEndpoint(ip, node) for ip, node in zip(ips("10.244.1.11", "10.244.2.12"), ("node1", "node2"), strict=True)
)
AT_HERE, AT_ELSEWHERE = endpoints("10.244.1.11:8080", "10.244.2.12:8080")
NODE = Node(name="node1", ips=ips("172.18.0.11", "fd00:172:18::11"))
DUAL = structs.replace(
    SERVICE,
    families=(Family.IPV6, Family.IPV4),
    cluster_ips=(CLUSTER_IP6, CLUSTER_IP),
    external_ips=(EXTERNAL_IP, EXTERNAL_IP6),
    load_balancer_ips=(LOAD_BALANCER_IP,),
    load_balancer_source_ranges=(parse_network("172.18.0.0/24"), parse_network("2001:db8::/32")),
)


def planned(service: Service, *items: SliceEndpoint, family: Family = Family.IPV4, node: Node = NODE) -> ServicePlan:
    """Return the plan of a Service's only port, with one slice in front of endpoints."""
    (plan,) = plan_service(service, [endpoint_slice(*items)], node, family).values()
    return plan


def test_family_that_a_service_is_not_in() -> None:
    """In a family that it does not list a Service has no plan, whatever addresses it has there."""
    assert {} == plan_service(structs.replace(DUAL, families=(Family.IPV4,)), (), NODE, Family.IPV6)


def test_addresses_of_the_family() -> None:
    """A plan has its own family's addresses and ranges only."""
    plan = planned(DUAL, family=Family.IPV6)

    assert (CLUSTER_IP6, (EXTERNAL_IP6,), ()) == (plan.cluster_ip, plan.external_ips, plan.load_balancer_ips)
    assert (parse_network("2001:db8::/32"),) == plan.source_ranges


@pytest.mark.parametrize(
    ("node_ips", "expected"),
    [(("172.18.0.11",), True), (("172.19.0.11", "172.18.0.11"), False), (("fd00:172:18::11",), False), ((), False)],
    ids=["inside", "only its second address", "other family", "unknown"],
)
def test_node_inside_the_source_ranges(node_ips: tuple[str, ...], expected: object) -> None:
    """The node may send with a load balancer's address as source if its own first address is in a range."""
    node = replace(NODE, ips=ips(*node_ips))

    assert expected is planned(DUAL, node=node).allow_load_balancer_ips_as_source


def test_external_policy_without_an_external_address() -> None:
    """External policy Local of a Service that has no external address in the family is as good as Cluster."""
    service = structs.replace(DUAL, external_ips=(EXTERNAL_IP,), load_balancer_ips=(), external_policy_local=True)

    assert (True, False) == tuple(planned(service, family=family).external_local for family in Family)


def test_both_policies_local() -> None:
    """Pods and the node reach all endpoints by an external address even where both policies are Local."""
    service = structs.replace(DUAL, internal_policy_local=True, external_policy_local=True)

    assert (AT_HERE, AT_ELSEWHERE) == planned(service, HERE, ELSEWHERE).cluster_endpoints


def test_no_cluster_endpoints_without_use() -> None:
    """A plan in which no frontend uses the endpoints of policy Cluster does not list them."""
    plan = planned(structs.replace(SERVICE, internal_policy_local=True), HERE, ELSEWHERE)

    assert ((), (AT_HERE,)) == (plan.cluster_endpoints, plan.local_endpoints)


@pytest.mark.parametrize(
    ("items", "internal", "external"),
    [
        ((HERE, ELSEWHERE), Verdict.FORWARD, Verdict.FORWARD),
        ((ELSEWHERE,), Verdict.DROP, Verdict.FORWARD),
        ((), Verdict.REJECT, Verdict.REJECT),
    ],
    ids=["here", "elsewhere", "nowhere"],
)
def test_verdicts(items: tuple[SliceEndpoint, ...], internal: Verdict, external: Verdict) -> None:
    """Policy Local drops traffic if only other nodes have endpoints; traffic without any endpoint is rejected."""
    plan = planned(structs.replace(DUAL, internal_policy_local=True), *items)

    assert (internal, external) == (plan.internal_verdict, plan.external_verdict)


def test_health_check_belongs_to_one_port() -> None:
    """Of several ports only the first has the Service's health check node port."""
    ports = tuple(ServicePort(name, Protocol.TCP, number, 0) for number, name in enumerate("abc", start=80))
    plans = plan_service(structs.replace(SERVICE, ports=ports, health_check_node_port=32000), (), NODE, Family.IPV4)

    assert [32000, 0, 0] == [plan.health_check_node_port for plan in plans.values()]


@pytest.mark.parametrize(("protocol", "count"), [(Protocol.UDP, 2), (Protocol.TCP, 0), (Protocol.SCTP, 0)])
def test_serving_endpoints(protocol: Protocol, count: int) -> None:
    """For UDP the plan knows every endpoint that serves, on any node, ready or terminating."""
    items = (HERE, structs.replace(ELSEWHERE, ready=False, terminating=True), SliceEndpoint(EXTERNAL_IP, serving=False))
    service = structs.replace(SERVICE, ports=(ServicePort("", protocol, 53, 0),), internal_policy_local=True)
    (plan,) = plan_service(
        service, [endpoint_slice(*items, port=SlicePort("", protocol, 53))], NODE, Family.IPV4
    ).values()

    assert count == len(plan.serving_endpoints)


def test_claims() -> None:
    """A port claims each of its addresses once, and its node port on any address."""
    plan = structs.replace(
        PLAN,
        cluster_ip=CLUSTER_IP,
        external_ips=(EXTERNAL_IP, CLUSTER_IP),
        load_balancer_ips=(EXTERNAL_IP, LOAD_BALANCER_IP),
        node_port=30080,
    )
    addresses = (CLUSTER_IP, EXTERNAL_IP, LOAD_BALANCER_IP)

    assert [*(Claim(ip, Protocol.TCP, 80) for ip in addresses), Claim(b"", Protocol.TCP, 30080)] == list(plan.claims())


def test_losing_everything() -> None:
    """A plan without its claims leads nowhere."""
    plan = structs.replace(
        PLAN, cluster_ip=CLUSTER_IP, external_ips=(EXTERNAL_IP,), load_balancer_ips=(LOAD_BALANCER_IP,)
    )

    assert PLAN == plan.without(frozenset(plan.claims()))
