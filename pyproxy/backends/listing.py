"""A listing of rules by Service, with packet counters if the rules come from the kernel."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pyproxy.model.address import Family
from pyproxy.model.names import ServicePortName


class Counters(NamedTuple):
    """What a rule has matched so far."""

    packets: int
    bytes: int


class ListedRule(NamedTuple):
    """One of our rules."""

    table: str
    chain: str
    rule: str
    """As ``iptables-save`` prints it, without counters."""
    counters: Counters | None = None
    """None: the rule comes from a plan, not from the kernel."""


@dataclass(frozen=True, slots=True)
class RuleListing:
    """All our rules in one family."""

    family: Family
    chains: tuple[tuple[str, str], ...] = ()
    """Table and name of each of our chains, sorted, including empty ones."""
    common: tuple[ListedRule, ...] = ()
    """Rules for all Services."""
    services: Mapping[ServicePortName, tuple[ListedRule, ...]] = field(default_factory=dict)
    """Rules of each Service port, sorted by name."""
    last: tuple[ListedRule, ...] = ()
    """Rules for all Services that come after the rules of single Services."""


def rule_difference(before: Iterable[ListedRule], after: Iterable[ListedRule]) -> tuple[list[str], list[str]]:
    """Return the rules that only the second has, and those that only the first has, each with its table."""
    # As multisets: a second copy of a rule that belongs there once is a difference too.
    old, new = (Counter(f"{rule.table}: {rule.rule}" for rule in rules) for rules in (before, after))
    return [*(new - old).elements()], [*(old - new).elements()]
