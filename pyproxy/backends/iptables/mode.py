"""The iptables mode: chooses the variant, probes the kernel, and builds settings, program and kernel for each family."""

import logging
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from pyproxy.backends import kube_proxy
from pyproxy.backends.interface import Backend, Unsupported
from pyproxy.backends.iptables import chain_names
from pyproxy.backends.iptables.accounting import counted_packets, ensure_counter
from pyproxy.backends.iptables.capabilities import chain_rules, probe_rule
from pyproxy.backends.iptables.kernel import IptablesKernel
from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.iptables.restore_text import Ownership
from pyproxy.backends.iptables.rules import source_is_destination
from pyproxy.backends.iptables.ruleset import FILTER, NAT, TABLES, ChainKey
from pyproxy.backends.iptables.side_by_side import SideBySideProgram, side_by_side_hooks
from pyproxy.backends.iptables.static_rules import (
    INVALID_COUNT,
    INVALID_COUNTER,
    LOCALHOST_COUNTER,
    IptablesSettings,
    known_hooks,
)
from pyproxy.backends.iptables.variant import detect_variant
from pyproxy.config.config import Config, IptablesVariant, ProxyMode
from pyproxy.errors import ApplyError, ConfigError
from pyproxy.linux.addresses import kernel_families
from pyproxy.linux.iptables_programs import Variant, is_available
from pyproxy.linux.ruleset_counter import LegacyCounter, NftGeneration
from pyproxy.linux.sysctl import read_sysctl, write_sysctl
from pyproxy.model.address import Family, Network
from pyproxy.model.node import Node
from pyproxy.node.context import NodeContext
from pyproxy.node.local_traffic import (
    NodeReadiness,
    family_settings,
    lists_blocks,
    node_port_ips,
    node_port_networks,
    relays_localhost,
    serves_localhost,
)
from pyproxy.serve.mode_metrics import ModeMetrics, PacketCount

logger = logging.getLogger(__name__)

_BE_LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"


class IptablesMode:
    """Programs Services as iptables chains; a `backends.interface.Backend`."""

    mode = ProxyMode.IPTABLES
    metrics = ModeMetrics(
        failures="sync_proxy_rules_iptables_restore_failures",
        partial_failures="sync_proxy_rules_iptables_partial_restore_failures",
        rules="sync_proxy_rules_iptables",
    )
    follows_service_cidrs = False

    def __init__(
        self,
        config: Config,
        variant: Variant,
        hairpin_by_packet: Collection[Family],
        *,
        count_invalid: bool,
        count_localhost: bool,
    ) -> None:
        self._config = config
        self.iptables_variant = variant
        self._hairpin_by_packet = hairpin_by_packet
        self._count_invalid = count_invalid
        self._count_localhost = count_localhost
        self.families = supported_families(variant)
        if not self.families:
            message = f"--iptables-variant: the programs of iptables-{variant.value} are not installed"
            raise ConfigError(message)
        self._sockets = ExitStack()
        self._generation = self._sockets.enter_context(NftGeneration()) if variant is Variant.NFT else None
        self.follows_local_ips = lists_blocks(config)
        self._readiness = NodeReadiness(config, self.families)

    @classmethod
    async def open(cls, config: Config) -> "IptablesMode":
        """Choose the variant, probe the kernel, and log the reasons.

        Raises:
            ConfigError: the programs of iptables are not installed.
        """
        variant, reason = await choose_variant(config)
        logger.info("iptables mode, variant %s: %s", variant.value, reason, extra={"mode": "iptables"})
        families = supported_families(variant)
        # xt_bpf supports all families or none (`xt_bpf.c`: NFPROTO_UNSPEC), and a probe takes 0.2 s.
        by_packet = families if families and await takes_hairpin_rule(families[0], variant) else ()
        # kube-proxy has counters of the same names, so a side-by-side pyproxy does not use them.
        runs_side_by_side = bool(config.service_proxy_name)
        count_invalid = bool(families) and not runs_side_by_side and await takes_counter(families[0], variant)
        count_localhost = (
            count_invalid and serves_localhost(config, Family.IPV4) and not ensure_counter(LOCALHOST_COUNTER)
        )
        return cls(config, variant, by_packet, count_invalid=count_invalid, count_localhost=count_localhost)

    @staticmethod
    async def choose_iptables_variant(config: Config) -> Variant:
        """Return the variant that this mode would use, without opening it."""
        return (await choose_variant(config))[0]

    @staticmethod
    def owns_chain(table: str, chain: str) -> bool:
        """Return whether this mode uses a chain."""
        return chain_names.is_ours(table, chain)

    def is_ready_for(self, node: Node) -> bool:
        """Return whether the Node has the pod CIDRs that the local traffic detection needs."""
        return self._readiness.has_pod_cidrs(node)

    def settings(self, family: Family, context: NodeContext) -> IptablesSettings:
        """Return the settings of a family, with what the probes found."""
        # Read each time: it may be switched on after the start, and a DROP of packets that it allows would cut connections.
        be_liberal = read_sysctl(_BE_LIBERAL)
        return replace(
            iptables_settings(self._config, family, context),
            drop_invalid=not be_liberal,
            hairpin_by_packet=family in self._hairpin_by_packet,
            count_invalid=self._count_invalid,
            count_localhost_node_ports=family is Family.IPV4 and self._count_localhost,
        )

    def program(self, settings: IptablesSettings) -> IptablesProgram | SideBySideProgram:
        """Return an empty program; with `--service-proxy-name` one that uses its own chain names."""
        return (SideBySideProgram if self._config.service_proxy_name else IptablesProgram)(settings)

    def kernel(self, family: Family) -> IptablesKernel:
        """Return the reader and writer of one family's tables."""
        if self._generation is not None:
            counter = self._generation.counter()
        else:
            counter = self._sockets.enter_context(LegacyCounter(family, TABLES))
        owned = side_by_side_ownership(family) if self._config.service_proxy_name else ownership(family)
        return IptablesKernel(family, self.iptables_variant, counter, owned)

    def prepare(self) -> bool:
        """Set `route_localnet` if node ports are served on 127.0.0.1.

        Their packets have a loopback source address and leave through the device of a pod. Without the setting the kernel
        drops them as martians.
        """
        if not serves_localhost(self._config, Family.IPV4):
            return True
        if not write_sysctl("net/ipv4/conf/all/route_localnet", 1):
            return False
        logger.info(
            "node ports are served on 127.0.0.0/8, which needs net.ipv4.conf.all.route_localnet=1; to avoid this"
            " setting, use --iptables-localhost-nodeports=false or --nodeport-addresses without loopback"
        )
        return True

    def node_port_ips(self, family: Family, context: NodeContext) -> tuple[bytes, ...] | None:
        """Return the addresses on which health check node ports answer; None means all addresses of the node."""
        return node_port_ips(self._config, context.node, family, context.local_ips)

    def node_port_networks(
        self, family: Family, context: NodeContext, local_networks: Collection[Network]
    ) -> Collection[Network]:
        """Return the networks on which node ports answer."""
        return node_port_networks(self._config, family, context, local_networks)

    def relays_localhost(self, family: Family) -> bool:
        """Return whether the relay serves node ports on loopback: IPv6 only, because rules serve IPv4."""
        return relays_localhost(self._config, family, has_rules=True)

    def close(self) -> None:
        """Close all sockets of the mode and of its kernels. The rules stay."""
        self._sockets.close()

    def packet_counts(self) -> Collection[PacketCount]:
        """Return the counters of the match `nfacct`, which exist only if the kernel has xt_nfacct."""
        counts = [
            PacketCount(
                "kubeproxy_iptables_ct_state_invalid_dropped_packets",
                "Packets dropped because conntrack considers them INVALID, in both families",
                {(): partial(counted_packets, INVALID_COUNTER)},
            )
        ]
        if serves_localhost(self._config, Family.IPV4):
            counts.append(
                PacketCount(
                    "kubeproxy_iptables_localhost_nodeports_accepted_packets",
                    "First packets of connections to node ports on 127.0.0.0/8",
                    {(): partial(counted_packets, LOCALHOST_COUNTER)},
                )
            )
        return counts


BACKEND: type[Backend] = IptablesMode


def ownership(family: Family) -> Ownership:
    """Return the ownership of this mode in a family's tables: our chains and hooks, and kube-proxy's, which are taken over."""
    return Ownership(
        owns=chain_names.is_ours,
        shared=(ChainKey(FILTER, chain_names.KUBELET_FIREWALL),),
        hooks=(*known_hooks(family), *kube_proxy.HOOKS),
    )


def side_by_side_ownership(family: Family) -> Ownership:
    """Return the ownership of a side-by-side pyproxy, which shares nothing with kube-proxy."""
    return Ownership(owns=chain_names.is_side_by_side, shared=(), hooks=side_by_side_hooks(family))


def iptables_settings(config: Config, family: Family, context: NodeContext) -> IptablesSettings:
    """Return the settings of a family that follow from the configuration and the node, without probes of the kernel."""
    return replace(
        family_settings(IptablesSettings, config, family, context),
        localhost_node_ports=serves_localhost(config, family),
        node_port_ips=node_port_ips(config, context.node, family, context.local_ips),
    )


async def choose_variant(config: Config) -> tuple[Variant, str]:
    """Return the variant to use, and the reason for it.

    Raises:
        ConfigError: no iptables is installed.
    """
    if config.iptables_variant is IptablesVariant.AUTO:
        return await detect_variant()
    return Variant(config.iptables_variant.value), "set by --iptables-variant"


async def takes_hairpin_rule(family: Family, variant: Variant) -> bool:
    """Return whether the kernel accepts the hairpin rule, which needs xt_bpf. Nothing is written if the rule is in place."""
    match = source_is_destination(family)
    try:
        if match in await chain_rules(family, variant, ChainKey(NAT, chain_names.POSTROUTING)):
            logger.info("%s: hairpin traffic is matched by one rule, which is in place", family)
            return True
        unsupported = await probe_rule(family, variant, f"{match} -j RETURN")
    except ApplyError as error:
        unsupported = Unsupported(f"the probe failed: {error}")
    if unsupported:
        # A chain for each endpoint needs no kernel feature that kube-proxy's rules do not need.
        logger.warning(
            "%s: hairpin traffic is matched in a chain for each endpoint: xt_bpf: %s", family, unsupported.reason
        )
    else:
        logger.info("%s: hairpin traffic is matched by one rule: the kernel supports xt_bpf", family)
    return not unsupported


async def takes_counter(family: Family, variant: Variant) -> bool:
    """Return whether rules can count packets, which needs xt_nfacct. No rule is written if one is in place."""
    # The counter comes first: the kernel refuses a rule that names a counter which does not exist.
    unsupported = ensure_counter(INVALID_COUNTER)
    if not unsupported:
        try:
            # Only the name is compared: iptables 1.8.9 prints two spaces before it (libxt_nfacct.c).
            if INVALID_COUNTER in await chain_rules(family, variant, ChainKey(FILTER, chain_names.FORWARD)):
                return True
            unsupported = await probe_rule(family, variant, f"{INVALID_COUNT} -j RETURN")
        except ApplyError as error:
            unsupported = Unsupported(f"the probe failed: {error}")
    if unsupported:
        logger.info(
            "packets in conntrack state INVALID are dropped without being counted: xt_nfacct: %s", unsupported.reason
        )
    return not unsupported


def supported_families(variant: Variant) -> tuple[Family, ...]:
    """Return the families that the kernel supports and that a variant's programs are installed for."""
    return tuple(family for family in kernel_families() if is_available(family, variant))
