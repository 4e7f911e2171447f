"""The IPVS mode, put together: what the kernel has, settings, program and kernel of each family."""

import logging
import platform
import re
from dataclasses import replace

from pyproxy.apply.addresses import IPVS_DEVICE
from pyproxy.apply.iptables import IptablesKernel, Variant
from pyproxy.apply.ipvs import Doors, IpvsKernel
from pyproxy.apply.ruleset_counter import LegacyCounter, NftGeneration
from pyproxy.apply.sysctl import write_sysctl
from pyproxy.apply.vips import Vips, devices_with_addresses
from pyproxy.apply.virtual_servers import VirtualServers
from pyproxy.compile import kube_proxy
from pyproxy.compile.ipvs import IpvsProgram
from pyproxy.compile.ipvs_static import SERVED, IpvsSettings, ipvs_hooks, is_ours
from pyproxy.config import Config, ProxyMode
from pyproxy.errors import ConfigError
from pyproxy.model.address import Family, family_of, parse_network
from pyproxy.model.node import Node
from pyproxy.model.ruleset import IPVS_TABLES
from pyproxy.modes.iptables_mode import choose_variant, supported_families
from pyproxy.modes.ipvs_needs import require_ipvs, require_rules, require_scheduler
from pyproxy.modes.ipvs_sets import ipvs_sets
from pyproxy.modes.local_traffic import Placement, family_settings, node_port_ips
from pyproxy.modes.surroundings import Surroundings
from pyproxy.render.iptables_restore import Ownership

logger = logging.getLogger(__name__)

_DEFAULT_SCHEDULER = "rr"
_NOT_FOR_NODE_PORTS = tuple(map(parse_network, ("127.0.0.0/8", "::1/128", "fe80::/10")))
"""Loopback: IPVS sends no packet with a loopback address out. Link-local: the kernel has one for each interface."""
_REUSE_IS_RIGHT_SINCE = (5, 9)
"""From this Linux on, a new connection from a port that was used just before is scheduled without a second's delay."""


class IpvsMode:
    """Services as virtual servers of IPVS; see `modes.backend.Backend`."""

    mode = ProxyMode.IPVS

    def __init__(self, config: Config, variant: Variant) -> None:
        self._config = config
        self.iptables_variant = variant
        self._generation = NftGeneration() if variant is Variant.NFT else None
        self.families = supported_families(variant)
        self._placement = Placement(config, self.families)
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
        require_scheduler(config.ipvs_scheduler or _DEFAULT_SCHEDULER)
        variant, reason = await choose_variant(config)
        logger.info("ipvs mode, helper rules in iptables-%s: %s", variant.value, reason)
        mode = cls(config, variant)
        if not mode.families:
            message = f"--proxy-mode: ipvs needs the programs of iptables-{variant.value}, which are not installed"
            raise ConfigError(message)
        await require_rules(mode.families[0], variant)
        return mode

    def is_placed(self, node: Node) -> bool:
        """See `Backend`."""
        return self._placement.is_known(node)

    def settings(self, family: Family, surroundings: Surroundings) -> IpvsSettings:
        """See `Backend`."""
        if self._config.ipvs_strict_arp and surroundings.local_ips != self._known_ips:
            self._known_ips = frozenset(surroundings.local_ips)
            _be_strict_about_arp()
        return ipvs_settings(self._config, family, surroundings)

    def program(self, settings: IpvsSettings) -> IpvsProgram:
        """See `Backend`."""
        return IpvsProgram(settings)

    def kernel(self, family: Family) -> IpvsKernel:
        """See `Backend`."""
        counter = self._generation.counter() if self._generation else LegacyCounter(family, IPVS_TABLES)
        sets, types = ipvs_sets(family)
        doors = Doors(
            servers=VirtualServers(),
            sets=sets,
            set_types=types,
            vips=Vips(family),
            rules=IptablesKernel(family, self.iptables_variant, counter, ownership(family), IPVS_TABLES),
        )
        return IpvsKernel(family, doors, self._config.ipvs_exclude_cidrs, SERVED)

    def owns_chain(self, table: str, chain: str) -> bool:
        """See `Backend`."""
        return is_ours(table, chain)

    def prepare(self) -> None:
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
        for name, (value, reason) in choices.items():
            if write_sysctl(name, value):
                logger.info("%s is %d: %s", name, value, reason)
        self._set_timeouts()

    def _set_timeouts(self) -> None:
        config = self._config
        wanted = (config.ipvs_tcp_timeout_seconds, config.ipvs_tcpfin_timeout_seconds, config.ipvs_udp_timeout_seconds)
        if any(wanted):
            servers = VirtualServers()
            servers.perform([servers.timeouts(*map(int, wanted))])


def _be_strict_about_arp() -> None:
    """Have each device answer for its own addresses only.

    Not by the settings for all devices: where a pod's gateway is an address of another device, or of none, those would cut
    the pods off. Such devices have no address, so they keep their settings here.
    """
    for device in devices_with_addresses(Family.IPV4) - {"lo", IPVS_DEVICE}:
        for name, value in (("arp_ignore", 1), ("arp_announce", 2)):
            write_sysctl(f"net/ipv4/conf/{device}/{name}", value)


def ipvs_settings(config: Config, family: Family, surroundings: Surroundings) -> IpvsSettings:
    """Derive what the entries of a family depend on besides Services."""
    node = surroundings.node
    own = frozenset(ip for ip in surroundings.local_ips if family_of(ip) is family)
    asked = node_port_ips(config, node, family, own)
    node_ip = node.ip(family)
    return replace(
        family_settings(IpvsSettings, config, family, surroundings),
        local_ips=own,
        node_port_ips=tuple(sorted(ip for ip in (own if asked is None else asked) if _may_serve_node_ports(ip))),
        source_ip=node_ip if node_ip in own else b"",
        scheduler=config.ipvs_scheduler or _DEFAULT_SCHEDULER,
    )


def ownership(family: Family) -> Ownership:
    """Return what of a family's tables is ours; what the iptables mode shares with the kubelet is none of this mode's."""
    return Ownership(owns=is_ours, shared=(), hooks=(*ipvs_hooks(family), *kube_proxy.HOOKS))


def _may_serve_node_ports(ip: bytes) -> bool:
    return not any(ip in block for block in _NOT_FOR_NODE_PORTS)
