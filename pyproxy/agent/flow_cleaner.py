"""Deletes stale UDP flows outside the sync path: a dump of a large conntrack table must not delay rules."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from time import monotonic

from pyproxy.errors import ApplyError
from pyproxy.linux.conntrack import delete_udp_flows
from pyproxy.model.address import Family, Network
from pyproxy.plan.service_plan import ServicePlan
from pyproxy.plan.stale_flows import NO_ADDRESSES, Frontends, NodeAddresses, Touched

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
# The kernel announces an address just before it makes its local route (`__ipv6_ifa_notify`, `__inet_insert_ifa`).
_SETTLE_SECONDS = 0.1
# Cleaning takes at most a fifth of the time, however fast Services change and however large the table is.
_PAUSES_PER_WALK = 4

NodeNetworks = Callable[[Family], Awaitable[Collection[Network]]]


class FlowCleaner:
    """Collects the frontends that changes touched, and deletes their stale flows, one walk through conntrack after another.

    Args:
        on_cleaned: called after each walk with the number of deleted flows and the duration in seconds.
    """

    def __init__(self, on_cleaned: Callable[[Family, int, float], None]) -> None:
        self._on_cleaned = on_cleaned
        self._frontends = {family: Frontends() for family in Family}
        self._pending: dict[Family, Touched] = {}
        self._known: dict[Family, NodeAddresses] = {}
        """Addresses on which node ports answered at the last walk."""
        self._wake = asyncio.Event()

    def note(self, changes: Iterable[tuple[ServicePlan | None, ServicePlan | None]]) -> None:
        """Record the plans that the kernel had and has. Call it once the rules are in place."""
        of_family: dict[Family, list[tuple[ServicePlan | None, ServicePlan | None]]] = {}
        for before, plan in changes:
            known = plan or before
            if known is not None:
                of_family.setdefault(known.family, []).append((before, plan))
        for family, those in of_family.items():
            self._add(family, self._frontends[family].update(those))

    def note_addresses(self) -> None:
        """Record that the node's addresses may have changed. Call it once the rules match the new addresses."""

        def add() -> None:
            for family in self._known:
                self._add(family, Touched(addresses=True))

        asyncio.get_running_loop().call_later(_SETTLE_SECONDS, add)

    def _add(self, family: Family, touched: Touched) -> None:
        if touched:
            self._pending.setdefault(family, Touched()).add(touched)
            self._wake.set()

    async def run(self, node_networks: NodeNetworks) -> None:
        """Delete stale flows whenever there may be some, until cancelled.

        Args:
            node_networks: returns the networks on which node ports of a family answer; called only if they matter.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            started = monotonic()
            # One walk for all changes so far: the kernel dumps the whole table, however few frontends are searched.
            pending, self._pending = self._pending, {}
            for family, touched in pending.items():
                await self._clean(family, touched, node_networks)
            await asyncio.sleep(_PAUSES_PER_WALK * (monotonic() - started))

    async def _clean(self, family: Family, touched: Touched, node_networks: NodeNetworks) -> None:
        started = monotonic()
        frontends = self._frontends[family]
        known = self._known.get(family)
        node = known or NO_ADDRESSES
        needs_addresses = frontends.needs_addresses(touched)
        try:
            if needs_addresses:
                node = NodeAddresses(await node_networks(family))
            stale = frontends.stale(touched, node, known)
            cleaned = None
            if stale.destinations:
                cleaned = await asyncio.to_thread(delete_udp_flows, family, stale.destinations, stale.is_stale)
        except ApplyError as error:
            logger.warning("%s: stale UDP flows cannot be deleted, will be tried again: %s", family, error)
            self._pending.setdefault(family, Touched()).add(touched)
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._wake.set)
            return
        if needs_addresses:
            self._known[family] = node
        if cleaned is None:
            return
        seconds = monotonic() - started
        self._on_cleaned(family, cleaned.deleted, seconds)
        if cleaned.deleted:
            logger.info(
                "%s: deleted %d stale UDP flows of %d examined",
                *(family, cleaned.deleted, cleaned.examined),
                extra={"duration_ms": round(seconds * 1000, 1), "entries": cleaned.deleted},
            )
