"""What rules of iptables do to the first packet of a connection, from the text of ``iptables-save``.

It follows the packet through the hooks in the kernel's order and knows nothing of Services. Where chance decides, it
follows every branch. A rule that it cannot evaluate is skipped, and the path names it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import NamedTuple

from pyproxy.backends.explanation import NOT_EVALUATED, Fate, Host, Packet, Path, Step, merged
from pyproxy.backends.iptables.rule_matches import (
    LOOPBACK_INTERFACE,
    UNKNOWN_INTERFACE,
    Rule,
    State,
    applies,
    parse_rule,
)
from pyproxy.model.address import parse_ip
from pyproxy.model.endpoint import Endpoint

_MANGLE, _FILTER, _SECURITY = ("mangle", -150), ("filter", 0), ("security", 50)
HOOKS: Mapping[str, tuple[tuple[str, int], ...]] = {
    "PREROUTING": (("raw", -300), _MANGLE, ("nat", -100)),
    "INPUT": (_MANGLE, _FILTER, _SECURITY, ("nat", 100)),
    "FORWARD": (_MANGLE, _FILTER, _SECURITY),
    "OUTPUT": (("raw", -300), _MANGLE, ("nat", -100), _FILTER, _SECURITY),
    "POSTROUTING": (_MANGLE, ("nat", 100)),
}
"""Hooks with their tables and priorities (linux/netfilter_ipv4.h, nf_ip_hook_priorities), in order."""
_LAST = 1 << 31
"""Higher than any priority."""
_NO_EFFECT = frozenset({
    *("LOG", "NFLOG", "ULOG", "TRACE", "TCPMSS", "CHECKSUM", "SET", "AUDIT", "TTL", "HL", "DSCP", "TOS", "CLASSIFY"),
})  # fmt: skip
"""Targets after which the packet continues unchanged, as far as Services are concerned."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The tables of one family."""

    chains: Mapping[str, Mapping[str, Sequence[str]]]
    """By table and chain: rules without ``-A CHAIN``."""
    policies: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Policies of built-in chains, by table and chain; ACCEPT if absent."""


def read_save(text: str) -> Ruleset:
    """Read the output of ``iptables-save``, with or without counters.

    Raises:
        ValueError: with the line that is not such output.
    """
    chains: dict[str, dict[str, list[str]]] = {}
    policies: dict[tuple[str, str], str] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("["):
            line = line.partition("] ")[2]  # noqa: PLW2901  # without counters
        words = line.split(" ", 2)
        match line[:1]:
            case "*":
                table = line[1:].strip()
                chains.setdefault(table, {})
            case ":" if table and len(words) > 1:
                chain, policy = words[0][1:], words[1]
                chains[table].setdefault(chain, [])
                if policy != "-":
                    policies[table, chain] = policy
            case "-" if table and words[0] == "-A" and len(words) > 2:  # noqa: PLR2004  # -A CHAIN RULE
                chains[table].setdefault(words[1], []).append(words[2])
            case _ if line.strip() and not line.startswith("#") and line.strip() != "COMMIT":
                message = f"line {number} is not output of iptables-save: {line}"
                raise ValueError(message)
    return Ruleset(chains, policies)


class Verdict(Enum):
    """How a packet leaves a chain or a hook."""

    ACCEPT = "ACCEPT"
    DROP = "DROP"
    REJECT = "REJECT"
    FALL_THROUGH = ""
    """No rule decided; the rule after the jump is next."""


Way = tuple[Verdict, State]


class _Stage(NamedTuple):
    """One table at one hook."""

    table: str
    hook: str
    """Name of the built-in chain."""
    priority: int


def paths(ruleset: Ruleset, packet: Packet, host: Host, pins: Collection[str] = frozenset()) -> tuple[Path, ...]:
    """Return every way that a packet can take, the most probable first.

    Args:
        ruleset: the rules.
        packet: the packet.
        host: the node that has the rules.
        pins: names of the ``recent`` lists that contain the source of the packet.
    """
    walk = Walk(ruleset)
    state = State(packet, host, packet.destination, packet.port, in_interface=packet.in_interface, pins=frozenset(pins))
    return merged(walk.path(verdict, end) for verdict, end in walk.all_hooks(state))


class Walk:
    """Follows a packet through chains and hooks."""

    def __init__(self, ruleset: Ruleset) -> None:
        self._ruleset = ruleset
        self._pin_seconds: dict[str, int] = {}
        """How long an entry of a ``recent`` list counts, from the rules that check it."""

    def path(self, verdict: Verdict, end: State) -> Path:
        """Return how a packet ended."""
        if verdict in {Verdict.DROP, Verdict.REJECT}:
            fate = Fate.DROPPED if verdict is Verdict.DROP else Fate.REJECTED
            return Path(end.share, fate, end.steps, is_certain=end.is_certain)
        return Path(
            end.share,
            Fate.FORWARDED if end.is_translated else Fate.UNCHANGED,
            end.steps,
            Endpoint(end.destination, end.port) if end.is_translated else None,
            is_masqueraded=end.is_masqueraded,
            affinity_seconds=self._pin_seconds.get(end.set_pin),
            is_certain=end.is_certain,
        )

    def all_hooks(self, state: State) -> Iterator[Way]:
        """Follow a packet through all hooks: nat comes before filter at OUTPUT, after it at POSTROUTING."""
        if state.packet.in_interface:
            return self.then(self.hook(state, "PREROUTING"), self._route_incoming)
        return self.then(self.hook(state, "OUTPUT", before=_FILTER[1]), self._route_own)

    def _route_incoming(self, state: State) -> Iterator[Way]:
        if state.host.is_local(state.destination):
            return self.hook(state, "INPUT")
        state = replace(state, out_interface=UNKNOWN_INTERFACE)
        return self.then(self.hook(state, "FORWARD"), self._leave)

    def _route_own(self, state: State) -> Iterator[Way]:
        is_local = state.host.is_local(state.destination)
        state = replace(state, out_interface=LOOPBACK_INTERFACE if is_local else UNKNOWN_INTERFACE)
        return self.then(self.hook(state, "OUTPUT", after=_FILTER[1] - 1), self._leave)

    def _leave(self, state: State) -> Iterator[Way]:
        return self.then(self.hook(state, "POSTROUTING"), self._come_back)

    def _come_back(self, state: State) -> Iterator[Way]:
        """Let a packet to the node itself enter by lo. It is still NEW, but the nat table is not consulted twice."""
        if state.out_interface != LOOPBACK_INTERFACE:
            return iter([(Verdict.ACCEPT, state)])
        state = replace(state, in_interface=LOOPBACK_INTERFACE, out_interface="")
        entered = self.hook(state, "PREROUTING", before=-100)
        return self.then(entered, lambda end: self.hook(end, "INPUT", before=100))

    @staticmethod
    def then(ways: Iterator[Way], following: Callable[[State], Iterator[Way]]) -> Iterator[Way]:
        """Let packets that were neither dropped nor rejected continue."""
        for verdict, end in ways:
            if verdict in {Verdict.DROP, Verdict.REJECT}:
                yield verdict, end
            else:
                yield from following(end)

    def hook(self, state: State, chain: str, *, after: int = -_LAST, before: int = _LAST) -> Iterator[Way]:
        """Follow a packet through the tables of a hook with priorities between two bounds."""
        ways: Iterator[Way] = iter([(Verdict.ACCEPT, state)])
        for table, priority in HOOKS[chain]:
            if after < priority < before and chain in self._ruleset.chains.get(table, ()):
                ways = self.then(ways, partial(self._built_in, _Stage(table, chain, priority)))
        return ways

    def _built_in(self, stage: _Stage, state: State) -> Iterator[Way]:
        """Follow a packet through a built-in chain and apply its policy."""
        policy = self._ruleset.policies.get((stage.table, stage.hook), "ACCEPT")
        for verdict, end in self._chain(state, stage.hook, stage):
            if verdict is Verdict.FALL_THROUGH and policy == "DROP":
                step = Step(stage.hook.lower(), stage.priority, stage.hook, f"-P {stage.hook} DROP")
                yield Verdict.DROP, replace(end, steps=(*end.steps, step))
            else:
                yield verdict, end

    def _chain(self, state: State, chain: str, stage: _Stage) -> Iterator[Way]:
        waiting = [state]
        for text in self._ruleset.chains[stage.table].get(chain, ()):
            rule = parse_rule(text)
            if rule.checked_pin is not None:
                self._pin_seconds[rule.checked_pin[0]] = rule.checked_pin[1]
            passed: list[State] = []
            for one in waiting:
                answer = applies(rule, one)
                if answer is False or (answer is None and rule.target in _NO_EFFECT):
                    passed.append(one)
                    continue
                step = Step(stage.hook.lower(), stage.priority, chain, f"-A {chain} {text}")
                if answer is None or not self._is_target(stage.table, rule):
                    passed.append(_passed_over(one, step))
                    continue
                hit = one
                if rule.chance != 1:
                    passed.append(replace(one, share=one.share * (1 - rule.chance)))
                    hit = replace(one, share=one.share * rule.chance)
                for verdict, end in self._target(rule, hit, stage, step):
                    if verdict is Verdict.FALL_THROUGH and rule.target != "RETURN" and not rule.is_goto:
                        passed.append(end)
                    else:
                        yield verdict, end
            waiting = passed
        yield from ((Verdict.FALL_THROUGH, one) for one in waiting)

    def _is_target(self, table: str, rule: Rule) -> bool:
        if rule.target == "DNAT":
            return _translated(rule.options.get("--to-destination", ""), 0) is not None
        return rule.target in _TARGETS or rule.target in self._ruleset.chains[table]

    def _target(self, rule: Rule, state: State, stage: _Stage, step: Step) -> Iterator[Way]:
        if rule.set_pin:
            state = replace(state, pins=state.pins | {rule.set_pin}, set_pin=rule.set_pin)
        decided = replace(state, steps=(*state.steps, step))
        match rule.target:
            case target if target in _NO_EFFECT or target in {"", "RETURN"}:
                yield Verdict.FALL_THROUGH, state
            case "ACCEPT" | "DROP" | "REJECT":
                yield Verdict(rule.target), decided
            case "MARK":
                value, _, mask = rule.options["--set-xmark"].partition("/")
                kept = ~int(mask or "0xffffffff", 16)
                yield Verdict.FALL_THROUGH, replace(decided, mark=(state.mark & kept) ^ int(value, 16))
            case "MASQUERADE" | "SNAT":
                yield Verdict.ACCEPT, replace(decided, is_masqueraded=True)
            case "DNAT":
                to = _translated(rule.options["--to-destination"], state.port)
                ip, port = to or (state.destination, state.port)
                yield Verdict.ACCEPT, replace(decided, destination=ip, port=port, is_translated=True)
            case chain:
                for verdict, end in self._chain(decided, chain, stage):
                    # A jump that led to no decision is not part of the story.
                    is_idle = verdict is Verdict.FALL_THROUGH and end.steps == decided.steps
                    yield verdict, replace(end, steps=state.steps) if is_idle else end


_TARGETS = frozenset({"", "RETURN", "ACCEPT", "DROP", "REJECT", "MARK", "MASQUERADE", "SNAT", *_NO_EFFECT})


def _passed_over(state: State, step: Step) -> State:
    return replace(state, is_certain=False, steps=(*state.steps, step._replace(rule=NOT_EVALUATED + step.rule)))


def _translated(text: str, port: int) -> tuple[bytes, int] | None:
    """Read ``10.0.0.1``, ``10.0.0.1:80`` or ``[fd00::1]:80``; None for ranges, from which the kernel chooses."""
    address, number = text, ""
    if text.startswith("[") or text.count(":") == 1:
        address, _, number = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    try:
        return parse_ip(address.strip("[]")), int(number) if number else port
    except ValueError:
        return None
