"""Rules and oracle agree on every packet: compiled rules implement exactly the semantics."""

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pyproxy.backends.explanation import Host, Packet
from pyproxy.model.address import Family
from pyproxy.model.names import Protocol
from tests.properties.aim import IN_INTERFACES, LOOPBACK_IPS, aimed_packets, sources
from tests.properties.oracle import Oracle
from tests.properties.packet import outcomes
from tests.properties.planning import compiled
from tests.properties.strategies import clusters, iptables_settings
from tests.properties.world import TIGHT_WORLD, WORLD, World, of_families

STRAY_PORTS = (9, 31999, 32000)

MANY = settings(max_examples=2 * settings().max_examples)
"""A packet path that needs a certain Service, node and client is rare."""


@st.composite
def hosts(draw: st.DrawFn, world: World, family: Family) -> Host:
    """Draw a node with its own addresses, and possibly addresses of a load balancer."""
    bound = draw(st.lists(st.sampled_from(of_families(world.load_balancer_ips, (family,))), max_size=2))
    return Host(frozenset(of_families((*world.node_ips, *world.gateways), (family,))) | frozenset(bound))


@st.composite
def stray_packets(draw: st.DrawFn, host: Host, family: Family) -> Packet:
    """Draw a packet from any source to a frontend of a Service, or to a similar address."""
    destinations = of_families(
        (
            *WORLD.cluster_ips,
            *WORLD.external_ips,
            *WORLD.load_balancer_ips,
            *WORLD.endpoint_ips,
            *WORLD.node_ips,
            *WORLD.gateways,
        ),
        (family,),
    )
    in_interface = draw(st.sampled_from(IN_INTERFACES))
    if in_interface == "":
        destinations += of_families(LOOPBACK_IPS, (family,))
    numbers = (*WORLD.port_numbers, *WORLD.node_ports, *WORLD.endpoint_ports, *STRAY_PORTS)
    return Packet(
        draw(st.sampled_from(sorted(sources(host, family, in_interface)))),
        draw(st.sampled_from(destinations)),
        draw(st.sampled_from(Protocol)),
        draw(st.sampled_from(numbers)),
        in_interface,
    )


@MANY
@pytest.mark.parametrize("world", [WORLD, TIGHT_WORLD], ids=["wide", "tight"])
@given(st.data(), st.sampled_from(Family), st.booleans())
def test_rules_implement_the_semantics(
    world: World,
    data: st.DataObject,
    family: Family,
    contested: bool,  # noqa: FBT001  # drawn by hypothesis
) -> None:
    """The possible outcomes of a packet in the rules equal those of the oracle."""
    cluster = data.draw(clusters(world, contested=contested))
    chosen = data.draw(iptables_settings(family, world))
    tables = compiled(cluster, chosen)
    host = data.draw(hosts(world, family))
    oracle = Oracle(cluster, chosen, host)
    strays = data.draw(st.lists(stray_packets(host, family), max_size=4))
    for packet in (*strays, *aimed_packets(cluster, host, family)):
        expected = oracle.outcomes(packet)
        for outcome in expected:
            event(f"{outcome.fate.value}, to an endpoint: {outcome.endpoint is not None}")

        assert expected == frozenset(outcomes(tables, host, packet)), packet
