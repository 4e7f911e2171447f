"""The nftables mode as a backend: its requirements, and settings, program and kernel of each family."""

import logging
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from pyproxy.backends.interface import Backend
from pyproxy.backends.nftables.accounting import counted_packets
from pyproxy.backends.nftables.change_monitor import ChangeMonitor
from pyproxy.backends.nftables.elements import Layout
from pyproxy.backends.nftables.kernel import NftablesKernel
from pyproxy.backends.nftables.layout import LOCALHOST_REJECTIONS, TABLE, NftablesSettings, layout_of, layout_text
from pyproxy.backends.nftables.program import NftablesProgram
from pyproxy.backends.nftables.text import table_text
from pyproxy.config.config import Config, ProxyMode
from pyproxy.errors import ConfigError
from pyproxy.linux.addresses import kernel_families
from pyproxy.linux.command import CommandError, run
from pyproxy.linux.ruleset_counter import NftGeneration
from pyproxy.model.address import Family, Network
from pyproxy.model.names import Protocol
from pyproxy.model.node import Node
from pyproxy.node.context import NodeContext
from pyproxy.node.local_traffic import (
    NodeReadiness,
    family_settings,
    lists_blocks,
    nftables_config,
    node_port_ips,
    node_port_networks,
    relays_localhost,
)
from pyproxy.serve.mode_metrics import ModeMetrics, PacketCount

logger = logging.getLogger(__name__)


class NftablesMode:
    """Programs Services as elements of nftables maps; implements `backends.interface.Backend`."""

    mode = ProxyMode.NFTABLES
    metrics = ModeMetrics(
        failures="sync_proxy_rules_nftables_sync_failures",
        cleanup_failures="sync_proxy_rules_nftables_cleanup_failures",
    )
    follows_service_cidrs = True
    iptables_variant = None

    def __init__(self, config: Config) -> None:
        self._config = nftables_config(config)
        self._sockets = ExitStack()
        self._generation = self._sockets.enter_context(NftGeneration())
        self._monitor = ChangeMonitor(TABLE)
        self._sockets.callback(self._monitor.close)
        self._layouts: dict[Layout, str] = {}
        self.families = kernel_families()
        self.follows_local_ips = lists_blocks(config)
        self._readiness = NodeReadiness(config, self.families)

    @classmethod
    async def open(cls, config: Config) -> "NftablesMode":
        """Return the backend, after a test that kernel and ``nft`` accept the layout.

        Raises:
            ConfigError: they do not; the message contains the error of ``nft``.
        """
        mode = cls(config)
        with ExitStack() as unless_usable:
            unless_usable.callback(mode.close)
            for family in mode.families:
                reason = await why_unusable(family)
                if reason:
                    message = f"--proxy-mode=nftables: {family}: {reason}; use --proxy-mode=iptables"
                    raise ConfigError(message)
            unless_usable.pop_all()
        return mode

    def close(self) -> None:
        """Close all sockets of the mode and of its kernels. The tables stay."""
        self._sockets.close()

    @staticmethod
    async def choose_iptables_variant(config: Config) -> None:
        """Do nothing: the mode does not use iptables."""

    @staticmethod
    def owns_chain(table: str, chain: str) -> bool:  # noqa: ARG004  # the protocol's
        """Return False: the mode has no iptables chains."""
        return False

    def is_ready_for(self, node: Node) -> bool:
        """Return whether the Node has the pod CIDRs that the settings need; missing ones are logged once."""
        return self._readiness.has_pod_cidrs(node)

    def settings(self, family: Family, context: NodeContext) -> NftablesSettings:
        """Return the settings on which a family's table depends besides Services."""
        return nftables_settings(self._config, family, context)

    def program(self, settings: NftablesSettings) -> NftablesProgram:
        """Return an empty program for these settings, and keep the text of its layout for the kernel."""
        self._layouts[layout_of(settings)] = layout_text(settings)
        return NftablesProgram(settings)

    def kernel(self, family: Family) -> NftablesKernel:
        """Return the reader and writer of one family's table."""
        kernel = NftablesKernel(family, self._generation.counter(), self._layouts, self._monitor)
        return self._sockets.enter_context(kernel)

    def prepare(self) -> bool:
        """Return True: the mode needs no kernel settings."""
        return True

    def node_port_ips(self, family: Family, context: NodeContext) -> tuple[bytes, ...] | None:
        """Return the addresses of this node that serve node ports; None means all except loopback."""
        return node_port_ips(self._config, context.node, family, context.local_ips)

    def node_port_networks(
        self, family: Family, context: NodeContext, local_networks: Collection[Network]
    ) -> Collection[Network]:
        """Return the destinations among the node's local networks that serve node ports."""
        return node_port_networks(self._config, family, context, local_networks)

    def relays_localhost(self, family: Family) -> bool:
        """Return whether the relay serves TCP and UDP node ports on loopback."""
        return relays_localhost(self._config, family, has_rules=False)

    def packet_counts(self) -> Collection[PacketCount]:
        """Return the packet counters of the mode: rejected packets to SCTP node ports on loopback."""
        readers: dict[tuple[str, ...], Callable[[], int]] = {
            (str(family), Protocol.SCTP.name): partial(counted_packets, family, LOCALHOST_REJECTIONS)
            for family in self.families
        }
        return [
            PacketCount(
                "kubeproxy_nftables_localhost_nodeport_rejected_packets",
                "Packets to SCTP node ports on loopback, which the relay does not serve, that were rejected",
                readers,
                ("ip_family", "protocol"),
            )
        ]


BACKEND: type[Backend] = NftablesMode


def nftables_settings(config: Config, family: Family, context: NodeContext) -> NftablesSettings:
    """Return the settings on which a family's table depends besides Services."""
    return replace(
        family_settings(NftablesSettings, config, family, context),
        node_port_ips=node_port_ips(config, context.node, family, context.local_ips),
        # Side-by-side, most addresses of these ranges belong to kube-proxy's Services, so none may be dropped.
        service_cidrs=() if config.service_proxy_name else context.service_cidrs_of(family),
        relays_localhost=relays_localhost(config, family, has_rules=False),
    )


async def why_unusable(family: Family) -> str:
    """Check the whole layout with ``nft --check``, without creating it; return the first line of the error, or nothing."""
    settings = NftablesSettings(family=family, local_traffic=None, node_port_ips=None)
    script = table_text(family, layout_text(settings), {}).replace(" pyproxy {", " pyproxy-probe {", 1)
    try:
        result = await run(["nft", "--check", "-f", "-"], stdin=script)
    except CommandError as error:
        return str(error)
    return result.stderr.strip().partition("\n")[0] if result.status else ""
