"""The choice of endpoints is uniform, for the printed probabilities of any number of rules and for whole rulesets."""

from decimal import Decimal
from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from pyproxy.backends.explanation import Host, Packet
from pyproxy.backends.iptables.chain_names import endpoint_chain
from pyproxy.backends.iptables.rules import equal_shares
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.model.address import Family, parse_ip
from pyproxy.model.endpoint import Endpoint, EndpointSlice, SliceEndpoint, SlicePort
from pyproxy.model.names import NamespacedName, Protocol, ServicePortName
from pyproxy.model.node import LocalTraffic, Node
from pyproxy.model.service import Service, ServicePort
from tests.properties.packet import Fate, Outcome, outcomes
from tests.properties.planning import compiled
from tests.properties.strategies import Cluster
from tests.properties.world import ips, networks

TOLERANCE = Fraction(1, 1 << 30)
STEPS = 1 << 31
CLUSTER_IP, CLIENT = ips("10.96.0.10", "10.244.9.9")
SERVICE = NamespacedName("default", "web")
HOST = Host(frozenset(ips("172.18.0.11")))
PODS = LocalTraffic(cidr=networks("10.244.0.0/16")[0])


def service_of(count: int, affinity_seconds: int | None) -> Cluster:
    """Return a cluster of one Service with several endpoints."""
    service = Service(
        name=SERVICE,
        families=(Family.IPV4,),
        cluster_ips=(CLUSTER_IP,),
        ports=(ServicePort("", Protocol.TCP, 80, 0),),
        affinity_seconds=affinity_seconds,
    )
    base = int.from_bytes(parse_ip("10.244.0.0"))
    endpoint_slice = EndpointSlice(
        NamespacedName("default", "web-x"),
        SERVICE,
        Family.IPV4,
        (SlicePort("", Protocol.TCP, 8080),),
        tuple(SliceEndpoint((base + number).to_bytes(4)) for number in range(1, count + 1)),
    )
    return Cluster((service,), (endpoint_slice,), Node(name="node1"))


@given(st.integers(1, 3000))
@example(1)
@example(3)
@example(5000)
def test_equal_shares(count: int) -> None:
    """With the printed probabilities, rounded as in the kernel, each of n rules gets 1/n of all connections."""
    left = Decimal(1)
    for text in equal_shares([("", "")] * count):
        kept = round(Decimal(text.split()[-1]) * STEPS) / Decimal(STEPS) if text else Decimal(1)
        assert abs(left * kept - 1 / Decimal(count)) < Decimal(1) / (1 << 30)
        left *= 1 - kept

    assert left == 0


@given(st.integers(1, 40), st.sampled_from((None, 10800)), st.booleans())
def test_every_endpoint_gets_its_share(count: int, affinity_seconds: int | None, hairpin_by_packet: bool) -> None:  # noqa: FBT001  # drawn by hypothesis
    """A new client's connection reaches each of n endpoints with probability 1/n, for any layout of the chains."""
    settings = IptablesSettings(family=Family.IPV4, local_traffic=PODS, hairpin_by_packet=hairpin_by_packet)
    tables = compiled(service_of(count, affinity_seconds), settings)
    ways = outcomes(tables, HOST, Packet(CLIENT, CLUSTER_IP, Protocol.TCP, 80, "cni0"))

    assert count == len(ways)
    assert all(abs(share - Fraction(1, count)) < TOLERANCE for share in ways.values())
    assert sum(ways.values()) == 1


@given(st.integers(1, 40), st.data(), st.booleans())
def test_a_known_client_stays(count: int, data: st.DataObject, hairpin_by_packet: bool) -> None:  # noqa: FBT001  # drawn by hypothesis
    """With session affinity, a known client always reaches its endpoint again."""
    number = data.draw(st.integers(1, count))
    endpoint = Endpoint((int.from_bytes(parse_ip("10.244.0.0")) + number).to_bytes(4), 8080)
    pin = endpoint_chain(ServicePortName(SERVICE, "", Protocol.TCP), endpoint)
    settings = IptablesSettings(family=Family.IPV4, local_traffic=PODS, hairpin_by_packet=hairpin_by_packet)
    tables = compiled(service_of(count, 10800), settings)
    ways = outcomes(tables, HOST, Packet(CLIENT, CLUSTER_IP, Protocol.TCP, 80, "cni0"), pins={pin})

    assert {Outcome(Fate.ARRIVES, endpoint): Fraction(1)} == ways
