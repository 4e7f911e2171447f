"""Writes a change as input for ``iptables-restore --noflush``, and reads the output of ``iptables-save``.

With ``--noflush`` a line ``:CHAIN`` creates a chain, or empties it, and a chain without such a line keeps its rules. So a
chain that changed is written as a whole, and one that did not change is not mentioned. Everything between ``*TABLE`` and
``COMMIT`` is applied at once: no packet sees half of a change in a table.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pyproxy.backends.iptables.ruleset import IPVS_TABLES, TABLES, ChainKey, HookKey, RulesetKey
from pyproxy.backends.listing import Counters, ListedRule, RuleListing
from pyproxy.model.address import Family

_APPEND = "-A "


def restore_text(change: Mapping[RulesetKey, tuple[str | None, str | None]]) -> str:
    """Return a change as restore input; an empty text if nothing changes."""
    parts: list[str] = []
    by_table: dict[str, list[RulesetKey]] = {table: [] for table in IPVS_TABLES}
    for key, (present, wanted) in change.items():
        if present != wanted:
            by_table[key.table].append(key)
    for table, keys in by_table.items():
        if not keys:
            continue
        chains = [key for key in keys if isinstance(key, ChainKey)]
        parts.append(f"*{table}\n")
        # All chains first: a rule can only jump to a chain that exists.
        parts += [f":{key.chain} - [0:0]\n" for key in chains]
        for key in keys:
            if isinstance(key, HookKey):
                present, wanted = change[key]
                rule = key.rule.removeprefix(_APPEND)
                # One deletion for each copy: a hook that is there more than once is removed and inserted again.
                parts += [f"-D {rule}\n"] * len((present or "").splitlines())
                if wanted is not None:
                    parts.append(f"-I {rule}\n")
        parts += [change[key][1] or "" for key in chains]
        # Last: a chain can only be deleted if no rule jumps to it. The chain lines above have emptied these chains, and
        # the rules that jumped to them have been rewritten.
        parts += [f"-X {key.chain}\n" for key in chains if change[key][1] is None]
        parts.append("COMMIT\n")
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class Ownership:
    """Defines our part of a ruleset."""

    owns: Callable[[str, str], bool]
    """Returns, for a table and a chain, whether the chain is ours with all its rules."""
    shared: Collection[ChainKey]
    """Chains that we create, but whose rules belong to other agents."""
    hooks: Collection[HookKey]
    """Our rules in chains that are not ours."""


def parse_save(table: str, lines: Iterable[str], ownership: Ownership) -> dict[RulesetKey, str]:
    """Return our part of the ``iptables-save`` output of one table, as entries."""
    # An empty chain has a line of its own and no rules, so it is an entry with an empty value.
    chains, rules = saved_rules(table, lines, ownership)
    texts: dict[ChainKey, list[str]] = {key: [] for key in chains}
    found: dict[RulesetKey, str] = {}
    for rule in rules:
        key = ChainKey(table, rule.chain)
        if key in texts and key not in ownership.shared:
            texts[key].append(f"{rule.rule}\n")
        else:
            hook = HookKey(table, rule.chain, rule.rule)
            # One line for each copy, so that a hook that is there twice differs from the planned one.
            found[hook] = f"{found[hook]}\n{rule.rule}" if hook in found else rule.rule
    return found | {key: "".join(parts) for key, parts in texts.items()}


def saved_rules(table: str, lines: Iterable[str], ownership: Ownership) -> tuple[list[ChainKey], list[ListedRule]]:
    """Return our chains and our rules, in their order, from the ``iptables-save`` output of one table.

    Args:
        table: the table that was saved.
        lines: the output, with or without counters, each line with or without its newline.
        ownership: which chains and rules are ours; the rest is skipped.
    """
    chains: list[ChainKey] = []
    whole: set[str] = set()
    hooks = {hook.rule for hook in ownership.hooks if hook.table == table}
    rules: list[ListedRule] = []
    for line in lines:
        if line.startswith(":"):
            key = ChainKey(table, line[1 : line.index(" ")])
            if ownership.owns(*key):
                whole.add(key.chain)
                chains.append(key)
            elif key in ownership.shared:
                chains.append(key)
        elif line.startswith((_APPEND, "[")):
            counters, text = None, line.rstrip("\n")
            if text.startswith("["):
                counted, _, text = text.partition("] ")
                packets, _, size = counted[1:].partition(":")
                counters = Counters(int(packets), int(size))
            chain = text[len(_APPEND) : text.index(" ", len(_APPEND))]
            if chain in whole or text in hooks:
                rules.append(ListedRule(table, chain, text, counters))
    return chains, rules


def numbered(text: str, line: int, around: int = 3) -> Iterator[str]:
    """Yield the lines around a line, counted from 1, each with its number, for an error message."""
    lines = text.splitlines()
    for number in range(max(1, line - around), min(len(lines), line + around) + 1):
        yield f"{'>' if number == line else ' '}{number:5} {lines[number - 1]}"


def listing_restore(listing: RuleListing) -> str:
    """Return a listing as input for ``iptables-restore --noflush``, the rules of each Service port below its name."""
    program = "iptables-restore" if listing.family is Family.IPV4 else "ip6tables-restore"
    parts = [f"# {listing.family}, input for {program} --noflush\n"]
    for table in IPVS_TABLES:
        chains = [chain for chain_table, chain in listing.chains if chain_table == table]
        if not chains and table not in TABLES:
            continue
        parts.append(f"*{table}\n")
        parts += [f":{chain} - [0:0]\n" for chain in chains]
        parts += _lines(table, listing.common)
        for name, rules in listing.services.items():
            lines = list(_lines(table, rules))
            parts += [f"# {name} {name.protocol.value}\n", *lines] if lines else []
        parts += _lines(table, listing.last)
        parts.append("COMMIT\n")
    return "".join(parts)


def _lines(table: str, rules: Iterable[ListedRule]) -> Iterator[str]:
    for rule in rules:
        if rule.table == table:
            counters = f"[{rule.counters.packets}:{rule.counters.bytes}] " if rule.counters else ""
            yield f"{counters}{rule.rule}\n"
