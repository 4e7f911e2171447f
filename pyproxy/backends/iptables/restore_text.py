"""A change of rulesets as input for ``iptables-restore --noflush``, and ``iptables-save`` output as a ruleset.

Under ``--noflush`` a chain line creates the chain or empties it, and a chain without one keeps its rules:
so a chain that changed is written whole, and one that did not is not mentioned. Each table is committed
at once: nobody ever sees half of a change in it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pyproxy.backends.iptables.ruleset import IPVS_TABLES, TABLES, ChainKey, HookKey, RulesetKey
from pyproxy.backends.listing import Counters, ListedRule, RuleListing

_APPEND = "-A "


def restore_text(change: Mapping[RulesetKey, tuple[str | None, str | None]]) -> str:
    """Write a change as restore input; empty if nothing changes."""
    by_table: dict[str, list[RulesetKey]] = {table: [] for table in IPVS_TABLES}
    for key, (present, wanted) in change.items():
        if present != wanted:
            by_table[key.table].append(key)
    return "".join(_table_text(table, keys, change) for table, keys in by_table.items() if keys)


def _table_text(table: str, keys: list[RulesetKey], change: Mapping[RulesetKey, tuple[str | None, str | None]]) -> str:
    chains = [key for key in keys if isinstance(key, ChainKey)]
    parts = [f"*{table}\n"]
    parts += [f":{key.chain} - [0:0]\n" for key in chains]
    parts += [line for key in keys if isinstance(key, HookKey) for line in _hook_lines(key, *change[key])]
    parts += [change[key][1] or "" for key in chains]
    # Last: by now no rule jumps to them.
    parts += [f"-X {key.chain}\n" for key in chains if change[key][1] is None]
    parts.append("COMMIT\n")
    return "".join(parts)


def _hook_lines(key: HookKey, present: str | None, wanted: str | None) -> Iterator[str]:
    rule = key.rule.removeprefix(_APPEND)
    # Each copy: a hook that is there more than once is written anew.
    yield from [f"-D {rule}\n"] * len((present or "").splitlines())
    if wanted is not None:
        yield f"-I {rule}\n"


@dataclass(frozen=True, slots=True)
class Ownership:
    """Which part of a ruleset is ours."""

    owns: Callable[[str, str], bool]
    """Says of a table and a chain whether the chain is ours whole."""
    shared: Collection[ChainKey]
    """Chains that we see to the existence of, and whose rules are others' business."""
    hooks: Collection[HookKey]
    """Rules that are ours in chains of others."""


def parse_save(table: str, lines: Iterable[str], ownership: Ownership) -> dict[RulesetKey, str]:
    """Read what is ours in the ``iptables-save`` output of one table, as a ruleset."""
    chains, rules = saved_rules(table, lines, ownership)
    texts: dict[ChainKey, list[str]] = {key: [] for key in chains}
    found: dict[RulesetKey, str] = {}
    for rule in rules:
        key = ChainKey(table, rule.chain)
        if key in texts and key not in ownership.shared:
            texts[key].append(f"{rule.rule}\n")
        else:
            hook = HookKey(table, rule.chain, rule.rule)
            # With a line for each copy, so that more than one is not what is wanted.
            found[hook] = f"{found[hook]}\n{rule.rule}" if hook in found else rule.rule
    return found | {key: "".join(parts) for key, parts in texts.items()}


def saved_rules(table: str, lines: Iterable[str], ownership: Ownership) -> tuple[list[ChainKey], list[ListedRule]]:
    """Return our chains, and our rules in their order, in the ``iptables-save`` output of one table.

    Args:
        table: the table that was saved.
        lines: the output, with or without counters, each line with or without its newline.
        ownership: what is ours; everything else is passed over.
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
            rule = _saved_rule(table, line.rstrip("\n"))
            if rule.chain in whole or rule.rule in hooks:
                rules.append(rule)
    return chains, rules


def _saved_rule(table: str, line: str) -> ListedRule:
    counters = None
    if line.startswith("["):
        counted, _, line = line.partition("] ")
        packets, _, size = counted[1:].partition(":")
        counters = Counters(int(packets), int(size))
    return ListedRule(table, line[len(_APPEND) : line.index(" ", len(_APPEND))], line, counters)


def numbered(text: str, line: int, around: int = 3) -> Iterator[str]:
    """Yield the lines around a line (counted from 1), each with its number, for an error message."""
    lines = text.splitlines()
    for number in range(max(1, line - around), min(len(lines), line + around) + 1):
        yield f"{'>' if number == line else ' '}{number:5} {lines[number - 1]}"


def listing_restore(listing: RuleListing) -> str:
    """Write a listing as input for ``iptables-restore --noflush``, each Service port below a remark with its name."""
    parts = [f"# {listing.family}\n"]
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
