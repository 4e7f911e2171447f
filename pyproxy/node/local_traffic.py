"""Derives settings of the modes from configuration and Node: how pods are recognized, and where node ports answer."""

import logging
from collections.abc import Collection
from dataclasses import replace
from ipaddress import ip_network
from typing import TypeVar

from pyproxy.config.config import Config, NodePortAddresses
from pyproxy.model.address import LOOPBACK_NETWORKS, Family, Network, family_of
from pyproxy.model.node import DetectLocalMode, LocalTraffic, Node
from pyproxy.node.context import FamilySettings, NodeContext

logger = logging.getLogger(__name__)

SettingsT = TypeVar("SettingsT", bound=FamilySettings)


def family_settings(kind: type[SettingsT], config: Config, family: Family, context: NodeContext) -> SettingsT:
    """Return settings of a mode with the values that all modes have; the mode's own keep their defaults."""
    return kind(
        family=family,
        masquerade_mark=1 << config.iptables_masquerade_bit,
        masquerade_all=config.masquerade_all,
        local_traffic=local_traffic(config, context.node, family),
    )


def local_traffic(config: Config, node: Node, family: Family) -> LocalTraffic | None:
    """Return how packets from pods are recognized; None if the configuration has no way to do so."""
    match config.detect_local_mode:
        case DetectLocalMode.BRIDGE_INTERFACE:
            return LocalTraffic(interface=config.pod_bridge_interface)
        case DetectLocalMode.INTERFACE_NAME_PREFIX:
            return LocalTraffic(interface_prefix=config.pod_interface_name_prefix)
        case DetectLocalMode.NODE_CIDR:
            cidr = node.pod_cidr(family)
        case DetectLocalMode.CLUSTER_CIDR:
            cidr = next((block for block in config.cluster_cidr if block.family is family), None)
    return LocalTraffic(cidr=cidr) if cidr is not None else None


def nftables_config(config: Config) -> Config:
    """Return the configuration with the defaults of the nftables mode: node ports on the Node's IPs, never on loopback."""
    addresses = config.nodeport_addresses or (NodePortAddresses.PRIMARY,)
    return replace(config, nodeport_addresses=addresses, iptables_localhost_nodeports=False)


def lacks_pod_cidr(config: Config, node: Node, families: Collection[Family]) -> bool:
    """Return whether the configuration needs the Node's podCIDRs and the Node has none yet."""
    return config.detect_local_mode is DetectLocalMode.NODE_CIDR and not any(map(node.pod_cidr, families))


class NodeReadiness:
    """Checks whether the Node has the podCIDRs that rules depend on, and logs once that they are missing."""

    def __init__(self, config: Config, families: Collection[Family]) -> None:
        self._config = config
        self._families = families
        self._logged_waiting = False

    def has_pod_cidrs(self, node: Node) -> bool:
        """Return whether the Node has the podCIDRs, or rules do not depend on them."""
        lacking = lacks_pod_cidr(self._config, node, self._families)
        if lacking and not self._logged_waiting:
            logger.warning(
                "node %s has no podCIDRs yet, and --detect-local-mode=NodeCIDR needs them: waiting", node.name
            )
        self._logged_waiting = lacking
        return not lacking


def serves_localhost(config: Config, family: Family) -> bool:
    """Return whether rules serve node ports on loopback addresses: only in IPv4, because IPv6 has no route_localnet.

    They do not side-by-side with kube-proxy, because the rule that protects route_localnet is in the kubelet's chain.
    """
    if family is Family.IPV6 or not config.iptables_localhost_nodeports or config.service_proxy_name:
        return False
    blocks = _node_port_blocks(config, family)
    loopback = ip_network(str(LOOPBACK_NETWORKS[family]))
    return blocks is None or any(ip_network((block.ip, block.prefix)).overlaps(loopback) for block in blocks)


def relays_localhost(config: Config, family: Family, *, has_rules: bool) -> bool:
    """Return whether a relay serves node ports on 127.0.0.1 or ::1: ``--nodeport-addresses`` lists loopback, and no rule does.

    A block that also contains other addresses, such as 0.0.0.0/0, does not list loopback (kube-proxy 1.37,
    ``ContainsExplicitLoopback``).

    Args:
        config: of the agent.
        family: of the loopback address.
        has_rules: whether the mode has rules for IPv4. Then ``--iptables-localhost-nodeports=false`` disables the relay
            in both families too.
    """
    if has_rules and (not config.iptables_localhost_nodeports or serves_localhost(config, family)):
        return False
    return any(
        item is NodePortAddresses.LOCALHOST
        or (isinstance(item, Network) and item.family is family and item.ip in LOOPBACK_NETWORKS[family])
        for item in config.nodeport_addresses
    )


def node_port_ips(config: Config, node: Node, family: Family, local_ips: Collection[bytes]) -> tuple[bytes, ...] | None:
    """Return the addresses on which node ports answer, sorted; None means all addresses of the node."""
    blocks = _node_port_blocks(config, family)
    if blocks is None:
        return None
    with_loopback = serves_localhost(config, family)
    found = {
        ip
        for ip in local_ips
        if family_of(ip) is family
        and any(ip in block for block in blocks)
        and (with_loopback or ip not in LOOPBACK_NETWORKS[family])
    }
    if NodePortAddresses.PRIMARY in config.nodeport_addresses and (ip := node.ip(family)) is not None:
        found.add(ip)
    return tuple(sorted(found))


def node_port_networks(
    config: Config, family: Family, context: NodeContext, local_networks: Collection[Network]
) -> Collection[Network]:
    """Return the networks on which node ports answer: single addresses, or those of the node's local networks that do."""
    ips = node_port_ips(config, context.node, family, context.local_ips)
    if ips is not None:
        return [Network(ip, family.bits) for ip in ips]
    if serves_localhost(config, family):
        return local_networks
    return [block for block in local_networks if block.ip not in LOOPBACK_NETWORKS[family]]


def lists_blocks(config: Config) -> bool:
    """Return whether ``--nodeport-addresses`` has blocks, so that node ports depend on the addresses of the node."""
    return any(_node_port_blocks(config, family) for family in Family)


def _node_port_blocks(config: Config, family: Family) -> tuple[Network, ...] | None:
    # None means every address, which a family without an entry has. `primary` counts as an entry of both families: with it
    # alone a family has no block, and is not open on every address.
    asked = config.nodeport_addresses
    if NodePortAddresses.ALL in asked:
        return None
    blocks = tuple(block for block in asked if isinstance(block, Network) and block.family is family)
    if NodePortAddresses.LOCALHOST in asked:
        blocks += (LOOPBACK_NETWORKS[family],)
    if not blocks and NodePortAddresses.PRIMARY in asked:
        return ()
    return None if not blocks or any(block.prefix == 0 for block in blocks) else blocks
