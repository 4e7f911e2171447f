"""The nftables mode, put together: settings, layout, program and kernel of each family."""

import logging
from dataclasses import replace
from pathlib import Path

from pyproxy.backends.nftables.change_monitor import ChangeMonitor
from pyproxy.backends.nftables.elements import Layout
from pyproxy.backends.nftables.kernel import NftablesKernel
from pyproxy.backends.nftables.layout import TABLE, NftablesSettings, layout_of, layout_text
from pyproxy.backends.nftables.program import NftablesProgram
from pyproxy.backends.nftables.text import table_text
from pyproxy.config.config import Config, ProxyMode
from pyproxy.errors import ConfigError
from pyproxy.linux.command import run
from pyproxy.linux.ruleset_counter import NftGeneration
from pyproxy.model.address import Family
from pyproxy.model.node import Node
from pyproxy.node.context import NodeContext
from pyproxy.node.local_traffic import NodeReadiness, family_settings, nftables_config, node_port_ips, relays_localhost

logger = logging.getLogger(__name__)

_IPV6_IS_THERE = Path("/proc/net/if_inet6")


class NftablesMode:
    """Services as elements of nftables maps; see `backends.interface.Backend`."""

    mode = ProxyMode.NFTABLES
    iptables_variant = None

    def __init__(self, config: Config) -> None:
        self._config = nftables_config(config)
        self._generation = NftGeneration()
        self._monitor = ChangeMonitor(TABLE)
        self._layouts: dict[Layout, str] = {}
        self.families = tuple(family for family in Family if family is Family.IPV4 or _IPV6_IS_THERE.exists())
        self._readiness = NodeReadiness(config, self.families)

    @classmethod
    async def open(cls, config: Config) -> "NftablesMode":
        """Try what the mode needs of the kernel and of ``nft``.

        Raises:
            ConfigError: something is missing; the message names it.
        """
        mode = cls(config)
        for family in mode.families:
            reason = await why_unusable(family)
            if reason:
                message = f"--proxy-mode=nftables: {family}: {reason}; use --proxy-mode=iptables"
                raise ConfigError(message)
        return mode

    def is_ready_for(self, node: Node) -> bool:
        """See `Backend`."""
        return self._readiness.has_pod_cidrs(node)

    def settings(self, family: Family, context: NodeContext) -> NftablesSettings:
        """See `Backend`."""
        return nftables_settings(self._config, family, context)

    def program(self, settings: NftablesSettings) -> NftablesProgram:
        """See `Backend`."""
        self._layouts[layout_of(settings)] = layout_text(settings)
        return NftablesProgram(settings)

    def kernel(self, family: Family) -> NftablesKernel:
        """See `Backend`."""
        return NftablesKernel(family, self._generation.counter(), self._layouts, self._monitor)

    def prepare(self) -> None:
        """See `Backend`: the mode needs no kernel settings."""

    def owns_chain(self, table: str, chain: str) -> bool:  # noqa: ARG002  # the protocol's
        """See `Backend`: the mode has no chains in iptables."""
        return False


def nftables_settings(config: Config, family: Family, context: NodeContext) -> NftablesSettings:
    """Derive what a family's table depends on besides Services."""
    return replace(
        family_settings(NftablesSettings, config, family, context),
        node_port_ips=node_port_ips(config, context.node, family, context.local_ips),
        # On trial most addresses of these ranges are kube-proxy's.
        service_cidrs=() if config.service_proxy_name else context.service_cidrs_of(family),
        relays_localhost=relays_localhost(config, ProxyMode.NFTABLES, family),
    )


async def why_unusable(family: Family) -> str:
    """Have kernel and ``nft`` check the whole layout without taking it; return what they miss, or nothing."""
    settings = NftablesSettings(family=family, local_traffic=None, node_port_ips=None)
    script = table_text(family, layout_text(settings), {}).replace(" pyproxy {", " pyproxy-probe {", 1)
    result = await run(["nft", "--check", "-f", "-"], stdin=script)
    return result.stderr.strip().partition("\n")[0] if result.status else ""
