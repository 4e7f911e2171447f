"""The modes there are: the only list of backends."""

import logging
from dataclasses import replace

from pyproxy.backends.interface import Backend, Dumper
from pyproxy.config.config import Config, NodePortAddresses, ProxyMode
from pyproxy.errors import ConfigError
from pyproxy.model.address import Network

logger = logging.getLogger(__name__)


async def open_backend(config: Config) -> Backend:
    """Return the backend that the configuration asks for.

    Raises:
        ConfigError: it is not to be had on this node.
    """
    match config.proxy_mode:
        case ProxyMode.AUTO:
            return await _open_best(config)
        case ProxyMode.IPTABLES:
            # Each mode brings modules that the others have no use for.
            from pyproxy.backends.iptables.mode import IptablesMode  # noqa: PLC0415

            return await IptablesMode.open(config)
        case ProxyMode.NFTABLES:
            from pyproxy.backends.nftables.mode import NftablesMode  # noqa: PLC0415  # see above

            return await NftablesMode.open(config)
        case ProxyMode.IPVS:
            from pyproxy.backends.ipvs.mode import IpvsMode  # noqa: PLC0415  # see above

            return await IpvsMode.open(config)


async def _open_best(config: Config) -> Backend:
    """Return the nftables mode if all its needs are met, else the iptables mode."""
    try:
        backend = await open_backend(replace(config, proxy_mode=ProxyMode.NFTABLES, nodeport_addresses=_every(config)))
    except ConfigError as error:
        logger.info("--proxy-mode=auto: iptables: %s", error)
        return await open_backend(replace(config, proxy_mode=ProxyMode.IPTABLES))
    logger.info("--proxy-mode=auto: nftables: kernel and nft have all that it needs")
    return backend


def _every(config: Config) -> tuple[Network | NodePortAddresses, ...]:
    """Return the node port addresses to use where either mode may come out: without the flag all, as in iptables mode."""
    return config.nodeport_addresses or (NodePortAddresses.ALL,)


def open_dumper(config: Config) -> Dumper:
    """Return what lists the rules of the mode that the configuration asks for.

    Raises:
        ConfigError: the mode has none.
    """
    match config.proxy_mode:
        case ProxyMode.AUTO:
            message = "--proxy-mode=auto is decided on the node, by what its kernel has; say which mode's rules to list"
            raise ConfigError(message)
        case ProxyMode.IPTABLES:
            from pyproxy.backends.iptables.dump import IptablesDumper  # noqa: PLC0415  # see above

            return IptablesDumper(config)
        case ProxyMode.NFTABLES:
            from pyproxy.backends.nftables.dump import NftablesDumper  # noqa: PLC0415  # see above

            return NftablesDumper(config)
        case ProxyMode.IPVS:
            from pyproxy.backends.ipvs.dump import IpvsDumper  # noqa: PLC0415  # see above

            return IpvsDumper(config)
