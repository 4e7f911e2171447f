"""The IPVS mode, put together: what the kernel has, settings, program and kernel of each family."""

import logging
import platform
import re
from collections.abc import Collection
from dataclasses import replace

from pyproxy.backends import kube_proxy
from pyproxy.backends.interface import Backend
from pyproxy.backends.iptables.kernel import IptablesKernel
from pyproxy.backends.iptables.mode import choose_variant, supported_families
from pyproxy.backends.iptables.restore_text import Ownership
from pyproxy.backends.iptables.ruleset import IPVS_TABLES
from pyproxy.backends.ipvs.ipset import ipvs_sets
from pyproxy.backends.ipvs.kernel import IpvsHandles, IpvsKernel
from pyproxy.backends.ipvs.program import IpvsProgram
from pyproxy.backends.ipvs.requirements import require_ipvs, require_rules, require_scheduler
from pyproxy.backends.ipvs.static_rules import SERVED, IpvsSettings, ipvs_hooks, is_ours
from pyproxy.backends.ipvs.vips import Vips, devices_with_addresses
from pyproxy.backends.ipvs.virtual_servers import IpvsConnection
from pyproxy.config.config import Config, ProxyMode
from pyproxy.errors import ConfigError
from pyproxy.linux.addresses import IPVS_DEVICE
from pyproxy.linux.iptables_programs import Variant
from pyproxy.linux.ruleset_counter import LegacyCounter, NftGeneration
from pyproxy.linux.sysctl import write_sysctl
from pyproxy.model.address import LOOPBACK_NETWORKS, Family, Network, family_of, parse_network
from pyproxy.model.node import Node
from pyproxy.node.context import NodeContext
from pyproxy.node.local_traffic import (
    NodeReadiness,
    family_settings,
    node_port_ips,
    node_port_networks,
    relays_localhost,
)
from pyproxy.serve.mode_metrics import ModeMetrics, PacketCount

logger = logging.getLogger(__name__)

_DEFAULT_SCHEDULER = "rr"
_NOT_FOR_NODE_PORTS = (*LOOPBACK_NETWORKS.values(), parse_network("fe80::/10"))
"""Loopback: IPVS sends no packet with a loopback address out. Link-local: the kernel has one for each interface."""
_REUSE_IS_RIGHT_SINCE = (5, 9)
"""From this Linux on, a new connection from a port that was used just before is scheduled without a second's delay."""


class IpvsMode:
    """Services as virtual servers of IPVS; see `backends.interface.Backend`."""

    mode = ProxyMode.IPVS
    metrics = ModeMetrics(failures="sync_proxy_rules_iptables_restore_failures", has_full_syncs=False)
    follows_service_cidrs = False
    follows_local_ips = True
    """Node ports have a virtual server for each address of the node."""

    def __init__(self, config: Config, variant: Variant) -> None:
        self._config = config
        self.iptables_variant = variant
        self._generation = NftGeneration() if variant is Variant.NFT else None
        self.families = supported_families(variant)
        self._readiness = NodeReadiness(config, self.families)
        self._known_ips: frozenset[bytes] = frozenset()

    @classmethod
    async def open(cls, config: Config) -> "IpvsMode":
        """See that the kernel has what is needed.

        Raises:
            ConfigError: it has not; the message names the module and what to do.
        """
        if config.service_proxy_name:
            message = (
                "--service-proxy-name: is for nftables and iptables mode: virtual servers of both would be in one table"
            )
            raise ConfigError(message)
        await require_ipvs()
        require_scheduler(config.ipvs.scheduler or _DEFAULT_SCHEDULER)
        variant, reason = await choose_variant(config)
        logger.info("ipvs mode, helper rules in iptables-%s: %s", variant.value, reason)
        mode = cls(config, variant)
        if not mode.families:
            message = f"--proxy-mode: ipvs needs the programs of iptables-{variant.value}, which are not installed"
            raise ConfigError(message)
        await require_rules(mode.families[0], variant)
        return mode

    @staticmethod
    async def choose_iptables_variant(config: Config) -> Variant:
        """Return the variant that the helper rules would use, without opening the mode."""
        return (await choose_variant(config))[0]

    @staticmethod
    def owns_chain(table: str, chain: str) -> bool:
        """Return whether the helper rules of this mode use a chain."""
        return is_ours(table, chain)

    def is_ready_for(self, node: Node) -> bool:
        """See `Backend`."""
        return self._readiness.has_pod_cidrs(node)

    def settings(self, family: Family, context: NodeContext) -> IpvsSettings:
        """See `Backend`."""
        if self._config.ipvs.strict_arp and context.local_ips != self._known_ips:
            self._known_ips = frozenset(context.local_ips)
            _be_strict_about_arp()
        return ipvs_settings(self._config, family, context)

    def program(self, settings: IpvsSettings) -> IpvsProgram:
        """See `Backend`."""
        return IpvsProgram(settings)

    def kernel(self, family: Family) -> IpvsKernel:
        """See `Backend`."""
        counter = self._generation.counter() if self._generation else LegacyCounter(family, IPVS_TABLES)
        sets, types = ipvs_sets(family)
        handles = IpvsHandles(
            servers=IpvsConnection(),
            sets=sets,
            set_types=types,
            vips=Vips(family),
            rules=IptablesKernel(family, self.iptables_variant, counter, ownership(family), IPVS_TABLES),
        )
        return IpvsKernel(family, handles, self._config.ipvs.exclude_cidrs, SERVED)

    def prepare(self) -> bool:
        """See `Backend`: what IPVS needs to work beside connection tracking, chosen for this kernel."""
        choices = {
            "net/ipv4/vs/conntrack": (1, "iptables sees and masquerades connections of IPVS"),
            "net/ipv4/vs/expire_nodest_conn": (1, "a connection to a server that is gone ends at once"),
            "net/ipv4/vs/expire_quiescent_template": (1, "a client does not stay with a server that drains"),
            "net/ipv4/ip_forward": (1, "replies of pods pass the node"),
        }
        release = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
        if release < _REUSE_IS_RIGHT_SINCE:
            reason = "before Linux 5.9 a client that uses a port again would wait for a second"
            choices["net/ipv4/vs/conn_reuse_mode"] = (0, reason)
        else:
            logger.info("net/ipv4/vs/conn_reuse_mode is left as it is: from Linux 5.9 on it costs nothing")
        is_complete = True
        for name, (value, reason) in choices.items():
            if write_sysctl(name, value):
                logger.info("%s is %d: %s", name, value, reason)
            else:
                is_complete = False
        self._set_timeouts()
        return is_complete

    def node_port_ips(self, family: Family, context: NodeContext) -> tuple[bytes, ...] | None:
        """Return the addresses on which health check node ports answer; None means all addresses of the node."""
        return node_port_ips(self._config, context.node, family, context.local_ips)

    def node_port_networks(
        self, family: Family, context: NodeContext, local_networks: Collection[Network]
    ) -> Collection[Network]:
        """Return the networks on which node ports answer: never loopback, from which IPVS cannot forward."""
        config = replace(self._config, iptables_localhost_nodeports=False)
        return node_port_networks(config, family, context, local_networks)

    def relays_localhost(self, family: Family) -> bool:
        """Return whether the relay serves node ports on loopback."""
        return relays_localhost(self._config, family, has_rules=False)

    def close(self) -> None:
        """Close the socket of the generation counter, which only the nft variant has."""
        if self._generation is not None:
            self._generation.close()

    def packet_counts(self) -> Collection[PacketCount]:
        """Return an empty tuple: the mode counts no packets."""
        return ()

    def _set_timeouts(self) -> None:
        ipvs = self._config.ipvs
        wanted = (ipvs.tcp_timeout_seconds, ipvs.tcpfin_timeout_seconds, ipvs.udp_timeout_seconds)
        if any(wanted):
            servers = IpvsConnection()
            servers.perform([servers.timeouts(*map(int, wanted))])


BACKEND: type[Backend] = IpvsMode


def _be_strict_about_arp() -> None:
    """Have each device answer for its own addresses only.

    Not by the settings for all devices: where a pod's gateway is an address of another device, or of none, those would cut
    the pods off. Such devices have no address, so they keep their settings here.
    """
    for device in devices_with_addresses(Family.IPV4) - {"lo", IPVS_DEVICE}:
        for name, value in (("arp_ignore", 1), ("arp_announce", 2)):
            write_sysctl(f"net/ipv4/conf/{device}/{name}", value)


def ipvs_settings(config: Config, family: Family, context: NodeContext) -> IpvsSettings:
    """Derive what the entries of a family depend on besides Services."""
    node = context.node
    own = frozenset(ip for ip in context.local_ips if family_of(ip) is family)
    asked = node_port_ips(config, node, family, own)
    node_ip = node.ip(family)
    return replace(
        family_settings(IpvsSettings, config, family, context),
        local_ips=own,
        node_port_ips=tuple(sorted(ip for ip in (own if asked is None else asked) if _may_serve_node_ports(ip))),
        source_ip=node_ip if node_ip in own else b"",
        scheduler=config.ipvs.scheduler or _DEFAULT_SCHEDULER,
    )


def ownership(family: Family) -> Ownership:
    """Return what of a family's tables is ours; what the iptables mode shares with the kubelet is none of this mode's."""
    return Ownership(owns=is_ours, shared=(), hooks=(*ipvs_hooks(family), *kube_proxy.HOOKS))


def _may_serve_node_ports(ip: bytes) -> bool:
    return not any(ip in block for block in _NOT_FOR_NODE_PORTS)
