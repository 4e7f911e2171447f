"""Sets what needs full privileges, for an agent that runs without them (``--init-only``).

It imports no part of the agent: each rollout of a DaemonSet waits for the init container of every node.
"""

import logging

from pyproxy.backends.registry import open_backend
from pyproxy.config.config import Config
from pyproxy.linux.sysctl import ConntrackLimits, apply_conntrack_limits

logger = logging.getLogger(__name__)


async def prepare(config: Config) -> int:
    """Set what needs full privileges. An agent without them finds the settings as it needs them, and changes none.

    Returns 1 if a setting could not be written.
    """
    limits_are_set = apply_limits(config)
    backend = await open_backend(config)
    if not (backend.prepare() and limits_are_set):
        logger.error("--init-only: some kernel settings could not be written, see the warnings above")
        return 1
    logger.info("kernel settings are set; the agent ends because of --init-only")
    return 0


def apply_limits(config: Config) -> bool:
    """Set the limits and timeouts of connection tracking, and return whether all have their value."""
    return apply_conntrack_limits(
        ConntrackLimits(
            max_per_core=config.conntrack_max_per_core,
            min=config.conntrack_min,
            tcp_timeout_established_seconds=config.conntrack_tcp_timeout_established_seconds,
            tcp_timeout_close_wait_seconds=config.conntrack_tcp_timeout_close_wait_seconds,
            tcp_be_liberal=config.conntrack_tcp_be_liberal,
            udp_timeout_seconds=config.conntrack_udp_timeout_seconds,
            udp_timeout_stream_seconds=config.conntrack_udp_timeout_stream_seconds,
        )
    )
