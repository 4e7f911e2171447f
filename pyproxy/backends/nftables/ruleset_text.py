"""Reads what ``nft list ruleset`` prints, and the scripts of `text`: tables, sets with their elements, and chains. Pure.

Rules stay text, which `rule_text` parses when a packet meets them.
"""

import re
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pyproxy.linux.uapi.netfilter_ipv4 import NfIpPri
from pyproxy.model.address import parse_ip, parse_network
from pyproxy.model.names import Protocol

Atom = bytes | int | str
"""An address, a number, or a word, such as the name of an interface."""
Interval = tuple[Atom, Atom]
PRIORITIES = {
    "raw": NfIpPri.RAW,
    "mangle": NfIpPri.MANGLE,
    "dstnat": NfIpPri.NAT_DST,
    "filter": NfIpPri.FILTER,
    "security": NfIpPri.SECURITY,
    "srcnat": NfIpPri.NAT_SRC,
}
_PROTOCOLS: dict[str, int] = {
    **{protocol.value: protocol.number for protocol in Protocol},
    "icmp": 1,
    "ipv6-icmp": 58,
    "icmpv6": 58,
}
_TOKEN = re.compile(r'"[^"]*"|[{};]|[^\s{};"]+')
_BASE_CHAIN = re.compile(
    r"type (?P<type>\w+) hook (?P<hook>\w+).* priority (?P<name>[a-z]*)(?P<number>[ +-]*\d*);(?: policy (?P<policy>\w+))?"
)
_ADD_ELEMENT = re.compile(r"add element (?P<family>\w+) (?P<table>\S+) (?P<set>\S+) \{(?P<elements>.*)\}")
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class Element(NamedTuple):
    """An element of a set or map."""

    text: str
    """As ``nft`` prints it."""
    data: tuple[str, ...]
    """Tokens after the colon, in a map."""
    expires: str
    """Time after which it is deleted; empty: it stays."""


@dataclass(slots=True)
class NftSet:
    """A set or map."""

    name: str
    key: tuple[str, ...] = ()
    """Type of each field of the key, such as ``ipv4_addr``."""
    data: tuple[str, ...] = ()
    is_dynamic: bool = False
    """Rules add elements."""
    timeout: int | None = None
    """Seconds after which an element is deleted."""
    is_opaque: bool = False
    """It has an element that cannot be read."""
    pending: str = ""
    """Elements as text: a packet is looked up in few sets, and a large cluster has sets with 100,000 elements."""
    exact: dict[tuple[Atom, ...], Element] = field(default_factory=dict)
    intervals: list[tuple[tuple[Interval, ...], Element]] = field(default_factory=list)
    catch_all: Element | None = None
    """The element ``*``, for keys that no other element contains."""
    _firsts: list[Atom] = field(default_factory=list)

    def add(self, tokens: Sequence[str]) -> None:
        """Add an element."""
        try:
            self._add(tokens)
        except (ValueError, IndexError):
            self.is_opaque = True

    def load(self) -> None:
        """Read the pending elements."""
        text, self.pending = self.pending, ""
        for element in split_elements(tokens_of(text)):
            self.add(element)

    def _add(self, tokens: Sequence[str]) -> None:
        size = next((index for index, token in enumerate(tokens) if token in _AFTER_KEY), len(tokens))
        fields = [word for word in tokens[:size] if word != "."]
        data = tuple(tokens[tokens.index(":") + 1 :]) if ":" in tokens else ()
        expires = tokens[tokens.index("expires") + 1] if "expires" in tokens else ""
        element = Element(" ".join(tokens), data, expires)
        if fields == ["*"]:
            self.catch_all = element
            return
        kinds = self.key if len(self.key) == len(fields) else ("",) * len(fields)
        bounds = tuple(interval(text, kind) for text, kind in zip(fields, kinds, strict=True))
        if all(first == last for first, last in bounds):
            self.exact[tuple(first for first, _ in bounds)] = element
        else:
            self.intervals.append((bounds, element))

    @property
    def elements(self) -> Iterator[Element]:
        """Yield all elements."""
        self.load()
        yield from self.exact.values()
        yield from (element for _, element in self.intervals)
        if self.catch_all is not None:
            yield self.catch_all

    def find(self, key: tuple[Atom, ...]) -> Element | None:
        """Return the element that contains a key, or else the catch-all element."""
        if self.pending:
            self.load()
        return self.exact.get(key) or self._find_interval(key) or self.catch_all

    def _find_interval(self, key: tuple[Atom, ...]) -> Element | None:
        if len(key) == 1:
            # Intervals of a set with one field do not overlap.
            if len(self._firsts) != len(self.intervals):
                self.intervals.sort(key=lambda item: item[0][0][0])
                self._firsts = [bounds[0][0] for bounds, _ in self.intervals]
            index = bisect_right(self._firsts, key[0]) - 1
            return self.intervals[index][1] if index >= 0 and _contains(self.intervals[index][0], key) else None
        return next((element for bounds, element in self.intervals if _contains(bounds, key)), None)


def _contains(bounds: tuple[Interval, ...], key: tuple[Atom, ...]) -> bool:
    # A field of unknown type may have numbers, addresses and words as values, which cannot be compared with each other.
    return all(
        type(first) is type(atom) and first <= atom <= last  # type: ignore[operator]  # one type
        for (first, last), atom in zip(bounds, key, strict=True)
    )


_AFTER_KEY = frozenset({":", "comment", "timeout", "expires", "counter"})


@dataclass(slots=True)
class Chain:
    """A chain; with a hook it is a base chain."""

    name: str
    rules: list[str] = field(default_factory=list)
    kind: str = ""
    hook: str = ""
    priority: int = 0
    policy: str = "accept"


@dataclass(slots=True)
class Table:
    """A table."""

    family: str
    """``ip``, ``ip6``, ``inet`` or another one."""
    name: str
    chains: dict[str, Chain] = field(default_factory=dict)
    sets: dict[str, NftSet] = field(default_factory=dict)


def interval(text: str, kind: str) -> Interval:
    """Return the first and the last value of a field.

    Raises:
        ValueError: the text is not a value of this type.
    """
    if kind == "ifname" and text.endswith('*"'):
        prefix = text[1:-2]  # "eth*"
        return prefix, prefix + chr(sys.maxunicode)
    if "/" in text and not text.startswith('"'):
        network = parse_network(text)
        size = len(network.ip)
        hosts = (1 << (size * 8 - network.prefix)) - 1
        return network.ip, (int.from_bytes(network.ip) | hosts).to_bytes(size)
    # The name of an interface may have a dash, which does not make it a range.
    first_text, dash, last_text = text.partition("-")
    if dash and last_text and kind not in _WORDS and not isinstance(first := atom(first_text, kind), str):
        return first, atom(last_text, kind)
    value = atom(text, kind)
    return value, value


_ADDRESSES = frozenset({"ipv4_addr", "ipv6_addr", "ip_addr"})
_WORDS = frozenset({"ifname", "ct_state", "ct_status", "iface_index", "iface_type", "fib_addrtype", "pkt_type"})


def atom(text: str, kind: str) -> Atom:
    """Return a value of a type; an unknown type is guessed from the text.

    Raises:
        ValueError: the text is not a value of this type.
    """
    if text.startswith('"') or kind in _WORDS:
        return text.strip('"')
    if kind == "classid":
        # A class ID is printed as major and minor number, both hexadecimal, of 16 bits each.
        major, colon, minor = text.partition(":")
        return (int(major or "0", 16) << 16) + int(minor, 16) if colon else 0
    if text in _PROTOCOLS and kind not in _ADDRESSES:
        return _PROTOCOLS[text]
    if text.isdecimal() or text.startswith("0x"):
        return int(text, 0)
    try:
        return parse_ip(text)
    except ValueError:
        if kind in _ADDRESSES:
            raise
        return text


def seconds(text: str) -> int:
    """Return a time such as ``2h59m58s120ms`` in seconds."""
    # Without the milliseconds, whose unit begins like that of minutes.
    return sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"(\d+)([dhms])(?![a-z])", text))


def tokens_of(text: str) -> list[str]:
    """Return the tokens of a rule or a list of elements; a comma at the end of a word is a token of its own."""
    found: list[str] = []
    for token in _TOKEN.findall(text):
        if len(token) > 1 and token.endswith(",") and not token.startswith('"'):
            found += (token[:-1], ",")
        else:
            found.append(token)
    return found


def split_elements(tokens: Sequence[str]) -> Iterator[list[str]]:
    """Yield the tokens of each element of a list."""
    one: list[str] = []
    for word in tokens:
        if word == ",":
            yield one
            one = []
        else:
            one.append(word)
    if one:
        yield one


def read_ruleset(text: str) -> list[Table]:
    """Return the tables.

    Raises:
        ValueError: with the line that is not such output.
    """
    tables: dict[tuple[str, str], Table] = {}
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        # ``nft -a`` prints handles behind a number sign.
        words = line.partition(" #")[0].split()
        if not words or words[0].startswith("#"):
            continue
        try:
            if words[0] == "table" and words[-1] == "{":
                table = tables.setdefault((words[1], words[2]), Table(words[1], words[2]))
                _read_table(lines, table)
            else:
                found = _ADD_ELEMENT.fullmatch(line.strip())
                if found is None:
                    raise KeyError  # noqa: TRY301  # caught below
                owner = tables[found["family"], found["table"]].sets[found["set"]]
                for element in split_elements(tokens_of(found["elements"])):
                    owner.add(element)
        except (ValueError, KeyError, IndexError, StopIteration):
            message = f"line {number} is not output of nft list ruleset: {line.strip()}"
            raise ValueError(message) from None
    return [*tables.values()]


Lines = Iterator[tuple[int, str]]


def _read_table(lines: Lines, table: Table) -> None:
    for _, line in lines:
        words = line.partition(" #")[0].split()
        match words:
            case ["}"]:
                return
            case [("set" | "map"), name, "{"]:
                table.sets[name] = _read_set(lines, name)
            case ["chain", name, "{"]:
                table.chains[name] = _read_chain(lines, name)
            case [*_, "{"]:  # a counter, a quota, a flowtable, ...
                while next(lines)[1].strip() != "}":
                    pass
            case _:
                pass


def _read_set(lines: Lines, name: str) -> NftSet:
    made = NftSet(name)
    for _, line in lines:
        word, _, rest = line.strip().partition(" ")
        match word:
            case "}":
                break
            case "type" | "typeof":
                key, _, data = rest.partition(" : ")
                made.key, made.data = (
                    tuple(map(_kind, key.split(" . "))),
                    tuple(map(_kind, data.split(" . ") if data else ())),
                )
            case "flags":
                made.is_dynamic = "dynamic" in rest
            case "timeout":
                made.timeout = seconds(rest)
            case "elements":
                parts = [rest.removeprefix("= {")]
                while not parts[-1].endswith("}"):
                    parts.append(next(lines)[1].rstrip())
                made.pending = " ".join(parts)[:-1]
    return made


def _kind(text: str) -> str:
    """Return the type of a field that is declared by a type, or with ``typeof`` by an expression."""
    words = text.split()
    if len(words) == 1:
        return words[0]
    if words[-1] in {"saddr", "daddr"}:
        return "ipv4_addr" if words[0] == "ip" else "ipv6_addr"
    return {"iifname": "ifname", "oifname": "ifname", "priority": "classid", "state": "ct_state"}.get(
        words[-1], "number"
    )


def _read_chain(lines: Lines, name: str) -> Chain:
    made = Chain(name)
    for _, line in lines:
        text = line.strip()
        if text == "}":
            break
        if text.startswith("type ") and (found := _BASE_CHAIN.match(text)):
            made.kind, made.hook = found["type"], found["hook"]
            offset = found["number"].replace(" ", "")
            made.priority = PRIORITIES.get(found["name"], 0) + int(offset or 0)
            made.policy = found["policy"] or "accept"
        elif text and not text.startswith(("#", "comment ")):
            made.rules.append(text)
    return made
