"""Names as kube-proxy writes them."""

import pytest

from pyproxy.model.names import NamespacedName, Protocol, ServicePortName


@pytest.mark.parametrize(
    ("namespace", "port", "expected"),
    [("default", "", "default/web"), ("default", "http", "default/web:http"), ("", "", "web")],
    ids=["unnamed port", "named port", "cluster-wide"],
)
def test_service_port(namespace: str, port: str, expected: str) -> None:
    """An unnamed port has no colon, and the protocol is not part of the name."""
    assert expected == str(ServicePortName(NamespacedName(namespace, "web"), port, Protocol.UDP))


def test_protocol_numbers() -> None:
    """Protocols have the numbers of the IP header."""
    assert [6, 17, 132] == [protocol.number for protocol in (Protocol.TCP, Protocol.UDP, Protocol.SCTP)]
