"""Which rules in chains of others are ours, decided from the structures of the kernel.

No program of iptables can be asked: in a chain with a rule that it does not know (native nft, or of an extension that is
not installed) iptables-nft neither lists nor finds nor deletes any, and iptables-legacy does not list. A hook of ours is
made of few parts: a remark, conntrack states, a target. So these are compared, and rules with any other part are not ours.
"""

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pyproxy.backends.iptables.ruleset import HookKey
from pyproxy.backends.listing import Counters

# struct xt_conntrack_mtinfo2 and 3 (`linux/netfilter/xt_conntrack.h`): what is matched, what of it is inverted, states.
_CONNTRACK = struct.Struct("=HHH")
_CONNTRACK_AT = 146
_CONNTRACK_REVISIONS = (2, 3)
_MATCHES_STATES = 1
# XT_CONNTRACK_STATE_BIT of the numbers of enum ip_conntrack_info (`linux/netfilter/nf_conntrack_common.h`).
_STATES = {"INVALID": 1, "ESTABLISHED": 1 << 1, "RELATED": 1 << 2, "NEW": 1 << 3, "SNAT": 1 << 6, "DNAT": 1 << 7}
_STATES_OF_TEXT = re.compile(r"-m conntrack (! )?--ctstate (\S+)")
_COMMENT_OF_TEXT = re.compile(r'--comment "([^"]*)"')


class Match(NamedTuple):
    """One match of a rule, of x_tables."""

    name: str
    revision: int
    data: bytes


class Parts(NamedTuple):
    """What a hook is made of."""

    target: str
    """A chain, or a verdict in capital letters."""
    comment: str = ""
    states: int = 0
    not_states: bool = False
    has_addresses: bool = False
    """Whether it matches addresses; which ones the remark has to say."""


@dataclass(frozen=True, slots=True)
class FoundRule:
    """A rule in a chain of others."""

    parts: Parts | None
    """None: it has parts that no hook of ours has."""
    counters: Counters
    handle: int = 0
    """nf_tables' number for it, which is never given to another."""


def parts_of_matches(target: str, matches: Iterable[Match], *, has_addresses: bool) -> Parts | None:
    """Return what a rule is made of; None where it cannot be a hook."""
    parts = Parts(target, has_addresses=has_addresses)
    for match in matches:
        if match.name == "comment":
            parts = parts._replace(comment=match.data.partition(b"\0")[0].decode(errors="replace"))
        elif match.name == "conntrack" and match.revision in _CONNTRACK_REVISIONS:
            matched, inverted, states = _CONNTRACK.unpack_from(match.data, _CONNTRACK_AT)
            if matched != _MATCHES_STATES:
                return None
            parts = parts._replace(states=states, not_states=bool(inverted))
        else:
            return None
    return parts


def parts_of_text(rule: str) -> Parts:
    """Return what a hook is made of, given as ``iptables-save`` prints it."""
    comment, states = _COMMENT_OF_TEXT.search(rule), _STATES_OF_TEXT.search(rule)
    return Parts(
        target=rule.rpartition(" ")[2],
        comment=comment[1] if comment else "",
        states=sum(_STATES[word] for word in states[2].split(",")) if states else 0,
        not_states=bool(states and states[1]),
        has_addresses=" -d " in rule,
    )


def hooks_among(hooks: Iterable[HookKey], found: Mapping[str, Iterable[FoundRule]]) -> list[tuple[HookKey, FoundRule]]:
    """Return which of these hooks are among the rules found in chains of one table, as often as they are there."""
    known = {(hook.chain, parts_of_text(hook.rule)): hook for hook in hooks}
    return [
        (known[chain, rule.parts], rule)
        for chain, rules in found.items()
        for rule in rules
        if rule.parts is not None and (chain, rule.parts) in known
    ]
