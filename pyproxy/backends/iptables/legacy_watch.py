"""Whether others replaced rules of ours in legacy tables by as many others of equal size.

`LegacyCounter` does not see that: `iptables-legacy -R` with another address, for example. Here a digest of each of our chains
is compared with that of the time before. It takes 0.1 s for 10,000 Services, most of it in a thread, so it is for now and
then only.
"""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial

from pyproxy.backends.iptables.legacy_entries import LegacyEntries
from pyproxy.backends.iptables.restore_text import Ownership
from pyproxy.backends.iptables.ruleset import ChainKey, RulesetKey
from pyproxy.model.address import Family

_HOOKS = ""
"""In place of a chain's name: all hooks of a table."""


class LegacyWatch:
    """Our part of one family's tables."""

    def __init__(self, family: Family, tables: Sequence[str], ownership: Ownership) -> None:
        self._family = family
        self._tables = tables
        self._ownership = ownership
        self._known: dict[ChainKey, int] | None = None
        self._written: set[ChainKey] = set()
        """Chains that we wrote since the digests were taken."""
        self._steps = 0
        """Beginnings and ends of writes; odd while one is in flight."""

    def begin_write(self, keys: Iterable[RulesetKey]) -> None:
        """Note that these entries are about to be written."""
        self._steps += 1
        self._written.update(key if isinstance(key, ChainKey) else ChainKey(key.table, _HOOKS) for key in keys)

    def end_write(self) -> None:
        """Note that what was begun is written, or was refused."""
        self._steps += 1

    async def has_changed(self) -> bool:
        """Say whether chains that we did not write are others than at the last call. The first call only remembers.

        Raises:
            ApplyError: the tables cannot be read.
        """
        steps = self._steps
        digests = await asyncio.to_thread(self._digests)
        if steps != self._steps or steps % 2:
            # Which of the two was read cannot be known; what was remembered is still right, and the next call compares.
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
