"""An interpreter of iptables rules for the first packet of a connection, written from iptables-extensions(8).

It interprets rule text, independently of Services and plans. An unknown match or option is an error, so that no rule
remains untested. Random choices are followed in every branch, with their probability.
"""

import shlex
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from fractions import Fraction
from functools import lru_cache

from pyproxy.model.address import parse_ip, parse_network
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import Protocol
from tests.fakes.tables import Tables

LOOPBACKS = (parse_network("127.0.0.0/8"), parse_network("::1/128"))
_NETWORK_INTERFACE = "eth0"
_IP_HEADERS = {4: (20, 12, 16), 16: (40, 8, 24)}
"""By address length: length of the IP header, offset of the source, offset of the destination."""


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection, as it arrives at this node or is sent by it."""

    source: bytes
    destination: bytes
    protocol: Protocol
    port: int
    in_interface: str = ""
    """The incoming interface; empty if this node sends the packet."""


@dataclass(frozen=True, slots=True)
class Host:
    """The properties of the node that affect routing."""

    ips: frozenset[bytes]
    """Its addresses except loopback addresses."""

    def is_local(self, ip: bytes) -> bool:
        """Return whether an address is of type LOCAL."""
        return ip in self.ips or any(ip in network for network in LOOPBACKS)


class Fate(Enum):
    """The fate of a packet."""

    ARRIVES = "arrives"
    REJECTED = "rejected"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One possible outcome of a packet."""

    fate: Fate
    endpoint: Endpoint | None = None
    """The translated destination of a packet that arrives; None if it was not translated."""
    is_masqueraded: bool = False


@dataclass(frozen=True, slots=True)
class _State:
    """The state of a packet on its path."""

    packet: Packet
    host: Host
    destination: bytes
    port: int
    share: Fraction = Fraction(1)
    """The probability of this path."""
    mark: int = 0
    is_translated: bool = False
    is_masqueraded: bool = False
    in_interface: str = ""
    out_interface: str = ""
    pins: frozenset[str] = frozenset()
    """Names of the `recent` lists that contain the source."""


class _Verdict(Enum):
    ACCEPT = "ACCEPT"
    DROP = "DROP"
    REJECT = "REJECT"
    FALL_THROUGH = ""


_Test = Callable[[_State], bool]
_Way = tuple[_Verdict, _State]


@dataclass(frozen=True, slots=True)
class _Rule:
    tests: tuple[_Test, ...]
    chance: Fraction
    """The probability that the rule applies if all its tests pass."""
    target: str
    options: dict[str, str] = field(hash=False)
    sets_pin: str = ""


def outcomes(
    tables: Tables, host: Host, packet: Packet, pins: Collection[str] = frozenset()
) -> dict[Outcome, Fraction]:
    """Return all possible outcomes of a packet, with their probabilities.

    Args:
        tables: the rules.
        host: the node with these rules.
        packet: the packet.
        pins: names of the `recent` lists that contain its source at the start.
    """
    state = _State(
        packet, host, packet.destination, packet.port, in_interface=packet.in_interface, pins=frozenset(pins)
    )
    ways: dict[Outcome, Fraction] = {}
    for verdict, end in _Path(tables).walk(state):
        outcome = _outcome(verdict, end)
        ways[outcome] = ways.get(outcome, Fraction(0)) + end.share
    return ways


def _outcome(verdict: _Verdict, end: _State) -> Outcome:
    if verdict is _Verdict.DROP:
        return Outcome(Fate.DROPPED)
    if verdict is _Verdict.REJECT:
        return Outcome(Fate.REJECTED)
    endpoint = Endpoint(end.destination, end.port) if end.is_translated else None
    return Outcome(Fate.ARRIVES, endpoint, end.is_masqueraded)


class _Path:
    """The order of the hooks on the path of a packet (Netfilter: nat before filter at OUTPUT, after it at POSTROUTING)."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def walk(self, state: _State) -> Iterator[_Way]:
        if state.packet.in_interface:
            return self._then(state, ("nat", "PREROUTING"), self._route_incoming)
        return self._then(state, ("nat", "OUTPUT"), self._route_own)

    def _route_incoming(self, state: _State) -> Iterator[_Way]:
        if state.host.is_local(state.destination):
            return self._run(state, ("filter", "INPUT"))
        state = replace(state, out_interface=_NETWORK_INTERFACE)
        return self._then(state, ("filter", "FORWARD"), self._leave)

    def _route_own(self, state: _State) -> Iterator[_Way]:
        is_local = state.host.is_local(state.destination)
        state = replace(state, out_interface="lo" if is_local else _NETWORK_INTERFACE)
        return self._then(state, ("filter", "OUTPUT"), self._leave)

    def _leave(self, state: _State) -> Iterator[_Way]:
        return self._then(state, ("nat", "POSTROUTING"), self._come_back)

    def _come_back(self, state: _State) -> Iterator[_Way]:
        """Let a packet to the node itself enter again through lo: it is still NEW, and is not translated a second time."""
        if state.out_interface == "lo":
            return self._run(replace(state, in_interface="lo", out_interface=""), ("filter", "INPUT"))
        return iter([(_Verdict.ACCEPT, state)])

    def _then(
        self, state: _State, hook: tuple[str, str], following: Callable[[_State], Iterator[_Way]]
    ) -> Iterator[_Way]:
        for verdict, end in self._run(state, hook):
            if verdict in {_Verdict.DROP, _Verdict.REJECT}:
                yield verdict, end
            else:
                yield from following(end)

    def _run(self, state: _State, hook: tuple[str, str]) -> Iterator[_Way]:
        table, chain = hook
        waiting = [state]
        for text in self._tables.chains[table][chain]:
            rule = _parse(text)
            passed: list[_State] = []
            for one in waiting:
                if not all(test(one) for test in rule.tests):
                    passed.append(one)
                    continue
                hit = one
                if rule.chance != 1:
                    passed.append(replace(one, share=one.share * (1 - rule.chance)))
                    hit = replace(one, share=one.share * rule.chance)
                for verdict, end in self._hit(table, rule, hit):
                    if verdict is _Verdict.FALL_THROUGH and rule.target != "RETURN":
                        passed.append(end)
                    else:
                        yield verdict, end
            waiting = passed
        yield from ((_Verdict.FALL_THROUGH, one) for one in waiting)

    def _hit(self, table: str, rule: _Rule, state: _State) -> Iterator[_Way]:
        if rule.sets_pin:
            state = replace(state, pins=state.pins | {rule.sets_pin})
        match rule.target:
            case "" | "RETURN":
                yield _Verdict.FALL_THROUGH, state
            case "ACCEPT" | "DROP" | "REJECT":
                yield _Verdict(rule.target), state
            case "MARK":
                value, mask = (int(text, 16) for text in rule.options["--set-xmark"].split("/"))
                yield _Verdict.FALL_THROUGH, replace(state, mark=(state.mark & ~mask) ^ value)
            case "MASQUERADE":
                yield _Verdict.ACCEPT, replace(state, is_masqueraded=True)
            case "DNAT":
                ip, port = _socket(rule.options["--to-destination"])
                yield _Verdict.ACCEPT, replace(state, destination=ip, port=port, is_translated=True)
            case chain:
                yield from self._run(state, (table, chain))


def _socket(text: str) -> tuple[bytes, int]:
    ip, _, port = text.rpartition(":")
    return parse_ip(ip.strip("[]")), int(port)


# Reading rules

_FLAGS = frozenset({"--random-fully", "--rsource", "--set", "--rcheck", "--reap"})
_PASSED_OVER = frozenset({"-m", "--comment", "--mask", "--reject-with", "--mode", "--random-fully", "--rsource"})
"""Options that do not affect whether a rule applies (``--mode`` is always random)."""
_TARGET_OPTIONS = frozenset({"--set-xmark", "--to-destination"})


@lru_cache(maxsize=65536)
def _parse(text: str) -> _Rule:
    tests: list[_Test] = []
    options: dict[str, str] = {}
    chance = Fraction(1)
    target, recent = "", dict[str, str]()
    for is_inverted, name, value in _options(text):
        if name == "-j":
            target = value
        elif name in _TARGET_OPTIONS:
            options[name] = value
        elif name in {"--set", "--rcheck", "--reap", "--seconds", "--name"}:
            recent[name] = value
        elif name == "--probability":
            chance = Fraction(round(float(value) * (1 << 31)), 1 << 31)  # xt_statistic stores 31 bits
        elif name not in _PASSED_OVER:
            tests.append(_test(name, value, is_inverted=is_inverted))
    if "--rcheck" in recent:
        tests.append(lambda state: recent["--name"] in state.pins)
    return _Rule(tuple(tests), chance, target, options, recent["--name"] if "--set" in recent else "")


def _options(text: str) -> Iterator[tuple[bool, str, str]]:
    words = iter(shlex.split(text))
    is_inverted = False
    for word in words:
        if word == "!":
            is_inverted = True
            continue
        yield is_inverted, word, "" if word in _FLAGS else next(words)
        is_inverted = False


def _test(name: str, value: str, *, is_inverted: bool) -> _Test:
    make = _TESTS.get(name)
    if make is None:
        message = f"unknown match: {name} {value}"
        raise ValueError(message)
    test = make(value)
    return (lambda state: not test(state)) if is_inverted else test


def _source_test(value: str) -> _Test:
    network = parse_network(value)
    return lambda state: state.packet.source in network


def _destination_test(value: str) -> _Test:
    network = parse_network(value)
    return lambda state: state.destination in network


def _protocol_test(value: str) -> _Test:
    protocol = Protocol(value)
    return lambda state: state.packet.protocol is protocol


def _port_test(value: str) -> _Test:
    number = int(value)
    return lambda state: state.port == number


def _conntrack_test(value: str) -> _Test:
    wanted = set(value.split(","))
    return lambda state: not wanted.isdisjoint({"NEW", "DNAT"} if state.is_translated else {"NEW"})


def _mark_test(value: str) -> _Test:
    mark, mask = (int(text, 16) for text in value.split("/"))
    return lambda state: state.mark & mask == mark


def _source_type_test(value: str) -> _Test:
    _only_local(value)
    return lambda state: state.host.is_local(state.packet.source)


def _destination_type_test(value: str) -> _Test:
    _only_local(value)
    return lambda state: state.host.is_local(state.destination)


def _only_local(value: str) -> None:
    if value != "LOCAL":
        message = f"unknown address type: {value}"
        raise ValueError(message)


def _is_interface(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def _bpf_test(bytecode: str) -> _Test:
    _, *texts = bytecode.split(",")
    program = tuple(tuple(map(int, text.split())) for text in texts)
    return lambda state: _run_bpf(program, _ip_header(state)) > 0


_TESTS: dict[str, Callable[[str], _Test]] = {
    "-s": _source_test,
    "-d": _destination_test,
    "-p": _protocol_test,
    "-i": lambda value: lambda state: _is_interface(value, state.in_interface),
    "-o": lambda value: lambda state: _is_interface(value, state.out_interface),
    "--dport": _port_test,
    "--ctstate": _conntrack_test,
    "--mark": _mark_test,
    "--src-type": _source_type_test,
    "--dst-type": _destination_type_test,
    "--bytecode": _bpf_test,
}


def _ip_header(state: _State) -> bytes:
    source, destination = state.packet.source, state.destination
    length, source_at, destination_at = _IP_HEADERS[len(source)]
    header = bytearray(length)
    header[source_at : source_at + len(source)] = source
    header[destination_at : destination_at + len(destination)] = destination
    return bytes(header)


def _run_bpf(program: tuple[tuple[int, ...], ...], data: bytes) -> int:
    """Run classic BPF (linux/bpf_common.h) with the instructions: load word, A to X, jump if A equals X, return."""
    accumulator = index = at = 0
    while True:
        code, if_true, if_false, constant = program[at]
        at += 1
        match code:
            case 0x20:
                accumulator = int.from_bytes(data[constant : constant + 4])
            case 0x07:
                index = accumulator
            case 0x1D:
                at += if_true if accumulator == index else if_false
            case 0x06:
                return constant
            case _:
                message = f"unknown instruction: {code}"
                raise ValueError(message)
