"""What an agent tells load balancers, over real HTTP on loopback: from which sync on, and on which addresses."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

import pytest

from pyproxy.agent.health import AgentHealth
from pyproxy.config.config import Config
from pyproxy.model.address import Family, ListenAddress, parse_ip, parse_network
from pyproxy.model.endpoint import EndpointSlice, SliceEndpoint, SlicePort
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.model.node import Node
from pyproxy.model.service import Service, ServicePort
from pyproxy.node.context import NodeContext
from pyproxy.node.local_traffic import node_port_ips
from pyproxy.serve.listeners import Listeners
from tests.lab.waiting import wait_until
from tests.unit.serve.http_client import free_address, get, is_refused

WEB = NamespacedName("default", "web")
NODE = Node(name="node1", ips=(parse_ip("172.18.0.11"),))
NODE_PORT_BLOCKS = (parse_network("127.0.3.0/24"), parse_network("::1/128"))
FIRST, SECOND, THIRD = (parse_ip(f"127.0.3.{number}") for number in (1, 2, 3))
SLICE = EndpointSlice(
    NamespacedName("default", "web-x"),
    WEB,
    Family.IPV4,
    (SlicePort("", Protocol.TCP, 80),),
    (SliceEndpoint(parse_ip("10.244.1.1"), "node1"),),
)


@dataclass(frozen=True)
class Families:
    """The part of a proxy mode that health uses."""

    families: tuple[Family, ...] = (Family.IPV4,)

    def node_port_ips(self, family: Family, context: NodeContext) -> tuple[bytes, ...] | None:
        """Return the addresses on which node ports answer."""
        config = Config(nodeport_addresses=NODE_PORT_BLOCKS)
        return node_port_ips(config, context.node, family, context.local_ips)


def checked(port: int, name: NamespacedName = WEB, created: str = "") -> Service:
    """Return a Service with a health check node port."""
    return Service(
        name=name,
        created=created,
        families=(Family.IPV4,),
        cluster_ips=(parse_ip("10.96.0.1"),),
        ports=(ServicePort("", Protocol.TCP, 80, 0),),
        health_check_node_port=port,
    )


def health_of(listeners: Listeners, *families: Family) -> AgentHealth:
    """Return the health of an agent whose node ports answer on a range of loopback addresses."""
    made = AgentHealth(Config(), listeners)
    made.begin(Families(families=families or (Family.IPV4,)))  # type: ignore[arg-type]  # all that it uses
    return made


def on(*ips: bytes) -> NodeContext:
    """Return the context of a node with these addresses."""
    return NodeContext(node=NODE, local_ips=ips)


def test_checks_are_where_node_ports_are(listeners: Listeners) -> None:
    """A check listens on the node's addresses that have node ports, and moves when they change."""
    port = free_address(FIRST).port
    first, second, third = (ListenAddress(ip, port) for ip in (FIRST, SECOND, THIRD))
    health = health_of(listeners)
    health.plan(WEB, checked(port), [SLICE], NODE)
    health.synced([Family.IPV4], on(FIRST, SECOND))
    before = get(first).status, get(second).status, is_refused(third)
    health.synced([Family.IPV4], on(SECOND, THIRD))
    after = get(third).status, get(second).status
    wait_until(lambda: is_refused(first))

    assert ((200, 200, True), (200, 200)) == (before, after)


def test_balancers_are_told_after_the_kernel(listeners: Listeners) -> None:
    """What a Service has become counts from the sync on that went through in every family."""
    address = free_address(FIRST)
    health = health_of(listeners, *Family)
    health.plan(WEB, checked(address.port), [SLICE], NODE)
    health.synced([Family.IPV6], on(FIRST))
    too_early = is_refused(address)
    health.synced(tuple(Family), on(FIRST))
    there = get(address).headers["X-Load-Balancing-Endpoint-Weight"]
    health.plan(WEB, checked(address.port), [], NODE)
    health.synced([Family.IPV4], on(FIRST))
    not_yet = get(address).headers["X-Load-Balancing-Endpoint-Weight"]
    health.synced(tuple(Family), on(FIRST))
    gone = get(address).headers["X-Load-Balancing-Endpoint-Weight"]

    assert (True, "1", "1", "0") == (too_early, there, not_yet, gone)


def test_one_port_in_two_services(listeners: Listeners, caplog: pytest.LogCaptureFixture) -> None:
    """The older Service has the port, in either order; the other gets a message and an Event, and the port later."""
    address = free_address(FIRST)
    health = health_of(listeners)
    names = [NamespacedName("default", name) for name in ("a", "b")]
    health.plan(names[0], checked(address.port, names[0]), [], NODE)
    health.synced([Family.IPV4], on(FIRST))
    alone = service_of(address)
    health.plan(names[1], checked(address.port, names[1], created="2026-01-01T00:00:00Z"), [], NODE)
    health.synced([Family.IPV4], on(FIRST))
    wait_until(lambda: service_of(address) == "b")
    health.plan(names[0], checked(address.port, names[0]), [SLICE], NODE)
    health.synced([Family.IPV4], on(FIRST))
    health.plan(names[1], None, [], NODE)
    health.synced([Family.IPV4], on(FIRST))
    wait_until(lambda: service_of(address) == "a")
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]

    assert "a" == alone
    assert [f"health check of Service default/a is not served: port {address.port} is used by Service default/b"] == [
        record.getMessage() for record in warnings
    ]
    assert [("Service", names[0], "FailedToStartServiceHealthcheck")] == [
        (record.event.kind, record.event.name, record.event.reason)  # type: ignore[attr-defined]  # an extra
        for record in warnings
    ]


def test_ports_that_are_exchanged(listeners: Listeners, caplog: pytest.LogCaptureFixture) -> None:
    """Two Services that exchange their ports in one update do so without an error and without a pause for it."""
    first, second = free_address(FIRST), free_address(SECOND)
    health = health_of(listeners)
    names = [NamespacedName("default", name) for name in ("a", "b")]
    caplog.set_level(logging.INFO)
    for ports in ((first.port, second.port), (second.port, first.port)) * 5:
        for name, port in zip(names, ports, strict=True):
            health.plan(name, checked(port, name), [], NODE)
        health.synced([Family.IPV4], on(FIRST, SECOND))
        wait_until(lambda: service_of(ListenAddress(FIRST, ports[0])) == "a")  # noqa: B023  # called at once
        wait_until(lambda: service_of(ListenAddress(FIRST, ports[1])) == "b")  # noqa: B023  # called at once

    assert [] == [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("port", [10249, 10256])
def test_a_port_of_the_agent(listeners: Listeners, caplog: pytest.LogCaptureFixture, port: int) -> None:
    """No Service gets a port that the agent uses for metrics or health; the message names the flag."""
    health = health_of(listeners)
    health.plan(WEB, checked(port), [SLICE], NODE)
    health.synced([Family.IPV4], on(FIRST))
    flag = {10249: "metrics", 10256: "healthz"}[port]

    assert f"port {port} is used by pyproxy (--{flag}-bind-address)" in caplog.text
    assert is_refused(ListenAddress(FIRST, port))


def service_of(address: ListenAddress) -> str:
    """Return the name of the Service that a health check node port answers for; empty if it was just closed."""
    try:
        return str(json.loads(get(address).body)["service"]["name"])
    except ConnectionError:
        return ""


def test_a_check_goes_with_its_service(listeners: Listeners) -> None:
    """A Service that is gone, or has another policy, has no server."""
    address = free_address(FIRST)
    health = health_of(listeners)
    for last in (None, checked(0)):
        health.plan(WEB, checked(address.port), [SLICE], NODE)
        health.synced([Family.IPV4], on(FIRST))
        assert 200 == get(address).status
        health.plan(WEB, last, [], NODE)
        health.synced([Family.IPV4], on(FIRST))
        wait_until(lambda: is_refused(address))
