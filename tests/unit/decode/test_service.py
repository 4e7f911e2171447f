"""Services from the wire to the model: what is used, what is dropped, and which problems are reported.

Objects are complete, as from an API server, unless the test omits a field as a file may do.
"""

from ipaddress import IPv4Address
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.decode import wire
from pyproxy.decode.fields import packed_ip
from pyproxy.decode.objects import Decoded, decode_service, wrong_type
from pyproxy.model.address import Family, parse_ip, parse_network
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.model.service import NoPacketPath, Service, ServicePort
from pyproxy.model.unserved import UnservedService
from tests.unit.decode.decoding import fields_of, ips, the_object

Json = dict[str, Any]

UNSPECIFIED = str(IPv4Address(0))
WEB = NamespacedName("shop", "web")
HTTP: Json = {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}
SINGLE_STACK: Json = {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4"], "ports": [HTTP]}
DUAL_STACK: Json = {
    "clusterIP": "10.96.0.1",
    "clusterIPs": ["10.96.0.1", "fd00:96::1"],
    "ipFamilies": ["IPv4", "IPv6"],
    "ports": [HTTP],
}
BALANCED: Json = SINGLE_STACK | {"type": "LoadBalancer", "ports": [HTTP | {"nodePort": 30080}]}


def decoded_service(spec: Json, ingress: list[Json] | None = None, **metadata: object) -> Decoded[Service]:
    """Decode the Service shop/web with a spec, and a load balancer's ingress."""
    tree = {
        "metadata": {"namespace": "shop", "name": "web"} | metadata,
        "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    }
    return decode_service(msgspec.convert(tree, wire.Service))


def test_whole_service() -> None:
    """A Service with all fields set is decoded with all of them."""
    spec = DUAL_STACK | {
        "type": "LoadBalancer",
        "ports": [HTTP | {"nodePort": 30080}, {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}],
        "externalIPs": ["192.0.2.1", "2001:db8::1"],
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
        "internalTrafficPolicy": "Local",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 31000,
        "loadBalancerSourceRanges": [" 203.0.113.0/24 ", "2001:db8:1::/48"],
    }

    service = the_object(decoded_service(spec, [{"ip": "198.51.100.1"}], creationTimestamp="2026-03-01T10:00:00Z"))

    assert service == Service(
        name=WEB,
        families=(Family.IPV4, Family.IPV6),
        cluster_ips=ips("10.96.0.1", "fd00:96::1"),
        ports=(ServicePort("http", Protocol.TCP, 80, 30080), ServicePort("dns", Protocol.UDP, 53, 30053)),
        external_ips=ips("192.0.2.1", "2001:db8::1"),
        load_balancer_ips=ips("198.51.100.1"),
        load_balancer_source_ranges=(parse_network("203.0.113.0/24"), parse_network("2001:db8:1::/48")),
        affinity_seconds=600,
        internal_policy_local=True,
        external_policy_local=True,
        health_check_node_port=31000,
        created="2026-03-01T10:00:00Z",
    )


def test_defaults_of_the_api() -> None:
    """Absent and null fields have the API server's defaults."""
    spec = {"clusterIP": "10.96.0.1", "ports": [{"port": 80}], "sessionAffinity": None, "externalIPs": None}

    service = the_object(decoded_service(spec))

    expected = Service(
        name=WEB,
        families=(Family.IPV4,),
        cluster_ips=ips("10.96.0.1"),
        ports=(ServicePort("", Protocol.TCP, 80, 0),),
    )
    assert expected == service


@pytest.mark.parametrize(
    ("spec", "labels", "kind"),
    [
        ({"clusterIP": "None", "clusterIPs": ["None"], "ports": [HTTP]}, {}, NoPacketPath.HEADLESS),
        ({"clusterIPs": ["None"]}, {}, NoPacketPath.HEADLESS),
        ({"type": "ExternalName", "externalName": "example.org"}, {}, NoPacketPath.EXTERNAL_NAME),
        (
            {"type": "ExternalName", "externalName": "example.org", "clusterIP": "10.96.0.1"},
            {},
            NoPacketPath.EXTERNAL_NAME,
        ),
        (SINGLE_STACK, {"service.kubernetes.io/service-proxy-name": "other"}, NoPacketPath.OTHER_PROXY),
        (SINGLE_STACK, {"service.kubernetes.io/service-proxy-name": ""}, NoPacketPath.OTHER_PROXY),
        (SINGLE_STACK, {"service.kubernetes.io/service-proxy-name": None}, NoPacketPath.OTHER_PROXY),
    ],
)
def test_services_without_rules(spec: Json, labels: Json, kind: NoPacketPath) -> None:
    """Headless Services, ExternalName Services and those of other proxies have no rules, which is not a problem."""
    assert Decoded(None, unserved=UnservedService(WEB, kind)) == decoded_service(spec, labels=labels)


def test_a_service_with_an_invalid_name_has_no_rules() -> None:
    """A Service whose name cannot be used is invalid, and the reason is that of its problem."""
    decoded = decoded_service(SINGLE_STACK, name="Web")

    assert decoded.unserved is not None
    assert decoded.unserved.kind is None
    assert decoded.unserved.problem.startswith("metadata.name: Web")


@pytest.mark.parametrize(
    ("spec", "families", "cluster_ips", "problems"),
    [
        ({"clusterIP": "10.96.0.1"}, (4,), ("10.96.0.1",), []),
        ({"clusterIP": "fd00:96::1"}, (6,), ("fd00:96::1",), []),
        ({"clusterIP": "10.96.0.1", "ipFamilies": ["IPv4"]}, (4,), ("10.96.0.1",), []),
        ({"clusterIP": "010.096.0.1"}, (4,), ("10.96.0.1",), []),
        (
            {"clusterIPs": ["fd00:96::1", "10.96.0.1"], "ipFamilies": ["IPv6", "IPv4"]},
            (6, 4),
            ("fd00:96::1", "10.96.0.1"),
            [],
        ),
        (
            {"clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4", "IPv6"]},
            (4,),
            ("10.96.0.1",),
            ["spec.clusterIPs"],
        ),
        (
            {"clusterIPs": ["10.96.0.1", "10.96.0.2"], "ipFamilies": ["IPv4", "IPv6"]},
            (4,),
            ("10.96.0.1",),
            ["spec.clusterIPs[1]"],
        ),
        ({}, (4,), (), ["spec.clusterIP"]),
        ({"clusterIP": "", "ipFamilies": ["IPv6", "IPv4"]}, (6, 4), (), ["spec.clusterIP"]),
        ({"clusterIP": "10.96.0.1000", "ipFamilies": ["IPv4"]}, (4,), (), ["spec.clusterIP"]),
        ({"clusterIP": UNSPECIFIED}, (4,), (), ["spec.clusterIP"]),
        ({"clusterIP": "10.96.0.1", "ipFamilies": ["ipv4"]}, (), (), ["spec.ipFamilies[0]", "spec.clusterIP"]),
    ],
)
def test_families_and_cluster_ips(
    spec: Json, families: tuple[int, ...], cluster_ips: tuple[str, ...], problems: list[str]
) -> None:
    """A Service exists in the families of its cluster IPs, or of ipFamilies if a file gives it none."""
    decoded = decoded_service(spec | {"ports": [HTTP]})

    assert decoded.object is not None
    assert problems == fields_of(decoded)
    assert ips(*cluster_ips) == decoded.object.cluster_ips
    assert (families or (4,)) == decoded.object.families


def test_missing_cluster_ip_says_what_to_set() -> None:
    """A field that an API server would have filled in is reported by its name."""
    reason = "an API server would assign one: set a free address of the cluster's service range"

    assert (f"Service shop/web: spec.clusterIP: missing; {reason}, or None for a headless Service",) == tuple(
        map(str, decoded_service({"ports": [HTTP]}).problems)
    )


@pytest.mark.parametrize(
    ("ports", "kept", "problems"),
    [
        ([{"port": 53, "protocol": "UDP"}], ["/53/UDP/0"], []),
        ([{"port": 38412, "protocol": "SCTP"}], ["/38412/SCTP/0"], []),
        ([HTTP, HTTP | {"name": "bad", "port": 70000}], ["http/80/TCP/0"], ["spec.ports[1].port"]),
        ([HTTP, {"name": "none"}], ["http/80/TCP/0"], ["spec.ports[1].port"]),
        ([HTTP, {"name": "zero", "port": 0}], ["http/80/TCP/0"], ["spec.ports[1].port"]),
        ([HTTP, {"name": "a b", "port": 81}], ["http/80/TCP/0"], ["spec.ports[1].name"]),
        ([HTTP, {"name": "x" * 64, "port": 81}], ["http/80/TCP/0"], ["spec.ports[1].name"]),
        ([HTTP, {"name": "x\n-j ACCEPT", "port": 81}], ["http/80/TCP/0"], ["spec.ports[1].name"]),
        ([HTTP, {"name": "lower", "port": 81, "protocol": "tcp"}], ["http/80/TCP/0"], ["spec.ports[1].protocol"]),
        ([HTTP, {"name": "http", "port": 81}], ["http/80/TCP/0"], ["spec.ports[1].name"]),
        ([{"port": 80}, {"port": 81}], ["/80/TCP/0"], ["spec.ports[1].name"]),
        ([HTTP, {"name": "again", "port": 80}], ["http/80/TCP/0"], ["spec.ports[1].port"]),
        ([HTTP, {"name": "quic", "port": 80, "protocol": "UDP"}], ["http/80/TCP/0", "quic/80/UDP/0"], []),
        ([], [], ["spec.ports"]),
    ],
)
def test_ports(ports: list[Json], kept: list[str], problems: list[str]) -> None:
    """An invalid port is dropped alone, and its field is reported."""
    decoded = decoded_service(SINGLE_STACK | {"ports": ports})

    assert problems == fields_of(decoded)
    assert decoded.object is not None
    assert kept == [f"{port.name}/{port.port}/{port.protocol.name}/{port.node_port}" for port in decoded.object.ports]


@pytest.mark.parametrize(
    ("spec", "node_port", "kept", "is_said"),
    [
        ({"type": "NodePort"}, 30080, 30080, False),
        ({"type": "NodePort"}, 80, 80, False),
        ({"type": "NodePort"}, 0, 0, True),
        ({"type": "NodePort"}, None, 0, True),
        ({"type": "NodePort"}, 65536, 0, True),
        ({"type": "NodePort"}, -1, 0, True),
        ({"type": "LoadBalancer"}, None, 0, True),
        ({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False}, None, 0, False),
        ({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False}, 30080, 30080, False),
        ({"type": "ClusterIP"}, None, 0, False),
        ({"type": "ClusterIP"}, 30080, 30080, True),
    ],
)
def test_node_ports(spec: Json, node_port: int | None, kept: int, *, is_said: bool) -> None:
    """A node port is used whatever the type; a combination that an API server would refuse is reported."""
    decoded = decoded_service(SINGLE_STACK | spec | {"ports": [HTTP | {"nodePort": node_port}]})

    assert decoded.object is not None
    assert [kept] == [port.node_port for port in decoded.object.ports]
    assert (["spec.ports[0].nodePort"] if is_said else []) == fields_of(decoded)


@pytest.mark.parametrize(
    ("texts", "kept", "problems"),
    [
        (["192.0.2.1", "2001:db8::1"], ["192.0.2.1"], []),
        (["", "192.0.2.1", "192.0.2.1"], ["192.0.2.1"], []),
        (["192.0.2.1", "192.0.2.999"], ["192.0.2.1"], ["spec.externalIPs[1]"]),
        (["::ffff:192.0.2.1"], ["192.0.2.1"], []),
        (["127.0.0.1", "169.254.169.254", UNSPECIFIED, "224.0.0.5"], [], [f"spec.externalIPs[{n}]" for n in range(4)]),
    ],
)
def test_external_ips(texts: list[str], kept: list[str], problems: list[str]) -> None:
    """External IPs are those of the Service's families, without duplicates; an invalid one is dropped alone."""
    decoded = decoded_service(SINGLE_STACK | {"externalIPs": texts})

    assert decoded.object is not None
    assert ips(*kept) == decoded.object.external_ips
    assert problems == fields_of(decoded)


@pytest.mark.parametrize(
    ("ingress", "kept", "problems"),
    [
        ([{"ip": "198.51.100.1"}, {"hostname": "lb.example.org"}], ["198.51.100.1"], []),
        ([{"ip": "198.51.100.1", "ipMode": "VIP"}, {"ip": "198.51.100.2", "ipMode": "Proxy"}], ["198.51.100.1"], []),
        ([{"ip": "198.51.100.1", "ipMode": "vip"}], [], ["status.loadBalancer.ingress[0].ipMode"]),
        ([{"ip": "lb"}, {"ip": "198.51.100.2"}], ["198.51.100.2"], ["status.loadBalancer.ingress[0].ip"]),
        ([{"ip": "2001:db8::1"}], [], []),
    ],
)
def test_load_balancer_ips(ingress: list[Json], kept: list[str], problems: list[str]) -> None:
    """Only addresses that are the destination of packets are used; host names and ipMode Proxy are not."""
    decoded = decoded_service(BALANCED, ingress)

    assert decoded.object is not None
    assert ips(*kept) == decoded.object.load_balancer_ips
    assert problems == fields_of(decoded)


def test_source_ranges_never_open_by_mistake() -> None:
    """An invalid range is dropped; if none is left the load balancer IP is dropped too, because it would be open to all."""
    one_bad = decoded_service(
        BALANCED | {"loadBalancerSourceRanges": ["10.0.0/8", "10.0.0.0/8"]}, [{"ip": "192.0.2.1"}]
    )
    all_bad = decoded_service(BALANCED | {"loadBalancerSourceRanges": ["10.0.0/8"]}, [{"ip": "192.0.2.1"}])

    assert one_bad.object is not None
    assert all_bad.object is not None
    assert (parse_network("10.0.0.0/8"),) == one_bad.object.load_balancer_source_ranges
    assert ["spec.loadBalancerSourceRanges[0]"] == fields_of(one_bad)
    assert () == all_bad.object.load_balancer_ips
    assert ["spec.loadBalancerSourceRanges[0]", "spec.loadBalancerSourceRanges"] == fields_of(all_bad)


@pytest.mark.parametrize(
    ("spec", "seconds", "problems"),
    [
        ({"sessionAffinity": "None"}, None, []),
        ({"sessionAffinity": "None", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}, None, []),
        ({"sessionAffinity": "ClientIP"}, 10800, []),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}}, 86400, []),
        (
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}},
            10800,
            ["spec.sessionAffinityConfig.clientIP.timeoutSeconds"],
        ),
        ({"sessionAffinity": "clientIP"}, None, ["spec.sessionAffinity"]),
    ],
)
def test_affinity(spec: Json, seconds: int | None, problems: list[str]) -> None:
    """The timeout is 1 to 86400 s, and 10800 s if absent or invalid."""
    decoded = decoded_service(SINGLE_STACK | spec)

    assert decoded.object is not None
    assert seconds == decoded.object.affinity_seconds
    assert problems == fields_of(decoded)


@pytest.mark.parametrize(
    ("spec", "is_local", "health_check_node_port", "problems"),
    [
        ({"type": "NodePort"}, True, 0, []),
        ({"type": "LoadBalancer", "healthCheckNodePort": 31000}, True, 31000, []),
        ({"type": "LoadBalancer"}, True, 0, ["spec.healthCheckNodePort"]),
        ({"type": "LoadBalancer", "healthCheckNodePort": 65536}, True, 0, ["spec.healthCheckNodePort"]),
        ({"type": "LoadBalancer", "healthCheckNodePort": 31000, "externalTrafficPolicy": "Cluster"}, False, 0, []),
        ({"type": "ClusterIP", "ports": [HTTP]}, False, 0, []),
        ({"type": "ClusterIP", "ports": [HTTP], "externalIPs": ["192.0.2.1"], "healthCheckNodePort": 1}, True, 0, []),
        ({"type": "NodePort", "externalTrafficPolicy": "local"}, False, 0, ["spec.externalTrafficPolicy"]),
    ],
)
def test_external_policy(spec: Json, is_local: bool, health_check_node_port: int, problems: list[str]) -> None:  # noqa: FBT001 pytest calls it
    """The policy applies to types with external traffic, the health check to load balancers with Local."""
    decoded = decoded_service(BALANCED | {"externalTrafficPolicy": "Local"} | spec)

    assert decoded.object is not None
    assert is_local is decoded.object.external_policy_local
    assert health_check_node_port == decoded.object.health_check_node_port
    assert problems == fields_of(decoded)


def test_unknown_type_is_a_cluster_ip() -> None:
    """An unknown type is reported, and the Service works as with the default type."""
    decoded = decoded_service(SINGLE_STACK | {"type": "Nodeport"})

    assert decoded.object is not None
    words = "ClusterIP, NodePort, LoadBalancer, ExternalName"
    expected = f"Service shop/web: spec.type: Nodeport is not one of {words} (did you mean NodePort?)"
    assert [expected] == list(map(str, decoded.problems))


@pytest.mark.parametrize(
    "name", ["", "Web", "web_1", "web;reboot", "web\n", "-web", "w" * 64, "wéb", '"', "a.b", "\x1b[2J"]
)
def test_names_that_are_no_names(name: str) -> None:
    """A Service whose name is not valid is not used, and the message quotes the name safely."""
    decoded = decoded_service(SINGLE_STACK, name=name)

    assert decoded.object is None
    assert ["metadata.name"] == fields_of(decoded)
    assert str(decoded.problems[0]).isascii()
    assert str(decoded.problems[0]).isprintable()


def test_bad_namespace() -> None:
    """A namespace is validated like a name."""
    assert ["metadata.namespace"] == fields_of(decoded_service(SINGLE_STACK, namespace="a/b"))


def test_namespace_of_files() -> None:
    """An object without a namespace is in the namespace default."""
    assert NamespacedName("default", "web") == the_object(decoded_service(SINGLE_STACK, namespace=None)).name


@pytest.mark.parametrize(
    ("data", "field", "reason"),
    [
        (b'{"spec": {"ports": [{"port": "80"}]}}', "spec.ports[0].port", "Expected int, got str"),
        (b'{"spec": []}', "spec", "Expected object, got array"),
        (b"[]", "", "Expected object, got array"),
    ],
)
def test_wrong_types(data: bytes, field: str, reason: str) -> None:
    """A wrong JSON type is an error that names the field."""
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(data, type=wire.Service)

    error = wrong_type("Service shop/web", caught.value)

    assert (field, reason) == (error.field, error.reason)


def test_bookmark() -> None:
    """An annotation marks the bookmark that ends a streaming list."""
    bookmark = msgspec.json.decode(
        b'{"kind":"Service","metadata":{"resourceVersion":"7","annotations":{"k8s.io/initial-events-end":"true"}}}',
        type=wire.Bookmark,
    )

    assert ("7", True) == (bookmark.resource_version, bookmark.ends_initial_events)


@given(st.one_of(st.ip_addresses().map(str), st.text("0123456789abcdef.:%", max_size=40)))
def test_packed_ip_is_parse_ip(text: str) -> None:
    """The fast way to pack an address gives the same result as the tolerant one."""
    try:
        expected: bytes | None = parse_ip(text)
    except ValueError:
        expected = None

    try:
        packed: bytes | None = packed_ip(text)
    except ValueError:
        packed = None

    assert expected == packed
