"""The Service that answers on a health check node port which several claim, in any order of arrival."""

from collections.abc import Mapping
from itertools import permutations

import pytest

from pyproxy.model.address import Family
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.model.service import Service, ServicePort
from pyproxy.plan.health_ports import HealthPorts

OLD, NEW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
OWN = {30256: "pyproxy (--healthz-bind-address)"}


def named(name: str) -> NamespacedName:
    """Return a name in the default namespace."""
    return NamespacedName("default", name)


def service(
    name: str, check: int, *, created: str = "", node_port: int = 0, protocol: Protocol = Protocol.TCP
) -> Service:
    """Return a Service with one port."""
    return Service(
        name=named(name),
        families=(Family.IPV4,),
        cluster_ips=(),
        ports=(ServicePort("", protocol, 80, node_port),),
        health_check_node_port=check,
        created=created,
    )


@pytest.mark.parametrize(
    ("services", "rivals"),
    [
        pytest.param([service("a", 30100), service("b", 30100)], {"b": "Service default/a"}, id="name"),
        pytest.param(
            [service("a", 30100, created=NEW), service("b", 30100, created=OLD), service("c", 30100)],
            {"a": "Service default/b", "c": "Service default/b"},
            id="age",
        ),
        pytest.param(
            [service("a", 30100, created=NEW), service("b", 0, node_port=30100, created=OLD)],
            {"a": "Service default/b"},
            id="node port of an older Service",
        ),
        pytest.param(
            [service("a", 30100, created=OLD), service("b", 0, node_port=30100, created=NEW)],
            {},
            id="node port of a younger Service",
        ),
        pytest.param(
            [service("a", 30100, created=NEW), service("b", 0, node_port=30100, created=OLD, protocol=Protocol.UDP)],
            {},
            id="UDP node port",
        ),
        pytest.param(
            [service("a", 30100, node_port=30100)], {"a": "a node port of the same Service"}, id="own node port"
        ),
        pytest.param([service("a", 30256)], {"a": OWN[30256]}, id="port of the agent"),
        pytest.param([service("a", 30101), service("b", 30100)], {}, id="none"),
    ],
)
def test_rivals(services: list[Service], rivals: Mapping[str, str]) -> None:
    """The agent's own ports come first, then the older Service, then the name; each order of events gives the same."""
    for order in permutations(services):
        ports = HealthPorts(OWN)
        for each in order:
            ports.update(each.name, each)

        assert rivals == {each.name.name: found for each in services if (found := ports.rival(each.name))}


def test_those_who_gain_and_lose_are_returned() -> None:
    """An update returns the other Services with the same port, before it or after it, and a lost port comes back."""
    ports = HealthPorts(OWN)
    ports.update(named("a"), service("a", 30100))

    assert {named("a")} == ports.update(named("b"), service("b", 30100, created=OLD))
    assert ("Service default/b", "") == (ports.rival(named("a")), ports.rival(named("b")))
    assert set() == ports.update(named("b"), service("b", 30100, created=OLD))
    assert {named("a")} == ports.update(named("b"), service("b", 30101, created=OLD))
    assert set() == ports.update(named("b"), None)
    assert ("", "") == (ports.rival(named("a")), ports.rival(named("b")))
