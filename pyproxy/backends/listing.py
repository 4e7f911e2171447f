"""Rules as people look at them: by Service, with packet counters where they come from the kernel."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pyproxy.model.address import Family
from pyproxy.model.names import ServicePortName


class Counters(NamedTuple):
    """What matched a rule so far."""

    packets: int
    bytes: int


class ListedRule(NamedTuple):
    """One rule of ours."""

    table: str
    chain: str
    rule: str
    """As ``iptables-save`` prints it, without counters."""
    counters: Counters | None = None
    """None where the rule comes from a plan and not from a kernel."""


@dataclass(frozen=True, slots=True)
class RuleListing:
    """Every rule of ours in one family."""

    family: Family
    chains: tuple[tuple[str, str], ...] = ()
    """Table and name of our chains, empty ones included, sorted."""
    common: tuple[ListedRule, ...] = ()
    """Rules that serve all Services."""
    services: Mapping[ServicePortName, tuple[ListedRule, ...]] = field(default_factory=dict)
    """Rules of each Service port, sorted by name."""
    last: tuple[ListedRule, ...] = ()
    """Rules that serve all Services and have to stand behind those of single ones."""
