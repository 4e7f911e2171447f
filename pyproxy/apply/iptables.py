"""The iptables tables of one family: bulk reads by ``iptables-save``, changes by ``iptables-restore --noflush``.

One process for a whole change, whatever its size, and none where nothing changes. The legacy variant
takes the xtables lock itself (``--wait``); the nft variant needs none.
"""

import asyncio
import errno
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum

from pyproxy.apply.command import Result, run
from pyproxy.apply.kernel import KernelCounts
from pyproxy.apply.ruleset_counter import RulesetCounter
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family
from pyproxy.model.ruleset import TABLES, HookKey, RulesetKey
from pyproxy.render.iptables_restore import Ownership, numbered, parse_save, restore_text

logger = logging.getLogger(__name__)

_LOCK_WAIT_SECONDS = 5
# iptables(8): a resource problem, which is what a busy lock is.
_STATUS_RESOURCE_PROBLEM = 4
_FAILED_LINE = re.compile(r"(?:line |Error occurred at line: )(\d+)")
_REFUSED = re.compile(r"line \d+: \w+ failed \((.+?)\)")
_PASSING = tuple(map(os.strerror, (errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EINTR, errno.EPERM)))


class Variant(Enum):
    """The two implementations of iptables; the value is the infix of the program names."""

    LEGACY = "legacy"
    NFT = "nft"


class RestoreError(ApplyError):
    """``iptables-restore`` refused its input."""


def program(family: Family, variant: Variant, verb: str = "") -> str:
    """Return the name of a program, such as ``ip6tables-legacy-restore``."""
    stem = "iptables" if family is Family.IPV4 else "ip6tables"
    return f"{stem}-{variant.value}{'-' if verb else ''}{verb}"


def is_available(family: Family, variant: Variant) -> bool:
    """Say whether the programs of a variant are installed."""
    return shutil.which(program(family, variant, "restore")) is not None


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
        self.sees_every_change = variant is Variant.NFT
        self.plans_per_portion: int | None = None
        self._rules: Counter[str] = Counter()
        """Rules of ours in force, by table."""
        self._rules_written: Counter[str] = Counter()
        """Rules written since the counts were last taken, by table."""
        self._ownership = ownership
        self._tables = tables
        self._counter = counter

    def __repr__(self) -> str:
        return f"IptablesKernel({self.family}, {self.variant.value})"

    async def read(self) -> dict[RulesetKey, str]:
        """Return our chains and the hooks that are in place."""
        self._counter.settle()
        found: dict[RulesetKey, str] = {}
        for table in self._tables:
            text = await save(self.family, self.variant, table)
            # In a thread: of 10,000 Services this takes 0.2 s, and the loop has other things to do.
            found |= await asyncio.to_thread(_parsed, table, text, self._ownership)
        self._rules = Counter(dict.fromkeys(self._tables, 0))
        for key, value in found.items():
            self._rules[key.table] += _rule_count(key, value)
        return found

    async def apply(self, change: Mapping[RulesetKey, tuple[str | None, str | None]]) -> None:
        """Write a change: one process, one transaction for each table.

        Raises:
            RestoreError: the tables before the refused one may have been written.
        """
        text = restore_text(change)
        if not text:
            return
        await restore(self.family, self.variant, text)
        self._counter.committed(text.count("\nCOMMIT\n"))
        for key, (before, after) in change.items():
            count = _rule_count(key, after)
            self._rules_written[key.table] += count
            self._rules[key.table] += count - _rule_count(key, before)

    def take_counts(self) -> KernelCounts:
        """Return the rules in force, and those written since the last call, by table."""
        counts = KernelCounts(rules=dict(self._rules), rules_written=dict(self._rules_written))
        self._rules_written.clear()
        return counts

    def disturbed(self) -> bool:
        """Say whether the ruleset changed other than by us: nft generation, or size of the legacy tables."""
        return self._counter.disturbed()


def _rule_count(key: RulesetKey, value: str | None) -> int:
    if value is None:
        return 0
    return 1 if isinstance(key, HookKey) else value.count("\n")


def _parsed(table: str, text: str, ownership: Ownership) -> dict[RulesetKey, str]:
    # iptables 1.8.9 saves two blanks where one was given (libxt_nfacct.c).
    return parse_save(table, text.replace("--nfacct-name  ", "--nfacct-name ").splitlines(), ownership)


async def save(family: Family, variant: Variant, table: str, *, counters: bool = False) -> str:
    """Return what ``iptables-save`` prints of one table."""
    argv = [program(family, variant, "save"), "-t", table, *(["-c"] if counters else [])]
    result = await run(argv)
    if result.status:
        message = f"{' '.join(argv)}: exit status {result.status}: {result.stderr.strip()}"
        raise ApplyError(message, retryable=True)
    return result.stdout


async def restore(family: Family, variant: Variant, text: str) -> None:
    """Hand text to ``iptables-restore --noflush``.

    Raises:
        RestoreError: with the numbered lines around the one that was refused.
    """
    argv = [program(family, variant, "restore"), "--noflush", "--wait", str(_LOCK_WAIT_SECONDS)]
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
    return result.status == _STATUS_RESOURCE_PROBLEM and (reason is None or reason[1] in _PASSING)
