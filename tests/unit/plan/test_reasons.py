"""Why a Service does not work: the texts, from Services and slices that are wrong in one way each."""

from collections.abc import Sequence

import pytest
from msgspec import structs

from pyproxy.model.address import Family, parse_ip, parse_network
from pyproxy.model.endpoint import EndpointSlice, SliceEndpoint, SlicePort
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.model.node import Node
from pyproxy.model.service import NoPacketPath, ServicePort
from pyproxy.plan.reasons import Reason, ReasonCode, no_packet_path, reasons, source_range_reason
from pyproxy.plan.service_plan import Verdict
from tests.unit.plan.building import SERVICE, endpoint_slice, ips

NODE = Node(name="node2", pod_cidrs=(parse_network("10.244.2.0/24"),))
READY = SliceEndpoint(parse_ip("10.244.1.11"), "node1")
UNREADY = structs.replace(READY, ready=False, serving=False)
UNREADY_HERE = SliceEndpoint(parse_ip("10.244.2.12"), "node2", ready=False, serving=False)
MANY = tuple(SliceEndpoint(bytes((10, 244, 1, number)), "node1") for number in range(1, 6))
HTTP = (ServicePort("http", Protocol.TCP, 80, 30080),)
NAMED = structs.replace(SERVICE, ports=HTTP)
LOCAL = structs.replace(SERVICE, ports=(ServicePort("", Protocol.TCP, 80, 30090),), external_policy_local=True)
INTERNAL = structs.replace(SERVICE, internal_policy_local=True)
DUAL = structs.replace(SERVICE, families=(Family.IPV4, Family.IPV6))
SLICE6 = endpoint_slice(SliceEndpoint(parse_ip("fd00::1")), family=Family.IPV6)


@pytest.mark.parametrize(
    ("service", "slices", "code", "verdict", "text"),
    [
        (SERVICE, [], "no-slices", "reject", "the Service has no EndpointSlice"),
        (SERVICE, [endpoint_slice()], "no-endpoints", "reject", "the EndpointSlices of the Service list no endpoint"),
        (SERVICE, [SLICE6], "other-family", "reject", "all endpoints are IPv6, the Service is IPv4"),
        (DUAL, [SLICE6], "other-family", "reject", "all endpoints are IPv6, the Service also exists in IPv4"),
        (
            NAMED,
            [endpoint_slice(READY, port=SlicePort("web", Protocol.TCP, 8080))],
            "port-mismatch",
            "reject",
            'slice has port "web", Service wants "http"',
        ),
        (
            NAMED,
            [endpoint_slice(READY)],
            "port-mismatch",
            "reject",
            'slice has port without a name, Service wants "http"',
        ),
        (
            NAMED,
            [endpoint_slice(READY, port=SlicePort("http", Protocol.UDP, 8080))],
            "port-mismatch",
            "reject",
            'slice has "http"/UDP, Service wants "http"/TCP',
        ),
        (
            NAMED,
            [structs.replace(endpoint_slice(READY), ports=())],
            "port-mismatch",
            "reject",
            'slice has no ports, Service wants "http"',
        ),
        (
            SERVICE,
            [endpoint_slice(UNREADY)],
            "not-ready",
            "reject",
            "the only endpoint is not ready (10.244.1.11 on node1)",
        ),
        (
            SERVICE,
            [endpoint_slice(UNREADY, UNREADY_HERE)],
            "not-ready",
            "reject",
            "all 2 endpoints are not ready (10.244.1.11 on node1, 10.244.2.12 on node2)",
        ),
        (
            SERVICE,
            [endpoint_slice(structs.replace(UNREADY, terminating=True))],
            "not-ready",
            "reject",
            "the only endpoint is terminating, and no longer serving (10.244.1.11 on node1)",
        ),
        (
            LOCAL,
            [endpoint_slice(structs.replace(READY, node_name=""))],
            "no-local-endpoints-external",
            "drop",
            "1 endpoint without a nodeName (10.244.1.11), 0 here",
        ),
        (
            LOCAL,
            [endpoint_slice(SliceEndpoint(parse_ip("10.244.2.12"), "node2.example.com"))],
            "no-local-endpoints-external",
            "drop",
            (
                "1 endpoint elsewhere (10.244.2.12 on node2.example.com), 0 here; 10.244.2.12 is in a pod CIDR of node2,"
                " but its nodeName is node2.example.com"
            ),
        ),
        (
            LOCAL,
            [endpoint_slice(READY)],
            "no-local-endpoints-external",
            "drop",
            "1 endpoint elsewhere (10.244.1.11 on node1), 0 here",
        ),
        (
            LOCAL,
            [endpoint_slice(READY, UNREADY_HERE)],
            "no-local-endpoints-external",
            "drop",
            "1 endpoint elsewhere (10.244.1.11 on node1), 1 here not ready",
        ),
        (
            INTERNAL,
            [endpoint_slice(*MANY)],
            "no-local-endpoints",
            "drop",
            "5 endpoints elsewhere (10.244.1.1 on node1, 10.244.1.2 on node1, 10.244.1.3 on node1, 2 more), 0 here",
        ),
    ],
)
def test_texts(service: object, slices: Sequence[EndpointSlice], code: str, verdict: str, text: str) -> None:
    """Each fault has its own code and names the objects that disagree."""
    assert isinstance(service, type(SERVICE))

    ((reason,),) = reasons(service, slices, NODE, Family.IPV4).values()

    assert (ReasonCode(code), Verdict(verdict), text) == reason[:3]
    assert reason.fix


def test_fix_names_the_node() -> None:
    """A client from outside can go to a node with endpoints; one inside the cluster needs an endpoint on its own node."""
    ((external,),) = reasons(LOCAL, [endpoint_slice(READY)], NODE, Family.IPV4).values()
    ((internal,),) = reasons(INTERNAL, [endpoint_slice(READY)], NODE, Family.IPV4).values()

    assert "send the client to node1, or set externalTrafficPolicy: Cluster" == external.fix
    assert "run a pod of the Service on node2, or set internalTrafficPolicy: Cluster" == internal.fix


@pytest.mark.parametrize(
    ("label", "namespace", "text"),
    [
        ("databse", "default", "; default/database-x has the label of databse, which does not exist"),
        ("database", "shop", "; shop/database-x is in another namespace"),
        ("web", "default", ""),
        ("databse", "shop", ""),
    ],
)
def test_slice_that_is_meant_for_the_service(label: str, namespace: str, text: str) -> None:
    """A slice of a Service that does not exist is named if the namespace is wrong, or the name is misspelt."""
    service = structs.replace(SERVICE, name=NamespacedName("default", "database"))
    orphan = structs.replace(
        endpoint_slice(READY), name=NamespacedName(namespace, "database-x"), service=NamespacedName(namespace, label)
    )

    ((reason,),) = reasons(service, [], NODE, Family.IPV4, [orphan]).values()

    assert f"the Service has no EndpointSlice{text}" == reason.text


def test_no_reason() -> None:
    """A port that works has no reason, and a family that the Service is not in has no port."""
    assert [()] == list(reasons(SERVICE, [endpoint_slice(READY)], NODE, Family.IPV4).values())
    assert {} == reasons(SERVICE, [endpoint_slice(READY)], NODE, Family.IPV6)


def test_source_ranges() -> None:
    """Only a client outside all ranges has a reason."""
    inside, outside = ips("192.0.2.7", "198.51.100.7")
    blocks = (parse_network("192.0.2.0/24"), parse_network("203.0.113.0/24"))

    assert source_range_reason(blocks, inside) is None
    assert source_range_reason((), outside) is None
    reason = source_range_reason(blocks, outside)
    assert isinstance(reason, Reason)
    text = "198.51.100.7 is not in spec.loadBalancerSourceRanges (192.0.2.0/24, 203.0.113.0/24)"
    assert (ReasonCode.SOURCE_RANGES, Verdict.DROP, text) == reason[:3]


@pytest.mark.parametrize("kind", NoPacketPath)
def test_services_without_rules(kind: NoPacketPath) -> None:
    """A Service without rules of ours has a reason whose verdict changes nothing."""
    assert no_packet_path(kind).verdict is Verdict.FORWARD
