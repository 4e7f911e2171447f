"""Starts the agent and ends it: signals, process settings, and which source it listens to."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from pyproxy.apply.notify import notify
from pyproxy.apply.sysctl import ConntrackLimits, apply_conntrack_limits
from pyproxy.config import Config
from pyproxy.loop.agent import Agent
from pyproxy.loop.modes import open_backend
from pyproxy.loop.node_name import own_node_name
from pyproxy.model.change import Change

logger = logging.getLogger(__name__)


def run(config: Config) -> int:
    """Run the agent until a signal ends it; return the exit status. Rules are left in place.

    Raises:
        ConfigError: the configuration asks for what is not to be had here.
    """
    _set_oom_score(config.oom_score_adj)
    apply_conntrack_limits(_conntrack_limits(config))
    return asyncio.run(_run(config))


async def _run(config: Config) -> int:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    node_name = own_node_name(config)
    agent = Agent(config, await open_backend(config), node_name)
    running = asyncio.create_task(agent.run(changes(config, node_name)))
    stopping = asyncio.create_task(stopped.wait())
    await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
    notify("STOPPING=1")
    stopping.cancel()
    if running.done():
        running.result()
        return 1
    logger.info("stopping on a signal; rules stay in place")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return 0


def changes(config: Config, node_name: str) -> AsyncIterator[Change]:
    """Return the changes of the source that the configuration asks for."""
    if config.manifests:
        from pyproxy.source.files import FileSource  # noqa: PLC0415  # YAML and no HTTP, or the other way round

        return FileSource(config.manifests, node_name).changes()
    from pyproxy.source.api import open_api_source  # noqa: PLC0415  # see above

    return open_api_source(config, node_name)


def _conntrack_limits(config: Config) -> ConntrackLimits:
    return ConntrackLimits(
        max_per_core=config.conntrack_max_per_core,
        min=config.conntrack_min,
        tcp_timeout_established_seconds=config.conntrack_tcp_timeout_established_seconds,
        tcp_timeout_close_wait_seconds=config.conntrack_tcp_timeout_close_wait_seconds,
        tcp_be_liberal=config.conntrack_tcp_be_liberal,
        udp_timeout_seconds=config.conntrack_udp_timeout_seconds,
        udp_timeout_stream_seconds=config.conntrack_udp_timeout_stream_seconds,
    )


def _set_oom_score(score: int) -> None:
    try:
        Path("/proc/self/oom_score_adj").write_text(str(score))
    except OSError as error:
        logger.warning("--oom-score-adj: %d cannot be set: %s", score, error.strerror)
