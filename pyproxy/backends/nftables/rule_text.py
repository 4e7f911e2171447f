"""Parses rules as ``nft`` prints them: expressions and statements (nft(8)). Pure.

It knows what kube-proxy, pyproxy and common firewalls write. The rest of a rule that it does not know is one `Unknown`.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from pyproxy.backends.nftables.ruleset_text import NftSet, seconds, split_elements, tokens_of

KINDS: Mapping[tuple[str, ...], str] = {
    ("ip", "saddr"): "ipv4_addr", ("ip", "daddr"): "ipv4_addr", ("ip6", "saddr"): "ipv6_addr", ("ip6", "daddr"): "ipv6_addr",
    ("meta", "l4proto"): "inet_proto", ("ip", "protocol"): "inet_proto", ("ip6", "nexthdr"): "inet_proto",
    **{(protocol, "dport"): "inet_service" for protocol in ("th", "tcp", "udp", "sctp")},
    ("meta", "mark"): "mark", ("meta", "priority"): "classid", ("meta", "nfproto"): "nf_proto",
    ("iifname",): "ifname", ("oifname",): "ifname", ("iif",): "ifname", ("oif",): "ifname",
    ("meta", "iifname"): "ifname", ("meta", "oifname"): "ifname",
    ("ct", "state"): "ct_state", ("ct", "status"): "ct_status", ("ct", "direction"): "fib_addrtype",
    ("ct", "original", "ip", "daddr"): "ipv4_addr", ("ct", "original", "ip6", "daddr"): "ipv6_addr",
    ("ct", "original", "daddr"): "ip_addr", ("ct", "original", "proto-dst"): "inet_service",
    ("fib", "saddr", "type"): "fib_addrtype", ("fib", "daddr", "type"): "fib_addrtype",
}  # fmt: skip
"""Types of the expressions whose value is known for a packet."""
_LONGEST_NAME = 4
_OPERATORS = frozenset({"==", "!=", "<", ">", "<=", ">="})
_BITS = frozenset({"&", "|", "^"})
_NO_EFFECT = {"notrack": 1, "accept": 0}


class Field(NamedTuple):
    """A property of the packet."""

    name: tuple[str, ...]


class Concat(NamedTuple):
    """Several expressions, joined by dots."""

    parts: tuple["Expression", ...]


class Bits(NamedTuple):
    """A bit operation with a number."""

    value: "Expression"
    operator: str
    number: int


class Chance(NamedTuple):
    """A number that is drawn for each connection: ``numgen`` or a hash of something."""

    numbers: range


class Mapped(NamedTuple):
    """The data of a map at a key."""

    key: "Expression"
    map: str | NftSet
    """The name of a map, or one without a name."""


class Literal(NamedTuple):
    """A constant, as text."""

    text: str


Expression: TypeAlias = Field | Concat | Bits | Chance | Mapped | Literal


class Match(NamedTuple):
    """The rule continues if the comparison holds."""

    value: Expression
    operator: str
    other: str | NftSet
    """The name of a set, a set without a name, or one value as such a set."""


class Vmap(NamedTuple):
    """The verdict is looked up."""

    key: Expression
    map: str | NftSet


class Decision(NamedTuple):
    """``accept``, ``drop``, ``reject``, ``return``, ``continue``, ``jump`` or ``goto``."""

    verdict: str
    chain: str = ""


class Translation(NamedTuple):
    """``dnat`` or ``redirect`` with the destination, ``snat`` or ``masquerade`` without."""

    kind: str
    to: Expression | None


class Assignment(NamedTuple):
    """Sets the mark or the priority of the packet."""

    name: tuple[str, ...]
    value: Expression


class Update(NamedTuple):
    """Adds an element to a set."""

    set: str
    timeout: int | None


class Unknown(NamedTuple):
    """A part of the rule that cannot be evaluated."""

    text: str


Statement: TypeAlias = Match | Vmap | Decision | Translation | Assignment | Update | Unknown


class _UnknownError(Exception):
    pass


@lru_cache(maxsize=1 << 16)
def parse_rule(text: str) -> tuple[Statement, ...]:
    """Return the statements of a rule; those without an effect on a first packet are left out."""
    return tuple(_Parser(tokens_of(text)).statements())


_VERDICTS = frozenset({"accept", "drop", "reject", "return", "continue"})


# Words with a value that may follow statements which do not decide whether a rule applies.
_ARGUMENTS = {
    "counter": frozenset({"packets", "bytes", "name"}),
    "log": frozenset({"prefix", "level", "group", "flags", "snaplen", "queue-threshold"}),
}


class _Parser:
    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        self._at = 0

    def statements(self) -> list[Statement]:
        found: list[Statement] = []
        while self._at < len(self._tokens):
            start = self._at
            try:
                if (one := self._statement()) is not None:
                    found.append(one)
            except (_UnknownError, IndexError, ValueError):
                found.append(Unknown(" ".join(self._tokens[start:])))
                break
        return found

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _statement(self) -> Statement | None:  # noqa: PLR0911  # a case for each kind
        token = self._peek()
        if token in _VERDICTS or token in {"jump", "goto"}:
            return self._decision()
        match token:
            case "counter" | "log":
                self._next()
                while self._peek() in _ARGUMENTS[token]:
                    self._at += 2
            case "comment":
                self._at += 2
            case "notrack":
                self._at += 1
                return Assignment(("notrack",), Literal("1"))
            case "update" | "add":
                self._next()
                name = self._next().removeprefix("@")
                body = self._block()
                # The rule continues only if the rate, the quota or the number of connections allows it.
                if not {"limit", "quota", "count"}.isdisjoint(body):
                    raise _UnknownError
                return Update(name, seconds(body[body.index("timeout") + 1]) if "timeout" in body else None)
            case "dnat" | "snat" | "redirect" | "masquerade":
                return self._translation()
            case _ if self._peek(2) == "set" and token in {"meta", "ct"}:
                field = (self._next(), self._next())
                self._next()
                return Assignment(field, self._expression())
            case _:
                return self._match()
        return None

    def _decision(self) -> Decision:
        verdict = self._next()
        if verdict in {"jump", "goto"}:
            return Decision(verdict, self._next())
        # What follows says with which answer the packet is rejected, which makes no difference for its path.
        if verdict == "reject" and self._peek() == "with":
            while self._peek() not in {"", "comment"}:
                self._next()
        return Decision(verdict)

    def _translation(self) -> Translation:
        kind = self._next()
        if self._peek() in {"ip", "ip6"} and self._peek(1) == "to":
            self._next()
        to = None
        if self._peek() == "to":
            self._next()
            to = self._expression()
        # How a source port is chosen makes no difference for the path of a first packet.
        while self._peek() in {"random", "fully-random", "persistent", ","}:
            self._next()
        return Translation(kind, to)

    def _match(self) -> Match | Vmap:
        value = self._expression()
        if self._peek() == "vmap":
            self._next()
            return Vmap(value, self._set(value))
        operator = self._next() if self._peek() in _OPERATORS else "=="
        return Match(value, operator, self._set(value))

    def _set(self, value: Expression) -> str | NftSet:
        """Read the right side of a comparison or look-up."""
        first, kinds = self._peek(), _kinds(value)
        if first.startswith("@"):
            return self._next()[1:]
        made = NftSet("", kinds)
        if first == "{":
            for element in split_elements(self._block()):
                made.add(element)
            return made
        if not first:
            raise _UnknownError
        texts = [self._next()]
        while self._peek() == ".":
            self._next()
            texts.append(self._next())
        if len(texts) > 1:
            made.add([part for text in texts for part in (".", text)][1:])
        else:
            for text in texts[0].split(","):  # ct state established,related
                made.add([text])
        return made

    def _block(self) -> list[str]:
        if self._next() != "{":
            raise _UnknownError
        start = self._at
        while self._next() != "}":
            pass
        return list(self._tokens[start : self._at - 1])

    def _expression(self) -> Expression:
        parts = [self._operand()]
        while self._peek() == ".":
            self._next()
            parts.append(self._operand())
        value = parts[0] if len(parts) == 1 else Concat(tuple(parts))
        while True:
            if self._peek() in _BITS:
                value = Bits(value, self._next(), int(self._next(), 0))
            elif self._peek() == "map":
                self._next()
                value = Mapped(value, self._set(value))
            else:
                return value

    def _operand(self) -> Expression:
        token = self._peek()
        if token in {"numgen", "jhash", "symhash"}:
            return self._chance()
        # The longest name first, because another one may be its beginning.
        for length in range(_LONGEST_NAME, 0, -1):
            name = tuple(self._tokens[self._at : self._at + length])
            if name in KINDS:
                self._at += length
                return Field(name)
        if token in _FIRST_WORDS or token in {"{", "}", "", "@"}:
            raise _UnknownError
        return Literal(self._next())

    def _chance(self) -> Chance:
        # The hash of a client that is not known is any of the numbers with the same probability, so hashes count as random
        # numbers.
        while self._next() != "mod":
            pass
        count, first = int(self._next()), 0
        while self._peek() in {"offset", "seed"}:
            word, number = self._next(), int(self._next(), 0)
            first = number if word == "offset" else first
        return Chance(range(first, first + count))


_FIRST_WORDS = frozenset({
    *(name[0] for name in KINDS if len(name) > 1), "ether", "vlan", "arp", "icmp", "icmpv6", "limit", "quota", "socket",
    *("rt", "exthdr", "ipsec", "osf", "xt", "queue", "tproxy", "synproxy", "flow", "dup", "fwd", "set", "delete", "secmark"),
})  # fmt: skip
"""Words with which an expression or statement begins that is not known."""


def _kinds(value: Expression) -> tuple[str, ...]:
    match value:
        case Field(name):
            return (KINDS[name],)
        case Concat(parts):
            return tuple(kind for part in parts for kind in _kinds(part))
        case Bits(inner, _, _):
            return _kinds(inner)
        case Literal():
            # Rules compare no constants: the word begins an expression that is not known.
            raise _UnknownError
        case _:
            return ("",)
