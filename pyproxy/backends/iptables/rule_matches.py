"""The matches and targets of a rule that ``iptables-save`` printed, as functions of a packet (iptables-extensions(8)).

A match that is not known here, or that depends on what is not known about the packet, has no answer (None).
`explain` follows a packet through chains with these.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial

from pyproxy.backends.hooks import LOOPBACK_INTERFACE, UNKNOWN_INTERFACE, State
from pyproxy.model.address import parse_ip, parse_network
from pyproxy.model.names import Protocol

_IP_HEADERS = {4: (20, 12, 16), 16: (40, 8, 24)}
"""By length of address: length of the IP header, offset of the source, offset of the destination."""
_STATISTIC_STEPS = 1 << 31
"""xt_statistic keeps a probability as a 31-bit fraction."""

SetLookup = Callable[[str, tuple[str, ...], State], bool | None]
"""Returns whether a packet is in an ipset, from the name of the set and the directions of ``--match-set``."""


def no_sets(_name: str, _directions: tuple[str, ...], _state: State) -> bool | None:
    """Return that the content of no ipset is known."""
    return None


Test = Callable[[State, SetLookup], bool | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, parsed."""

    tests: tuple[Test, ...]
    unknown: str
    """The first match that cannot be evaluated; empty if there is none."""
    chance: Fraction
    """Probability that the rule applies if all tests pass."""
    target: str
    is_goto: bool
    options: Mapping[str, str]
    """Options of the target."""
    set_pin: str
    """The ``recent`` list to which the rule adds the source."""
    checked_pin: tuple[str, int] | None
    """The ``recent`` list that has to contain the source, and for how many seconds an entry counts."""


_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_WITHOUT_EFFECT = frozenset({
    *("-m", "--comment", "--mode", "--mask", "--rsource", "--reap", "--nfacct-name"),
})  # fmt: skip
"""Options that do not decide whether a rule applies to a first packet."""
_TARGET_OPTIONS = frozenset({
    *("--set-xmark", "--to-destination", "--to-source", "--to-ports", "--random", "--random-fully", "--persistent"),
    *("--reject-with", "--log-prefix", "--log-level", "--nflog-group", "--nflog-prefix", "--save-mark", "--restore-mark"),
    *("--nfmask", "--ctmask", "--clamp-mss-to-pmtu", "--set-mss", "--checksum-fill", "--add-set", "--del-set", "--exist", "--notrack"),
})  # fmt: skip


@lru_cache(maxsize=1 << 16)
def parse_rule(text: str) -> Rule:
    """Parse a rule as ``iptables-save`` prints it, without ``-A CHAIN``."""
    tests: list[Test] = []
    unknown = ""
    target, is_goto = "", False
    options: dict[str, str] = {}
    recent: dict[str, str] = {}
    chance = Fraction(1)
    for is_inverted, name, values in _options(text):
        value = " ".join(values)
        if name in {"-j", "-g"}:
            target, is_goto = value, name == "-g"
        elif name in _TARGET_OPTIONS:
            options[name] = value
        elif name in {"--set", "--rcheck", "--seconds", "--name"} and not is_inverted:
            recent[name] = value
        elif name == "--probability" and not is_inverted:
            chance = Fraction(round(float(value) * _STATISTIC_STEPS), _STATISTIC_STEPS)
        elif name in _WITHOUT_EFFECT:
            continue
        elif (test := _test(name, value, is_inverted=is_inverted)) is not None:
            tests.append(test)
        else:
            unknown = unknown or f"{name} {value}".rstrip()
    checked = (recent.get("--name", "DEFAULT"), int(recent.get("--seconds", "0"))) if "--rcheck" in recent else None
    if checked is not None:
        tests.append(partial(_is_pinned, *checked))
    pin = recent.get("--name", "DEFAULT") if "--set" in recent else ""
    return Rule(tuple(tests), unknown, chance, target, is_goto, options, pin, checked)


def applies(rule: Rule, state: State, sets: SetLookup) -> bool | None:
    """Return whether all tests of a rule pass, or None if one that decides has no answer."""
    # One failed test decides, whatever the tests without an answer would say.
    answers = {test(state, sets) for test in rule.tests}
    if False in answers:
        return False
    return None if None in answers or rule.unknown else True


def _options(text: str) -> Iterator[tuple[bool, str, tuple[str, ...]]]:
    """Yield each option with its values, and whether it is inverted."""
    is_inverted = False
    name, values = "", list[str]()
    for found in _WORD.finditer(text):
        quoted, word = found.groups()
        is_option = quoted is None and (word == "!" or (word.startswith("-") and not word[1:].isdigit()))
        if not is_option:
            values.append(word if quoted is None else quoted)
            continue
        if name:
            yield is_inverted, name, tuple(values)
            is_inverted = False
        name, values = ("", []) if word == "!" else (word, [])
        is_inverted = is_inverted or word == "!"
    if name:
        yield is_inverted, name, tuple(values)


def _test(name: str, value: str, *, is_inverted: bool) -> Test | None:
    make = _TESTS.get(name)
    if make is None:
        return None
    try:
        test = make(value)
    except ValueError:
        return None
    if not is_inverted:
        return test
    # What is not known about a packet stays unknown when it is inverted.
    return lambda state, sets: None if (answer := test(state, sets)) is None else not answer


def _is_pinned(name: str, seconds: int, state: State, _: SetLookup) -> bool:
    age = state.pins.get(name)
    return age is not None and (not seconds or age <= seconds)


def _address(get: Callable[[State], bytes], value: str) -> Test:
    network = parse_network(value if "/" in value else f"{value}/{len(parse_ip(value)) * 8}")
    return lambda state, _: get(state) in network


def _protocol(value: str) -> Test:
    wanted = value.lower()
    return lambda state, _: wanted in {"all", state.packet.protocol.value, str(state.packet.protocol.number)}


def _ports(value: str) -> Test:
    """Read ``80``, ``30000:32767`` or, of multiport, several of them with commas."""
    ranges = []
    for part in value.split(","):
        first, _, last = part.partition(":")
        ranges.append((int(first or 0), int(last or (65535 if ":" in part else first))))
    return lambda state, _: any(first <= state.port <= last for first, last in ranges)


def _states(value: str) -> Test:
    # Only first packets are followed, so ESTABLISHED, RELATED and INVALID never match. xt_conntrack has DNAT and SNAT
    # as states beside NEW: both can match one packet.
    wanted = set(value.split(","))

    def test(state: State, _: SetLookup) -> bool:
        has = {
            "UNTRACKED" if state.is_untracked else "NEW",
            *(["DNAT"] if state.is_dnat else []),
            *(["SNAT"] if state.is_masqueraded else []),
        }
        return not wanted.isdisjoint(has)

    return test


def _mark(value: str) -> Test:
    mark, _, mask = value.partition("/")
    number, bits = int(mark, 16), int(mask or "0xffffffff", 16)
    return lambda state, _: state.mark & bits == number


def _address_type(get: Callable[[State], bytes], value: str) -> Test:
    wanted = set(value.split(","))
    return lambda state, _: state.host.address_type(get(state)).upper() in wanted


def _is_interface(pattern: str, name: str) -> bool | None:
    # An unknown interface is not lo, and only the pattern of every name certainly matches it.
    if name == UNKNOWN_INTERFACE:
        return {"+": True, LOOPBACK_INTERFACE: False}.get(pattern)
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def _tcp_flags(value: str) -> Test:
    # The first packet of a TCP connection has the flag SYN and no other.
    examined, wanted = (set(words.split(",")) for words in value.split(" "))
    return lambda state, _: state.packet.protocol is Protocol.TCP and {"SYN"} & examined == wanted - {"NONE"}


def _set(value: str) -> Test:
    name, directions = value.split(" ")
    return lambda state, sets: sets(name, tuple(directions.split(",")), state)


def _bpf(bytecode: str) -> Test:
    _, *texts = bytecode.split(",")
    program = tuple(tuple(map(int, text.split())) for text in texts)
    if any(code not in _BPF_CODES for code, *_ in program):
        message = f"unknown instruction in {bytecode}"
        raise ValueError(message)
    return lambda state, _: _run_bpf(program, _ip_header(state)) > 0


_TESTS: dict[str, Callable[[str], Test]] = {
    "-s": partial(_address, lambda state: state.packet.source),
    # After DNAT the following chains see the new destination here; ``--ctorigdst`` still has the one before it.
    "-d": partial(_address, lambda state: state.destination),
    "-p": _protocol,
    "-i": lambda value: lambda state, _: _is_interface(value, state.in_interface),
    "-o": lambda value: lambda state, _: _is_interface(value, state.out_interface),
    "--dport": _ports,
    "--dports": _ports,
    "--ctstate": _states,
    "--state": _states,
    "--ctorigdst": partial(_address, lambda state: state.packet.destination),
    "--mark": _mark,
    "--src-type": partial(_address_type, lambda state: state.packet.source),
    "--dst-type": partial(_address_type, lambda state: state.destination),
    "--tcp-flags": _tcp_flags,
    "--match-set": _set,
    "--ipvs": lambda _value: lambda state, _: state.is_ipvs,
    "--bytecode": _bpf,
}

_BPF_LOAD, _BPF_TO_INDEX, _BPF_IF_EQUAL, _BPF_RETURN = 0x20, 0x07, 0x1D, 0x06
_BPF_CODES = frozenset({_BPF_LOAD, _BPF_TO_INDEX, _BPF_IF_EQUAL, _BPF_RETURN})


def _ip_header(state: State) -> bytes:
    source, destination = state.packet.source, state.destination
    length, source_at, destination_at = _IP_HEADERS[len(source)]
    header = bytearray(length)
    header[source_at : source_at + len(source)] = source
    header[destination_at : destination_at + len(destination)] = destination
    return bytes(header)


def _run_bpf(program: tuple[tuple[int, ...], ...], data: bytes) -> int:
    """Run classic BPF (linux/bpf_common.h): load a word, copy it to X, jump if it equals X, return."""
    accumulator = index = at = 0
    while at < len(program):
        code, if_true, if_false, constant = program[at]
        at += 1
        match code:
            case 0x20:
                accumulator = int.from_bytes(data[constant : constant + 4])
            case 0x07:
                index = accumulator
            case 0x1D:
                at += if_true if accumulator == index else if_false
            case _:
                return constant
    return 0
