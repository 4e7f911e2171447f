"""The same flags have the same effects in pyproxy and kube-proxy."""

from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from itertools import chain, cycle

import pytest

from tests.lab import Protocol

from .controlplane import ControlPlane
from .peer.answers import divergences
from .peer.handmade import FOR_FLAGS
from .peer.modes import LEGACY, MODES, NFT, NFTABLES, Mode
from .peer.packets import Destination, core_and_further, destinations, packets
from .peer.pair import Pair
from .peer.world import CLUSTER_CIDR_FLAG, CORE

FURTHER_PACKETS = 40
BLOCKS = "--nodeport-addresses="
RELAY = "--feature-gates=KubeProxyNFTablesLocalhostNodePorts=true"
"""Makes kube-proxy serve TCP node ports on loopback in nftables mode; pyproxy does so in all modes, without a gate."""
FLAGS = {
    "masquerade-all": (CLUSTER_CIDR_FLAG, "--masquerade-all"),
    "no cluster CIDR": (),
    "cluster CIDR of one family": ("--cluster-cidr=10.244.0.0/16",),
    "node CIDR": ("--detect-local-mode=NodeCIDR",),
    "bridge": ("--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0"),
    "interface prefix": ("--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cn"),
    "some node port addresses": (CLUSTER_CIDR_FLAG, "--nodeport-addresses=172.19.0.0/24,fd00:172:19::/64"),
    "node port addresses of one family": (CLUSTER_CIDR_FLAG, "--nodeport-addresses=172.18.0.0/24,127.0.0.0/8"),
    "loopback node ports only": (CLUSTER_CIDR_FLAG, "--nodeport-addresses=127.0.0.1/32,::1/128", RELAY),
    "primary node port addresses": (CLUSTER_CIDR_FLAG, "--nodeport-addresses=primary"),
    "no node ports on loopback": (CLUSTER_CIDR_FLAG, "--iptables-localhost-nodeports=false"),
    "another mark": (CLUSTER_CIDR_FLAG, "--iptables-masquerade-bit=3"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Test all flags in each mode; without --long, the iptables variants share them."""
    if "flags" in metafunc.fixturenames:
        is_long = metafunc.config.getoption("--long")
        modes_in_turn: Iterator[Sequence[Mode]] = cycle([MODES] if is_long else [(LEGACY, NFTABLES), (NFT, NFTABLES)])
        cases = [(name, mode) for name, modes in zip(FLAGS, modes_in_turn, strict=False) for mode in modes]
        ids = [f"{name}-{mode}" for name, mode in cases]
        metafunc.parametrize(("flags", "mode"), [(FLAGS[name], mode) for name, mode in cases], ids=ids)


def test_flags(control_plane: ControlPlane, mode: Mode, flags: tuple[str, ...]) -> None:
    """Packets have the same results if both proxies have the same flags."""
    with Pair(control_plane, mode, flags) as pair:
        created = pair.replace_objects(FOR_FLAGS)

        wanted = [
            packet
            for packet in core_and_further(destinations(created), FURTHER_PACKETS)
            if not is_for_pyproxys_relay(packet.destination, mode, flags)
        ]

        assert [] == divergences(pair, created, wanted)


def is_for_pyproxys_relay(destination: Destination, mode: Mode, flags: Sequence[str]) -> bool:
    """Return whether a packet is for a node port on loopback that only pyproxy serves (docs/differences.md)."""
    ip = destination.to.ip
    texts = [flag.removeprefix(BLOCKS).split(",") for flag in flags if flag.startswith(BLOCKS)]
    blocks = [ip_network(text) for text in chain.from_iterable(texts) if "/" in text]
    if not ip.is_loopback or not any(ip in block for block in blocks):
        return False
    if mode is NFTABLES:
        return RELAY not in flags or destination.protocol is not Protocol.TCP
    return destination.version == 6  # for IPv4 both have rules


def test_a_difference_is_found(control_plane: ControlPlane) -> None:
    """With --masquerade-all for pyproxy only, the comparison finds the different packets."""
    with Pair(control_plane, MODES[0], [CLUSTER_CIDR_FLAG], only_pyproxy=["--masquerade-all"]) as pair:
        created = pair.replace_objects(FOR_FLAGS)
        wanted = [packet for packet in packets(CORE, destinations(created)) if packet.destination.what == "cluster IP"]
        found = divergences(pair, created, wanted)

    assert {"client-pod", "pod1-1", "pod2-3"} == {text.split(" ->")[0] for text in found}
