"""Deleting what is no longer used, a moment after the change: elements, their chains, and pins.

A packet that is being processed may read a count or a slot just before a change, and use it as a key just after the change.
If the element is gone, the look-up fails, and the packet is not translated: it keeps the address of the Service and is lost.
So elements that are found by such a number linger for a grace period. They do no harm, because no new packet gets their
number.

The grace period is one second, which is long for a packet. But packets that a process of the node sends are processed in its
context, and the process can be preempted between two rules for as long as it waits for a CPU.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress

from pyproxy.backends.nftables.element_format import ElementFormat
from pyproxy.backends.nftables.elements import (
    CHAINED,
    ENDPOINTS,
    ID_BIT,
    PICK,
    PINS,
    SETS,
    SLOTS,
    ElementChange,
    ElementKey,
    Value,
    unpack_number,
)
from pyproxy.backends.nftables.layout import TABLE, numbered_chain, slot_chain
from pyproxy.backends.nftables.reader import TableReader
from pyproxy.backends.nftables.writer import LINGERING, TableWriter
from pyproxy.errors import ApplyError
from pyproxy.linux.nf_tables_messages import delete_chain

logger = logging.getLogger(__name__)

GRACE_SECONDS = 1.0
_ID_BYTES = 4  # a key that contains an endpoint ID ends with it


class Sweeper:
    """Deletes unused elements of one family's table, in a task that runs while there are any."""

    def __init__(self, reader: TableReader, writer: TableWriter, lock: asyncio.Lock, grace_seconds: float) -> None:
        self._family = family = reader.family
        self._reader = reader
        self._writer = writer
        self._lock = lock  # held by every reader and writer of the table
        self._grace_seconds = grace_seconds
        self._pins = ElementFormat(PINS, family, TABLE)
        self.lingering: dict[ElementKey, float] = {}
        """Elements that are unused but still in the kernel, with the loop time since when, in ascending order."""
        self._users_of_ids: Counter[Value] = Counter()  # for each endpoint ID, how many slots lead to it
        self.has_failed = False
        """Whether elements were left in the kernel since the last full read."""
        self._failures = 0
        self.task: asyncio.Task[None] | None = None

    def start_over(self, entries: Mapping[ElementKey, Value]) -> None:
        """Forget all elements after the kernel's entries were read; unused ones are now among the entries."""
        self.forget()
        self.has_failed = False
        self._users_of_ids = Counter(value for key, value in entries.items() if key[0] in SLOTS)

    def forget(self) -> None:
        """Forget the elements of a table that no longer exists, or is about to be read."""
        self.lingering.clear()

    def add(self, change: ElementChange) -> None:
        """Schedule what a change made unused, and take back what it uses again."""
        now = asyncio.get_running_loop().time()
        for key, (_, wanted) in change.items():
            if key[0] in LINGERING:
                if wanted is None:
                    self.lingering[key] = now
                else:
                    self.lingering.pop(key, None)
        if self.lingering and self.task is None:
            self.task = asyncio.create_task(self._sweep())

    def count_users(self, change: ElementChange) -> None:
        """Count the slots that a change adds to and removes from each endpoint ID."""
        for key, (present, wanted) in change.items():
            if key[0] not in SLOTS:
                continue
            if wanted is not None:
                self._users_of_ids[wanted] += 1
            if present is not None:
                self._users_of_ids[present] -= 1
                if not self._users_of_ids[present]:
                    del self._users_of_ids[present]

    def take_failures(self) -> int:
        """Return the number of failed deletions since the last call."""
        failures, self._failures = self._failures, 0
        return failures

    async def _sweep(self) -> None:
        try:
            while self.lingering:
                first = next(iter(self.lingering.values()))
                await asyncio.sleep(first + self._grace_seconds - asyncio.get_running_loop().time())
                async with self._lock:
                    due = asyncio.get_running_loop().time() - self._grace_seconds
                    swept = [key for key, since in self.lingering.items() if since <= due]
                    for key in swept:
                        del self.lingering[key]
                    await self._delete(swept)
        except (ApplyError, OSError) as error:
            # The next full read finds what is left.
            self.has_failed = True
            self._failures += 1
            logger.warning("%s: unused elements were not deleted: %s", self._family, error)
        finally:
            self.task = None

    async def _delete(self, swept: Iterable[ElementKey]) -> None:
        keys: defaultdict[int, list[bytes]] = defaultdict(list)
        for key in swept:
            keys[key[0]].append(key[1:])
        messages = [part for number in keys for part in self._writer.delete(number, keys[number])]
        counts = (unpack_number(key) for key in keys.get(PICK.number, ()))
        self._writer.commit(messages + [delete_chain(self._family, TABLE, slot_chain(count)) for count in counts])
        ids = {key[-_ID_BYTES:] for number in ENDPOINTS for key in keys.get(number, ())}
        # Another address of the Service may still lead to the endpoint, which then keeps its clients.
        gone = {found for found in ids if unpack_number(found) & ID_BIT}.difference(self._users_of_ids)
        if gone:
            # An endpoint that returns would otherwise get its old clients.
            pins = [key for key in await asyncio.to_thread(self._reader.pins) if key[-_ID_BYTES:] in gone]
            try:
                self._writer.commit(list(self._pins.delete(pins)))
            except ApplyError:
                # One of them expired after it was read, so the whole transaction failed.
                for pin in pins:
                    with suppress(ApplyError):
                        self._writer.commit(list(self._pins.delete([pin])))
        chains = [
            numbered_chain(SETS[number], unpack_number(key), self._family).name
            for number in CHAINED - {PICK.number}
            for key in keys.get(number, ())
        ]
        if chains:
            layout = self._reader.intact_layout()
            # In a transaction of their own: before Linux 6.2 the deleted elements keep the chains in use for a moment.
            self._writer.commit([delete_chain(self._family, TABLE, name) for name in sorted(chains)])
            self._writer.commit(self._writer.marking(layout))
