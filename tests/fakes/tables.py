"""The tables of one family in memory: takes input of ``iptables-restore``, prints output of ``iptables-save``.

They are as strict as the kernel and libiptc, with which `tests/properties/test_kernel.py` compares them. The target of a jump must exist, a
chain can be deleted only if it is empty and without jumps to it, a rule to delete must exist; and a table is changed as
a whole or not at all.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy

HOOKS = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}
TARGETS = frozenset({"ACCEPT", "DROP", "REJECT", "RETURN", "MARK", "MASQUERADE", "DNAT"})
"""Targets that are not chains."""
_LINE = re.compile(r"-(?P<verb>[AID]) (?P<chain>\S+) (?P<rule>.+)")
_JUMP = re.compile(r"(?:^| )-j (\S+)")

Chains = dict[str, list[str]]
"""The rules of each chain, without the leading ``-A CHAIN``."""


class RestoreRefusedError(Exception):
    """A line of the input was refused; earlier tables were changed, the table of this line was not."""


def accept_all(_line: str) -> bool:
    """Refuse no line."""
    return False


class Tables:
    """The filter and nat tables of one family."""

    def __init__(self) -> None:
        self.chains: dict[str, Chains] = {table: {chain: [] for chain in hooks} for table, hooks in HOOKS.items()}

    def __repr__(self) -> str:
        return "\n".join(line for table in HOOKS for line in self.save(table))

    def restore(self, text: str, refuses: Callable[[str], bool] = accept_all) -> None:
        """Apply restore input.

        Args:
            text: the input.
            refuses: returns whether to refuse a valid line, as a kernel without some match does.

        Raises:
            RestoreRefusedError: with the line.
        """
        lines = iter(text.splitlines())
        for line in lines:
            if line.startswith("#"):
                continue
            table = line.removeprefix("*")
            if table == line or table not in self.chains:
                raise RestoreRefusedError(line)
            chains = deepcopy(self.chains[table])
            for command in _until_commit(lines):
                if refuses(command):
                    raise RestoreRefusedError(command)
                _carry_out(chains, command, HOOKS[table])
            self.chains[table] = chains

    def save(self, table: str) -> list[str]:
        """Return the output of ``iptables-save -t``."""
        chains = self.chains[table]
        built_in = HOOKS[table]
        return [
            f"*{table}",
            *(f":{chain} {'ACCEPT' if chain in built_in else '-'} [0:0]" for chain in chains),
            *(f"-A {chain} {rule}" for chain, rules in chains.items() for rule in rules),
            "COMMIT",
        ]

    def flush(self, table: str, chain: str) -> None:
        """Flush a chain, as another program may do."""
        self.chains[table][chain].clear()

    def jumps(self, table: str, chain: str) -> list[str]:
        """Return the chains that the rules of a chain jump to."""
        return [target for rule in self.chains[table][chain] if (target := jump(rule)) and target not in TARGETS]


def jump(rule: str) -> str | None:
    """Return the target chain of a rule, or None."""
    found = _JUMP.search(rule)
    return found[1] if found else None


def _until_commit(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line == "COMMIT":
            return
        if not line.startswith("#"):
            yield line
    message = "no COMMIT"
    raise RestoreRefusedError(message)


def _carry_out(chains: Chains, line: str, built_in: Iterable[str]) -> None:
    if line.startswith(":"):
        _declare(chains, line, built_in)
        return
    if line.startswith("-X "):
        _delete(chains, line, line.removeprefix("-X "), built_in)
        return
    found = _LINE.fullmatch(line)
    if found is None or found["chain"] not in chains:
        raise RestoreRefusedError(line)
    target = jump(found["rule"])
    if target is not None and target not in TARGETS and target not in chains:
        raise RestoreRefusedError(line)
    _edit(chains[found["chain"]], line, found["verb"], found["rule"])


def _declare(chains: Chains, line: str, built_in: Iterable[str]) -> None:
    chain, policy, _ = line[1:].split(" ")
    if policy != "-" or chain in built_in:
        raise RestoreRefusedError(line)
    chains[chain] = []


def _delete(chains: Chains, line: str, chain: str, built_in: Iterable[str]) -> None:
    is_jumped_to = any(jump(rule) == chain for rules in chains.values() for rule in rules)
    if chain in built_in or chains.get(chain) != [] or is_jumped_to:
        raise RestoreRefusedError(line)
    del chains[chain]


def _edit(rules: list[str], line: str, verb: str, rule: str) -> None:
    match verb:
        case "A":
            rules.append(rule)
        case "I":
            rules.insert(0, rule)
        case _ if rule in rules:
            rules.remove(rule)
        case _:
            raise RestoreRefusedError(line)
