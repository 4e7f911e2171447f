"""EndpointSlices, Endpoints, Nodes and ServiceCIDRs from the wire to the model."""

from ipaddress import IPv4Address
from typing import Any

import msgspec
import pytest

from pyproxy.decode import wire
from pyproxy.decode.objects import Decoded, decode_endpoint_slice, decode_endpoints, decode_node, decode_service_cidr
from pyproxy.model.address import Family, parse_ip, parse_network
from pyproxy.model.endpoint import EndpointSlice, SliceEndpoint, SlicePort
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.model.node import Node
from pyproxy.model.service_cidr import ServiceCidr
from tests.unit.decode.decoding import fields_of, ips, the_object

Json = dict[str, Any]

UNSPECIFIED = str(IPv4Address(0))
WEB = NamespacedName("shop", "web")


def decoded_slice(**fields: object) -> Decoded[EndpointSlice]:
    """Decode the slice shop/web-1 of the Service shop/web."""
    metadata = {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}
    return decode_endpoint_slice(
        msgspec.convert({"metadata": metadata, "addressType": "IPv4"} | fields, wire.EndpointSlice)
    )


def test_whole_slice() -> None:
    """A slice is decoded with ports, conditions, node and hints; only the first address of an endpoint is used."""
    endpoint = {
        "addresses": ["10.244.1.5", "10.244.1.6"],
        "conditions": {"ready": False, "serving": True, "terminating": True},
        "nodeName": "node-a",
        "hints": {"forZones": [{"name": "zone-1"}], "forNodes": [{"name": "node-a"}, {"name": "node-b"}]},
    }

    decoded = decoded_slice(endpoints=[endpoint], ports=[{"name": "http", "port": 8080, "protocol": "TCP"}])

    assert the_object(decoded) == EndpointSlice(
        NamespacedName("shop", "web-1"),
        WEB,
        Family.IPV4,
        (SlicePort("http", Protocol.TCP, 8080),),
        (
            SliceEndpoint(
                parse_ip("10.244.1.5"),
                "node-a",
                ready=False,
                serving=True,
                terminating=True,
                zone_hints=("zone-1",),
                node_hints=("node-a", "node-b"),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, (True, True, False)),
        ({}, (True, True, False)),
        ({"ready": None, "serving": None, "terminating": None}, (True, True, False)),
        ({"ready": False}, (False, True, False)),
        ({"serving": False}, (True, False, False)),
        ({"terminating": True}, (True, True, True)),
    ],
)
def test_conditions(conditions: Json | None, expected: tuple[bool, bool, bool]) -> None:
    """Absent ready and serving are true, absent terminating is false, independently of each other."""
    [endpoint] = the_object(
        decoded_slice(endpoints=[{"addresses": ["10.244.1.5"], "conditions": conditions}])
    ).endpoints

    assert expected == (endpoint.ready, endpoint.serving, endpoint.terminating)


@pytest.mark.parametrize(
    ("address_type", "addresses", "kept", "problems"),
    [
        ("IPv4", ["10.244.1.5"], ["10.244.1.5"], []),
        ("IPv6", ["fd00::5"], ["fd00::5"], []),
        ("IPv6", ["FD00:0:0::0005"], ["fd00::5"], []),
        ("IPv4", ["010.244.001.005"], ["10.244.1.5"], []),
        ("IPv4", [], [], []),
        ("IPv4", ["127.0.0.1"], ["127.0.0.1"], []),
        ("IPv4", ["169.254.1.1"], ["169.254.1.1"], []),
        ("IPv4", [UNSPECIFIED], [], ["endpoints[0].addresses[0]"]),
        ("IPv6", ["::"], [], ["endpoints[0].addresses[0]"]),
        ("IPv4", ["fd00::5"], [], ["endpoints[0].addresses[0]"]),
        ("IPv6", ["fe80::1%eth0"], [], ["endpoints[0].addresses[0]"]),
        ("IPv4", ["db.example.org"], [], ["endpoints[0].addresses[0]"]),
        ("IPv4", ["10.0.0.1\x00"], [], ["endpoints[0].addresses[0]"]),
    ],
)
def test_endpoint_addresses(address_type: str, addresses: list[str], kept: list[str], problems: list[str]) -> None:
    """Addresses are normalised and must be of the slice's family; the unspecified address is refused."""
    decoded = decoded_slice(addressType=address_type, endpoints=[{"addresses": addresses}])

    assert decoded.object is not None
    assert ips(*kept) == tuple(endpoint.ip for endpoint in decoded.object.endpoints)
    assert problems == fields_of(decoded)


@pytest.mark.parametrize(
    ("port", "kept", "problems"),
    [
        ({"port": 8080}, SlicePort("", Protocol.TCP, 8080), []),
        ({"name": "", "port": 8080, "protocol": None}, SlicePort("", Protocol.TCP, 8080), []),
        ({"name": "http"}, None, []),
        ({"name": "http", "port": 0}, None, []),
        ({"name": "http", "port": 70000}, None, ["ports[0].port"]),
        ({"name": "HTTP", "port": 80}, None, ["ports[0].name"]),
        ({"name": "http", "port": 80, "protocol": "HTTP"}, None, ["ports[0].protocol"]),
    ],
)
def test_slice_ports(port: Json, kept: SlicePort | None, problems: list[str]) -> None:
    """A port without a number is ignored, as in kube-proxy; an invalid port is dropped and reported."""
    decoded = decoded_slice(ports=[port])

    assert decoded.object is not None
    assert ((kept,) if kept else ()) == decoded.object.ports
    assert problems == fields_of(decoded)


@pytest.mark.parametrize(
    ("fields", "problems"),
    [
        ({"addressType": "FQDN"}, []),
        ({"metadata": {"name": "a", "labels": {"service.kubernetes.io/headless": ""}}}, []),
        ({"addressType": "IPv5"}, ["addressType"]),
        ({"addressType": None}, ["addressType"]),
        ({"metadata": {"name": "a"}}, ["metadata.labels[kubernetes.io/service-name]"]),
        (
            {"metadata": {"name": "a", "labels": {"kubernetes.io/service-name": ""}}},
            ["metadata.labels[kubernetes.io/service-name]"],
        ),
        (
            {"metadata": {"name": "", "labels": {"kubernetes.io/service-name": "web"}}},
            ["metadata.name"],
        ),
    ],
)
def test_slices_that_are_not_used(fields: Json, problems: list[str]) -> None:
    """Host names and headless Services make no rules; a slice without a Service or a family cannot be used."""
    decoded = decoded_slice(**fields)

    assert decoded.object is None
    assert problems == fields_of(decoded)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-21T18:16:30Z", 1795284990.0),
        ("2026-11-21T18:16:30.123456789Z", 1795284990.123456),
        ("2026-11-21T20:16:30.5+02:00", 1795284990.5),
        ("2026-11-21T18:16:30", 0.0),
        ("yesterday", 0.0),
        ("", 0.0),
    ],
)
def test_time_of_the_change(text: str, seconds: float) -> None:
    """The time of the change that caused a slice is read as RFC 3339; any other text only costs the time."""
    annotations = {"endpoints.kubernetes.io/last-change-trigger-time": text}
    metadata = {
        "name": "web-x",
        "namespace": "ns",
        "labels": {"kubernetes.io/service-name": "web"},
        "annotations": annotations,
    }
    decoded = decoded_slice(metadata=metadata)

    assert seconds == the_object(decoded).triggered_at
    assert () == decoded.problems


def test_endpoints_are_slices() -> None:
    """Core Endpoints become a slice for each subset and family, including the addresses that are not ready."""
    tree = {
        "metadata": {"namespace": "shop", "name": "web"},
        "subsets": [
            {
                "addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1", "nodeName": "node-a"}],
                "notReadyAddresses": [{"ip": "10.0.0.2"}, {"ip": "nowhere"}],
                "ports": [{"name": "http", "port": 8080}],
            },
            {"addresses": [{"ip": "10.0.0.3"}], "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]},
        ],
    }

    decoded = decode_endpoints(msgspec.convert(tree, wire.Endpoints))

    http, dns = (SlicePort("http", Protocol.TCP, 8080),), (SlicePort("dns", Protocol.UDP, 53),)
    first, second = NamespacedName("shop", "endpoints:web:0:IPv4"), NamespacedName("shop", "endpoints:web:0:IPv6")
    third = NamespacedName("shop", "endpoints:web:1:IPv4")
    ready, other = SliceEndpoint(parse_ip("10.0.0.1")), SliceEndpoint(parse_ip("10.0.0.2"), ready=False)
    assert decoded.object == (
        EndpointSlice(first, WEB, Family.IPV4, http, (ready, other)),
        EndpointSlice(second, WEB, Family.IPV6, http, (SliceEndpoint(parse_ip("fd00::1"), "node-a"),)),
        EndpointSlice(third, WEB, Family.IPV4, dns, (SliceEndpoint(parse_ip("10.0.0.3")),)),
    )
    assert ["subsets[0].notReadyAddresses[1].ip"] == fields_of(decoded)


def test_node() -> None:
    """InternalIPs come before ExternalIPs, each in the order of the status; host names are not used."""
    tree = {
        "metadata": {"name": "node-a.example", "labels": {"topology.kubernetes.io/zone": "zone-1"}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"]},
        "status": {
            "addresses": [
                {"type": "ExternalIP", "address": "203.0.113.10"},
                {"type": "InternalIP", "address": "fd00::10"},
                {"type": "InternalIP", "address": "192.168.7.10"},
                {"type": "Hostname", "address": "node-a"},
            ]
        },
    }

    assert the_object(decode_node(msgspec.convert(tree, wire.Node))) == Node(
        name="node-a.example",
        ips=ips("fd00::10", "192.168.7.10", "203.0.113.10"),
        pod_cidrs=(parse_network("10.244.1.0/24"), parse_network("fd00:244:1::/64")),
        zone="zone-1",
    )


@pytest.mark.parametrize(
    ("metadata", "spec", "expected"),
    [
        ({}, {}, True),
        ({}, {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]}, True),
        (
            {},
            {"taints": [{"key": "x"}, {"key": "ToBeDeletedByClusterAutoscaler", "effect": "PreferNoSchedule"}]},
            False,
        ),
        ({"deletionTimestamp": "2026-11-21T12:00:00Z"}, {}, False),
    ],
    ids=["stays", "another taint", "autoscaler", "being deleted"],
)
def test_node_on_its_way_out(metadata: Json, spec: Json, expected: object) -> None:
    """A Node that is being deleted, or that the cluster autoscaler drains, is not eligible."""
    tree = {"metadata": {"name": "node-a", **metadata}, "spec": spec}

    assert expected is the_object(decode_node(msgspec.convert(tree, wire.Node))).is_eligible


def test_zone_that_is_not_a_label_value() -> None:
    """A zone that an API server would refuse is reported and not used: it appears in explanations on a terminal."""
    labels = {"topology.kubernetes.io/zone": "a\x1b[31m"}

    decoded = decode_node(msgspec.convert({"metadata": {"name": "node-a", "labels": labels}}, wire.Node))

    assert decoded.object == Node(name="node-a")
    assert ["metadata.labels[topology.kubernetes.io/zone]"] == fields_of(decoded)


def test_node_name_that_is_not_a_name() -> None:
    """An endpoint whose node name an API server would refuse is an endpoint of no node."""
    endpoint = {"addresses": ["10.244.1.11"], "nodeName": "node1\x1b[31m"}
    labels = {"kubernetes.io/service-name": "web"}
    tree = {"metadata": {"name": "web-1", "labels": labels}, "addressType": "IPv4", "endpoints": [endpoint]}

    decoded = decode_endpoint_slice(msgspec.convert(tree, wire.EndpointSlice))

    assert decoded.object is not None
    assert [""] == [each.node_name for each in decoded.object.endpoints]
    assert ["endpoints[0].nodeName"] == fields_of(decoded)


def test_node_of_a_file() -> None:
    """Of a Node with one pod CIDR and invalid addresses the valid rest is used."""
    tree = {
        "metadata": {"name": "node-a"},
        "spec": {"podCIDR": "10.244.1.0/24"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "x"}, {"type": "InternalIP", "address": "10.0.0.1"}]
        },
    }

    decoded = decode_node(msgspec.convert(tree, wire.Node))

    assert decoded.object == Node(name="node-a", ips=ips("10.0.0.1"), pod_cidrs=(parse_network("10.244.1.0/24"),))
    assert ["status.addresses[0].address"] == fields_of(decoded)


def decoded_service_cidr(name: str, *cidrs: str) -> Decoded[ServiceCidr]:
    """Decode a ServiceCIDR."""
    return decode_service_cidr(
        msgspec.convert({"metadata": {"name": name}, "spec": {"cidrs": cidrs}}, wire.ServiceCIDR)
    )


def test_service_cidr() -> None:
    """A ServiceCIDR has its ranges, of both families."""
    assert the_object(decoded_service_cidr("kubernetes", "10.96.0.0/16", "fd00:96::/112")) == ServiceCidr(
        NamespacedName("", "kubernetes"), (parse_network("10.96.0.0/16"), parse_network("fd00:96::/112"))
    )


def test_service_cidr_with_bad_ranges() -> None:
    """An invalid range is reported, and the valid rest is used."""
    decoded = decoded_service_cidr("kubernetes", "10.96.0.0", "10.97.0.0/16", "10.98.0.0/33")

    assert decoded.object == ServiceCidr(NamespacedName("", "kubernetes"), (parse_network("10.97.0.0/16"),))
    assert [
        "ServiceCIDR kubernetes: spec.cidrs[0]: 10.96.0.0 is not a valid CIDR block such as 10.0.0.0/8",
        "ServiceCIDR kubernetes: spec.cidrs[2]: 10.98.0.0/33 is not a valid CIDR block such as 10.0.0.0/8",
    ] == [str(problem) for problem in decoded.problems]


def test_service_cidr_without_a_name() -> None:
    """An object without a name cannot be identified, and is refused."""
    decoded = decoded_service_cidr("", "10.96.0.0/16")

    assert (None, ["metadata.name"]) == (decoded.object, fields_of(decoded))
