"""Waits for a kube-proxy that is still running on this node: two proxies would overwrite each other's rules.

A running proxy is detected by its HTTP servers, which listen in the network namespace of the rules and need no
privileges: the metrics server, which returns the proxy mode, and the health server. An earlier pyproxy has the same. A
server that does not respond may belong to a proxy, unless all processes that listen on the port are visible and have
other names.
"""

import asyncio
import json
import logging
import re
from collections.abc import Collection
from contextlib import suppress
from time import monotonic

from pyproxy.config.config import Config, Takeover
from pyproxy.linux.listening import who_listens
from pyproxy.linux.systemd_notify import notify
from pyproxy.model.address import LOOPBACK_IPS, ListenAddress
from pyproxy.serve.local_page import get_page, reachable

logger = logging.getLogger(__name__)

# Default ports of kube-proxy's metrics server and health server.
_KUBE_PROXYS_PORTS = (10249, 10256)
# Interval between two checks.
_LOOK_SECONDS = 0.5
# Time limit for both responses of a server.
_ANSWER_SECONDS = 5.0
# Interval between two log lines while waiting.
_REPEAT_SECONDS = 300.0
# Limit in bytes: the port may belong to any program.
_LONGEST_ANSWER = 1 << 16
# The possible responses of kube-proxy to `/proxyMode`, except those on Windows.
_MODES = {"iptables", "ipvs", "nftables"}
# Part of the names and command lines of proxies: kube-proxy, kubelite and k3s, which include it, and pyproxy.
_MAY_BE_PROXY = re.compile("kube|k3s|pyproxy")


async def wait_for_running_proxy(config: Config) -> None:
    """Return once no other proxy is running on this node; immediately with --takeover=never and side-by-side."""
    if config.takeover is Takeover.NEVER or config.service_proxy_name:
        return
    said_at: float | None = None
    while found := await detect_running_proxy(config):
        if said_at is None or monotonic() > said_at + _REPEAT_SECONDS:
            said_at = monotonic()
            message = f"waiting until the kube-proxy on this node is gone, nothing is written before: {found}"
            logger.warning("%s; --takeover=never does not wait", message)
            notify(f"STATUS={message}")
        await asyncio.sleep(_LOOK_SECONDS)
    if said_at is not None:
        logger.info("the kube-proxy on this node is gone")
        notify("STATUS=")


async def detect_running_proxy(config: Config) -> str:
    """Return how a running proxy was detected; an empty text if there is none."""
    # At once: a server that does not respond costs its time limit only once.
    answers = await asyncio.gather(*map(_recognise, _addresses(config)))
    return next(filter(None, answers), "")


async def detect_running_agent(config: Config) -> str:
    """Return how a running agent of pyproxy was detected by its metrics server; an empty text if there is none.

    kube-proxy is not detected: after a rollback it runs while the rules of pyproxy are removed.
    """
    answers = await asyncio.gather(*map(_recognise_agent, _addresses(config)))
    return next(filter(None, answers), "")


def _addresses(config: Config) -> Collection[ListenAddress]:
    defaults = [ListenAddress(ip, port) for ip in LOOPBACK_IPS.values() for port in _KUBE_PROXYS_PORTS]
    own = (config.metrics_bind_address, config.healthz_bind_address)
    configured = [address for address in own if isinstance(address, ListenAddress)]
    return dict.fromkeys(map(reachable, (*defaults, *configured)))


async def _recognise(address: ListenAddress) -> str:
    # Why a server belongs to a proxy, or an empty text. One that does not respond may be a busy proxy.
    where = str(address)
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            mode = (await get_page(address, "/proxyMode", _LONGEST_ANSWER, None)).strip()
            if mode in _MODES:
                return f"{where}/proxyMode says {mode}"
            # Many programs answer on /healthz; the time of the last sync is kube-proxy's own field.
            with suppress(ValueError, RecursionError):
                health = json.loads(await get_page(address, "/healthz", _LONGEST_ANSWER, None))
                if isinstance(health, dict) and "lastUpdated" in health:
                    return f"{where}/healthz answers as a proxy's"
    except TimeoutError:
        # Not a proxy if all processes that listen on the port are visible and have other names.
        commands = await asyncio.to_thread(who_listens, address.port)
        if not commands or any(map(_MAY_BE_PROXY.search, commands)):
            return f"{where} is in use, but does not respond"
    except OSError:
        pass
    return ""


async def _recognise_agent(address: ListenAddress) -> str:
    # kube-proxy has /flagz as well, which begins with its own name.
    try:
        page = await get_page(address, "/flagz", _LONGEST_ANSWER, _ANSWER_SECONDS)
        if page.lstrip().startswith("pyproxy "):
            return f"{address}/flagz is a page of pyproxy"
    except OSError:
        pass
    return ""
