"""The table of one family in the nftables mode: elements by netlink, the layout now and then by ``nft``.

What was made is known again by a chain without rules, whose name holds two digests: of the text that the
layout was made from, and of the rules that the kernel lists for it. So a start finds with dumps alone
whether the table is one of this version, and untouched.
"""

import asyncio
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain

from pyproxy.backends.interface import KernelCounts
from pyproxy.backends.nftables.change_monitor import ChangeMonitor
from pyproxy.backends.nftables.element_format import ElementFormat
from pyproxy.backends.nftables.elements import (
    ADDRESSED,
    ID_BIT,
    LAYOUT,
    NODE_PORTS,
    PICK,
    PINS,
    SETS,
    ElementKey,
    Layout,
    Value,
    unpack_number,
)
from pyproxy.backends.nftables.layout import LOCALHOST_REJECTIONS, TABLE, numbered_chain, slot_chain
from pyproxy.backends.nftables.tables import DAMAGED, TableListing, is_dormant, is_marker
from pyproxy.backends.nftables.text import element_text, family_name, table_text
from pyproxy.errors import ApplyError
from pyproxy.linux.command import run
from pyproxy.linux.nf_tables_messages import delete_chain, flush_chain, new_chain, new_slot_rule, slot_expressions
from pyproxy.linux.nf_tables_socket import NfTablesSocket
from pyproxy.linux.ruleset_counter import RulesetCounter
from pyproxy.model.address import Family

logger = logging.getLogger(__name__)

ElementChange = Mapping[ElementKey, tuple[Value | None, Value | None]]

_CHAIN_IN_SCRIPT = re.compile(r"^\tchain (\S+) ", re.MULTILINE)
_GRACE_SECONDS = 1.0
"""How long what packets on their way may still look up stays: they have seen the count of a moment ago.

Between two look-ups a packet of a process on this node can wait for the CPU as long as that process.
"""
_CHAINED = frozenset(kind.number for kind in SETS.values() if kind.leads_to_chains)
_CHOICES = tuple(choice for sets in (ADDRESSED, NODE_PORTS) for choice in (sets.main, sets.local))
_ENDPOINTS = frozenset(choice.endpoints.number for choice in _CHOICES)
_SLOTS = frozenset(choice.slots.number for choice in _CHOICES)
_LINGERING = _CHAINED | _ENDPOINTS | _SLOTS
_MOST_ENTRIES_IN_LOOP = 1000
"""More are packed and sent in a thread, so that the loop goes on."""


class NftablesKernel:
    """Our table of one family."""

    detects_all_changes = True
    plans_per_portion: int | None = 1_000

    def __init__(
        self,
        family: Family,
        counter: RulesetCounter,
        layouts: Mapping[Layout, str],
        monitor: ChangeMonitor,
        grace_seconds: float = _GRACE_SECONDS,
    ) -> None:
        """Take a counter of generations, the texts of the layouts that `apply` may be asked for, and who tells of others."""
        self.family = family
        self.commits = 0
        """Transactions so far, for tests and metrics."""
        self._failed_sweeps = 0
        """Deletions of unused elements that failed since the counts were last taken."""
        self._counter = counter
        self._layouts = layouts
        self._grace_seconds = grace_seconds
        self._name = f"{family_name(family)} {TABLE}"
        self._socket = NfTablesSocket()
        self._monitor = monitor
        monitor.leave_out(self._socket.port)
        self._formats = {number: ElementFormat(kind, family, TABLE) for number, kind in SETS.items()}
        self._lingering: dict[ElementKey, float] = {}
        """What is no longer wanted and still there, and since when, on the loop's clock."""
        self._users_of_ids: Counter[Value] = Counter()
        """From how many slots an endpoint of a Service with affinity can be picked, by its id."""
        self._failed_to_sweep = False
        self._lock = asyncio.Lock()
        self._sweeping: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"NftablesKernel({self.family})"

    def changed_externally(self) -> bool:
        """See `Kernel`."""
        self._monitor.listen()
        if not self._counter.changed_externally():
            return self._failed_to_sweep
        for operation in self._monitor.take(self.family):
            logger.warning("%s: changed by %s", self._name, operation)
        return True

    async def examine(self) -> bool:
        """See `Kernel`: there is nothing that `changed_externally` does not see."""
        return False

    def take_counts(self) -> KernelCounts:
        """Return the deletions of unused elements that failed since the last call."""
        failed, self._failed_sweeps = self._failed_sweeps, 0
        return KernelCounts(failed_cleanups=failed)

    async def read(self) -> dict[ElementKey, Value]:
        """Return the elements of our table, and whether its layout is one of ours."""
        async with self._lock:
            self._lingering.clear()
            self._failed_to_sweep = False
            try:
                found = await asyncio.to_thread(self._read)
            except OSError as error:
                message = f"nf_tables: {error.strerror}"
                raise ApplyError(message, retryable=True) from error
            self._users_of_ids = Counter(value for key, value in found.items() if key[0] in _SLOTS)
            return found

    async def apply(self, change: ElementChange) -> None:
        """Perform a change; one transaction, unless the layout changes.

        Raises:
            ApplyError: it was not taken, or not all of it.
        """
        async with self._lock:
            present, wanted = change.get(LAYOUT, (None, None))
            if wanted is None and LAYOUT in change:
                await self._run_nft(f"delete table {self._name}\n")
            elif isinstance(wanted, Layout) and present is None:
                await self._make_table(self._layouts[wanted], {})
                await self._write(change, wanted)
            elif isinstance(wanted, Layout):
                await self._replace(change, wanted)
            else:
                await self._write(change, None)
            self._count_users(change)

    # -- changes

    async def _replace(self, change: ElementChange, layout: Layout) -> None:
        """Put another layout in the place of the one that is there; there is no moment without rules."""
        present = await asyncio.to_thread(self._read)
        try:
            await self._renew(present, change, layout)
        except ApplyError as error:
            logger.info("%s: made anew, as its sets or hooks are others: %s", self._name, error)
            await self._remake(present, change, layout)

    async def _renew(self, present: Mapping[ElementKey, Value], change: ElementChange, layout: Layout) -> None:
        """Exchange all rules, and let sets, elements and hooks be.

        A packet that passes between two hooks while one of them is exchanged for another would miss both.
        """
        wanted = (key for key, (_, value) in change.items() if value is not None)
        chained: dict[ElementKey, Value] = {key: b"" for key in (*present, *wanted) if key[0] in _CHAINED}
        script = table_text(self.family, self._layouts[layout], chained)
        known = frozenset(_CHAIN_IN_SCRIPT.findall(script))
        present_chains = TableListing(self._socket, self.family).chains
        others = [name for name in present_chains if name not in known and not is_marker(name)]
        deletes = "".join(f"delete chain {self._name} {name}\n" for name in others)
        if LOCALHOST_REJECTIONS not in script:
            # It may not be there; added first, it can be deleted in any case.
            deletes += "".join(f"{verb} counter {self._name} {LOCALHOST_REJECTIONS}\n" for verb in ("add", "delete"))
        await self._run_nft(f"flush table {self._name}\n{script}{deletes}")
        rest = {
            key: both for key, both in change.items() if key != LAYOUT and not (key in chained and both[1] is not None)
        }
        await self._write(rest, layout)

    async def _remake(self, present: Mapping[ElementKey, Value], change: ElementChange, layout: Layout) -> None:
        """Make the table anew, elements, pins and all, in one transaction."""
        entries = {key: value for key, value in present.items() if key != LAYOUT}
        for key, (_, wanted) in change.items():
            if wanted is None:
                entries.pop(key, None)
            else:
                entries[key] = wanted
        await self._make_table(self._layouts[layout], entries, await asyncio.to_thread(self._pins_text))
        self._commit(list(self._marking(layout)))
        self._lingering.clear()

    async def _make_table(self, layout: str, entries: Mapping[ElementKey, Value], pins: str = "") -> None:
        """Make a table in place of the one that is there, whatever is in it, or of none."""
        new = table_text(self.family, layout, entries)
        await self._run_nft(f"add table {self._name}\ndelete table {self._name}\n{new}{pins}")

    async def _write(self, change: ElementChange, layout: Layout | None) -> None:
        """Write elements, and the marker if the layout is new (None: it is as it was) or gets other chains."""
        new = [
            key
            for key, (_, wanted) in change.items()
            if key[0] in _CHAINED and wanted is not None and key not in self._lingering
        ]
        # In transactions before that of the elements that lead there: a packet runs the rules of the generation in which
        # it came, and finds the elements of the present one. It would meet a chain that came with them without a rule.
        self._commit([part for key in new if key[0] == PICK.number for part in self._slot_chain(key[1:])])
        chained = [key for key in new if key[0] != PICK.number]
        if chained:
            layout = layout or self._intact_layout()
            await self._add_chains(chained)
        marking = list(self._marking(layout)) if layout is not None else []
        messages = chain(self._messages(change), marking)
        if len(change) <= _MOST_ENTRIES_IN_LOOP:
            self._commit(list(messages))
        else:
            await asyncio.to_thread(lambda: self._commit(list(messages)))
        self._linger(change)

    def _messages(self, change: ElementChange) -> Iterator[bytes]:
        """Yield deletes, then additions; within a transaction nobody sees what is between them."""
        deleted: defaultdict[int, list[bytes]] = defaultdict(list)
        added: defaultdict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
        for key, (present, wanted) in change.items():
            number = key[0]
            if not isinstance(wanted, bytes):
                if wanted is None and number not in _LINGERING:
                    deleted[number].append(key[1:])
                continue
            if number in _CHAINED:
                if number == PICK.number and key not in self._lingering:
                    yield self._formats[number].jump(key[1:], slot_chain(unpack_number(key[1:])))
                continue
            if present is not None or key in self._lingering:
                deleted[number].append(key[1:])
            added[number].append((key[1:], wanted))
        for number, keys in deleted.items():
            yield from self._formats[number].delete(keys)
        # What leads to others last: cluster IPs behind the counts of their ports, counts behind the endpoints.
        for number in sorted(added, reverse=True):
            yield from self._formats[number].add(added[number])

    def _slot_chain(self, key: bytes) -> Iterator[bytes]:
        count = unpack_number(key)
        name = slot_chain(count)
        yield new_chain(self.family, TABLE, name)
        # It may be there with its rule, if only the element was deleted by others.
        yield flush_chain(self.family, TABLE, name)
        yield new_slot_rule(self.family, TABLE, name, count)

    async def _add_chains(self, keys: Iterable[ElementKey]) -> None:
        """Make the chains that are more than a rule or two; they depend on numbers in use, and seldom change."""
        lines: list[str] = []
        for key in keys:
            kind = SETS[key[0]]
            made = numbered_chain(kind, unpack_number(key[1:]), self.family)
            # It may be there with its rules, if only the element was deleted by others.
            lines += (f"{verb} chain {self._name} {made.name}" for verb in ("add", "flush"))
            lines += (f"add rule {self._name} {made.name} {rule}" for rule in made.rules)
            lines.append(f"add element {self._name} {kind.name} {{ {element_text(kind, key[1:], b'', self.family)} }}")
        await self._run_nft("\n".join((*lines, "")))

    async def _run_nft(self, script: str) -> None:
        result = await run(["nft", "-f", "-"], stdin=script)
        if result.status:
            message = f"nft: exit status {result.status}: {result.stderr.strip()[:500]}"
            raise ApplyError(message, retryable=True)
        self.commits += 1
        self._counter.committed(1)
        self._monitor.take(self.family)

    def _commit(self, messages: list[bytes]) -> None:
        if messages:
            commits = self._socket.commit(messages)
            self.commits += commits
            self._counter.committed(commits)

    # -- what lingers

    def _linger(self, change: ElementChange) -> None:
        now = asyncio.get_running_loop().time()
        for key, (_, wanted) in change.items():
            if key[0] in _LINGERING:
                if wanted is None:
                    self._lingering[key] = now
                else:
                    self._lingering.pop(key, None)
        if self._lingering and self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep())

    def _count_users(self, change: ElementChange) -> None:
        for key, (present, wanted) in change.items():
            if key[0] not in _SLOTS:
                continue
            if wanted is not None:
                self._users_of_ids[wanted] += 1
            if present is not None:
                self._users_of_ids[present] -= 1
                if not self._users_of_ids[present]:
                    del self._users_of_ids[present]

    async def _sweep(self) -> None:
        """Delete what no packet on its way can look up any more."""
        try:
            while self._lingering:
                first = next(iter(self._lingering.values()))
                await asyncio.sleep(first + self._grace_seconds - asyncio.get_running_loop().time())
                async with self._lock:
                    await self._sweep_once()
        except (ApplyError, OSError) as error:
            # What is left is found by the next full read.
            self._failed_to_sweep = True
            self._failed_sweeps += 1
            logger.warning("%s: what is no longer used was not deleted: %s", self.family, error)
        finally:
            self._sweeping = None

    async def _sweep_once(self) -> None:
        due = asyncio.get_running_loop().time() - self._grace_seconds
        swept = [key for key, since in self._lingering.items() if since <= due]
        for key in swept:
            del self._lingering[key]
        keys: defaultdict[int, list[bytes]] = defaultdict(list)
        for key in swept:
            keys[key[0]].append(key[1:])
        slots = [delete_chain(self.family, TABLE, slot_chain(unpack_number(key))) for key in keys.get(PICK.number, ())]
        self._commit([part for number in keys for part in self._formats[number].delete(keys[number])] + slots)
        ids = {key[-4:] for key in swept if key[0] in _ENDPOINTS and unpack_number(key[-4:]) & ID_BIT}
        # An endpoint that another address of its Service still leads to keeps its clients.
        gone = ids.difference(self._users_of_ids)
        if gone:
            await self._unpin(gone)
        chains = [
            numbered_chain(SETS[key[0]], unpack_number(key[1:]), self.family).name
            for key in swept
            if key[0] in _CHAINED and key[0] != PICK.number
        ]
        if chains:
            layout = self._intact_layout()
            # In a transaction of their own: before Linux 6.2 the elements hold on to them for a while.
            self._commit([delete_chain(self.family, TABLE, name) for name in sorted(chains)])
            self._commit(list(self._marking(layout)))

    async def _unpin(self, ids: Collection[bytes]) -> None:
        """Delete the pins of endpoints that are gone, so that they do not rise again with them."""
        pins = ElementFormat(PINS, self.family, TABLE)
        found = await asyncio.to_thread(lambda: list(self._elements(pins)))
        keys = [key for key, _ in found if key[-4:] in ids]
        try:
            self._commit(list(pins.delete(keys)))
        except ApplyError:
            for key in keys:
                try:
                    self._commit(list(pins.delete([key])))
                except ApplyError as error:
                    logger.debug("%s: a pin had ended by itself: %s", self.family, error)

    def _pins_text(self) -> str:
        """Return all pins as `nft` reads them."""
        form = ElementFormat(PINS, self.family, TABLE)
        try:
            messages = self._socket.read(form.dump)
        except FileNotFoundError:
            return ""
        return "".join(
            f"add element {self._name} {PINS.name} {{ {element_text(PINS, key, b'', self.family)} "
            f"timeout {timeout}ms expires {left}ms }}\n"
            for found in messages
            for key, timeout, left in form.parse_times(*found)
            # A table of an older version may have something else under this name.
            if len(key) == PINS.key_size(self.family) and left
        )

    # -- what is there

    def _read(self) -> dict[ElementKey, Value]:
        self._counter.settle()
        listing = TableListing(self._socket, self.family)
        if not listing.chains or is_dormant(self._socket, self.family):
            return {}
        found: dict[ElementKey, Value] = {LAYOUT: listing.layout}
        for number, form in self._formats.items():
            prefix = bytes((number,))
            for key, value in self._elements(form):
                found[ElementKey(prefix + key)] = value
        for key in [key for key in found if key[0] == PICK.number]:
            count = unpack_number(key[1:])
            if listing.rules.get(slot_chain(count)) != [slot_expressions(count)]:
                found[LAYOUT] = DAMAGED
        return found

    def _elements(self, form: ElementFormat) -> Iterator[tuple[bytes, bytes]]:
        try:
            for answer in self._socket.read(form.dump):
                yield from form.parse(*answer)
        except FileNotFoundError:
            return

    def _intact_layout(self) -> Layout:
        """Return the layout that is in the kernel, before something is added to it and it is marked anew.

        Raises:
            ApplyError: others have changed it, so that what they did would be marked as ours.
        """
        layout = TableListing(self._socket, self.family).layout
        if layout == DAMAGED:
            message = f"{self._name}: changed by others"
            raise ApplyError(message, retryable=True)
        return layout

    def _marking(self, layout: Layout) -> Iterator[bytes]:
        """Yield the messages that mark what is in the kernel now as a layout."""
        listing = TableListing(self._socket, self.family)
        for marker in listing.markers:
            yield delete_chain(self.family, TABLE, marker)
        yield new_chain(self.family, TABLE, listing.marker_of(layout))
