"""The iptables tables of one family: bulk reads (`iptables_reader`), changes by ``iptables-restore --noflush``.

One process for a whole change, whatever its size, and none where nothing changes. The legacy variant
takes the xtables lock itself (``--wait``); the nft variant needs none.
"""

import asyncio
import errno
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from pyproxy.backends.interface import KernelCounts
from pyproxy.backends.iptables.legacy_watch import LegacyWatch
from pyproxy.backends.iptables.nft_chains import delete_hooks
from pyproxy.backends.iptables.reader import saved
from pyproxy.backends.iptables.restore_text import Ownership, numbered, parse_save, restore_text
from pyproxy.backends.iptables.ruleset import TABLES, HookKey, RulesetKey
from pyproxy.errors import ApplyError
from pyproxy.linux.command import Result, run
from pyproxy.linux.iptables_programs import LOCK_WAIT_SECONDS, STATUS_RESOURCE_PROBLEM, Variant, is_available, program
from pyproxy.linux.ruleset_counter import RulesetCounter
from pyproxy.model.address import Family

__all__ = ["IptablesKernel", "RestoreError", "Variant", "is_available", "program", "restore", "saved"]

logger = logging.getLogger(__name__)

_FAILED_LINE = re.compile(r"(?:line |Error occurred at line: )(\d+)")
_REFUSED = re.compile(r"line \d+: \w+ failed \((.+?)\)")
_PASSING = tuple(map(os.strerror, (errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EINTR, errno.EPERM)))


Change = Mapping[RulesetKey, tuple[str | None, str | None]]


class RestoreError(ApplyError):
    """``iptables-restore`` refused its input."""


class IptablesKernel:
    """Our chains and hooks of one family, in one variant."""

    def __init__(
        self,
        family: Family,
        variant: Variant,
        counter: RulesetCounter,
        ownership: Ownership,
        tables: Sequence[str] = TABLES,
    ) -> None:
        self.family = family
        self.variant = variant
        self.detects_all_changes = variant is Variant.NFT
        self.plans_per_portion: int | None = None
        self._rules: Counter[str] = Counter()
        """Rules of ours in force, by table."""
        self._rules_written: Counter[str] = Counter()
        """Rules written since the counts were last taken, by table."""
        self._ownership = ownership
        self._tables = tables
        self._counter = counter
        self._watch = LegacyWatch(family, tables, ownership) if variant is Variant.LEGACY else None

    def __repr__(self) -> str:
        return f"IptablesKernel({self.family}, {self.variant.value})"

    async def read(self) -> dict[RulesetKey, str]:
        """Return our chains and the hooks that are in place."""
        self._counter.settle()
        found: dict[RulesetKey, str] = {}
        for table in self._tables:
            text = await saved(self.family, self.variant, table, self._ownership)
            # In a thread: of 10,000 Services this takes 0.2 s, and the loop has other things to do.
            found |= await asyncio.to_thread(parse_save, table, text.splitlines(), self._ownership)
        self._rules = Counter(dict.fromkeys(self._tables, 0))
        for key, value in found.items():
            self._rules[key.table] += _rule_count(key, value)
        return found

    async def apply(self, change: Change) -> None:
        """Write a change: one process, one transaction for each table.

        In the nft variant hooks that go, go before, in a transaction of their own: see `delete_hooks`.

        Raises:
            RestoreError: the tables before the refused one may have been written.
        """
        if self._watch is None:
            await self._write(await self._without_hooks_that_go(change))
        else:
            self._watch.begin_write(change)
            try:
                await self._write(change)
            finally:
                self._watch.end_write()
        for key, (before, after) in change.items():
            count = _rule_count(key, after)
            self._rules_written[key.table] += count
            self._rules[key.table] += count - _rule_count(key, before)

    def take_counts(self) -> KernelCounts:
        """Return the rules in force, and those written since the last call, by table."""
        counts = KernelCounts(rules=dict(self._rules), rules_written=dict(self._rules_written))
        self._rules_written.clear()
        return counts

    async def _write(self, change: Change) -> None:
        if text := restore_text(change):
            await restore(self.family, self.variant, text)
            self._counter.committed(text.count("\nCOMMIT\n"))

    async def _without_hooks_that_go(self, change: Change) -> Change:
        """Delete hooks that are not wanted, or copies of one that is; return what is left to do."""
        copies = {
            key: 0 if wanted is None else 1
            for key, (present, wanted) in change.items()
            if isinstance(key, HookKey) and present not in (None, wanted)
        }
        if not copies:
            return change
        self._counter.committed(await asyncio.to_thread(delete_hooks, self.family, copies))
        return {key: values for key, values in change.items() if key not in copies}

    def changed_externally(self) -> bool:
        """Say whether the ruleset changed other than by us: nft generation, or size of the legacy tables."""
        return self._counter.changed_externally()

    async def examine(self) -> bool:
        """See `Kernel`; only the legacy variant has what `changed_externally` does not see."""
        return self._watch is not None and await self._watch.has_changed()


def _rule_count(key: RulesetKey, value: str | None) -> int:
    if value is None:
        return 0
    return 1 if isinstance(key, HookKey) else value.count("\n")


async def restore(family: Family, variant: Variant, text: str) -> None:
    """Hand text to ``iptables-restore --noflush``.

    Raises:
        RestoreError: with the numbered lines around the one that was refused.
    """
    argv = [program(family, variant, "restore"), "--noflush", "--wait", str(LOCK_WAIT_SECONDS)]
    result = await run(argv, stdin=text)
    if result.status == 0:
        if result.stderr:
            logger.debug("%s said: %s", argv[0], result.stderr.strip())
        return
    message = f"{' '.join(argv)}: exit status {result.status}: {result.stderr.strip()}"
    line = _FAILED_LINE.search(result.stderr)
    if line:
        message = "\n".join((message, *numbered(text, int(line[1]))))
    raise RestoreError(message, retryable=_may_pass(result))


def _may_pass(result: Result) -> bool:
    """Say whether the same input may be taken later.

    That is what the status means, but iptables-nft has it for whatever the kernel refuses, and names a reason then.
    """
    reason = _REFUSED.search(result.stderr)
    return result.status == STATUS_RESOURCE_PROBLEM and (reason is None or reason[1] in _PASSING)
