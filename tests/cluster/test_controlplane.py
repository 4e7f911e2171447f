"""Tests of the tools of the cluster tests, without pyproxy."""

import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from .api import ApiClient, ApiError, JsonObject
from .controlplane import KUBE_PROXY_USER, SERVICE_CIDRS, ControlPlane
from .kubeproxy import Backend, KubeProxy
from .process import ClusterError

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.7]}]
ports: [{port: 8080}]
"""
NODES, SERVICES = "/api/v1/nodes", "/api/v1/namespaces/default/services"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
SHARED_WITH_THE_HOST = ("/proc/sys/net/netfilter/nf_conntrack_max", "/sys/module/nf_conntrack/parameters/hashsize")
SILENCE_SECONDS = 0.3


@pytest.fixture
def service(control_plane: ControlPlane) -> Iterator[JsonObject]:
    """Create a Service with one endpoint for a test."""
    control_plane.apply(SERVICE)
    yield control_plane.request("GET", f"{SERVICES}/web")
    control_plane.kubectl("delete", "--filename=-", input=SERVICE)


@pytest.fixture
def node(control_plane: ControlPlane) -> Iterator[str]:
    """Create a Node for a test."""
    name = "node-1"
    control_plane.create_node(name, ["192.0.2.11", "2001:db8::11"], pod_cidrs=["10.244.0.0/24"], zone="a")
    yield name
    control_plane.request("DELETE", f"{NODES}/{name}")


@contextmanager
def connection(control_plane: ControlPlane, url: str) -> Iterator[http.client.HTTPSConnection]:
    """Provide a connection like that of a client under test."""
    tls = ssl.create_default_context(cafile=str(control_plane.authority.certificate))
    opened = http.client.HTTPSConnection(urlsplit(url).netloc, context=tls, timeout=10)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def watch(control_plane: ControlPlane, url: str, version: str) -> Iterator[http.client.HTTPSConnection]:
    """Provide a connection with a watch of ConfigMaps."""
    with connection(control_plane, url) as opened:
        token = control_plane.static_token("admin")
        path = f"{CONFIG_MAPS}?watch=1&resourceVersion={version}"
        opened.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        yield opened


def add_config_map(control_plane: ControlPlane, name: str) -> str:
    """Cause the next event of a watch, and return its resource version."""
    made = control_plane.request("POST", CONFIG_MAPS, {"metadata": {"name": name}})
    control_plane.request("DELETE", f"{CONFIG_MAPS}/{name}")
    return str(made["metadata"]["resourceVersion"])


def next_event(response: http.client.HTTPResponse) -> tuple[str, JsonObject]:
    """Return the type and object of the next event of a watch."""
    event = json.loads(response.readline())
    return event["type"], event["object"]


def test_version(control_plane: ControlPlane) -> None:
    """The API server and kubectl report the same Kubernetes version."""
    versions = json.loads(control_plane.kubectl("version", "--output=json"))

    assert "v1.37.2" == versions["serverVersion"]["gitVersion"] == versions["clientVersion"]["gitVersion"]


def test_service_gets_addresses(service: JsonObject) -> None:
    """A dual-stack Service gets a cluster IP from each of the two ranges."""
    addresses = [ip_address(address) for address in service["spec"]["clusterIPs"]]

    assert [True, True] == [address in ip_network(cidr) for address, cidr in zip(addresses, SERVICE_CIDRS, strict=True)]


def test_node(control_plane: ControlPlane, node: str) -> None:
    """A Node has the addresses, the pod CIDR and the zone with which it was created."""
    found = control_plane.request("GET", f"{NODES}/{node}")

    assert ["192.0.2.11", "2001:db8::11"] == [address["address"] for address in found["status"]["addresses"]]
    assert ["10.244.0.0/24"] == found["spec"]["podCIDRs"]
    assert "a" == found["metadata"]["labels"]["topology.kubernetes.io/zone"]


def test_restart_keeps_objects(control_plane: ControlPlane, service: JsonObject) -> None:
    """A restarted API server has the same objects as before."""
    control_plane.stop_apiserver()
    control_plane.start_apiserver()

    assert service == control_plane.request("GET", f"{SERVICES}/web")


def test_drop_ends_a_watch(control_plane: ControlPlane) -> None:
    """A watch through the relay gets events until its connection is reset."""
    version = add_config_map(control_plane, "before")
    with control_plane.exposed_in(None) as url, watch(control_plane, url, version) as watching:
        add_config_map(control_plane, "during")
        response = watching.getresponse()
        kinds = [next_event(response)[0] for _ in range(3)]
        control_plane.kill_connections()

        assert ["DELETED", "ADDED", "DELETED"] == kinds
        with suppress(ConnectionResetError):  # with TLS, some versions of OpenSSL report a reset as an end of file
            assert b"" == response.readline()


def test_hold_delays_a_watch(control_plane: ControlPlane) -> None:
    """While the relay holds, a watch gets no events, and stays open; afterwards it gets the missed events."""
    version = add_config_map(control_plane, "before")
    with control_plane.exposed_in(None) as url, watch(control_plane, url, version) as watching:
        response = watching.getresponse()
        next_event(response)
        control_plane.clients.hold()
        add_config_map(control_plane, "during")
        watching.sock.settimeout(SILENCE_SECONDS)
        try:
            with pytest.raises(TimeoutError):
                watching.sock.recv(1)
        finally:
            control_plane.clients.resume()
        watching.sock.settimeout(10)

        assert watching.sock.recv(1)


def test_refuse_rejects_clients(control_plane: ControlPlane) -> None:
    """While the relay refuses, clients cannot connect, but the test can; afterwards clients can use the same port."""
    with control_plane.exposed_in(None) as url:
        control_plane.clients.refuse()
        with connection(control_plane, url) as refused, pytest.raises(ConnectionRefusedError):
            refused.connect()
        assert control_plane.request("GET", NODES)
        control_plane.clients.resume()
        with connection(control_plane, url) as welcome:
            welcome.connect()


def test_compaction_expires_resource_versions(control_plane: ControlPlane) -> None:
    """After a compaction, a watch from an earlier resource version gets 410 Gone."""
    version = add_config_map(control_plane, "old")
    add_config_map(control_plane, "new")
    control_plane.compact()
    with control_plane.exposed_in(None) as url, watch(control_plane, url, version) as watching:
        kind, status = next_event(watching.getresponse())

    assert ("ERROR", HTTPStatus.GONE) == (kind, status["code"])


def test_token_of_a_service_account(control_plane: ControlPlane) -> None:
    """A created token authenticates as the service account."""
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    token = control_plane.create_token("agent", "kube-system")
    with control_plane.exposed_in(None) as url:
        client = ApiClient(urlsplit(url).port or 0, token, control_plane.authority.certificate)
        answer = client.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review)

    assert "system:serviceaccount:kube-system:agent" == answer["status"]["userInfo"]["username"]


def test_rbac_in_a_namespace(namespace: str) -> None:
    """With RBAC, kube-proxy's user may list Services but not create them; nothing remains afterwards."""
    with ControlPlane(namespace=namespace, authorization="RBAC") as other, other.exposed_in(None) as url:
        token = other.static_token(KUBE_PROXY_USER)
        client = ApiClient(urlsplit(url).port or 0, token, other.authority.certificate)

        assert "ServiceList" == client.request("GET", SERVICES)["kind"]
        with pytest.raises(ApiError) as refusal:
            client.request("POST", SERVICES, {"metadata": {"name": "mine"}})
    assert HTTPStatus.FORBIDDEN == refusal.value.status
    assert not other.directory.exists()


@pytest.mark.usefixtures("peers")
def test_failed_start() -> None:
    """A control plane that cannot start reports why, and leaves nothing behind."""
    failing = ControlPlane(flags=["--no-such-flag"])
    with pytest.raises(ClusterError, match="unknown flag"):
        failing.__enter__()

    assert not failing.directory.exists()


@pytest.mark.parametrize(
    ("backend", "sign"),
    [("iptables-legacy", ":KUBE-SVC-"), ("iptables-nft", ":KUBE-SVC-"), ("nftables", "chain service-")],
)
@pytest.mark.usefixtures("service")
def test_kube_proxy_programs_a_service(
    control_plane: ControlPlane, namespace: str, node: str, backend: Backend, sign: str
) -> None:
    """The real kube-proxy reaches the API server from its namespace, and programs Services only there."""
    before = [Path(file).read_text() for file in SHARED_WITH_THE_HOST]
    with KubeProxy(control_plane, namespace, node=node, backend=backend) as proxy:
        proxy.wait_synced()
        proxy.catch_up()

        rules = proxy.rules()
        assert sign in rules
        assert "10.244.0.7" in rules
        assert {"IPv4", "IPv6"} == set(proxy.full_syncs())
        assert 0 < proxy.process.cpu_seconds() < proxy.process.resident_bytes()
    assert before == [Path(file).read_text() for file in SHARED_WITH_THE_HOST]
