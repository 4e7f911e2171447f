"""Keys and values of the iptables mode: our chains, and our rules in built-in chains.

Rules are text, exactly as ``iptables-save`` prints them. So comparing planned rules with those in the kernel is comparing
strings, in both variants.
"""

from typing import NamedTuple

FILTER = "filter"
NAT = "nat"
MANGLE = "mangle"
TABLES = (FILTER, NAT)
"""In the order of writing: rules that drop or reject are in place before the rules that forward."""
IPVS_TABLES = (MANGLE, FILTER, NAT)
"""The tables of the IPVS mode, in the order of writing."""


class ChainKey(NamedTuple):
    """One of our chains. Its value is all its rules, each followed by a newline."""

    table: str
    chain: str


class HookKey(NamedTuple):
    """One rule of ours in a chain that is not ours, usually a built-in one. Its value is the same rule.

    It is inserted at the top, because an ACCEPT of another agent would end the chain before it.
    """

    table: str
    chain: str
    rule: str


RulesetKey = ChainKey | HookKey
