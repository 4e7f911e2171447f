"""What rules of nf_tables do to the first packet of a connection, from the text of ``nft list ruleset``.

It follows the packet through chains, sets and maps of any program, and knows nothing of Services. Where chance decides, it
follows every branch. A rule that it cannot evaluate is skipped, and the path names it.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import NamedTuple

from pyproxy.backends import hooks
from pyproxy.backends.explanation import Host, Packet, Path, Step
from pyproxy.backends.hooks import LOOPBACK_INTERFACE, UNKNOWN_INTERFACE, BaseChain, State, Verdict, Way
from pyproxy.backends.nftables.rule_text import (
    Assignment,
    Bits,
    Chance,
    Concat,
    Decision,
    Expression,
    Field,
    Literal,
    Mapped,
    Match,
    Statement,
    Translation,
    Unknown,
    Update,
    Vmap,
    parse_rule,
)
from pyproxy.backends.nftables.ruleset_text import Atom, Chain, Element, NftSet, Table, atom, seconds
from pyproxy.model.address import parse_ip
from pyproxy.model.names import Protocol

_VERDICTS = {"accept": Verdict.ACCEPT, "drop": Verdict.DROP, "reject": Verdict.REJECT, "return": Verdict.FALL_THROUGH}
_MARK_MASK = 0xFFFFFFFF
_FAMILIES = ("ip", "ip6")
_SCRATCH = "classid"
"""Type of the numbers that rules of the nftables mode pass on; look-ups of these decide nothing about a packet alone."""


_DECIDING_WORDS = frozenset({
    *("accept", "drop", "reject", "return", "jump", "goto", "vmap", "queue", "set", "map"),
    *("dnat", "snat", "redirect", "masquerade", "tproxy", "synproxy", "fwd"),
})  # fmt: skip
"""Words in the part of a rule that cannot be evaluated by which the rule could decide something."""


_WITHOUT_STEP = frozenset({"", "nodeport-ips"})
"""Sets whose elements say nothing about a Service: those without a name, and the addresses of the node."""
_BITS = {"&": operator.and_, "|": operator.or_, "^": operator.xor}
_COMPARISONS = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}


class _NotEvaluatedError(Exception):
    """An expression has no value that is known for a packet."""


class _Branch(NamedTuple):
    """One way through the statements of a rule."""

    state: State
    values: tuple[Atom, ...] = ()
    decision: Decision | None = None


class _Rule(NamedTuple):
    step: Step
    before: tuple[Step, ...]
    """The steps before the rule."""

    def shown(self, state: State) -> State:
        """Return the state with the rule as a step, unless the element of a set or map is a step of it already."""
        return state.after(self.step) if state.steps == self.before else state


def paths(tables: Iterable[Table], packet: Packet, host: Host) -> tuple[Path, ...]:
    """Return every way that a packet can take through tables of nf_tables only, the most probable first."""
    return hooks.paths(base_chains(tables, len(packet.source)), packet, host, {})


def base_chains(tables: Iterable[Table], address_bytes: int) -> list[BaseChain]:
    """Return the base chains that packets pass with addresses of this length."""
    # Tables of inet see both families. Those of bridge, arp and netdev are on other paths than that of a routed packet.
    families = {"inet", "ip" if address_bytes == len(b"IPv4") else "ip6"}
    return [
        BaseChain(chain.hook, chain.priority, chain.kind == "nat", partial(_Interpreter(table, chain).base_chain))
        for table in tables
        if table.family in families
        for chain in table.chains.values()
        if chain.hook
    ]


class _Interpreter:
    """Follows a packet through a base chain."""

    def __init__(self, table: Table, base: Chain) -> None:
        self._table = table
        self._base = base

    def base_chain(self, state: State) -> Iterator[Way]:
        for verdict, end in self._chain(state, self._base):
            # The policy is for what falls off the end of the base chain, also by a return in it.
            if verdict is Verdict.FALL_THROUGH and self._base.policy == "drop":
                yield Verdict.DROP, end.after(self._step(self._base.name, "policy drop"))
            else:
                yield verdict, end

    def _step(self, place: str, rule: str) -> Step:
        return Step(self._base.hook, self._base.priority, place, rule)

    def _chain(self, state: State, chain: Chain) -> Iterator[Way]:
        waiting = [state]
        for text in chain.rules:
            passed: list[State] = []
            for one in waiting:
                for verdict, end, is_goto in self._rule(one, chain, text):
                    # A chain that was entered by goto returns to where its caller would have returned: the rules behind the goto
                    # are not reached.
                    if verdict is None or (verdict is Verdict.FALL_THROUGH and not is_goto):
                        passed.append(end)
                    else:
                        yield verdict, end
            waiting = passed
        yield from ((Verdict.FALL_THROUGH, one) for one in waiting)

    def _rule(self, state: State, chain: Chain, text: str) -> Iterator[tuple[Verdict | None, State, bool]]:
        """Yield each way through a rule: None as the verdict if the next rule follows, and whether a goto led away."""
        rule = _Rule(self._step(chain.name, text), state.steps)
        statements = parse_rule(text)
        branches = [_Branch(state)]
        for statement in statements:
            following: list[_Branch] = []
            for branch in branches:
                if branch.decision is not None:
                    following.append(branch)
                    continue
                try:
                    results = [*self._statement(statement, branch.state, rule)]
                except _NotEvaluatedError:
                    # The rule may or may not apply. That matters only if it could decide something: rules that count or log are
                    # left out of the path.
                    decides = any(map(_could_decide, statements))
                    yield None, branch.state.passed_over(rule.step) if decides else branch.state, False
                    continue
                share = sum(result.state.share for result in results)
                if share < branch.state.share:
                    # A match fails. The next rule sees what statements before it have set, but they decided nothing.
                    missed = replace(branch.state, share=branch.state.share - share, steps=state.steps)
                    yield None, replace(missed, affinity_entry=state.affinity_entry), False
                following += results
            branches = following
        for branch in branches:
            yield from self._decided(branch, rule)

    def _decided(self, branch: _Branch, rule: _Rule) -> Iterator[tuple[Verdict | None, State, bool]]:
        decision, state = branch.decision, branch.state
        if decision is None or decision.verdict == "continue":
            yield None, state, False
        elif decision.verdict in {"jump", "goto"}:
            for verdict, end in self._chain(state, self._table.chains[decision.chain]):
                yield verdict, end, decision.verdict == "goto"
        else:
            verdict = _VERDICTS[decision.verdict]
            yield verdict, rule.shown(state) if verdict in {Verdict.DROP, Verdict.REJECT} else state, True

    def _statement(self, statement: Statement, state: State, rule: _Rule) -> Iterator[_Branch]:
        match statement:
            case Match(value, sign, other):
                yield from self._match(state, value, sign, other)
            case Vmap(key, name):
                for branch in self._values(key, state):
                    for _, element, end in self._found(branch, name):
                        yield _Branch(end, decision=Decision(*element.data[:2]))
            case Decision():
                yield _Branch(state, decision=statement)
            case Translation(kind, to):
                yield from self._translated(state, kind, to, rule)
            case Assignment(name, value):
                yield from self._assigned(state, name, value, rule)
            case Update(name, timeout):
                yield _Branch(replace(state, affinity_seconds=timeout or self._table.sets[name].timeout))
            case Unknown():
                raise _NotEvaluatedError

    def _set(self, name: str | NftSet) -> NftSet:
        return self._table.sets[name] if isinstance(name, str) else name

    def _found(self, branch: _Branch, name: str | NftSet) -> Iterator[tuple[NftSet, Element, State]]:
        """Yield the set, the element for the values of a branch and the state after the look-up, if there is one."""
        owner = self._set(name)
        element = owner.find(branch.values)
        # An element that could not be read may be the one that matches, as may the name of any interface except lo if that of
        # the packet is not known.
        is_unknown = owner.is_opaque or (UNKNOWN_INTERFACE in branch.values and _names_interfaces(owner))
        if is_unknown and (element is None or element is owner.catch_all):
            raise _NotEvaluatedError
        # A look-up that finds nothing ends the rule (NFT_BREAK), as a failed comparison does; the next rule follows.
        if element is None:
            return
        state = branch.state
        if owner.is_dynamic:
            entry = f"set {owner.name} {{ {element.text} }}"
            words = element.text.split()
            own = seconds(words[words.index("timeout") + 1]) if not owner.timeout and "timeout" in words else None
            state = replace(state, affinity_entry=entry, affinity_seconds=owner.timeout or own)
        is_scratch = set(owner.key) == {_SCRATCH} or (_SCRATCH in owner.key and owner.data == (_SCRATCH,))
        if owner.name not in _WITHOUT_STEP and not is_scratch:
            state = state.after(self._step(owner.name, element.text))
        yield owner, element, state

    def _match(self, state: State, value: Expression, sign: str, other: str | NftSet) -> Iterator[_Branch]:
        owner = self._set(other)
        for branch in self._values(value, state):
            if sign in {"==", "!="}:
                is_equal, end = False, branch.state
                for _, _, after in self._found(branch, owner):
                    is_equal, end = True, after
                if is_equal == (sign == "=="):
                    yield _Branch(end)
                continue
            # Of the values that rules compare by order, such as marks and ports, only numbers have one here.
            left, right = branch.values[0], next(iter(owner.exact))[0]
            if not (isinstance(left, int) and isinstance(right, int)):
                raise _NotEvaluatedError
            if _COMPARISONS[sign](left, right):
                yield _Branch(branch.state)

    def _assigned(self, state: State, name: tuple[str, ...], value: Expression, rule: _Rule) -> Iterator[_Branch]:
        for branch in self._values(value, state):
            (number,) = branch.values
            if not isinstance(number, int):
                raise _NotEvaluatedError
            match name:
                case ("meta", "mark"):
                    changed = replace(branch.state, mark=number & _MARK_MASK)
                    # Clearing the mark of masquerading is a detail of the rule that masquerades.
                    yield _Branch(rule.shown(changed) if number & ~state.mark else changed)
                case ("meta", "priority"):
                    yield _Branch(replace(branch.state, priority=number))
                case ("notrack",):
                    yield _Branch(replace(rule.shown(branch.state), is_untracked=True))
                case _:
                    yield _Branch(branch.state)

    def _translated(self, state: State, kind: str, to: Expression | None, rule: _Rule) -> Iterator[_Branch]:
        # nft_nat, nft_masq and nft_redir set the verdict: what follows in the rule and the chain is not evaluated.
        accept = Decision("accept")
        if kind in {"snat", "masquerade"}:
            yield _Branch(replace(rule.shown(state), is_masqueraded=True), decision=accept)
            return
        if kind == "redirect":
            text = str(state.port) if to is None else to.text.removeprefix(":") if isinstance(to, Literal) else ""
            if not text.isdecimal():
                raise _NotEvaluatedError
            yield _Branch(rule.shown(state).redirected(int(text)), decision=accept)
            return
        if to is None:
            raise _NotEvaluatedError
        for branch in self._values(to, state):
            ip, port = _destination(branch.values, state.port)
            end = rule.shown(branch.state)
            yield _Branch(replace(end, destination=ip, port=port, is_translated=True, is_dnat=True), decision=accept)

    def _values(self, value: Expression, state: State) -> Iterator[_Branch]:
        """Yield each possible value of an expression; none if a look-up fails or the packet has no such field."""
        found: Atom | None
        match value:
            case Field(name):
                found = _FIELDS[name](state)
                if found is not None:
                    yield _Branch(state, (found,))
            case Literal(text):
                yield _Branch(state, (_literal(text),))
            case Concat(parts):
                branches = [_Branch(state)]
                for part in parts:
                    branches = [
                        _Branch(one.state, (*branch.values, *one.values))
                        for branch in branches
                        for one in self._values(part, branch.state)
                    ]
                yield from branches
            case Bits():
                yield from self._bits(value, state)
            case Chance(numbers):
                # The numbers of numgen random are equally probable, whatever the map has for each of them.
                for number in numbers:
                    yield _Branch(replace(state, share=state.share / len(numbers)), (number,))
            case Mapped(key, name):
                yield from self._mapped(key, name, state)

    def _mapped(self, key: Expression, name: str | NftSet, state: State) -> Iterator[_Branch]:
        for branch in self._values(key, state):
            for owner, element, end in self._found(branch, name):
                # A map of endpoints has address and port as its data, which nft prints with a dot between them.
                data = [word for word in element.data if word != "."]
                kinds = owner.data if len(owner.data) == len(data) else ("",) * len(data)
                yield _Branch(end, tuple(map(atom, data, kinds)))

    def _bits(self, value: Bits, state: State) -> Iterator[_Branch]:
        for branch in self._values(value.value, state):
            (left,) = branch.values
            if not isinstance(left, int):
                raise _NotEvaluatedError
            yield _Branch(branch.state, (_BITS[value.operator](left, value.number),))


def _could_decide(statement: Statement) -> bool:
    if isinstance(statement, Unknown):
        return not _DECIDING_WORDS.isdisjoint(statement.text.split())
    return isinstance(statement, Decision | Translation | Vmap | Assignment)


def _literal(text: str) -> Atom:
    """Return a constant: a number such as ``0:1`` of a class, or as it looks."""
    parts = text.split(":")
    if len(parts) == 2 and all(part and set(part) <= set("0123456789abcdef") for part in parts):  # noqa: PLR2004
        return atom(text, _SCRATCH)
    # nft prints the priority 0 as "none" (TC_H_UNSPEC).
    return 0 if text == "none" else atom(text, "")


def _destination(values: tuple[Atom, ...], port: int) -> tuple[bytes, int]:
    match values:
        case (bytes() as ip,):
            return ip, port
        case (bytes() as ip, int() as number):
            return ip, number
        # A constant destination is one word, ``10.0.0.1:80`` or ``[fd00::1]:80``.
        case (str() as text,):
            address, _, number_text = text.rpartition(":")
            try:
                return parse_ip(address.strip("[]")), int(number_text)
            except ValueError:
                raise _NotEvaluatedError from None
    raise _NotEvaluatedError


def _names_interfaces(owner: NftSet) -> bool:
    names = chain(chain.from_iterable(owner.exact), (last for bounds, _ in owner.intervals for _, last in bounds))
    return any(isinstance(name, str) and name != LOOPBACK_INTERFACE for name in names)


def _ports(protocol: Protocol | None) -> Callable[[State], Atom | None]:
    return lambda state: state.port if protocol in {None, state.packet.protocol} else None


def _of_family(family: str, get: Callable[[State], bytes]) -> Callable[[State], Atom | None]:
    size = 4 if family == "ip" else 16
    return lambda state: get(state) if len(state.packet.source) == size else None


_FIELDS: Mapping[tuple[str, ...], Callable[[State], Atom | None]] = {
    **{(family, "saddr"): _of_family(family, lambda state: state.packet.source) for family in _FAMILIES},
    **{(family, "daddr"): _of_family(family, lambda state: state.destination) for family in _FAMILIES},
    **{("ct", "original", family, "daddr"): lambda state: state.packet.destination for family in _FAMILIES},
    **{(protocol.value, "dport"): _ports(protocol) for protocol in Protocol},
    **{name: lambda state: state.in_interface for name in (("iif",), ("iifname",), ("meta", "iifname"))},
    **{name: lambda state: state.out_interface for name in (("oif",), ("oifname",), ("meta", "oifname"))},
    **{
        name: lambda state: state.packet.protocol.number
        for name in (("meta", "l4proto"), ("ip", "protocol"), ("ip6", "nexthdr"))
    },
    ("th", "dport"): _ports(None),
    ("ct", "original", "daddr"): lambda state: state.packet.destination,
    ("ct", "original", "proto-dst"): lambda state: state.packet.port,
    ("ct", "state"): lambda state: "untracked" if state.is_untracked else "new",
    ("ct", "direction"): lambda _: "original",
    ("ct", "status"): lambda state: "dnat" if state.is_dnat else "snat" if state.is_masqueraded else "none",
    ("meta", "mark"): lambda state: state.mark,
    ("meta", "priority"): lambda state: state.priority,
    ("meta", "nfproto"): lambda state: "ipv4" if len(state.packet.source) == 4 else "ipv6",  # noqa: PLR2004
    ("fib", "saddr", "type"): lambda state: state.host.address_type(state.packet.source),
    ("fib", "daddr", "type"): lambda state: state.host.address_type(state.destination),
}
"""The value of each field; None if a packet does not have it."""
