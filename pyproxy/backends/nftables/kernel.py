"""The table of one family in the nftables mode: when it is read, written and swept.

`writer` writes a change, `sweeper` deletes what is unused a second later, `reader` reads everything. All three use one
netlink socket, under one lock, because the answers of two requests must not mix.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping

from pyproxy.backends.interface import KernelCounts
from pyproxy.backends.nftables.change_monitor import ChangeMonitor
from pyproxy.backends.nftables.elements import ElementChange, ElementKey, Layout, Value
from pyproxy.backends.nftables.layout import TABLE
from pyproxy.backends.nftables.reader import TableReader
from pyproxy.backends.nftables.sweeper import GRACE_SECONDS, Sweeper
from pyproxy.backends.nftables.text import family_name
from pyproxy.backends.nftables.writer import TableWriter
from pyproxy.errors import ApplyError
from pyproxy.linux.netlink import Closeable
from pyproxy.linux.nf_tables_socket import NfTablesSocket
from pyproxy.linux.ruleset_counter import RulesetCounter
from pyproxy.model.address import Family

logger = logging.getLogger(__name__)


class NftablesKernel(Closeable):
    """Reads and writes the table of one family; implements `backends.interface.Kernel`."""

    detects_all_changes = True
    plans_per_portion: int | None = 1_000

    def __init__(
        self,
        family: Family,
        counter: RulesetCounter,
        layouts: Mapping[Layout, str],
        monitor: ChangeMonitor,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        """Open the socket. `layouts` has the text of each layout that `apply` will get."""
        self.family = family
        self._counter = counter
        self._monitor = monitor
        self._lock = asyncio.Lock()
        self._socket = NfTablesSocket()
        monitor.ignore(self._socket.port)
        self._reader = TableReader(self._socket, family)
        self._writer = TableWriter(self._reader, layouts, counter, monitor)
        self._sweeper = Sweeper(self._reader, self._writer, self._lock, grace_seconds)

    def __repr__(self) -> str:
        return f"NftablesKernel({self.family})"

    def close(self) -> None:
        """Close the socket. The table stays."""
        self._socket.close()

    @property
    def change_descriptor(self) -> int | None:
        """Return the descriptor of notifications of nf_tables, see `backends.interface.Kernel`."""
        return self._counter.descriptor

    def changed_externally(self) -> bool:
        """Return whether the ruleset has a generation that is not ours, or elements were left behind; log what changed."""
        self._monitor.listen()
        if not self._counter.changed_externally():
            return self._sweeper.has_failed
        for operation in self._monitor.take(self.family):
            text = "%s %s: changed by %s"
            logger.warning(text, family_name(self.family), TABLE, operation, extra={"family": str(self.family)})
        return True

    async def examine(self) -> bool:
        """Return False: `changed_externally` detects all changes."""
        return False

    def take_counts(self) -> KernelCounts:
        """Return the number of failed deletions of unused elements since the last call."""
        return KernelCounts(failed_cleanups=self._sweeper.take_failures())

    async def read(self) -> dict[ElementKey, Value]:
        """Return the elements of our table and its layout; nothing if there is no table.

        Raises:
            ApplyError: the table cannot be read; a later call may succeed.
        """
        async with self._lock:
            # Elements that linger are among the entries that are read, so the next comparison deletes them.
            self._sweeper.forget()
            try:
                entries = await asyncio.to_thread(self._read)
            except OSError as error:
                raise _retryable(error) from error
            self._sweeper.start_over(entries)
            return entries

    def _read(self) -> dict[ElementKey, Value]:
        # First the generation: a change during the read then counts as external.
        self._counter.settle()
        return self._reader.entries()

    async def peek(self) -> dict[ElementKey, Value]:
        """Return what `read` returns, without side effects; see `backends.interface.Kernel`."""

        def entries() -> dict[ElementKey, Value]:
            # A socket of its own, so that a change need not wait for the dumps.
            with NfTablesSocket() as netlink:
                return TableReader(netlink, self.family).entries()

        try:
            return await asyncio.to_thread(entries)
        except OSError as error:
            raise _retryable(error) from error

    def leftovers(self) -> Collection[ElementKey]:
        """Return the elements that the sweeper will delete."""
        return self._sweeper.lingering.keys()

    async def apply(self, change: ElementChange) -> None:
        """Write a change, in one transaction unless chains or the layout change.

        Raises:
            ApplyError: the change was refused, or a part of it.
        """
        async with self._lock:
            try:
                is_new_table = await self._writer.write(change, self._sweeper.lingering)
            except OSError as error:
                raise _retryable(error) from error
            if is_new_table:
                self._sweeper.forget()
            else:
                self._sweeper.add(change)
            self._sweeper.count_users(change)


def _retryable(error: OSError) -> ApplyError:
    # A dump that failed says nothing about the content of a change.
    return ApplyError(f"nf_tables: {error.strerror}", retryable=True)
