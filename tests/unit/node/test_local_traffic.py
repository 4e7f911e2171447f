"""From flags and the Node to what rules depend on: whose packets are pods', and where node ports answer."""

import logging

import pytest

from pyproxy.config.config import NODEPORT_ADDRESSES, Config
from pyproxy.model.address import Family, ip_text, parse_ip, parse_network
from pyproxy.model.node import DetectLocalMode, LocalTraffic, Node
from pyproxy.node.local_traffic import (
    NodeReadiness,
    lists_blocks,
    local_traffic,
    node_port_ips,
    serves_localhost,
)
from pyproxy.node.node_name import own_node

CLUSTER, CLUSTER6, PODS, PODS6 = map(
    parse_network, ("10.244.0.0/16", "fd00:10:244::/48", "10.244.1.0/24", "fd00:10:244:1::/64")
)
NODE = Node(
    name="node1",
    ips=tuple(map(parse_ip, ("172.18.0.11", "fd00:172:18::11", "172.19.0.11"))),
    pod_cidrs=(PODS, parse_network("10.245.1.0/24"), PODS6),
)
LOCAL_IPS = tuple(
    map(parse_ip, ("127.0.0.1", "172.19.0.11", "172.18.0.11", "10.244.1.1", "::1", "fd00:172:18::11", "fe80::1"))
)


@pytest.mark.parametrize(
    ("config", "ipv4", "ipv6"),
    [
        pytest.param(
            Config(cluster_cidr=(CLUSTER6, CLUSTER)), LocalTraffic(CLUSTER), LocalTraffic(CLUSTER6), id="cluster range"
        ),
        pytest.param(Config(cluster_cidr=(CLUSTER,)), LocalTraffic(CLUSTER), None, id="no range of the family"),
        pytest.param(
            Config(detect_local_mode=DetectLocalMode.NODE_CIDR),
            LocalTraffic(PODS),
            LocalTraffic(PODS6),
            id="node range",
        ),
        pytest.param(
            Config(detect_local_mode=DetectLocalMode.BRIDGE_INTERFACE, pod_bridge_interface="cni0"),
            LocalTraffic(interface="cni0"),
            LocalTraffic(interface="cni0"),
            id="bridge",
        ),
        pytest.param(
            Config(detect_local_mode=DetectLocalMode.INTERFACE_NAME_PREFIX, pod_interface_name_prefix="veth"),
            LocalTraffic(interface_prefix="veth"),
            LocalTraffic(interface_prefix="veth"),
            id="prefix",
        ),
    ],
)
def test_how_pods_are_recognized(config: Config, ipv4: LocalTraffic | None, ipv6: LocalTraffic | None) -> None:
    """Pods are recognized by the first range of the family, or by interface in both; without either they are not."""
    assert [ipv4, ipv6] == [local_traffic(config, NODE, family) for family in Family]


def test_waiting_for_pod_ranges(caplog: pytest.LogCaptureFixture) -> None:
    """With NodeCIDR a Node without pod ranges has to be waited for; the log says so once."""
    config = Config(detect_local_mode=DetectLocalMode.NODE_CIDR)
    placement = NodeReadiness(config, tuple(Family))
    with caplog.at_level(logging.WARNING):
        known = [placement.has_pod_cidrs(node) for node in (Node(name="node1"), Node(name="node1"), NODE)]

    assert [False, False, True] == known
    assert ["node node1 has no podCIDRs yet, and --detect-local-mode=NodeCIDR needs them: waiting"] == caplog.messages


def blocks(*texts: str, localhost: bool = True) -> Config:
    """Return the configuration of blocks for node ports."""
    return Config(nodeport_addresses=tuple(map(parse_network, texts)), iptables_localhost_nodeports=localhost)


def listed(*items: str) -> Config:
    """Return the configuration of blocks and keywords for node ports, as they are typed."""
    value = NODEPORT_ADDRESSES.parse(",".join(items))
    return Config(nodeport_addresses=value)


PRIMARY = listed("primary")


@pytest.mark.parametrize(
    ("config", "ipv4", "ipv6"),
    [
        pytest.param(blocks(), None, None, id="no block: every address"),
        pytest.param(blocks("172.18.0.0/16"), ["172.18.0.11"], None, id="block of one family"),
        pytest.param(blocks("172.16.0.0/12"), ["172.18.0.11", "172.19.0.11"], None, id="sorted"),
        pytest.param(blocks("172.18.0.0/16", "0.0.0.0/0"), None, None, id="every address beside a block"),
        pytest.param(blocks("203.0.113.0/24"), [], None, id="no such address"),
        pytest.param(blocks("127.0.0.0/8", "172.18.0.0/16"), ["127.0.0.1", "172.18.0.11"], None, id="with loopback"),
        pytest.param(blocks("127.0.0.0/8", localhost=False), [], None, id="loopback switched off"),
        pytest.param(blocks("::1/128", "fd00::/16"), None, ["fd00:172:18::11"], id="never IPv6 loopback"),
        pytest.param(PRIMARY, ["172.18.0.11"], ["fd00:172:18::11"], id="the Node's own"),
        pytest.param(listed("all"), None, None, id="all"),
        pytest.param(listed("all", "primary", "10.0.0.0/8", "localhost"), None, None, id="all beside anything"),
        pytest.param(listed("localhost"), ["127.0.0.1"], [], id="localhost is about both families"),
        pytest.param(
            listed("localhost", "primary"), ["127.0.0.1", "172.18.0.11"], ["fd00:172:18::11"], id="two keywords"
        ),
        pytest.param(
            listed("primary", "172.19.0.0/16"),
            ["172.18.0.11", "172.19.0.11"],
            ["fd00:172:18::11"],
            id="primary beside a block of one family",
        ),
        pytest.param(listed("primary", "172.18.0.0/16"), ["172.18.0.11"], ["fd00:172:18::11"], id="the same twice"),
        pytest.param(listed("primary", "::/0"), ["172.18.0.11"], None, id="every address of one family"),
    ],
)
def test_where_node_ports_answer(config: Config, ipv4: list[str] | None, ipv6: list[str] | None) -> None:
    """Node ports answer on the local addresses inside the blocks of their family; without blocks on all."""
    found = [node_port_ips(config, NODE, family, LOCAL_IPS) for family in Family]

    assert [ipv4, ipv6] == [None if ips is None else list(map(ip_text, ips)) for ips in found]


def test_family_without_an_address_of_the_node() -> None:
    """With `primary`, node ports do not answer in a family of which the Node has no address."""
    node = Node(name="node1", ips=(parse_ip("172.18.0.11"),))

    assert () == node_port_ips(PRIMARY, node, Family.IPV6, LOCAL_IPS)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (blocks(), True),
        (blocks(localhost=False), False),
        (blocks("172.18.0.0/16"), False),
        (blocks("127.0.0.1/32"), True),
        (blocks("0.0.0.0/0"), True),
        (blocks("fd00::/16"), True),
        (PRIMARY, False),
        (listed("all"), True),
        (listed("localhost"), True),
        (listed("primary", "localhost"), True),
        (listed("primary", "fd00::/16"), False),
    ],
)
def test_node_ports_on_loopback(config: Config, expected: object) -> None:
    """Node ports answer on IPv4 loopback if the blocks overlap it and it is not disabled; on IPv6 they never do."""
    assert [expected, False] == [serves_localhost(config, family) for family in Family]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (blocks(), False),
        (PRIMARY, False),
        (listed("all", "172.18.0.0/16"), False),
        (listed("primary", "172.18.0.0/16"), True),
        (listed("localhost"), True),
        (blocks("172.18.0.0/16"), True),
        (blocks("0.0.0.0/0", "::/0"), False),
        (blocks("0.0.0.0/0", "fd00::/16"), True),
    ],
)
def test_blocks_are_listed(config: Config, expected: object) -> None:
    """Only a block that does not contain every address makes node ports depend on the node's addresses."""
    assert expected is lists_blocks(config)


@pytest.mark.parametrize(
    ("bind_address", "expected"),
    [
        ("0.0.0.0", ["172.18.0.11", "fd00:172:18::11", "172.19.0.11"]),  # noqa: S104  # nothing listens on it
        ("::", ["172.18.0.11", "fd00:172:18::11", "172.19.0.11"]),
        ("172.19.0.11", ["172.19.0.11", "fd00:172:18::11"]),
        ("fd00::5", ["fd00::5", "172.18.0.11", "172.19.0.11"]),
    ],
)
def test_bind_address(bind_address: str, expected: list[str]) -> None:
    """An address that was given takes the place of the Node's addresses of its family."""
    node = own_node(Config(bind_address=parse_ip(bind_address)), NODE, "node1")

    assert expected == list(map(ip_text, node.ips))


def test_unknown_node() -> None:
    """Before the Node is known there is its name, and what was given."""
    assert Node(name="node1") == own_node(Config(), None, "node1")
