"""Reads our part of an iptables table, in a way that does not depend on foreign rules in it.

``iptables-save`` cannot be relied on. If a table has native nft rules, ``iptables-nft-save`` prints one comment and exits
with 0; if it has a rule of an extension that is not installed, both variants exit with an error after a part of the output.
So:

- names of chains, and our hooks in built-in chains, are read from the kernel (`nft_chains`, `legacy_entries`);
- rules of our chains are listed by ``iptables-restore``, which accepts ``-S CHAIN`` as well: one process for all of them,
  which looks at no other chain (1.8.9). In the nft variant this takes a third of the time of iptables-nft-save.

In the legacy variant ``iptables-legacy-save`` comes first, and the above only if it fails: it is 20 times faster, because
``-S`` searches all chains each time. See `docs/decisions/034-readers.md`.
"""

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence

from pyproxy.backends.iptables.legacy_entries import LegacyEntries
from pyproxy.backends.iptables.nft_chains import chain_names, find_hooks, jump_targets
from pyproxy.backends.iptables.restore_text import Ownership
from pyproxy.errors import ApplyError
from pyproxy.linux.command import run
from pyproxy.linux.iptables_programs import LOCK_WAIT_SECONDS, STATUS_RESOURCE_PROBLEM, Variant, program
from pyproxy.model.address import Family

logger = logging.getLogger(__name__)

UNREADABLE = '-m comment --comment "cannot be listed: contains a rule that this iptables does not support"'
"""Returned as the only rule of a chain of ours that has a foreign rule which this iptables cannot list.

It differs from every planned rule, so the chain is rewritten.
"""
# Unreadable chains are found one by one, with two processes each; after so many the rest counts as unreadable.
_MOST_UNREADABLE = 16
_COUNTED = re.compile(r"^(-A .*) -c (\d+) (\d+)( -[jg] .*)?$")


async def saved(family: Family, variant: Variant, table: str, owned: Ownership, *, counters: bool = False) -> str:
    """Return our part of a table as ``iptables-save`` would print it: the names of all chains, and our rules.

    In the legacy variant the text may have foreign rules as well.

    Raises:
        ApplyError: the kernel's tables cannot be read.
    """
    # In this variant native nft rules do not exist, and a missing extension shows in the exit status.
    if variant is Variant.LEGACY:
        argv = [program(family, variant, "save"), "-t", table, *(["-c"] if counters else [])]
        result = await run(argv)
        if result.status == 0:
            return _normalized(result.stdout)
        logger.debug("%s: exit status %d: %s", argv[0], result.status, result.stderr.strip())
        entries = await asyncio.to_thread(LegacyEntries, family, table)
        names = entries.chains()
        hooks = entries.find_hooks([hook for hook in owned.hooks if hook.table == table])
    else:
        names = await asyncio.to_thread(chain_names, family, table)
        of_table = [hook for hook in owned.hooks if hook.table == table]
        hooks = await asyncio.to_thread(find_hooks, family, table, of_table)
    lines = [f":{name} - [0:0]" for name in names]
    for hook, found in hooks:
        lines.append(f"[{found.counters.packets}:{found.counters.bytes}] {hook.rule}" if counters else hook.rule)
    lines += await _rules(
        family, variant, table, [name for name in names if owned.owns(table, name)], counters=counters
    )
    return _normalized("".join(f"{line}\n" for line in lines))


def chains_and_jumps(family: Family, variant: Variant, table: str, chain: str) -> tuple[list[str], set[str]]:
    """Return the names of all chains of a table, and the targets of the hooks in one of them."""
    if variant is Variant.LEGACY:
        entries = LegacyEntries(family, table)
        return entries.chains(), entries.jump_targets(chain)
    return chain_names(family, table), jump_targets(family, table, chain)


def _normalized(text: str) -> str:
    # iptables 1.8.9 prints two spaces here and accepts one (libxt_nfacct.c); our rules have one.
    return text.replace("--nfacct-name  ", "--nfacct-name ")


async def _rules(family: Family, variant: Variant, table: str, chains: Iterable[str], *, counters: bool) -> list[str]:
    # iptables-nft inserts each requested chain into a sorted list, which it searches from the start (nft-cache.c), so
    # descending order inserts at the start each time.
    rest = sorted(chains, reverse=True)
    lines: list[str] = []
    unreadable: list[str] = []
    while rest and len(unreadable) < _MOST_UNREADABLE:
        found, is_complete = await _list(family, variant, table, rest, counters=counters)
        if is_complete:
            lines += [line for rules in found for line in rules]
            rest = []
            break
        if not found and not unreadable:
            await _require_listing(family, variant, table, rest[0])
        if found:
            # The process failed either within the last chain that it printed, whose rules are incomplete then, or before
            # it printed the next one. Listing the last one alone decides.
            lines += [line for rules in found[:-1] for line in rules]
            rest = rest[len(found) - 1 :]
            again, is_complete = await _list(family, variant, table, rest[:1], counters=counters)
            if is_complete:
                lines += again[0] if again else []
                rest = rest[1:]
        unreadable += rest[:1]
        rest = rest[1:]
    unreadable += rest
    if unreadable:
        logger.warning(
            "%s, iptables-%s, table %s: foreign rules that this iptables cannot list are in %d chains of ours: %s",
            family,
            variant.value,
            table,
            len(unreadable),
            ", ".join(unreadable[:_MOST_UNREADABLE]),
        )
    return lines + [f"-A {chain} {UNREADABLE}" for chain in unreadable]


async def _list(
    family: Family, variant: Variant, table: str, chains: Sequence[str], *, counters: bool
) -> tuple[list[list[str]], bool]:
    # Returns the rules of each chain that the process reached, and whether it reached the end.
    verb = "-v -S" if counters else "-S"
    text = "".join((f"*{table}\n", *(f"{verb} {chain}\n" for chain in chains), "COMMIT\n"))
    result = await run([program(family, variant, "restore"), "--noflush", "--wait", str(LOCK_WAIT_SECONDS)], stdin=text)
    if result.status == STATUS_RESOURCE_PROBLEM:
        message = f"{program(family, variant, 'restore')}: table {table}: {result.stderr.strip()}"
        raise ApplyError(message, retryable=True)
    # In a thread: for 10,000 Services this takes 0.1 s, which would block the event loop.
    return await asyncio.to_thread(_by_chain, result.stdout), result.status == 0


def _by_chain(text: str) -> list[list[str]]:
    # iptables-save has counters at the start of a line, ``-S`` behind the matches.
    found: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("-N "):
            found.append([])
        elif found:
            counted = _COUNTED.match(line)
            found[-1].append(f"[{counted[2]}:{counted[3]}] {counted[1]}{counted[4] or ''}" if counted else line)
    return found


async def _require_listing(family: Family, variant: Variant, table: str, chain: str) -> None:
    # If ``iptables -S`` can list the chain, the reason is not a rule in it, but this version of iptables-restore.
    argv = [program(family, variant), "--wait", str(LOCK_WAIT_SECONDS), "-t", table, "-S", chain]
    if (await run(argv)).status == 0:
        name = program(family, variant, "restore")
        message = f"{name}: this version does not list chains (-S), which is needed to read table {table}"
        raise ApplyError(message, retryable=True)
