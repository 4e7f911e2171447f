"""Keys and values of the iptables mode: chains of ours, and rules of ours in chains of others.

Rules are text exactly as ``iptables-save`` prints them, without a trailing newline inside a line. That makes
the comparison of what is wanted with what the kernel has a comparison of strings, in both variants.
"""

from typing import NamedTuple

FILTER = "filter"
NAT = "nat"
MANGLE = "mangle"
TABLES = (FILTER, NAT)
"""In the order in which they are written: what refuses a packet is in place before what forwards it."""
IPVS_TABLES = (MANGLE, FILTER, NAT)
"""The same for the IPVS mode."""


class ChainKey(NamedTuple):
    """A chain of ours; its value is all its rules, each line ended by a newline."""

    table: str
    chain: str


class HookKey(NamedTuple):
    """One rule of ours in a chain that others use too; its value is the same rule. It is inserted at the top."""

    table: str
    chain: str
    rule: str


RulesetKey = ChainKey | HookKey
