"""The list of proxy modes.

A mode is a folder beside this file and a row of `_FOLDERS`. The module ``mode`` of the folder names its `Backend` class
``BACKEND``, the module ``dump`` its `Dumper` class ``DUMPER``. They are imported when the mode is used: each mode brings
libraries of its own.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import NamedTuple

from pyproxy.backends.interface import Backend, Dumper
from pyproxy.backends.listing import RuleListing
from pyproxy.config.config import Config, NodePortAddresses, ProxyMode
from pyproxy.errors import ConfigError

logger = logging.getLogger(__name__)

_FOLDERS: Mapping[ProxyMode, str] = {
    ProxyMode.IPTABLES: "iptables",
    ProxyMode.NFTABLES: "nftables",
    ProxyMode.IPVS: "ipvs",
}


def backend_class(mode: ProxyMode) -> type[Backend]:
    """Import and return the class of a mode. An agent uses one mode and imports no other one.

    Args:
        mode: any but ``auto``, for which see `choose_mode`.
    """
    backend: type[Backend] = import_module(f"{__package__}.{_FOLDERS[mode]}.mode").BACKEND
    return backend


async def open_backend(config: Config) -> Backend:
    """Return the backend of the configured mode.

    Raises:
        ConfigError: this node does not support it.
    """
    if config.proxy_mode is not ProxyMode.AUTO:
        return await backend_class(config.proxy_mode).open(config)
    try:
        backend = await open_backend(_nftables_of_auto(config))
    except ConfigError as error:
        logger.info("--proxy-mode=auto: using iptables: %s", error, extra={"mode": "iptables"})
        return await open_backend(replace(config, proxy_mode=ProxyMode.IPTABLES))
    logger.info("--proxy-mode=auto: using nftables: the kernel and nft support all features that it needs")
    return backend


async def choose_mode(config: Config) -> Config:
    """Return the configuration with the mode that ``auto`` means on this node; no rule is written."""
    if config.proxy_mode is not ProxyMode.AUTO:
        return config
    nftables = _nftables_of_auto(config)
    try:
        (await open_backend(nftables)).close()
    except ConfigError:
        return replace(config, proxy_mode=ProxyMode.IPTABLES)
    return nftables


def _nftables_of_auto(config: Config) -> Config:
    # Without --nodeport-addresses node ports are served on all addresses, as in iptables mode, so that they do not depend on
    # the mode that is chosen.
    addresses = config.nodeport_addresses or (NodePortAddresses.ALL,)
    return replace(config, proxy_mode=ProxyMode.NFTABLES, nodeport_addresses=addresses)


class LiveRules(NamedTuple):
    """The rules of one mode that are in the kernel."""

    mode: ProxyMode
    dumper: Dumper
    listings: list[RuleListing]


async def find_live_rules(config: Config) -> list[LiveRules]:
    """Return the rules of every mode that has some in the kernel, whatever mode the configuration names.

    In iptables mode rules of kube-proxy are among them: its chains have the same names.
    """
    found = []
    for mode in sorted(_FOLDERS, key=lambda mode: mode is ProxyMode.IPTABLES):  # last, as its rules may be kube-proxy's
        dumper = open_dumper(replace(config, proxy_mode=mode))
        try:
            listings = await dumper.live()
        except ConfigError as error:
            logger.debug("no rules of mode %s: %s", mode.value, error)
            continue
        if any(listing.services or listing.chains or listing.common for listing in listings):
            found.append(LiveRules(mode, dumper, listings))
    return found


def open_dumper(config: Config) -> Dumper:
    """Return the dumper of the configured mode.

    Raises:
        ConfigError: which mode that is depends on the node.
    """
    if config.proxy_mode is ProxyMode.AUTO:
        message = "--proxy-mode=auto depends on the kernel of the node; set the mode whose rules are to be listed"
        raise ConfigError(message)
    dumper: Callable[[Config], Dumper] = import_module(f"{__package__}.{_FOLDERS[config.proxy_mode]}.dump").DUMPER
    return dumper(config)
