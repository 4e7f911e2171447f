"""Rules of packet filters, reduced to what the first packet of a connection needs: from iptables-save and `nft --json`. Pure.

A rule with a condition that is not known here is uncertain: it may match or not. Rules that match no first packet, such as
those for conntrack state ESTABLISHED, are left out.
"""

import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pyproxy.model.address import Family, Network, family_of, parse_network


class Effect(Enum):
    """What a rule does with a packet that it matches."""

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"
    NOTRACK = "notrack"
    TRANSLATE = "translate"
    MASQUERADE = "masquerade"
    MARK = "mark"
    CALL = "call"
    """Continue with another chain, and then with the next rule."""
    GO_TO = "go to"
    RETURN = "return"
    NOTHING = "nothing"


_FINAL = frozenset({Effect.ACCEPT, Effect.DROP, Effect.REJECT, Effect.TRANSLATE, Effect.MASQUERADE})


@dataclass(slots=True)
class Rule:
    """A rule. Empty conditions match every packet."""

    key: str
    """The rule as iptables-save prints it, or the handle that nft gives it."""
    effect: Effect = Effect.NOTHING
    target: str = ""
    """The chain to continue with."""
    mark: int = 0
    """The bits that are set."""
    is_certain: bool = True
    families: list[Family] = field(default_factory=list)
    sources: list[Network] = field(default_factory=list)
    destinations: list[Network] = field(default_factory=list)
    protocols: list[str] = field(default_factory=list)
    ports: list[range] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    """Interfaces; a name that ends with `+` or `*` is a prefix."""
    outputs: list[str] = field(default_factory=list)
    is_to_node: bool | None = None
    """Whether the destination must be an address of the node, or must not be one."""


@dataclass(frozen=True, slots=True)
class Flow:
    """The first packet of a connection of a Service: to a frontend, or to an endpoint."""

    ip: bytes
    protocol: str
    port: int
    service: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table, or the part of one that matters, and what its conditions are compared with apart from the destination."""

    chains: Mapping[str, Sequence[Rule]]
    """The rules of each chain, in order."""
    pods: Collection[Network]
    devices: Collection[str]
    """Interfaces by which traffic of Services enters or leaves."""
    local_ips: Collection[bytes]
    wanted: Collection[Effect]
    """The effects to look for."""
    mark: int
    """The bits that count for `Effect.MARK`."""
    skipped: tuple[str, ...] = ()
    """Prefixes of the names of chains that are ours."""

    def deciding_rules(self, start: str, flows: Iterable[Flow]) -> Iterator[tuple[Rule, Flow]]:
        """Yield the packets that meet a rule with a wanted effect in a base chain, with the first such rule.

        Packets of which this is not certain are left out.
        """
        # Most tables have few of these rules, and a node may have thousands of endpoints.
        rules = [
            rule
            for name, chain in self.chains.items()
            if not self._is_skipped(name)
            for rule in chain
            if rule.is_certain and self._is_wanted(rule)
        ]
        for flow in flows:
            if any(self._matches(rule, flow) for rule in rules):
                found, _ = self._walk(start, flow, frozenset())
                if found is not None:
                    yield found, flow

    def _matches(self, rule: Rule, flow: Flow) -> bool:
        return (
            (not rule.families or family_of(flow.ip) in rule.families)
            and (not rule.destinations or any(flow.ip in block for block in rule.destinations))
            and (not rule.protocols or flow.protocol in rule.protocols)
            and (not rule.ports or any(flow.port in block for block in rule.ports))
            # The source is any pod: a rule for one of them, or for a network that contains some, can match.
            and (
                not rule.sources
                or not self.pods
                or any(one.ip in pod or pod.ip in one for one in rule.sources for pod in self.pods)
            )
            and _is_any(rule.inputs, self.devices)
            and _is_any(rule.outputs, self.devices)
            and rule.is_to_node in {None, flow.ip in self.local_ips}
        )

    def _walk(self, name: str, flow: Flow, seen: frozenset[str]) -> tuple[Rule | None, bool]:
        # The rule, and whether the packet leaves the table in this chain. As the kernel: rules in order, a jump returns to the next
        # rule, a goto to the end of the calling chain. `seen` guards against text in which chains call each other.
        if name in seen or self._is_skipped(name):
            return None, False
        for rule in self.chains.get(name, ()):
            if not self._matches(rule, flow):
                continue
            if not rule.is_certain:
                if self._can_accept(rule, seen):
                    return None, True
            elif self._is_wanted(rule) or rule.effect in _FINAL:
                return rule if self._is_wanted(rule) else None, True
            elif rule.effect is Effect.RETURN:
                break
            elif rule.target:
                found, is_done = self._walk(rule.target, flow, seen | {name})
                if is_done or rule.effect is Effect.GO_TO:
                    return found, is_done
        return None, False

    def _is_wanted(self, rule: Rule) -> bool:
        return rule.effect in self.wanted and (rule.effect is not Effect.MARK or bool(rule.mark & self.mark))

    def _is_skipped(self, name: str) -> bool:
        return bool(self.skipped) and name.startswith(self.skipped)

    def _can_accept(self, rule: Rule, seen: frozenset[str]) -> bool:
        """Return whether a rule, or the chain that it leads to, accepts anything."""
        return rule.effect is Effect.ACCEPT or (
            rule.target not in seen
            and any(self._can_accept(each, seen | {rule.target}) for each in self.chains.get(rule.target, ()))
        )


def _is_any(patterns: Collection[str], devices: Collection[str]) -> bool:
    return not patterns or any(
        device.startswith(pattern[:-1]) if pattern[-1:] in {"+", "*"} else device == pattern
        for pattern in patterns
        for device in devices
    )


# -- iptables-save

_TARGETS = {
    "ACCEPT": Effect.ACCEPT,
    "DROP": Effect.DROP,
    "REJECT": Effect.REJECT,
    "NOTRACK": Effect.NOTRACK,
    "DNAT": Effect.TRANSLATE,
    "REDIRECT": Effect.TRANSLATE,
    "MASQUERADE": Effect.MASQUERADE,
    "SNAT": Effect.MASQUERADE,
    "MARK": Effect.MARK,
    "RETURN": Effect.RETURN,
}
_MATCHES = {"comment", "tcp", "udp", "sctp", "conntrack", "state", "multiport", "addrtype"}
# Options that are known; each takes one argument. Of the first ones the negation is known as well.
_NEGATABLE = {"-m", "-i", "-o", "--comment", "--ctstate", "--state", "--dst-type"}
_KNOWN = {"-s", "-d", "-p", "--dport", "--dports", *_NEGATABLE}


def iptables_chains(saved: str, *, policy_of: str = "") -> dict[str, list[Rule]]:
    """Return the chains of one table in the output of iptables-save or ``iptables -S``.

    Args:
        saved: the output.
        policy_of: a base chain whose policy is added as its last rule, if it is DROP.
    """
    names = {line[1:].split()[0] for line in saved.splitlines() if line.startswith(":")}
    names |= {line.split()[1] for line in saved.splitlines() if line.startswith(("-N ", "-A "))}
    chains: dict[str, list[Rule]] = {name: [] for name in names}
    for line in saved.splitlines():
        if line.startswith("-A ") and (rule := _iptables_rule(line)):
            if rule.effect in {Effect.CALL, Effect.GO_TO} and rule.target not in names and rule.target.isupper():
                rule.effect = Effect.NOTHING  # the target of an extension, such as LOG
            chains[line.split()[1]].append(rule)
    if policy_of and any(line.startswith(f":{policy_of} DROP") for line in saved.splitlines()):
        chains[policy_of] = [*chains.get(policy_of, ()), Rule(f"-P {policy_of} DROP", Effect.DROP)]
    return chains


def _iptables_rule(line: str) -> Rule | None:
    # None if no first packet meets the rule.
    try:
        words = iter(shlex.split(line)[2:])
    except ValueError:
        return Rule(line, Effect.ACCEPT, is_certain=False)
    rule, is_negated = Rule(line), False
    for word in words:
        if word == "!":
            is_negated = True
            continue
        if word in {"-j", "-g"}:
            # The target comes last: what follows are its options.
            target, *options = [*words] or [""]
            rule.effect = _TARGETS.get(target, Effect.GO_TO if word == "-g" else Effect.CALL)
            if target == "CT":
                rule.effect = Effect.NOTRACK if "--notrack" in options else Effect.NOTHING
            elif rule.effect in {Effect.CALL, Effect.GO_TO}:
                rule.target = target
            elif rule.effect is Effect.MARK and options[:1] != ["--and-mark"] and len(options) > 1:
                rule.mark = int(options[1].partition("/")[0], 0)
        elif word not in (_NEGATABLE if is_negated else _KNOWN):
            rule.is_certain = False
        elif not _set_condition(rule, word, next(words, ""), is_negated=is_negated):
            return None
        is_negated = False
    return rule


def _set_condition(rule: Rule, option: str, value: str, *, is_negated: bool) -> bool:
    """Set a condition; return False if no first packet meets it."""
    if option in {"--ctstate", "--state"}:
        return ("NEW" in value.split(",")) is not is_negated
    if option == "-m":
        rule.is_certain = rule.is_certain and value in _MATCHES
    elif option == "--dst-type":
        rule.is_to_node, rule.is_certain = not is_negated, rule.is_certain and value == "LOCAL"
    elif option in {"-i", "-o"}:
        if not is_negated:  # Otherwise it is every interface but one.
            (rule.inputs if option == "-i" else rule.outputs).append(value)
    elif option in {"-s", "-d"}:
        (rule.sources if option == "-s" else rule.destinations).append(_network(value))
    elif option == "-p":
        rule.protocols.append(value)
    elif option != "--comment":
        for text in value.split(","):
            first, _, last = text.partition(":")
            rule.ports.append(range(int(first or 0), int(last or first) + 1))
    return True


# -- nft --json

_VERDICTS = {
    "accept": Effect.ACCEPT,
    "drop": Effect.DROP,
    "reject": Effect.REJECT,
    "notrack": Effect.NOTRACK,
    "dnat": Effect.TRANSLATE,
    "redirect": Effect.TRANSLATE,
    "tproxy": Effect.TRANSLATE,
    "masquerade": Effect.MASQUERADE,
    "snat": Effect.MASQUERADE,
    "return": Effect.RETURN,
    "jump": Effect.CALL,
    "goto": Effect.GO_TO,
}
_WITHOUT_EFFECT = {"counter", "log", "last"}
_FAMILIES = {"ipv4": Family.IPV4, "ip": Family.IPV4, "ipv6": Family.IPV6, "ip6": Family.IPV6}


def nft_chains(items: Iterable[Mapping[str, Any]], *, with_policies: Collection[str] = ()) -> dict[str, list[Rule]]:
    """Return the chains of one table in the output of ``nft --json list table``.

    Args:
        items: the objects of the output.
        with_policies: hooks of base chains whose policy is added as their last rule, if it is drop.
    """
    items = list(items)
    base = [item["chain"] for item in items if "chain" in item]
    chains: dict[str, list[Rule]] = {chain["name"]: [] for chain in base}
    for item in items:
        if "rule" in item and (rule := _nft_rule(item["rule"])):
            chains.setdefault(item["rule"]["chain"], []).append(rule)
    for chain in base:
        if chain.get("hook") in with_policies and chain.get("policy") == "drop":
            chains[chain["name"]].append(Rule("policy drop", Effect.DROP))
    return chains


def _nft_rule(item: Mapping[str, Any]) -> Rule | None:
    rule = Rule(str(item.get("handle")))
    for expression in item.get("expr", ()):
        if not isinstance(expression, dict):
            continue
        [(kind, value)] = list(expression.items())[:1]
        if kind == "match":
            if not _set_nft_match(rule, value):
                return None
        elif kind == "vmap":
            # `ct state vmap { established : accept, invalid : drop }` matches no first packet without an entry for new.
            data, looked_up = value.get("data"), value.get("key")
            entries = data.get("set", ()) if isinstance(data, dict) else ()
            is_state = isinstance(looked_up, dict) and looked_up.get("ct", {}).get("key") == "state"
            if is_state and all(entry[0] != "new" for entry in entries):
                return None
            rule.effect, rule.is_certain = Effect.ACCEPT, False
        elif kind in _VERDICTS:
            rule.effect = _VERDICTS[kind]
            rule.target = value["target"] if kind in {"jump", "goto"} else ""
        elif kind == "mangle":
            rule.mark = _mark(value)
            rule.effect = Effect.MARK if rule.effect is Effect.NOTHING and rule.mark else rule.effect
        elif kind not in _WITHOUT_EFFECT:
            rule.is_certain = False
    return rule


def _set_nft_match(rule: Rule, value: Mapping[str, Any]) -> bool:
    """Set a condition; return False if no first packet meets it."""
    [(kind, left)] = list(value["left"].items())[:1] if isinstance(value["left"], dict) else [("", {})]
    key = left.get("key") or left.get("field") if isinstance(left, dict) else ""
    right, is_negated = [*_values(value["right"])], value.get("op") == "!="
    if (kind, key) == ("ct", "state"):
        return ("new" in right) is not is_negated
    if key in {"iifname", "oifname", "iif", "oif"}:
        names = rule.inputs if key.startswith("i") else rule.outputs
        names += [] if is_negated else [str(each) for each in right]
    elif is_negated or any(isinstance(each, str) and each.startswith("@") for each in right):
        rule.is_certain = False
    elif key in {"saddr", "daddr"} and left.get("protocol") in {"ip", "ip6"}:
        (rule.sources if key == "saddr" else rule.destinations).extend(_network(each) for each in right)
    elif key == "dport":
        rule.ports += [each if isinstance(each, range) else range(int(each), int(each) + 1) for each in right]
        rule.protocols += [left["protocol"]] if left.get("protocol") != "th" else []
    elif kind == "meta" and key in {"nfproto", "protocol"}:
        # `meta protocol` has the Ethernet type, whose names are those of the families of nft.
        rule.families += [family for each in right if (family := _FAMILIES.get(str(each))) is not None]
    elif key in {"l4proto", "protocol", "nexthdr"} and kind in {"meta", "payload"}:
        rule.protocols += [str(each) for each in right]
    else:
        rule.is_certain = False
    return True


def _values(right: Any) -> Iterator[Any]:  # noqa: ANN401  # JSON
    """Yield the values of the right side of a match: networks as text, ranges of numbers as ranges."""
    if isinstance(right, list):
        for each in right:
            yield from _values(each)
    elif isinstance(right, dict) and "set" in right:
        yield from _values(right["set"])
    elif isinstance(right, dict) and "prefix" in right:
        yield f"{right['prefix']['addr']}/{right['prefix']['len']}"
    elif isinstance(right, dict) and "range" in right:
        first, last = right["range"]
        yield range(first, last + 1) if isinstance(first, int) else f"@{first}-{last}"
    elif isinstance(right, dict):
        yield "@unknown"
    else:
        yield right


def _network(text: str) -> Network:
    return parse_network(text if "/" in text else f"{text}/{128 if ':' in text else 32}")


def _mark(value: Mapping[str, Any]) -> int:
    # `meta mark set meta mark | 0x4000` is a tree with the operator as its key; other expressions set no known bits.
    if value.get("key") != {"meta": {"key": "mark"}}:
        return 0
    new = value.get("value")
    if isinstance(new, dict) and "|" in new:
        new = next((each for each in new["|"] if isinstance(each, int)), 0)
    return new if isinstance(new, int) else 0
