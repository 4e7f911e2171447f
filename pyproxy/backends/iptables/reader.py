"""What is ours in a table of iptables, read so that nothing that others have in it matters.

``iptables-nft-save`` prints a comment and ends with 0 where a table has native rules of nft that it does not know, and
iptables-save of both variants ends with an error, in the midst, at a rule of an extension that is not installed. So:

- names of chains, and rules of ours in chains of others, come from the kernel (`nft_chains`, `legacy_entries`);
- rules of our chains come from ``iptables-restore``, which takes ``-S CHAIN`` too: one process for all of them, and it looks
  at no other chain (1.8.9). In the nft variant that takes a third of the time of iptables-nft-save.

In the legacy variant iptables-legacy-save is asked first, and the rest only where it fails: it is 20 times as fast, as
``-S`` goes through all chains each time. See `docs/decisions/034-readers.md`.
"""

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence

from pyproxy.backends.iptables.hook_rules import FoundRule
from pyproxy.backends.iptables.legacy_entries import LegacyEntries
from pyproxy.backends.iptables.nft_chains import chain_names, find_hooks, jump_targets
from pyproxy.backends.iptables.restore_text import Ownership
from pyproxy.backends.iptables.ruleset import HookKey
from pyproxy.errors import ApplyError
from pyproxy.linux.command import run
from pyproxy.linux.iptables_programs import LOCK_WAIT_SECONDS, STATUS_RESOURCE_PROBLEM, Variant, program
from pyproxy.model.address import Family

logger = logging.getLogger(__name__)

UNREADABLE = '-m comment --comment "cannot be listed: holds a rule that this iptables does not know"'
"""What is returned as the only rule of a chain of ours that others have put such a rule into."""
_MOST_UNREADABLE = 16
"""Chains of ours that are looked for one by one; beyond that all that were not listed yet count as unreadable."""
_COUNTED = re.compile(r"^(-A .*) -c (\d+) (\d+)( -[jg] .*)?$")


async def saved(family: Family, variant: Variant, table: str, owned: Ownership, *, counters: bool = False) -> str:
    """Return what ``iptables-save`` would print of our part of a table: names of all chains, and rules that are ours.

    In the legacy variant rules of others may be there too.

    Raises:
        ApplyError: the kernel's tables cannot be read.
    """
    if variant is Variant.LEGACY:
        argv = [program(family, variant, "save"), "-t", table, *(["-c"] if counters else [])]
        result = await run(argv)
        if result.status == 0:
            return _plain(result.stdout)
        logger.debug("%s: exit status %d: %s", argv[0], result.status, result.stderr.strip())
    mine = [hook for hook in owned.hooks if hook.table == table]
    names, hooks = await asyncio.to_thread(_look, family, variant, table, mine)
    chains = [name for name in names if owned.owns(table, name)]
    rules = await _listed(family, variant, table, chains, counters=counters)
    lines = [*(f":{name} - [0:0]" for name in names), *(_hook_line(*each, counters=counters) for each in hooks), *rules]
    return _plain("".join(f"{line}\n" for line in lines))


def chains_and_jumps(family: Family, variant: Variant, table: str, chain: str) -> tuple[list[str], set[str]]:
    """Return the names of all chains of a table, and which of them one chain jumps to whatever the packet is."""
    if variant is Variant.LEGACY:
        entries = LegacyEntries(family, table)
        return entries.chains(), entries.jump_targets(chain)
    return chain_names(family, table), jump_targets(family, table, chain)


def _look(
    family: Family, variant: Variant, table: str, hooks: Sequence[HookKey]
) -> tuple[list[str], list[tuple[HookKey, FoundRule]]]:
    if variant is Variant.LEGACY:
        entries = LegacyEntries(family, table)
        return entries.chains(), entries.find_hooks(hooks)
    return chain_names(family, table), find_hooks(family, table, hooks)


def _hook_line(hook: HookKey, found: FoundRule, *, counters: bool) -> str:
    return f"[{found.counters.packets}:{found.counters.bytes}] {hook.rule}" if counters else hook.rule


def _plain(text: str) -> str:
    # iptables 1.8.9 prints two blanks where one was given (libxt_nfacct.c).
    return text.replace("--nfacct-name  ", "--nfacct-name ")


async def _listed(family: Family, variant: Variant, table: str, chains: Iterable[str], *, counters: bool) -> list[str]:
    """Return the rules of chains; a chain that cannot be listed has one rule, `UNREADABLE`."""
    # iptables-nft keeps the chains that it is asked for in a sorted list, and searches it from its beginning (nft-cache.c).
    rest = sorted(chains, reverse=True)
    lines: list[str] = []
    unreadable: list[str] = []
    while rest and len(unreadable) < _MOST_UNREADABLE:
        found, is_whole = await _list(family, variant, table, rest, counters=counters)
        if is_whole:
            lines += [line for rules in found for line in rules]
            rest = []
            break
        if not found and not unreadable:
            await _require_listing(family, variant, table, rest[0])
        if found:
            # The process ended in the last one that it began with, or at the next.
            lines += [line for rules in found[:-1] for line in rules]
            rest = rest[len(found) - 1 :]
            again, is_whole = await _list(family, variant, table, rest[:1], counters=counters)
            if is_whole:
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
    """List chains in one process; return the rules of each that it came to, and whether it came to the end."""
    verb = "-v -S" if counters else "-S"
    text = "".join((f"*{table}\n", *(f"{verb} {chain}\n" for chain in chains), "COMMIT\n"))
    result = await run([program(family, variant, "restore"), "--noflush", "--wait", str(LOCK_WAIT_SECONDS)], stdin=text)
    if result.status == STATUS_RESOURCE_PROBLEM:
        message = f"{program(family, variant, 'restore')}: table {table}: {result.stderr.strip()}"
        raise ApplyError(message, retryable=True)
    # In a thread: of 10,000 Services this takes 0.1 s, and the loop has other things to do.
    return await asyncio.to_thread(_sections, result.stdout), result.status == 0


def _sections(text: str) -> list[list[str]]:
    """Sort what was listed by chain; counters go to the front, where iptables-save has them."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("-N "):
            found.append([])
        elif found:
            counted = _COUNTED.match(line)
            found[-1].append(f"[{counted[2]}:{counted[3]}] {counted[1]}{counted[4] or ''}" if counted else line)
    return found


async def _require_listing(family: Family, variant: Variant, table: str, chain: str) -> None:
    """See that a chain that was not listed in a restore is not listed otherwise.

    Raises:
        ApplyError: it is, so the fault is not the chain's.
    """
    argv = [program(family, variant), "--wait", str(LOCK_WAIT_SECONDS), "-t", table, "-S", chain]
    if (await run(argv)).status == 0:
        name = program(family, variant, "restore")
        message = f"{name}: this version does not list chains (-S), which is needed to read table {table}"
        raise ApplyError(message, retryable=True)
