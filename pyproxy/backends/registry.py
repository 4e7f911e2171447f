"""The list of proxy modes. There is no other one.

Modules of a mode are imported when it is used: each mode brings libraries that the others do not need.
"""

import logging
from dataclasses import replace

from pyproxy.backends.interface import Backend, Dumper
from pyproxy.config.config import Config, NodePortAddresses, ProxyMode
from pyproxy.errors import ConfigError

logger = logging.getLogger(__name__)


async def open_backend(config: Config) -> Backend:
    """Return the backend of the configured mode.

    Raises:
        ConfigError: this node does not support it.
    """
    match config.proxy_mode:
        case ProxyMode.AUTO:
            # Without --nodeport-addresses node ports are served on all addresses, as in iptables mode, so that they do not
            # depend on the mode that is chosen.
            addresses = config.nodeport_addresses or (NodePortAddresses.ALL,)
            try:
                backend = await open_backend(
                    replace(config, proxy_mode=ProxyMode.NFTABLES, nodeport_addresses=addresses)
                )
            except ConfigError as error:
                logger.info("--proxy-mode=auto: using iptables: %s", error)
                return await open_backend(replace(config, proxy_mode=ProxyMode.IPTABLES))
            logger.info("--proxy-mode=auto: using nftables: the kernel and nft support all features that it needs")
            return backend
        case ProxyMode.IPTABLES:
            from pyproxy.backends.iptables.mode import IptablesMode  # noqa: PLC0415  # see the module's docstring

            return await IptablesMode.open(config)
        case ProxyMode.NFTABLES:
            from pyproxy.backends.nftables.mode import NftablesMode  # noqa: PLC0415  # as above

            return await NftablesMode.open(config)
        case ProxyMode.IPVS:
            from pyproxy.backends.ipvs.mode import IpvsMode  # noqa: PLC0415  # as above

            return await IpvsMode.open(config)


def open_dumper(config: Config) -> Dumper:
    """Return the dumper of the configured mode.

    Raises:
        ConfigError: the mode is `auto`, which is resolved on a node only.
    """
    match config.proxy_mode:
        case ProxyMode.AUTO:
            message = "--proxy-mode=auto depends on the kernel of the node; set the mode whose rules are to be listed"
            raise ConfigError(message)
        case ProxyMode.IPTABLES:
            from pyproxy.backends.iptables.dump import IptablesDumper  # noqa: PLC0415  # as above

            return IptablesDumper(config)
        case ProxyMode.NFTABLES:
            from pyproxy.backends.nftables.dump import NftablesDumper  # noqa: PLC0415  # as above

            return NftablesDumper(config)
        case ProxyMode.IPVS:
            from pyproxy.backends.ipvs.dump import IpvsDumper  # noqa: PLC0415  # as above

            return IpvsDumper(config)
