"""The interpreter of the nftables mode and the oracle agree on every packet."""

from collections.abc import Collection, Iterable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.backends.explanation import Host, Packet
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.backends.nftables.elements import ElementKey, Value
from pyproxy.backends.nftables.explain import paths
from pyproxy.backends.nftables.layout import NftablesSettings, layout_text
from pyproxy.backends.nftables.program import NftablesProgram
from pyproxy.backends.nftables.ruleset_text import read_ruleset
from pyproxy.backends.nftables.text import table_text
from pyproxy.model.address import Family, family_of
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import Protocol
from tests.properties.aim import LOOPBACK_IPS, aimed_packets
from tests.properties.oracle import Oracle
from tests.properties.packet import Fate, Outcome, outcomes_of
from tests.properties.planning import filled, plans_of, wanted
from tests.properties.strategies import Cluster, clusters, nftables_settings
from tests.properties.world import WORLD, of_families

MANY = settings(max_examples=2 * settings().max_examples)


def for_oracle(chosen: NftablesSettings) -> IptablesSettings:
    """Return the settings of the iptables mode with the same semantics."""
    return IptablesSettings(
        family=chosen.family,
        masquerade_all=chosen.masquerade_all,
        local_traffic=chosen.local_traffic,
        node_port_ips=chosen.node_port_ips,
        localhost_node_ports=False,
    )


def serves_node_ports(packet: Packet, host: Host, chosen: NftablesSettings) -> bool:
    """Return False for packets to addresses of the node without node ports, where the iptables mode rejects them."""
    ips = chosen.node_port_ips
    return ips is None or packet.destination in ips or not host.is_local(packet.destination)


def is_closed(cluster: Cluster, packet: Packet) -> bool:
    """Return whether source ranges exclude a client: here before anything else, in the iptables mode after other addresses."""
    family = family_of(packet.destination)
    for service in cluster.services:
        ranges = [block for block in service.load_balancer_source_ranges if block.family is family]
        is_port = any((port.protocol, port.port) == (packet.protocol, packet.port) for port in service.ports)
        if not ranges or not is_port or packet.destination not in service.load_balancer_ips:
            continue
        node_ip = cluster.node.ip(family)
        is_node_inside = node_ip is not None and any(node_ip in block for block in ranges)
        is_own = is_node_inside and packet.source == packet.destination
        return not is_own and not any(packet.source in block for block in ranges)
    return False


def comparable(
    found: Iterable[Outcome], packet: Packet, host: Host, here: Collection[tuple[Endpoint, Protocol]]
) -> frozenset[Outcome]:
    """Return outcomes without the difference between the modes: hairpin connections that this node does not forward.

    The nftables mode masquerades those of its own pods only, by elements, and also those of the node to itself.
    """

    def without(outcome: Outcome) -> Outcome:
        endpoint = outcome.endpoint
        if (
            endpoint is None
            or endpoint.ip != packet.source
            or ((endpoint, packet.protocol) in here and not host.is_local(endpoint.ip))
        ):
            return outcome
        return replace(outcome, is_masqueraded=False)

    return frozenset(map(without, found))


@MANY
@given(st.data(), st.sampled_from(Family))
def test_elements_do_what_the_semantics_say(data: st.DataObject, family: Family) -> None:
    """Every way that a packet can take through the elements is one that the oracle names, and the other way round."""
    cluster = data.draw(clusters(contested=False))
    chosen = replace(data.draw(nftables_settings(family)), service_cidrs=())
    plans = plans_of(cluster, family)
    entries: dict[ElementKey, Value] = wanted(filled(NftablesProgram(chosen), plans))
    tables = read_ruleset(table_text(family, layout_text(chosen), entries))
    here = {(endpoint, plan.protocol) for plan in plans.values() for endpoint in plan.node_endpoints}
    host = Host(frozenset(of_families((*WORLD.node_ips, *WORLD.gateways), (family,))))
    oracle = Oracle(cluster, for_oracle(chosen), host)
    for packet in aimed_packets(cluster, host, family):
        if packet.destination in LOOPBACK_IPS or not serves_node_ports(packet, host, chosen):
            continue
        found = outcomes_of(paths(tables, packet, host))

        expected = oracle.outcomes(packet)
        if is_closed(cluster, packet):
            expected = frozenset({Outcome(Fate.DROPPED)})
        elif not packet.in_interface and expected == {Outcome(Fate.ARRIVES)}:
            # External addresses without endpoints are refused for the node as well, as for clients from outside.
            expected = oracle.outcomes(replace(packet, in_interface="eth0"))
        assert comparable(expected, packet, host, here) == comparable(found, packet, host, here), packet
        assert sum(found.values()) == 1
