"""The modes there are: the only list of backends."""

from pyproxy.config import Config, ProxyMode
from pyproxy.errors import ConfigError
from pyproxy.loop.backend import Backend
from pyproxy.loop.dumper import Dumper


async def open_backend(config: Config) -> Backend:
    """Return the backend that the configuration asks for.

    Raises:
        ConfigError: it is not to be had on this node.
    """
    match config.proxy_mode:
        case ProxyMode.IPTABLES | ProxyMode.AUTO:
            # Each mode brings modules that the others have no use for.
            from pyproxy.loop.iptables_mode import IptablesMode  # noqa: PLC0415

            return await IptablesMode.open(config)
        case ProxyMode.NFTABLES:
            from pyproxy.loop.nftables_mode import NftablesMode  # noqa: PLC0415  # see above

            return await NftablesMode.open(config)
        case ProxyMode.IPVS:
            from pyproxy.loop.ipvs_mode import IpvsMode  # noqa: PLC0415  # see above

            return await IpvsMode.open(config)
        case mode:
            message = f"--proxy-mode: {mode.value} is not available in this version"
            raise ConfigError(message)


def open_dumper(config: Config) -> Dumper:
    """Return what lists the rules of the mode that the configuration asks for.

    Raises:
        ConfigError: the mode has none.
    """
    match config.proxy_mode:
        case ProxyMode.IPTABLES | ProxyMode.AUTO:
            from pyproxy.loop.iptables_dump import IptablesDumper  # noqa: PLC0415  # see above

            return IptablesDumper(config)
        case ProxyMode.NFTABLES:
            from pyproxy.loop.nftables_dump import NftablesDumper  # noqa: PLC0415  # see above

            return NftablesDumper(config)
        case mode:
            message = f"--proxy-mode: rules of {mode.value} cannot be listed in this version"
            raise ConfigError(message)
