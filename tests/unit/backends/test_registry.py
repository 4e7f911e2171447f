"""The list of modes, and what each mode answers about node ports."""

from collections.abc import Iterator

import pytest

from pyproxy.backends.interface import Backend
from pyproxy.backends.iptables.mode import IptablesMode
from pyproxy.backends.ipvs.mode import IpvsMode
from pyproxy.backends.nftables.mode import NftablesMode
from pyproxy.backends.registry import backend_class, open_dumper
from pyproxy.config.config import NODEPORT_ADDRESSES, Config, ProxyMode
from pyproxy.linux.iptables_programs import Variant
from pyproxy.model.address import Family, parse_ip, parse_network
from pyproxy.model.node import Node
from pyproxy.node.context import NodeContext

MODES = [mode for mode in ProxyMode if mode is not ProxyMode.AUTO]
NODE = Node(name="node1", ips=tuple(map(parse_ip, ("172.18.0.11", "fd00:172:18::11"))))
LOCAL_IPS = tuple(map(parse_ip, ("127.0.0.1", "172.19.0.11", "172.18.0.11", "::1", "fd00:172:18::11", "fe80::1")))
LOCAL_NETWORKS = tuple(map(parse_network, ("127.0.0.0/8", "127.0.0.1/32", "172.18.0.11/32", "::1/128", "fe80::1/128")))
CONTEXT = NodeContext(node=NODE, local_ips=LOCAL_IPS)
WITHOUT_LOOPBACK = ["172.18.0.11/32", "fe80::1/128"]


@pytest.fixture
def nftables() -> Iterator[None]:
    """Close the sockets of the nftables mode at the end."""
    yield
    while OPENED:
        OPENED.pop()._generation.close()


OPENED: list[NftablesMode] = []
pytestmark = pytest.mark.usefixtures("nftables")


def node_ports(*items: str, localhost: bool = True) -> Config:
    """Return the configuration with these items of `--nodeport-addresses`."""
    addresses = NODEPORT_ADDRESSES.parse(",".join(items)) if items else ()
    return Config(nodeport_addresses=addresses, iptables_localhost_nodeports=localhost)


def backend(mode: ProxyMode, config: Config) -> Backend:
    """Return a mode without a test of what the kernel supports."""
    match mode:
        case ProxyMode.NFTABLES:
            OPENED.append(NftablesMode(config))
            return OPENED[-1]
        case ProxyMode.IPVS:
            return IpvsMode(config, Variant.LEGACY)
        case _:
            return IptablesMode(config, Variant.LEGACY, (), count_invalid=False, count_localhost=False)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_a_row(mode: ProxyMode) -> None:
    """Every value of --proxy-mode but auto has a backend of that mode, and lists rules in a format of its own."""
    assert mode is backend_class(mode).mode
    assert open_dumper(Config(proxy_mode=mode)).script_formats


def test_one_mode_follows_service_cidrs() -> None:
    """Only the nftables mode drops packets to addresses that no Service has, and so needs their ranges."""
    assert [ProxyMode.NFTABLES] == [mode for mode in MODES if backend_class(mode).follows_service_cidrs]


@pytest.mark.parametrize(
    ("config", "mode", "expected"),
    [
        pytest.param(
            node_ports(),
            ProxyMode.IPTABLES,
            ["127.0.0.0/8", "127.0.0.1/32", "172.18.0.11/32", "fe80::1/128"],
            id="every address",
        ),
        pytest.param(node_ports(localhost=False), ProxyMode.IPTABLES, WITHOUT_LOOPBACK, id="loopback switched off"),
        pytest.param(node_ports(), ProxyMode.IPVS, WITHOUT_LOOPBACK, id="ipvs"),
        pytest.param(
            node_ports("0.0.0.0/0", "::/0"), ProxyMode.NFTABLES, WITHOUT_LOOPBACK, id="nftables, every address"
        ),
        pytest.param(node_ports(), ProxyMode.NFTABLES, ["172.18.0.11/32", "fd00:172:18::11/128"], id="nftables"),
        pytest.param(
            node_ports("172.16.0.0/12"),
            ProxyMode.IPTABLES,
            ["172.18.0.11/32", "172.19.0.11/32", "fe80::1/128"],
            id="block of one family",
        ),
    ],
)
def test_whose_flows_are_a_node_ports(config: Config, mode: ProxyMode, expected: list[str]) -> None:
    """A flow belongs to a node port if its destination is an address on which the mode's rules serve node ports."""
    made = backend(mode, config)
    found: list[str] = []
    for family in Family:
        local = [block for block in LOCAL_NETWORKS if block.family is family]
        found += map(str, made.node_port_networks(family, CONTEXT, local))

    assert expected == found


@pytest.mark.parametrize(
    ("config", "iptables", "other_modes"),
    [
        (node_ports(), [False, False], [False, False]),
        (node_ports("all"), [False, False], [False, False]),
        (node_ports("primary"), [False, False], [False, False]),
        (node_ports("localhost"), [False, True], [True, True]),
        (node_ports("primary", "localhost", "all"), [False, True], [True, True]),
        (node_ports("127.0.0.0/8"), [False, False], [True, False]),
        (node_ports("::1/128", "10.0.0.0/8"), [False, True], [False, True]),
        (node_ports("127.0.0.1/32", "::1/128", localhost=False), [False, False], [True, True]),
    ],
)
def test_relayed_families(config: Config, iptables: list[bool], other_modes: list[bool]) -> None:
    """A relay serves the families whose loopback is listed by name; in iptables mode not IPv4, which rules serve."""
    found = {mode: [backend(mode, config).relays_localhost(family) for family in Family] for mode in MODES}

    assert {ProxyMode.IPTABLES: iptables, ProxyMode.NFTABLES: other_modes, ProxyMode.IPVS: other_modes} == found


@pytest.mark.parametrize(
    ("mode", "by_default", "with_a_block"),
    [
        (ProxyMode.IPTABLES, False, True),
        (ProxyMode.NFTABLES, False, True),
        (ProxyMode.IPVS, True, True),
    ],
)
def test_whether_addresses_are_followed(mode: ProxyMode, by_default: object, with_a_block: object) -> None:
    """New addresses of the node matter in IPVS mode, and in the other modes if --nodeport-addresses has a block."""
    found = [backend(mode, config).follows_local_ips for config in (node_ports(), node_ports("172.18.0.0/16"))]

    assert [by_default, with_a_block] == found


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (ProxyMode.IPTABLES, [None, None]),
        (ProxyMode.NFTABLES, [(NODE.ips[0],), (NODE.ips[1],)]),
        (ProxyMode.IPVS, [None, None]),
    ],
)
def test_health_check_node_ports(mode: ProxyMode, expected: list[object]) -> None:
    """By default health check node ports answer where node ports do: on all addresses, in nftables mode on the Node's."""
    made = backend(mode, node_ports())

    assert expected == [made.node_port_ips(family, CONTEXT) for family in Family]


@pytest.mark.parametrize(
    ("mode", "config", "expected"),
    [
        (ProxyMode.IPTABLES, node_ports(), ["ct_state_invalid_dropped", "localhost_nodeports_accepted"]),
        (ProxyMode.IPTABLES, node_ports(localhost=False), ["ct_state_invalid_dropped"]),
        (ProxyMode.NFTABLES, node_ports(), ["localhost_nodeport_rejected"]),
        (ProxyMode.IPVS, node_ports(), []),
    ],
)
def test_packet_counters(mode: ProxyMode, config: Config, expected: list[str]) -> None:
    """The counters of a mode have kube-proxy's names, which begin with the mode's."""
    names = [count.metric for count in backend(mode, config).packet_counts()]

    assert [f"kubeproxy_{mode.value}_{name}_packets" for name in expected] == names
