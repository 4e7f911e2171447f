"""Finds our hooks in built-in chains by the parts of a rule, which come from structures of the kernel.

The programs of iptables cannot be used for this. If a chain has a rule that they do not know (a native nft rule, or one
of an extension that is not installed), iptables-nft can neither list, find nor delete any rule of that chain, and
iptables-legacy cannot list the table. A hook of ours has few parts: a comment, conntrack states, a target. These are
compared; a rule with any other part is foreign.
"""

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pyproxy.backends.iptables.ruleset import HookKey
from pyproxy.backends.listing import Counters

# The match conntrack is a struct xt_conntrack_mtinfo2 or 3 (`linux/netfilter/xt_conntrack.h`). The two are equal up to the
# fields that hooks use: match_flags, invert_flags and state_mask, behind eight addresses of 16 bytes, two numbers of 4
# bytes and five of 2. Revision 1 has masks of 8 bits, and no iptables that we run writes it.
_CONNTRACK = struct.Struct("=HHH")
_CONNTRACK_AT = 8 * 16 + 2 * 4 + 5 * 2
_CONNTRACK_REVISIONS = (2, 3)
_XT_CONNTRACK_STATE = 1 << 0
# XT_CONNTRACK_STATE_BIT of enum ip_conntrack_info (`linux/netfilter/nf_conntrack_common.h`); SNAT and DNAT are beyond them.
_STATES = {"INVALID": 1, "ESTABLISHED": 1 << 1, "RELATED": 1 << 2, "NEW": 1 << 3, "SNAT": 1 << 6, "DNAT": 1 << 7}
_STATES_OF_TEXT = re.compile(r"-m conntrack (! )?--ctstate (\S+)")
_COMMENT_OF_TEXT = re.compile(r'--comment "([^"]*)"')


class Match(NamedTuple):
    """One match of a rule, as x_tables has it."""

    name: str
    revision: int
    data: bytes


class Parts(NamedTuple):
    """The parts of a hook."""

    target: str
    """A chain, or a verdict in capital letters."""
    comment: str = ""
    states: int = 0
    """Conntrack states, as bits of `XT_CONNTRACK_STATE_*`."""
    not_states: bool = False
    has_addresses: bool = False
    """The rule matches addresses. Which ones is not compared: the comment identifies such a hook."""


@dataclass(frozen=True, slots=True)
class FoundRule:
    """A rule in a built-in chain."""

    parts: Parts | None
    """None: the rule has parts that hooks of ours do not have, so it is foreign."""
    counters: Counters
    handle: int = 0
    """The number by which nf_tables identifies the rule; it is never reused. 0 in the legacy variant."""


def parts_of_matches(target: str, matches: Iterable[Match], *, has_addresses: bool) -> Parts | None:
    """Return the parts of a rule; None if it cannot be a hook of ours."""
    parts = Parts(target, has_addresses=has_addresses)
    for match in matches:
        if match.name == "comment":
            parts = parts._replace(comment=match.data.partition(b"\0")[0].decode(errors="replace"))
        elif match.name == "conntrack" and match.revision in _CONNTRACK_REVISIONS:
            matched, inverted, states = _CONNTRACK.unpack_from(match.data, _CONNTRACK_AT)
            if matched != _XT_CONNTRACK_STATE:
                return None
            parts = parts._replace(states=states, not_states=bool(inverted))
        else:
            return None
    return parts


def parts_of_text(rule: str) -> Parts:
    """Return the parts of a hook that is given as ``iptables-save`` prints it."""
    comment, states = _COMMENT_OF_TEXT.search(rule), _STATES_OF_TEXT.search(rule)
    return Parts(
        target=rule.rpartition(" ")[2],
        comment=comment[1] if comment else "",
        states=sum(_STATES[word] for word in states[2].split(",")) if states else 0,
        not_states=bool(states and states[1]),
        has_addresses=" -d " in rule,
    )


def hooks_among(hooks: Iterable[HookKey], found: Mapping[str, Iterable[FoundRule]]) -> list[tuple[HookKey, FoundRule]]:
    """Return the hooks that are among the rules found in chains of one table, once for each copy."""
    # Hooks differ in these parts, so the parts identify a hook within its chain.
    known = {(hook.chain, parts_of_text(hook.rule)): hook for hook in hooks}
    return [
        (known[chain, rule.parts], rule)
        for chain, rules in found.items()
        for rule in rules
        if rule.parts is not None and (chain, rule.parts) in known
    ]
