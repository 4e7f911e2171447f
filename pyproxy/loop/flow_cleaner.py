"""Deletes stale UDP flows beside the sync path: a dump of a big table must not delay rules."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from time import monotonic

from pyproxy.apply.conntrack import delete_udp_flows
from pyproxy.compile.plan import ServicePlan
from pyproxy.compile.stale_flows import RightFlows, right_flows
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0


class FlowCleaner:
    """Gathers what flows may have and cleans as fast as one dump after the other goes.

    Args:
        on_cleaned: is told of each dump: how many flows were deleted, and how many seconds it took.
    """

    def __init__(self, on_cleaned: Callable[[Family, int, float], None]) -> None:
        self._on_cleaned = on_cleaned
        self._pending: dict[Family, RightFlows] = {}
        self._wake = asyncio.Event()

    def note(self, changes: Iterable[tuple[ServicePlan | None, ServicePlan | None]]) -> None:
        """Take in the plans that the kernel had and has: rules are in place before their flows are cleaned."""
        changes = [change for change in changes if change[1] is not None]
        for family in Family:
            new = right_flows(change for change in changes if change[1] is not None and change[1].family is family)
            if new:
                self._pending[family] = self._pending.get(family, RightFlows()) | new
                self._wake.set()

    async def run(self, node_ips: Callable[[], Awaitable[Collection[bytes]]]) -> None:
        """Clean whenever there is something to clean, until cancelled.

        Args:
            node_ips: gives the node's own addresses; asked only where node ports changed.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            pending, self._pending = self._pending, {}
            for family, right in pending.items():
                await self._clean(family, right, node_ips)

    async def _clean(
        self, family: Family, right: RightFlows, node_ips: Callable[[], Awaitable[Collection[bytes]]]
    ) -> None:
        started = monotonic()
        try:
            ips = await node_ips() if right.by_node_port else ()
            count = await asyncio.to_thread(delete_udp_flows, family, lambda flow: right.is_stale(flow, ips))
        except ApplyError as error:
            logger.warning("stale UDP flows stay for now: %s", error)
            self._pending[family] = right | self._pending.get(family, RightFlows())
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._wake.set)
            return
        self._on_cleaned(family, count, monotonic() - started)
        if count:
            logger.info("%s: deleted %d UDP flows to endpoints that no longer serve", family, count)
