"""Detects external changes of legacy tables that keep number and size of the rules.

`LegacyCounter` misses those, for example ``iptables-legacy -R`` with another address of the same length. So the digest
of each of our chains is compared with the digest at the last check. A check takes 0.1 s for 10,000 Services, most of it in
a thread, and runs occasionally.
"""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial

from pyproxy.backends.iptables.legacy_entries import LegacyEntries
from pyproxy.backends.iptables.restore_text import Ownership
from pyproxy.backends.iptables.ruleset import ChainKey, RulesetKey
from pyproxy.model.address import Family

_HOOKS = ""  # in place of the name of a chain: all our hooks of a table


class LegacyWatch:
    """The digests of our chains and hooks in one family's tables."""

    def __init__(self, family: Family, tables: Sequence[str], ownership: Ownership) -> None:
        self._family = family
        self._tables = tables
        self._ownership = ownership
        self._known: dict[ChainKey, int] | None = None
        # Chains that pyproxy wrote since the last check: their digests have changed rightly.
        self._written: set[ChainKey] = set()
        self._steps = 0  # counts the starts and ends of writes, so it is odd during a write

    def begin_write(self, keys: Iterable[RulesetKey]) -> None:
        """Record that these entries are about to be written."""
        self._steps += 1
        self._written.update(key if isinstance(key, ChainKey) else ChainKey(key.table, _HOOKS) for key in keys)

    def end_write(self) -> None:
        """Record that the write has ended, whether it was accepted or refused."""
        self._steps += 1

    async def has_changed(self) -> bool:
        """Return whether chains that pyproxy did not write have changed since the last call; the first returns False.

        Raises:
            ApplyError: the tables cannot be read.
        """
        steps = self._steps
        digests = await asyncio.to_thread(self._digests)
        if steps != self._steps or steps % 2:
            # A write was running, and each table may have been read before or after it. The remembered digests are still
            # valid, so the next call compares with them.
            return False
        known, self._known = self._known, digests
        written, self._written = self._written, set()
        if known is None:
            return False
        return any(known.get(key) != digests.get(key) for key in {*known, *digests} - written)

    def _digests(self) -> dict[ChainKey, int]:
        found: dict[ChainKey, int] = {}
        for table in self._tables:
            entries = LegacyEntries(self._family, table)
            digests = entries.digests(partial(self._ownership.owns, table))
            found |= {ChainKey(table, chain): digest for chain, digest in digests.items()}
            hooks = [hook for hook in self._ownership.hooks if hook.table == table]
            found[ChainKey(table, _HOOKS)] = hash(tuple(hook for hook, _ in entries.find_hooks(hooks)))
        return found
