"""Reads and writes our chains and hooks in the iptables tables of one family.

A change is written by one process, ``iptables-restore --noflush``, whatever its size; if nothing changes, no process is
started. Each table is replaced as a whole, so no packet sees half of a change in it. The legacy variant takes the xtables
lock by itself (``--wait``); the nft variant needs no lock, because nf_tables has transactions. Reads are in `reader`.
"""

import asyncio
import errno
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from pyproxy.backends.interface import KernelCounts
from pyproxy.backends.iptables.legacy_watch import LegacyWatch
from pyproxy.backends.iptables.nft_chains import delete_hooks
from pyproxy.backends.iptables.reader import saved
from pyproxy.backends.iptables.restore_text import Ownership, numbered, parse_save, restore_text
from pyproxy.backends.iptables.ruleset import TABLES, HookKey, RulesetKey
from pyproxy.errors import ApplyError
from pyproxy.linux.command import run
from pyproxy.linux.iptables_programs import LOCK_WAIT_SECONDS, STATUS_RESOURCE_PROBLEM, Variant, program
from pyproxy.linux.ruleset_counter import RulesetCounter
from pyproxy.model.address import Family

logger = logging.getLogger(__name__)

# Both variants name a line in their errors, in these words (1.8.9).
_FAILED_LINE = re.compile(r"(?:line |Error occurred at line: )(\d+)")
_REFUSED = re.compile(r"line \d+: \w+ failed \((.+?)\)")
# Errors that do not depend on the content of a change. EPERM is a missing privilege, so no part of it would be accepted.
_TRANSIENT = tuple(map(os.strerror, (errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EINTR, errno.EPERM)))
_PROBE = "PYPROXY-PROBE"
"""A chain that no table ever has, as one commit adds and deletes it."""

Change = Mapping[RulesetKey, tuple[str | None, str | None]]


class RestoreError(ApplyError):
    """`iptables-restore` refused its input."""


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
        # nf_tables counts every commit. The legacy tables only show number and size of their entries.
        self.detects_all_changes = variant is Variant.NFT
        # A change costs a process, and in the legacy variant a copy of the whole table, so the first load is one change.
        self.plans_per_portion: int | None = None
        self._rules: Counter[str] = Counter()  # our rules in the kernel, by table
        # the same, but only those written since the last call of `take_counts`
        self._rules_written: Counter[str] = Counter()
        self._ownership = ownership
        self._tables = tables
        self._counter = counter
        # Whether legacy tables were changed externally just before a write.
        self._was_overwritten = False
        self._watch = LegacyWatch(family, tables, ownership) if variant is Variant.LEGACY else None

    def __repr__(self) -> str:
        return f"IptablesKernel({self.family}, {self.variant.value})"

    async def read(self) -> dict[RulesetKey, str]:
        """Return our chains and the hooks that are in place.

        Raises:
            ApplyError: the tables cannot be read.
        """
        # Before the read: a change by another program during it must count as external.
        self._was_overwritten = False
        self._counter.settle()
        found = await read_entries(self.family, self.variant, self._ownership, self._tables)
        self._rules = Counter(dict.fromkeys(self._tables, 0))
        for key, value in found.items():
            self._rules[key.table] += _rule_count(key, value)
        return found

    async def peek(self) -> dict[RulesetKey, str]:
        """Return what `read` returns, without side effects; see `backends.interface.Kernel`."""
        return await read_entries(self.family, self.variant, self._ownership, self._tables)

    def leftovers(self) -> Collection[RulesetKey]:
        """Return nothing: chains and hooks are deleted at once."""
        return ()

    async def apply(self, change: Change) -> None:
        """Write a change, with one process, and one transaction for each table.

        Raises:
            RestoreError: the change was refused; the tables before the refused one may have been written.
        """
        if self._watch is not None:
            # Now, because after the write the counter takes the size of the tables as the one that we left.
            self._was_overwritten |= self._counter.changed_externally()
            self._watch.begin_write(change)
            try:
                await self._restore(change)
            finally:
                self._watch.end_write()
        else:
            # Hooks are deleted by netlink, before the restore and in a transaction of their own: iptables-nft-restore
            # fails at `-D` if the chain has a rule that it does not know. An unwanted hook loses all its copies; a hook
            # that is there more than once keeps one.
            kept_copies = {
                key: 0 if wanted is None else 1
                for key, (present, wanted) in change.items()
                if isinstance(key, HookKey) and present not in (None, wanted)
            }
            if kept_copies:
                self._counter.committed(await asyncio.to_thread(delete_hooks, self.family, kept_copies))
            await self._restore({key: values for key, values in change.items() if key not in kept_copies})
        for key, (before, after) in change.items():
            count = _rule_count(key, after)
            self._rules_written[key.table] += count
            self._rules[key.table] += count - _rule_count(key, before)

    def take_counts(self) -> KernelCounts:
        """Return our rules in the kernel, and those written since the last call, by table."""
        counts = KernelCounts(rules=dict(self._rules), rules_written=dict(self._rules_written))
        self._rules_written.clear()
        return counts

    async def _restore(self, change: Change) -> None:
        if text := restore_text(change):
            await restore(self.family, self.variant, text)
            self._counter.committed(text.count("\nCOMMIT\n"))

    @property
    def change_descriptor(self) -> int | None:
        """Return the descriptor of notifications of nf_tables, see `backends.interface.Kernel`."""
        return self._counter.descriptor

    def changed_externally(self) -> bool:
        """Return whether another program changed the ruleset: by the nft generation, or the size of the legacy tables."""
        return self._was_overwritten or self._counter.changed_externally()

    async def examine(self) -> bool:
        """Return whether our legacy chains have other rules of the same number and size, which `changed_externally` misses.

        Raises:
            ApplyError: the tables cannot be read.
        """
        return self._watch is not None and await self._watch.has_changed()


async def read_entries(
    family: Family, variant: Variant, ownership: Ownership, tables: Sequence[str]
) -> dict[RulesetKey, str]:
    """Return the chains and hooks of an owner that are in the kernel.

    Raises:
        ApplyError: the tables cannot be read.
    """
    found: dict[RulesetKey, str] = {}
    for table in tables:
        text = await saved(family, variant, table, ownership)
        # In a thread: parsing the rules of 10,000 Services takes 0.2 s, which would block the event loop.
        found |= await asyncio.to_thread(parse_save, table, text.splitlines(), ownership)
    return found


def _rule_count(key: RulesetKey, value: str | None) -> int:
    if value is None:
        return 0
    return 1 if isinstance(key, HookKey) else value.count("\n")


async def restore(family: Family, variant: Variant, text: str) -> None:
    """Run ``iptables-restore --noflush`` with a text as its input.

    Raises:
        RestoreError: the input was refused; the message has the numbered lines around the refused one.
    """
    argv = [program(family, variant, "restore"), "--noflush", "--wait", str(LOCK_WAIT_SECONDS)]
    result = await run(argv, stdin=text)
    if result.status == 0:
        if result.stderr:
            logger.debug("%s: %s", argv[0], result.stderr.strip())
        return
    message = f"{' '.join(argv)}: exit status {result.status}: {result.stderr.strip()}"
    line = _FAILED_LINE.search(result.stderr)
    if line:
        message = "\n".join((message, *numbered(text, int(line[1]))))
    # iptables(8) defines status 4 as a resource problem, which may pass. But iptables-nft-restore also exits with 4 for
    # every change that the kernel refuses; then it prints the errno, which decides.
    reason = _REFUSED.search(result.stderr)
    retryable = result.status == STATUS_RESOURCE_PROBLEM and (reason is None or reason[1] in _TRANSIENT)
    if line and variant is Variant.LEGACY and (failed := text.split("\n", int(line[1]))[:-1])[-1:] == ["COMMIT"]:
        # The legacy variant prints no errno when the kernel refuses a table, so another write finds whether memory is low or
        # the content is to blame: it leaves the table as it is, but has the kernel replace it.
        table = next(each for each in reversed(failed) if each.startswith("*"))
        retryable = (await run(argv, stdin=f"{table}\n:{_PROBE} - [0:0]\n-X {_PROBE}\nCOMMIT\n")).status != 0
    raise RestoreError(message, retryable=retryable)
