"""Invariants of the IPVS mode for any cluster, and on a kernel with IPVS real packets compared with the oracle."""

import asyncio
import gc
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pyproxy.agent.reconcile import Reconciler
from pyproxy.backends.explanation import Host, Packet
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.backends.ipvs.cleanup import removable_ipvs
from pyproxy.backends.ipvs.dump import IpvsDumper
from pyproxy.backends.ipvs.entries import IpvsKey, IpvsValue, Member, RealServer, Scheduling, Vip, VirtualServer
from pyproxy.backends.ipvs.kernel import IpvsKernel
from pyproxy.backends.ipvs.mode import IpvsMode, ipvs_settings
from pyproxy.backends.ipvs.program import IpvsProgram
from pyproxy.backends.ipvs.static_rules import SERVED, IpvsSettings
from pyproxy.backends.ipvs.virtual_servers import IpvsConnection
from pyproxy.config.config import Config, ProxyMode
from pyproxy.linux.iptables_programs import Variant
from pyproxy.model.address import Family, parse_ip
from pyproxy.node.context import NodeContext
from tests.lab import Lab, Outcome, Probe, Protocol, Shape, SocketAddress, Verdict, probe_all
from tests.packets.own_namespace import inside
from tests.properties import strategies
from tests.properties.aim import LOOPBACK_IPS, aimed_packets, is_here
from tests.properties.oracle import Oracle
from tests.properties.packet import Fate
from tests.properties.packet import Outcome as Expected
from tests.properties.planning import Plans, filled, plans_of, succeeded, wanted
from tests.properties.strategies import Cluster, clusters
from tests.properties.world import WORLD, of_families, shown

FEW = settings(max_examples=min(40, max(4, settings().max_examples // 25)), phases=(Phase.generate,))
"""An example waits for dropped packets, and shrinking it would take too long."""
PACKETS = 60
TRIES = 3
ANSWER_SECONDS = 3.0


@given(clusters(), strategies.ipvs_settings())
def test_everything_leads_to_something(cluster: Cluster, chosen: IpvsSettings) -> None:
    """Real servers have virtual servers; each of these is in one set, and has an address to which packets are routed."""
    found = wanted(filled(IpvsProgram(chosen), plans_of(cluster, chosen.family)))

    virtuals = {key for key in found if isinstance(key, VirtualServer)}
    assert virtuals >= {key.virtual for key in found if isinstance(key, RealServer)}
    members = [
        VirtualServer(key.ip, key.protocol, key.port) for key in found if isinstance(key, Member) and key.set in SERVED
    ]
    assert virtuals == set(members)
    assert len(virtuals) == len(members)
    assert {virtual.ip for virtual in virtuals} - chosen.local_ips == {key.ip for key in found if isinstance(key, Vip)}


# -- packets


@dataclass(frozen=True, slots=True)
class Node:
    """The first node of a lab, with the kernel of each family as opened by the agent."""

    lab: Lab
    kernels: Mapping[Family, IpvsKernel]

    def program(self, cluster: Cluster, chosen: IpvsSettings) -> None:
        """Sync the kernel to a cluster from any state; an agent that starts afterwards writes nothing."""
        with inside(self.lab["node1"].namespace.path):
            asyncio.run(self._program(cluster, chosen))

    async def _program(self, cluster: Cluster, chosen: IpvsSettings) -> None:
        kernel, plans = self.kernels[chosen.family], plans_of(cluster, chosen.family)
        await _synced(plans, chosen, kernel)
        present = await kernel.read()
        expected = wanted(filled(IpvsProgram(chosen), plans))
        assert expected == {key: value for key, value in present.items() if key in expected}
        left = {key for key in present if key not in expected}
        # Draining servers are deleted at the next check of the agent, with everything that they need.
        assert {0} >= {present[key] for key in left if isinstance(key, RealServer)}
        ips = {key.ip for key in left if isinstance(key, VirtualServer)}
        assert ips >= {key.ip for key in left if isinstance(key, Member | Vip)}
        assert len(left) >= await _synced(plans, chosen, kernel)


async def _synced(plans: Plans, chosen: IpvsSettings, kernel: IpvsKernel) -> int:
    """Start an agent; return how many entries it changed."""
    reconciler: Reconciler[IpvsKey, IpvsValue] = Reconciler(chosen.family, IpvsProgram(chosen), kernel)
    reconciler.stage(plans)
    report = succeeded(await reconciler.sync())
    assert not report.refused
    return report.entries_changed


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Provide a node without our rules, next to hosts that answer on all ports of endpoints."""
    with (
        Lab(Shape(nodes=2, pods_per_node=2), timeout_seconds=ANSWER_SECONDS) as lab,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XTABLES_LOCKFILE", str(tmp_path_factory.mktemp("xtables") / "lock"))
        ports = list(WORLD.endpoint_ports)
        for host in (*lab.pods, *lab.nodes, lab.database):
            host.serve(tcp=ports, udp=ports, sctp=ports)
        with ExitStack() as stack:
            mode = IpvsMode(Config(proxy_mode=ProxyMode.IPVS), Variant.LEGACY)
            stack.callback(mode.close)
            with inside(lab["node1"].namespace.path):
                mode.prepare()
                kernels = {family: mode.kernel(family) for family in Family}
            yield Node(lab, kernels)


@pytest.mark.needs_ipvs
def test_reads_close_their_sockets(node: Node) -> None:
    """A listing and a dry clean-up close their sockets; Python warns of one that is left to the garbage collector."""
    with inside(node.lab["node1"].namespace.path), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        asyncio.run(IpvsDumper(Config(proxy_mode=ProxyMode.IPVS)).live())
        removable_ipvs(include_kube_proxy=True)
        gc.collect()

    assert [] == [str(each.message) for each in caught]


@pytest.mark.needs_ipvs
def test_look_beside_a_read(node: Node) -> None:
    """What a read leaves in place stays known after a look, which may have seen the kernel before the read did."""
    kernel, foreign = node.kernels[Family.IPV4], VirtualServer(parse_ip("192.0.2.50"), 6, 80)
    with inside(node.lab["node1"].namespace.path), IpvsConnection() as servers:
        servers.perform([servers.add(foreign, Scheduling("rr"))], [servers.change(foreign, Scheduling("rr"))])
        asyncio.run(kernel.read())
        servers.perform_deletes([servers.delete(foreign)])
        asyncio.run(kernel.peek())

    assert foreign in kernel.leftovers()


@pytest.mark.needs_ipvs
@FEW
@given(st.data(), st.sampled_from(Family), st.booleans())
def test_packets_have_the_outcome_of_the_oracle(
    node: Node,
    data: st.DataObject,
    family: Family,
    masquerade_all: bool,  # noqa: FBT001  # drawn by hypothesis
) -> None:
    """In any cluster, packets from the node, its pods and external hosts have an outcome of the oracle."""
    cluster = _with_node(data.draw(clusters(contested=False)))
    config = Config(proxy_mode=ProxyMode.IPVS, cluster_cidr=WORLD.cluster_cidrs, masquerade_all=masquerade_all)
    chosen = ipvs_settings(config, family, NodeContext(node=cluster.node, local_ips=HOST.ips))
    node.program(cluster, chosen)
    oracle = Oracle(cluster, _for_oracle(chosen), HOST)
    random = data.draw(st.randoms(use_true_random=False))
    host = Host(frozenset(of_families(HOST.ips, (family,))))
    sent = [packet for packet in aimed_packets(cluster, host, family) if _can_be_sent(packet)]
    expected = {packet: oracle.outcomes(packet) for packet in random.sample(sent, min(PACKETS, len(sent)))}
    # The oracle does not predict the fate of packets that match no Service.
    probes = [packet for packet, fates in expected.items() if Expected(Fate.ARRIVES) not in fates] * TRIES
    outcomes = probe_all([(node.lab[HOSTS[shown(packet.source)]], _probe(packet)) for packet in probes])
    wrong = [
        f"{shown(packet.source)} to {_probe(packet).to}/{packet.protocol.value}: {outcome}, expected {expected[packet]}"
        for packet, outcome in zip(probes, outcomes, strict=True)
        if not any(_is(outcome, fate, packet) for fate in expected[packet])
    ]

    assert not wrong, "\n".join(wrong)


HOST = Host(frozenset((*WORLD.node_ips, *WORLD.gateways)))
HOSTS = {
    **{shown(ip): "node1" for ip in WORLD.node_ips},
    **dict.fromkeys(("10.244.1.11", "fd00:10:244:1::11"), "pod1-1"),
    **dict.fromkeys(("10.244.1.13", "fd00:10:244:1::13"), "client-pod"),
    **dict.fromkeys(("172.18.0.101", "fd00:172:18::101"), "outside1"),
}
"""The host that has each source address."""


def _can_be_sent(packet: Packet) -> bool:
    """Return whether the lab has the source; node ports are not served on loopback in this mode."""
    return shown(packet.source) in HOSTS and packet.destination not in LOOPBACK_IPS


def _with_node(cluster: Cluster) -> Cluster:
    """Return a cluster whose Node matches the first node of the lab."""
    node = replace(cluster.node, ips=WORLD.node_ips[::2], pod_cidrs=WORLD.pod_cidrs)
    return replace(cluster, node=node)


def _for_oracle(chosen: IpvsSettings) -> IptablesSettings:
    return IptablesSettings(
        family=chosen.family,
        masquerade_all=chosen.masquerade_all,
        local_traffic=chosen.local_traffic,
        node_port_ips=chosen.node_port_ips,
    )


def _probe(packet: Packet) -> Probe:
    to = SocketAddress(ip_address(packet.destination), packet.port)
    return Probe(Protocol(packet.protocol.value.upper()), to, source=ip_address(packet.source))


def _passes_back(packet: Packet, endpoint: bytes) -> bool:
    """Return whether the endpoint's answers pass this node: the node name of an endpoint may be wrong."""
    return is_here(HOST, endpoint) or packet.in_interface != "eth0"


def _is(outcome: Outcome, expected: Expected, packet: Packet) -> bool:
    """Return whether a packet had the expected outcome."""
    if expected.endpoint is None:
        verdict = {Fate.REJECTED: Verdict.REFUSED, Fate.DROPPED: Verdict.TIMEOUT}[expected.fate]
        return outcome.verdict is verdict
    if not expected.is_masqueraded and not _passes_back(packet, expected.endpoint.ip):
        return outcome.verdict is Verdict.TIMEOUT
    endpoint = SocketAddress(ip_address(expected.endpoint.ip), expected.endpoint.port)
    is_own = outcome.client_ip == ip_address(packet.source)
    is_nodes = outcome.client_ip is not None and outcome.client_ip.packed in HOST.ips
    return outcome.reached == endpoint and (is_nodes if expected.is_masqueraded else is_own)
