"""The IPVS mode: checks the kernel, and builds settings, program and kernel for each family."""

import logging
import platform
import re
import socket
from collections.abc import Collection
from contextlib import ExitStack, suppress
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
from pyproxy.backends.ipvs.static_rules import IpvsSettings, ipvs_hooks, is_ours
from pyproxy.backends.ipvs.vips import Vips
from pyproxy.backends.ipvs.virtual_servers import IpvsConnection
from pyproxy.config.config import Config, ProxyMode
from pyproxy.errors import ConfigError
from pyproxy.linux.addresses import IPVS_DEVICE, device_addresses
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
# Addresses without node ports. IPVS does not send packets with a loopback address out of the node, and a link-local
# address is ambiguous without its interface, which a virtual server does not have.
_NOT_FOR_NODE_PORTS = (*LOOPBACK_NETWORKS.values(), parse_network("fe80::/10"))
# Before this version of Linux, `conn_reuse_mode` 1 delays a new connection from a port that was used just before by a
# second.
_PORT_REUSE_FIXED = (5, 9)


class IpvsMode:
    """Programs Services as virtual servers of IPVS; a `backends.interface.Backend`."""

    mode = ProxyMode.IPVS
    metrics = ModeMetrics(failures="sync_proxy_rules_iptables_restore_failures", has_full_syncs=False)
    follows_service_cidrs = False
    follows_local_ips = True
    """Node ports have a virtual server for each address of the node."""

    def __init__(self, config: Config, variant: Variant) -> None:
        self._config = config
        self.iptables_variant = variant
        self._sockets = ExitStack()
        self._generation = self._sockets.enter_context(NftGeneration()) if variant is Variant.NFT else None
        self.families = supported_families(variant)
        self._readiness = NodeReadiness(config, self.families)
        self._known_ips: frozenset[bytes] = frozenset()

    @classmethod
    async def open(cls, config: Config) -> "IpvsMode":
        """Check the requirements, and load modules that are missing.

        Raises:
            ConfigError: something is missing; the message names the module and the alternatives.
        """
        if config.service_proxy_name:
            message = (
                "--service-proxy-name: not supported in IPVS mode: both proxies would have virtual servers in one table"
            )
            raise ConfigError(message)
        await require_ipvs()
        require_scheduler(config.ipvs.scheduler or _DEFAULT_SCHEDULER)
        variant, reason = await choose_variant(config)
        logger.info("ipvs mode, helper rules in iptables-%s: %s", variant.value, reason, extra={"mode": "ipvs"})
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
        """Return whether the Node has the pod CIDRs that the local traffic detection needs."""
        return self._readiness.has_pod_cidrs(node)

    def settings(self, family: Family, context: NodeContext) -> IpvsSettings:
        """Return the settings of a family. With `--ipvs-strict-arp` the sysctls follow the addresses of the node here."""
        if self._config.ipvs.strict_arp and context.local_ips != self._known_ips:
            self._known_ips = frozenset(context.local_ips)
            # Not by the settings for all devices: if the gateway of the pods is an address of another device, or of none,
            # those would cut the pods off. The devices of such pods have no address, so they keep their settings here.
            devices = set()
            for index in {index for index, _ in device_addresses(Family.IPV4)}:
                with suppress(OSError):  # The device was deleted since.
                    devices.add(socket.if_indextoname(index))
            for device in devices - {"lo", IPVS_DEVICE}:
                for name, value in (("arp_ignore", 1), ("arp_announce", 2)):
                    write_sysctl(f"net/ipv4/conf/{device}/{name}", value)
        return ipvs_settings(self._config, family, context)

    def program(self, settings: IpvsSettings) -> IpvsProgram:
        """Return an empty program."""
        return IpvsProgram(settings)

    def kernel(self, family: Family) -> IpvsKernel:
        """Return the reader and writer of one family's entries."""
        # The helper rules are in one more table than those of the iptables mode, mangle.
        opened = self._sockets.enter_context
        counter = self._generation.counter() if self._generation else opened(LegacyCounter(family, IPVS_TABLES))
        sets, types = ipvs_sets(family)
        handles = IpvsHandles(
            servers=opened(IpvsConnection()),
            sets=opened(sets),
            set_types=types,
            vips=opened(Vips(family)),
            rules=IptablesKernel(family, self.iptables_variant, counter, ownership(family), IPVS_TABLES),
        )
        return IpvsKernel(family, handles, self._config.ipvs.exclude_cidrs)

    def prepare(self) -> bool:
        """Set the sysctls that IPVS needs together with connection tracking, and the time-outs of connections.

        Returns:
            Whether all sysctls have the values that they need.
        """
        wanted = {
            "net/ipv4/vs/conntrack": (1, "iptables can match and masquerade IPVS connections"),
            "net/ipv4/vs/expire_nodest_conn": (1, "connections to a deleted real server end at once"),
            "net/ipv4/vs/expire_quiescent_template": (1, "clients do not stay with a draining real server"),
            "net/ipv4/ip_forward": (1, "the node forwards packets of pods"),
        }
        # Distributions append to the version, as in 6.1.0-13-amd64.
        release = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
        if release < _PORT_REUSE_FIXED:
            reason = "before Linux 5.9 a client that reuses a source port would wait for one second"
            wanted["net/ipv4/vs/conn_reuse_mode"] = (0, reason)
        else:
            # 0 would send a client that reuses a port to a real server with weight 0.
            logger.info("net/ipv4/vs/conn_reuse_mode keeps its value: since Linux 5.9 it does not delay connections")
        is_complete = True
        for name, (value, reason) in wanted.items():
            if write_sysctl(name, value):
                logger.info("%s is %d: %s", name, value, reason)
            else:
                is_complete = False
        ipvs = self._config.ipvs
        timeouts = (ipvs.tcp_timeout_seconds, ipvs.tcpfin_timeout_seconds, ipvs.udp_timeout_seconds)
        if any(timeouts):
            with IpvsConnection() as servers:
                servers.perform([servers.timeouts(*map(int, timeouts))])
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
        """Close all sockets of the mode and of its kernels. Rules and servers stay."""
        self._sockets.close()

    def packet_counts(self) -> Collection[PacketCount]:
        """Return an empty tuple: the mode counts no packets."""
        return ()


BACKEND: type[Backend] = IpvsMode


def ipvs_settings(config: Config, family: Family, context: NodeContext) -> IpvsSettings:
    """Return the settings of a family that follow from the configuration and the node."""
    node = context.node
    own = frozenset(ip for ip in context.local_ips if family_of(ip) is family)
    selected = node_port_ips(config, node, family, own)
    # A route may only name an address of this node as its source, and the Node object may have one that is not.
    node_ip = node.ip(family)
    serving = (
        ip for ip in (own if selected is None else selected) if not any(ip in net for net in _NOT_FOR_NODE_PORTS)
    )
    return replace(
        family_settings(IpvsSettings, config, family, context),
        local_ips=own,
        node_port_ips=tuple(sorted(serving)),
        source_ip=node_ip if node_ip in own else b"",
        scheduler=config.ipvs.scheduler or _DEFAULT_SCHEDULER,
    )


def ownership(family: Family) -> Ownership:
    """Return the ownership of this mode in a family's tables. It has no chain in common with the kubelet."""
    return Ownership(owns=is_ours, shared=(), hooks=(*ipvs_hooks(family), *kube_proxy.HOOKS))
