"""What rules of iptables do to the first packet of a connection, from the text of ``iptables-save``.

It follows the packet through the hooks in the kernel's order and knows nothing of Services. Where chance decides, it
follows every branch. A rule that it cannot evaluate is skipped, and the path names it.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from pyproxy.backends import hooks
from pyproxy.backends.explanation import Host, Packet, Path, Step
from pyproxy.backends.hooks import BaseChain, State, Verdict, Way
from pyproxy.backends.iptables.rule_matches import Rule, SetLookup, applies, no_sets, parse_rule
from pyproxy.model.address import parse_ip

_MANGLE, _FILTER, _SECURITY = ("mangle", -150), ("filter", 0), ("security", 50)
HOOKS: Mapping[str, tuple[tuple[str, int], ...]] = {
    "PREROUTING": (("raw", -300), _MANGLE, ("nat", -100)),
    "INPUT": (_MANGLE, _FILTER, _SECURITY, ("nat", 100)),
    "FORWARD": (_MANGLE, _FILTER, _SECURITY),
    "OUTPUT": (("raw", -300), _MANGLE, ("nat", -100), _FILTER, _SECURITY),
    "POSTROUTING": (_MANGLE, ("nat", 100)),
}
"""Hooks with their tables and priorities (linux/netfilter_ipv4.h, nf_ip_hook_priorities), in order."""
_CHECKED_PIN = re.compile(r"--rcheck(?: --seconds (\d+))?(?: --reap)?.* --name (\S+)")
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
                # Chains that a user created have no policy, which iptables-save writes as "-".
                if policy != "-":
                    policies[table, chain] = policy
            case "-" if table and words[0] == "-A" and len(words) > 2:  # noqa: PLR2004  # -A CHAIN RULE
                chains[table].setdefault(words[1], []).append(words[2])
            case _ if line.strip() and not line.startswith("#") and line.strip() != "COMMIT":
                message = f"line {number} is not output of iptables-save: {line}"
                raise ValueError(message)
    return Ruleset(chains, policies)


class _Stage(NamedTuple):
    """One table at one hook."""

    table: str
    hook: str
    """Name of the built-in chain."""
    priority: int


def paths(ruleset: Ruleset, packet: Packet, host: Host, pins: Collection[str] = frozenset()) -> tuple[Path, ...]:
    """Return every way that a packet can take through rules of iptables only, the most probable first.

    Args:
        ruleset: the rules.
        packet: the packet.
        host: the node that has the rules.
        pins: names of the ``recent`` lists that contain the source of the packet.
    """
    return hooks.paths(base_chains(ruleset), packet, host, dict.fromkeys(pins, 0.0))


def base_chains(ruleset: Ruleset, sets: SetLookup = no_sets) -> list[BaseChain]:
    """Return the built-in chains of a ruleset."""
    interpreter = _Interpreter(ruleset, sets)
    return [
        BaseChain(
            chain.lower(), priority, table == "nat", partial(interpreter.built_in, _Stage(table, chain, priority))
        )
        for chain, stages in HOOKS.items()
        for table, priority in stages
        if chain in ruleset.chains.get(table, ())
    ]


class _Interpreter:
    """Follows a packet through chains."""

    def __init__(self, ruleset: Ruleset, sets: SetLookup) -> None:
        self._ruleset = ruleset
        self._sets = sets
        self._pin_seconds = {
            name: int(seconds or 0)
            for rules in ruleset.chains.get("nat", {}).values()
            for rule in rules
            if "--rcheck" in rule
            for seconds, name in _CHECKED_PIN.findall(rule)
        }
        """How long an entry of a ``recent`` list counts."""

    def built_in(self, stage: _Stage, state: State) -> Iterator[Way]:
        """Follow a packet through a built-in chain and apply its policy."""
        policy = self._ruleset.policies.get((stage.table, stage.hook), "ACCEPT")
        for verdict, end in self._chain(state, stage.hook, stage):
            if verdict is Verdict.FALL_THROUGH and policy == "DROP":
                yield (
                    Verdict.DROP,
                    end.after(Step(stage.hook.lower(), stage.priority, stage.hook, f"-P {stage.hook} DROP")),
                )
            else:
                yield verdict, end

    def _chain(self, state: State, chain: str, stage: _Stage) -> Iterator[Way]:
        waiting = [state]
        for text in self._ruleset.chains[stage.table].get(chain, ()):
            rule = parse_rule(text)
            passed: list[State] = []
            for one in waiting:
                answer = applies(rule, one, self._sets)
                if answer is False or (answer is None and rule.target in _NO_EFFECT):
                    passed.append(one)
                    continue
                step = Step(stage.hook.lower(), stage.priority, chain, f"-A {chain} {text}")
                if answer is None or not self._is_target(stage.table, rule):
                    passed.append(one.passed_over(step))
                    continue
                hit = one
                # xt_statistic decides in each rule by itself: of what reaches a rule, the part that it does not take goes to the
                # next one.
                if rule.chance != 1:
                    passed.append(replace(one, share=one.share * (1 - rule.chance)))
                    hit = replace(one, share=one.share * rule.chance)
                for verdict, end in self._target(rule, hit, stage, step):
                    # A chain that was entered by goto returns to where its caller would have returned, so the rules behind the
                    # goto are not reached.
                    if verdict is Verdict.FALL_THROUGH and rule.target != "RETURN" and not rule.is_goto:
                        passed.append(end)
                    else:
                        yield verdict, end
            waiting = passed
        yield from ((Verdict.FALL_THROUGH, one) for one in waiting)

    def _is_target(self, table: str, rule: Rule) -> bool:
        # A target that is not known here may accept, drop or translate, so its rule counts as not evaluated. CT has helpers
        # and zones as well, which change how a connection is tracked.
        if rule.target == "CT":
            return "--notrack" in rule.options
        if rule.target == "REDIRECT":
            return rule.options.get("--to-ports", "0").isdecimal()
        if rule.target == "DNAT":
            return _translated(rule.options.get("--to-destination", ""), 0) is not None
        return rule.target in _TARGETS or rule.target in self._ruleset.chains[table]

    def _target(self, rule: Rule, state: State, stage: _Stage, step: Step) -> Iterator[Way]:  # noqa: C901  # a case for each target
        # xt_recent adds the source while it evaluates the match, and the match then succeeds: it happens before the target,
        # and whatever the target is.
        if rule.set_pin:
            seconds = self._pin_seconds.get(rule.set_pin)
            state = replace(state, pins={**state.pins, rule.set_pin: 0.0}, affinity_seconds=seconds)
        if rule.checked_pin is not None:
            name = rule.checked_pin[0]
            entry = f"/proc/net/xt_recent/{name}, last seen {state.pins[name]:.0f} s ago"
            state = replace(state, affinity_entry=entry)
        decided = state.after(step)
        match rule.target:
            case target if target in _NO_EFFECT or target in {"", "RETURN"}:
                yield Verdict.FALL_THROUGH, state
            case "ACCEPT" | "DROP" | "REJECT":
                yield Verdict(rule.target), decided
            case "MARK":
                # xt_mark clears the bits of the mask first, then inverts those of the value.
                value, _, mask = rule.options["--set-xmark"].partition("/")
                kept = ~int(mask or "0xffffffff", 16)
                yield Verdict.FALL_THROUGH, replace(decided, mark=(state.mark & kept) ^ int(value, 16))
            case "MASQUERADE" | "SNAT":
                # Targets of nat end the base chain as ACCEPT does, so the rules behind them do not see the connection.
                yield Verdict.ACCEPT, replace(decided, is_masqueraded=True)
            case "CT" | "NOTRACK":
                yield Verdict.FALL_THROUGH, replace(decided, is_untracked=True)
            case "REDIRECT":
                yield Verdict.ACCEPT, decided.redirected(int(rule.options.get("--to-ports", state.port)))
            case "DNAT":
                to = _translated(rule.options["--to-destination"], state.port)
                ip, port = to or (state.destination, state.port)
                yield Verdict.ACCEPT, replace(decided, destination=ip, port=port, is_translated=True, is_dnat=True)
            case chain:
                for verdict, end in self._chain(decided, chain, stage):
                    # A jump that led to no decision is not part of the story.
                    is_idle = verdict is Verdict.FALL_THROUGH and end.steps == decided.steps
                    yield verdict, replace(end, steps=state.steps) if is_idle else end


_TARGETS = frozenset({"", "RETURN", "ACCEPT", "DROP", "REJECT", "MARK", "MASQUERADE", "SNAT", "NOTRACK", *_NO_EFFECT})


def _translated(text: str, port: int) -> tuple[bytes, int] | None:
    """Read ``10.0.0.1``, ``10.0.0.1:80`` or ``[fd00::1]:80``; None for ranges, from which the kernel chooses."""
    address, number = text, ""
    if text.startswith("[") or text.count(":") == 1:
        address, _, number = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    try:
        return parse_ip(address.strip("[]")), int(number) if number else port
    except ValueError:
        return None
