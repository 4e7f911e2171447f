"""Names of chains equal those of kube-proxy, so that each can take over from the other."""

import pytest

from pyproxy.backends.iptables.chain_names import endpoint_chain, is_ours, service_suffix
from pyproxy.model.address import parse_ip
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import NamespacedName, Protocol, ServicePortName

WEB_PORT = ServicePortName(NamespacedName("ns1", "svc1"), "p80", Protocol.TCP)


@pytest.mark.parametrize(
    ("namespace", "name", "port", "protocol", "expected"),
    [
        ("default", "kubernetes", "https", Protocol.TCP, "NPX46M4PTMTKRN6Y"),
        ("kube-system", "kube-dns", "dns", Protocol.UDP, "TCOU7JCQXEZGVUNU"),
        ("kube-system", "kube-dns", "dns-tcp", Protocol.TCP, "ERIFXISQEP7F7OF4"),
        ("default", "nginx", "", Protocol.TCP, "2CMXP7HKUVJN7L6M"),
        ("ns1", "svc1", "p80", Protocol.TCP, "XPGD46QRK7WJZT7O"),
    ],
)
def test_service_suffix(namespace: str, name: str, port: str, protocol: Protocol, expected: str) -> None:
    """The suffixes equal those on nodes with kube-proxy."""
    assert expected == service_suffix(ServicePortName(NamespacedName(namespace, name), port, protocol))


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        (Endpoint(parse_ip("10.180.0.1"), 80), "KUBE-SEP-SXIVWICOYRO3J4NJ"),
        (Endpoint(parse_ip("fd00:10:180::1"), 80), "KUBE-SEP-OGYCNMB4EMRUSJ6N"),
    ],
    ids=["IPv4", "IPv6"],
)
def test_endpoint_chain(endpoint: Endpoint, expected: str) -> None:
    """The chain of an endpoint has the same name as in kube-proxy."""
    assert expected == endpoint_chain(WEB_PORT, endpoint)


@pytest.mark.parametrize(
    ("table", "chain", "expected"),
    [
        ("nat", "KUBE-SVC-XPGD46QRK7WJZT7O", True),
        ("filter", "KUBE-SVC-XPGD46QRK7WJZT7O", False),
        ("filter", "KUBE-PROXY-FIREWALL", True),
        ("nat", "KUBE-POSTROUTING", True),
        ("filter", "KUBE-FIREWALL", False),
        ("filter", "KUBE-KUBELET-CANARY", False),
        ("nat", "KUBE-PROXY-CANARY", True),
        ("nat", "CNI-KUBE-SVC-X", False),
    ],
)
def test_is_ours(table: str, chain: str, expected: object) -> None:
    """kube-proxy's chains, canary included, are taken over; those of the kubelet and of other agents are not ours."""
    assert expected is is_ours(table, chain)
