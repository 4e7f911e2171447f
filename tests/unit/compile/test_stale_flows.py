"""Which tracked UDP flows go to an endpoint that no longer serves."""

from collections.abc import Collection

import pytest
from msgspec.structs import replace

from pyproxy.compile.plan import ServicePlan
from pyproxy.compile.stale_flows import RightFlows, right_flows
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.flow import Flow
from pyproxy.model.names import Protocol
from tests.unit.compile.building import PLAN, endpoints, ips, port_name

CLUSTER_IP, EXTERNAL_IP, NODE_IP, ELSEWHERE = ips("10.96.0.53", "203.0.113.53", "172.18.0.11", "198.51.100.9")
STAYS, GOES = endpoints("10.244.1.11:53", "10.244.1.12:53")
DNS = replace(PLAN, name=port_name("dns", protocol=Protocol.UDP), port=53, cluster_ip=CLUSTER_IP, node_port=30053)
BEFORE = replace(DNS, serving_endpoints=frozenset({STAYS, GOES}))
AFTER = replace(DNS, serving_endpoints=frozenset({STAYS}))
EMPTY = replace(DNS, serving_endpoints=frozenset())


def is_stale(destination: bytes, port: int, answered_by: Endpoint, right: RightFlows | None = None) -> bool:
    """Say whether a flow has to go, by default after an endpoint went, on a node with one address."""
    right = right_flows([(BEFORE, AFTER)]) if right is None else right
    return right.is_stale(Flow(destination, port, answered_by.ip, answered_by.port), {NODE_IP})


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
        pytest.param(ELSEWHERE, 30053, Endpoint(ELSEWHERE, 30053), False, id="somebody's flow to elsewhere"),
        pytest.param(ELSEWHERE, 30053, GOES, True, id="an address that the node had"),
    ],
)
def test_flows(destination: bytes, port: int, answered_by: Endpoint, expected: object) -> None:
    """A flow goes if it is addressed to the Service and answered by no serving endpoint."""
    assert expected is is_stale(destination, port, answered_by)


def test_every_address_counts() -> None:
    """External and load balancer addresses are the Service's, too."""
    (load_balancer_ip,) = ips("203.0.113.54")
    after = replace(AFTER, external_ips=(EXTERNAL_IP,), load_balancer_ips=(load_balancer_ip,))
    right = right_flows([(BEFORE, after)])

    assert [True, True] == [is_stale(ip, 53, GOES, right) for ip in (EXTERNAL_IP, load_balancer_ip)]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([(AFTER, AFTER)], id="same serving endpoints"),
        pytest.param([(AFTER, replace(AFTER, cluster_endpoints=(GOES,)))], id="what policies and hints say"),
        pytest.param([(AFTER, replace(AFTER, cluster_ip=EXTERNAL_IP))], id="only the Service changed"),
        pytest.param([(AFTER, None)], id="port is gone"),
        pytest.param(
            [
                (BEFORE, replace(AFTER, name=port_name("dns", protocol=protocol)))
                for protocol in (Protocol.TCP, Protocol.SCTP)
            ],
            id="other protocols",
        ),
    ],
)
def test_no_reason_to_look(changes: Collection[tuple[ServicePlan | None, ServicePlan | None]]) -> None:
    """Only a change of a UDP port's serving endpoints is a reason to look at flows."""
    assert not right_flows(changes)


def test_last_endpoint_is_gone() -> None:
    """Without any serving endpoint every flow of the port goes: unlike kube-proxy, which leaves them."""
    assert is_stale(CLUSTER_IP, 53, STAYS, right_flows([(AFTER, EMPTY)]))


def test_new_port() -> None:
    """Of a new port, flows from before its first rules go: they were not translated."""
    assert is_stale(CLUSTER_IP, 53, Endpoint(CLUSTER_IP, 53), right_flows([(None, AFTER)]))


def test_newer_knowledge_wins() -> None:
    """What is known later of an address replaces what was known before, and adds to the rest."""
    other = replace(AFTER, name=port_name("other", protocol=Protocol.UDP), cluster_ip=EXTERNAL_IP, node_port=0)
    right = right_flows([(None, other), (BEFORE, AFTER)]) | right_flows([(AFTER, EMPTY)])

    assert [True, False] == [is_stale(ip, 53, STAYS, right) for ip in (CLUSTER_IP, EXTERNAL_IP)]
    assert is_stale(NODE_IP, 30053, STAYS, right)
