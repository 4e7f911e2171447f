"""Rules and oracle agree on every packet: what is compiled does what the semantics ask for, and nothing else."""

from fractions import Fraction

from hypothesis import event, given
from hypothesis import strategies as st

from pyproxy.compile.iptables_static import IptablesSettings
from pyproxy.model.address import Family
from pyproxy.model.names import Protocol
from tests.properties.oracle import Oracle
from tests.properties.packet import Host, Packet, outcomes
from tests.properties.planning import compiled, plans_of
from tests.properties.strategies import Cluster, clusters, iptables_settings
from tests.properties.world import WORLD, ips, of_families

STRAY_PORTS = (9, 31999, 32000)
SMALLEST_STEP = Fraction(1, 1 << 30)
LOOPBACK_IPS = ips("127.0.0.1", "127.0.0.9", "::1")
IN_INTERFACES = ("cni0", "veth12")


@st.composite
def hosts(draw: st.DrawFn, family: Family) -> Host:
    """Give a node with its own addresses, to which a load balancer may have added some of its own."""
    bound = draw(st.lists(st.sampled_from(of_families(WORLD.load_balancer_ips, (family,))), max_size=2))
    return Host(frozenset(of_families((*WORLD.node_ips, *WORLD.gateways), (family,))) | frozenset(bound))


@st.composite
def packets(draw: st.DrawFn, host: Host, family: Family) -> Packet:
    """Give a packet to anything that a Service may have, or that looks like it."""
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
    in_interface = draw(st.sampled_from(("", "eth0", *IN_INTERFACES)))
    if in_interface == "":
        destinations += of_families(LOOPBACK_IPS, (family,))
        sources = sorted(host.ips) + of_families(LOOPBACK_IPS, (family,))
    else:
        pool = WORLD.pods if in_interface in IN_INTERFACES else WORLD.clients
        sources = of_families(pool, (family,))
    numbers = (*WORLD.port_numbers, *WORLD.node_ports, *WORLD.endpoint_ports, *STRAY_PORTS)
    return Packet(
        draw(st.sampled_from(sources)),
        draw(st.sampled_from(destinations)),
        draw(st.sampled_from(Protocol)),
        draw(st.sampled_from(numbers)),
        in_interface,
    )


@st.composite
def aimed_packets(draw: st.DrawFn, host: Host, family: Family, cluster: Cluster) -> Packet:
    """Give a packet that is mostly aimed at what some Service of the cluster claims."""
    packet = draw(packets(host, family))
    claims = [claim for plan in plans_of(cluster, family).values() for claim in plan.claims()]
    if not claims or draw(st.integers(0, 4)) == 0:
        return packet
    claim = draw(st.sampled_from(claims))
    ip = claim.ip or draw(st.sampled_from(sorted(host.ips)))
    return Packet(packet.source, ip, claim.protocol, claim.port, packet.in_interface)


@given(st.data(), clusters(), iptables_settings())
def test_rules_do_what_the_semantics_say(data: st.DataObject, cluster: Cluster, settings: IptablesSettings) -> None:
    """Every way that a packet can go through the rules is one that the oracle names, and the other way round."""
    tables = compiled(cluster, settings)
    host = data.draw(hosts(settings.family))
    oracle = Oracle(cluster, settings, host)
    for packet in data.draw(st.lists(aimed_packets(host, settings.family, cluster), min_size=5, max_size=15)):
        expected = oracle.outcomes(packet)
        for outcome in expected:
            event(f"{outcome.fate.value}, to an endpoint: {outcome.endpoint is not None}")

        assert expected == frozenset(outcomes(tables, host, packet)), packet
