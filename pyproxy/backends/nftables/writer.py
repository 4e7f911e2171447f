"""Writing a family's table: elements by netlink, the layout and its chains as a script for ``nft``.

A transaction takes effect as a whole, but one packet can see parts of two generations of the ruleset: it runs the rules of the
generation in which it entered the base chain (`nft_do_chain`), while each look-up finds the elements of the present
generation. So a packet that is being processed can

- follow a new element to a chain whose rules it does not see yet: chains are written in transactions before the elements that
  lead to them;
- know a number from a moment ago, and look it up in a map from which it was deleted: such elements stay for a while, and
  `sweeper` deletes them.
"""

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from itertools import chain

from pyproxy.backends.nftables.change_monitor import ChangeMonitor
from pyproxy.backends.nftables.element_format import ElementFormat
from pyproxy.backends.nftables.elements import (
    CHAINED,
    ENDPOINTS,
    LAYOUT,
    PICK,
    SETS,
    SLOTS,
    ElementChange,
    ElementKey,
    Layout,
    Value,
    unpack_number,
)
from pyproxy.backends.nftables.layout import LOCALHOST_REJECTIONS, TABLE, numbered_chain, slot_chain
from pyproxy.backends.nftables.reader import TableReader
from pyproxy.backends.nftables.text import element_text, family_name, table_text
from pyproxy.errors import ApplyError
from pyproxy.linux.command import run
from pyproxy.linux.nf_tables_messages import delete_chain, flush_chain, new_chain, new_slot_rule
from pyproxy.linux.ruleset_counter import RulesetCounter

logger = logging.getLogger(__name__)

LINGERING = CHAINED | ENDPOINTS | SLOTS
"""Numbers of the sets that a packet looks up with a number that it already has: their elements are deleted later."""
_CHAIN_IN_SCRIPT = re.compile(r"^\tchain (\S+) ", re.MULTILINE)
# A longer change is packed and sent in a thread, so that the event loop is not blocked.
_MOST_ENTRIES_IN_LOOP = 1000
_MOST_OUTPUT_IN_ERROR = 500


class TableWriter:
    """Writes the table of one family, one change at a time."""

    def __init__(
        self, reader: TableReader, layouts: Mapping[Layout, str], counter: RulesetCounter, monitor: ChangeMonitor
    ) -> None:
        """Use the reader's socket. `layouts` has the text of each layout that `write` will get."""
        self._netlink = reader.netlink
        self._reader = reader
        self._family = family = reader.family
        self._layouts = layouts
        self._counter = counter
        self._monitor = monitor
        self._name = f"{family_name(family)} {TABLE}"
        self._formats = {number: ElementFormat(kind, family, TABLE) for number, kind in SETS.items()}

    async def write(self, change: ElementChange, lingering: Collection[ElementKey]) -> bool:
        """Write a change, in one transaction unless chains or the layout change.

        `lingering` are elements that exist in the kernel though `change` says that they do not. Returns whether the table
        was deleted or recreated, so that no such element is left.

        Raises:
            ApplyError: the change was refused, or a part of it.
        """
        present, wanted = change.get(LAYOUT, (None, None))
        if not isinstance(wanted, Layout):
            if LAYOUT in change:
                await self._run_nft(f"delete table {self._name}\n")
                return True
            await self._write_elements(change, lingering, None)
            return False
        # Only the layout is text. The elements follow by netlink: ``nft`` would have to parse a line for each of them.
        if present is None:
            await self._create_table(wanted, {})
            await self._write_elements(change, (), wanted)
            return False
        # A new layout is first tried in place, which keeps elements and pins. If that is not possible, the table is recreated
        # with all of them in one transaction.
        entries = await asyncio.to_thread(self._reader.entries)
        try:
            await self._replace_rules(entries, change, lingering, wanted)
        except ApplyError as error:
            logger.info("%s: recreating the table: its sets or base chains differ: %s", self._name, error)
        else:
            return False
        for key in (LAYOUT, *lingering):
            entries.pop(key, None)
        for key, (_, value) in change.items():
            if value is None:
                entries.pop(key, None)
            else:
                entries[key] = value
        await self._create_table(wanted, entries, await asyncio.to_thread(self._reader.pins_text))
        self.commit(self.marking(wanted))
        return True

    def commit(self, messages: list[bytes]) -> None:
        """Perform messages as a transaction, or as several if they are too long for one; without messages do nothing.

        Raises:
            ApplyError: the kernel refused a transaction.
        """
        if messages:
            self._counter.committed(self._netlink.commit(messages))

    def delete(self, kind: int, keys: list[bytes]) -> Iterator[bytes]:
        """Yield the messages that delete elements from the set with this number."""
        return self._formats[kind].delete(keys)

    def marking(self, layout: Layout) -> list[bytes]:
        """Return the messages that mark the chains and rules in the kernel as a layout."""
        listing = self._reader.listing()
        old = [delete_chain(self._family, TABLE, marker) for marker in listing.markers]
        return [*old, new_chain(self._family, TABLE, listing.marker_of(layout))]

    async def _replace_rules(
        self,
        entries: Mapping[ElementKey, Value],
        change: ElementChange,
        lingering: Collection[ElementKey],
        layout: Layout,
    ) -> None:
        # Base chains must stay attached to their hooks: a packet between two hooks, of which one is replaced, would
        # pass neither the old nor the new chain. ``nft`` fails if a set or a base chain exists with another definition.
        wanted = (key for key, (_, value) in change.items() if value is not None)
        chained: dict[ElementKey, Value] = {key: b"" for key in (*entries, *wanted) if key[0] in CHAINED}
        script = table_text(self._family, self._layouts[layout], chained)
        listing = self._reader.listing()
        kept = {*_CHAIN_IN_SCRIPT.findall(script), *listing.markers}
        deletes = "".join(f"delete chain {self._name} {name}\n" for name in listing.chains if name not in kept)
        if LOCALHOST_REJECTIONS not in script:
            # The counter may not exist; if it is added first, it can be deleted in any case.
            deletes += "".join(f"{verb} counter {self._name} {LOCALHOST_REJECTIONS}\n" for verb in ("add", "delete"))
        await self._run_nft(f"flush table {self._name}\n{script}{deletes}")
        rest = {
            key: both for key, both in change.items() if key != LAYOUT and not (key in chained and both[1] is not None)
        }
        await self._write_elements(rest, lingering, layout)

    async def _create_table(self, layout: Layout, entries: Mapping[ElementKey, Value], pins: str = "") -> None:
        new = table_text(self._family, self._layouts[layout], entries)
        # Adding it first makes the delete succeed where there is no table.
        await self._run_nft(f"add table {self._name}\ndelete table {self._name}\n{new}{pins}")

    async def _write_elements(
        self, change: ElementChange, lingering: Collection[ElementKey], layout: Layout | None
    ) -> None:
        # The layout is marked if it is a new one (None: it is the present one) or gets chains.
        new = [
            key
            for key, (_, wanted) in change.items()
            if key[0] in CHAINED and wanted is not None and key not in lingering
        ]
        slots: list[bytes] = []
        for count in (unpack_number(key[1:]) for key in new if key[0] == PICK.number):
            name = slot_chain(count)
            slots.append(new_chain(self._family, TABLE, name))
            # The chain exists, with its rule, if only the element was deleted externally.
            slots.append(flush_chain(self._family, TABLE, name))
            slots.append(new_slot_rule(self._family, TABLE, name, count))
        self.commit(slots)
        script = "".join(self._chain_script(key) for key in new if key[0] != PICK.number)
        if script:
            layout = layout or self._reader.intact_layout()
            await self._run_nft(script)
        messages = chain(self._element_messages(change, lingering), self.marking(layout) if layout is not None else ())
        if len(change) <= _MOST_ENTRIES_IN_LOOP:
            self.commit(list(messages))
        else:
            await asyncio.to_thread(lambda: self.commit(list(messages)))

    def _chain_script(self, key: ElementKey) -> str:
        # Only few chains are written this way: there is one for each time-out and each count of Services with session
        # affinity.
        kind = SETS[key[0]]
        made = numbered_chain(kind, unpack_number(key[1:]), self._family)
        lines = (
            f"add chain {self._name} {made.name}",
            # The chain exists, with its rules, if only the element was deleted externally.
            f"flush chain {self._name} {made.name}",
            *(f"add rule {self._name} {made.name} {rule}" for rule in made.rules),
            f"add element {self._name} {kind.name} {{ {element_text(kind, key[1:], b'', self._family)} }}",
        )
        return "".join(f"{line}\n" for line in lines)

    def _element_messages(self, change: ElementChange, lingering: Collection[ElementKey]) -> Iterator[bytes]:
        # Jumps, then deletes, then additions. A changed value is a delete and an addition in one transaction.
        deleted: defaultdict[int, list[bytes]] = defaultdict(list)
        added: defaultdict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
        for key, (present, wanted) in change.items():
            number = key[0]
            if not isinstance(wanted, bytes):
                if wanted is None and number not in LINGERING:
                    deleted[number].append(key[1:])
            elif number in CHAINED:
                if number == PICK.number and key not in lingering:
                    yield self._formats[number].jump(key[1:], slot_chain(unpack_number(key[1:])))
            else:
                if present is not None or key in lingering:
                    deleted[number].append(key[1:])
                added[number].append((key[1:], wanted))
        for number, keys in deleted.items():
            yield from self._formats[number].delete(keys)
        # A long change is several transactions. What leads to other elements comes last: frontends after the counts of
        # their endpoints, counts after the endpoints.
        for number in sorted(added, reverse=True):
            yield from self._formats[number].add(added[number])

    async def _run_nft(self, script: str) -> None:
        result = await run(["nft", "-f", "-"], stdin=script)
        if result.status:
            message = f"nft: exit status {result.status}: {result.stderr.strip()[:_MOST_OUTPUT_IN_ERROR]}"
            raise ApplyError(message, retryable=True)
        self._counter.committed(1)
        # The monitor leaves out changes by our socket, but not those by our nft process.
        self._monitor.take(self._family)
