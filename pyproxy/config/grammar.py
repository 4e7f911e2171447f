"""Flags as Go's pflag reads them, so that a command line written for kube-proxy means the same here.

This module splits the arguments of a command into pairs of flag and text, and converts texts to values and back. `config`
has the flags, their defaults and their limits; `cli` has help and exit codes.
"""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from math import isfinite
from typing import Any, Generic, NamedTuple, TypeVar

from pyproxy.errors import ConfigError
from pyproxy.model.address import Family, ListenAddress, Network, ip_text, parse_ip, parse_network
from pyproxy.model.suggestion import suggestion
from pyproxy.model.urls import without_credentials

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
EnumT = TypeVar("EnumT", bound=Enum)


class FlagError(ConfigError):
    """A command line that pflag would refuse; the message names the flag."""


@dataclass(frozen=True, slots=True)
class Syntax:
    """The flags of a command, with what is needed to split its command line."""

    switches: Mapping[str, bool]
    """Long name to whether the flag may be given without a value, which is then ``true``."""
    shorthands: Mapping[str, str]
    """Letter to long name."""

    def is_switch(self, name: str) -> bool:
        """Return whether a flag may be given without a value.

        Raises:
            FlagError: there is no such flag; the message suggests a similar one.
        """
        if name in self.switches:
            return self.switches[name]
        message = f"unknown flag: --{name}{suggestion(name, self.switches, '--')}"
        raise FlagError(message)


class CommandLine(NamedTuple):
    """A command line, split."""

    flags: tuple[tuple[str, str], ...]
    """Long name and text of each value, in the order given."""
    arguments: tuple[str, ...]
    """Arguments that are not flags or their values."""


def split_command_line(words: Sequence[str], syntax: Syntax) -> CommandLine:
    """Split a command line by pflag's rules (``FlagSet.parseArgs``), which differ from getopt's.

    ``_`` in a name is read as ``-``, as by kube-proxy's ``WordSepNormalizeFunc``. A switch never takes the next word as
    its value. Any other flag does, even if that word begins with a dash.

    Raises:
        FlagError: an unknown flag, a missing value, or a word such as ``--=x``.
    """
    # Unlike getopt, pflag accepts flags after arguments (interspersed), no abbreviations of names, and one dash for letters only.
    flags: list[tuple[str, str]] = []
    arguments: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            arguments.extend(rest)
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if not name or name.startswith("-"):
                message = f"bad flag syntax: {word}"
                raise FlagError(message)
            name = name.replace("_", "-")
            is_switch = syntax.is_switch(name)
            # `--switch value` leaves the value as an argument; only `--switch=value` sets it.
            if not equals:
                value = "true" if is_switch else _next_word(rest, f"--{name}")
            flags.append((name, value))
        elif word.startswith("-") and word != "-":
            flags.extend(_short_flags(word[1:], rest, syntax))
        else:
            arguments.append(word)
    return CommandLine(tuple(flags), tuple(arguments))


# `-vx5` is `-v -x 5`: letters are switches up to the first one that takes a value, which is the rest of the word.
def _short_flags(letters: str, rest: Iterator[str], syntax: Syntax) -> Iterator[tuple[str, str]]:
    while letters:
        letter, tail = letters[0], letters[1:]
        if letter not in syntax.shorthands:
            message = f"unknown shorthand flag: {letter!r} in -{letters}"
            raise FlagError(message)
        name = syntax.shorthands[letter]
        # In pflag ``-v=`` does not have an empty value: the value is the equals sign itself.
        if tail.startswith("=") and tail != "=":
            yield name, tail[1:]
            return
        if not syntax.is_switch(name):
            yield name, tail or _next_word(rest, f"-{letter}")
            return
        yield name, "true"
        letters = tail


def _next_word(rest: Iterator[str], flag: str) -> str:
    for word in rest:
        return word
    message = f"flag needs an argument: {flag}"
    raise FlagError(message)


@dataclass(frozen=True, slots=True)
class Grammar(Generic[T_co]):
    """The notation of a flag's value."""

    metavar: str
    """Placeholder for the value in help; empty for a switch."""
    parse: Callable[[str], T_co]
    """Converts text to a value; raises ValueError with a message for people."""
    write: Callable[[Any], str] = str
    """Converts a value to text."""
    repeats: bool = False
    """Whether several occurrences are joined to one list; otherwise the last one wins."""
    choices: tuple[str, ...] = ()
    """All texts that are accepted; empty if they are not a fixed set of words."""

    @property
    def is_switch(self) -> bool:
        """Return whether the flag may be given without a value."""
        return not self.metavar


# The spellings that strconv.ParseBool accepts; "yes" and "on" are errors there as well.
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


def parse_bool(text: str) -> bool:
    """Read a truth value as Go's ``strconv.ParseBool`` does."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    message = f"{text!r} is neither true nor false"
    raise ValueError(message)


def write_bool(value: bool) -> str:  # noqa: FBT001 (a value, not a switch of behaviour)
    """Write a truth value as Go does."""
    return "true" if value else "false"


def parse_int32(text: str) -> int:
    """Read a number as Go's ``strconv.ParseInt(text, 0, 32)``: decimal, 0x, 0o, 0b, and 010 is eight."""
    # Python requires 0o10 where Go also accepts 010; and int() strips white space and reads digits of other scripts.
    python = re.sub(r"^([+-]?)0(?=[0-7_])", r"\g<1>0o", text)
    try:
        value = int(python, 0) if re.fullmatch(r"[0-9A-Za-z_+-]+", text) else None
    except ValueError:
        value = None
    if value is None or not -(2**31) <= value < 2**31:
        message = f"{text!r} is not a whole number of 32 bits"
        raise ValueError(message)
    return value


def parse_uint32(text: str) -> int:
    """Read a decimal number without a sign, as component-base reads ``-v``."""
    if not re.fullmatch(r"[0-9]+", text) or int(text) >= 2**32:
        message = f"{text!r} is not a whole number from 0 to 4294967295"
        raise ValueError(message)
    return int(text)


def parse_float(text: str) -> float:
    """Read a decimal number. Infinity is an error, because a file cannot hold it."""
    with suppress(ValueError):
        if isfinite(value := float(text)):
            return value
    message = f"{text!r} is not a number"
    raise ValueError(message)


_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,  # U+00B5, the micro sign; Go accepts it and the Greek letter
    "μs": 10**3,  # U+03BC
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_DURATION_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(" + "|".join(_NANOSECONDS) + ")(?![a-zµμ])")


def parse_duration(text: str) -> float:
    """Read a duration as Go's ``time.ParseDuration`` does and return seconds.

    Fractions of a nanosecond are cut off. A duration has at most 64 bits of nanoseconds (292 years).
    """
    # A sign, and then numbers with a unit each; only 0 needs no unit. Units may come in any order and repeatedly.
    unsigned = text[1:] if text[:1] in {"+", "-"} else text
    if unsigned == "0":
        return 0.0
    # `findall` skips what does not match: the parts must make up the whole text.
    parts = _DURATION_PART.findall(unsigned)
    if not parts or "".join(number + unit for number, unit in parts) != unsigned:
        message = f"{text!r} is not a duration such as 30s, 1m30s or 500ms"
        raise ValueError(message)
    # Decimal, because a binary float cannot hold 0.1; Go counts in whole nanoseconds.
    nanoseconds = sum(int(Decimal(number) * _NANOSECONDS[unit]) for number, unit in parts)
    if nanoseconds >= 2**63:
        message = f"{text!r} is longer than 292 years"
        raise ValueError(message)
    return (-nanoseconds if text[0] == "-" else nanoseconds) / 10**9


def write_duration(seconds: float) -> str:
    """Write seconds in the largest unit that gives a whole number: ``24h``, ``90s``, ``500ms``."""
    nanoseconds = round(seconds * 10**9)
    if nanoseconds == 0:
        return "0s"
    unit = next(unit for unit in ("h", "m", "s", "ms", "us", "ns") if nanoseconds % _NANOSECONDS[unit] == 0)
    return f"{nanoseconds // _NANOSECONDS[unit]}{unit}"


def parse_strings(text: str) -> tuple[str, ...]:
    """Read a list as pflag's stringSlice does: one record of comma-separated values, in which quotes protect a comma."""
    # pflag uses Go's encoding/csv: a value that contains a comma has to be quoted, and so has one with quotes.
    try:
        return tuple(next(csv.reader([text], strict=True), ()))
    except csv.Error as error:
        message = f"{text!r} is not a comma-separated list: {error}"
        raise ValueError(message) from None


def parse_networks(text: str) -> tuple[Network, ...]:
    """Read comma-separated CIDR blocks."""
    return tuple(_network(item.strip()) for item in parse_strings(text))


def _network(text: str) -> Network:
    return _explained(parse_network, text, "a CIDR block such as 10.244.0.0/16 or fd00:10:244::/56")


def _explained(parse: Callable[[str], T], text: str, what: str) -> T:
    """Parse a text; raise ValueError with our message instead of the parser's."""
    try:
        return parse(text)
    except ValueError:
        message = f"{text!r} is not {what}"
        raise ValueError(message) from None


def write_urls(urls: Sequence[str]) -> str:
    """Write a comma-separated list of URLs for people, without credentials."""
    return without_credentials(write_list(urls))


def write_list(values: Sequence[object]) -> str:
    """Write a comma-separated list."""
    return ",".join(map(str, values))


def parse_gates(text: str) -> tuple[tuple[str, bool], ...]:
    """Read ``A=true,B=false`` as component-base's ``MapStringBool`` does."""
    gates: list[tuple[str, bool]] = []
    # Whether a gate exists is not checked: pyproxy has none, and kube-proxy's change with each version.
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not equals:
            message = f"{item!r} is not NAME=true or NAME=false"
            raise ValueError(message)
        gates.append((name.strip(), parse_bool(value.strip())))
    return tuple(gates)


def write_gates(gates: Sequence[tuple[str, bool]]) -> str:
    """Write ``A=true,B=false``."""
    return ",".join(f"{name}={write_bool(value)}" for name, value in gates)


def parse_vmodule(text: str) -> str:
    """Check ``pattern=N`` with commas, as component-base's ``VModuleConfiguration`` does, and return the text."""
    for item in filter(None, text.split(",")):
        pattern, equals, level = item.partition("=")
        if not pattern or not equals:
            message = f"{item!r} is not PATTERN=LEVEL"
            raise ValueError(message)
        parse_uint32(level)
    return text


def parse_address(text: str) -> bytes:
    """Read an IP address and pack it."""
    return _explained(parse_ip, text, "an IP address")


def parse_listen_address(text: str, default_port: int) -> ListenAddress | None:
    """Read ``IP:port``, ``[IPv6]:port`` or a bare IP; an empty text or port 0 disables the server (None)."""
    if not text:
        return None
    # An IPv6 address has colons of its own, so that only brackets can separate a port from it (RFC 3986).
    bracketed = re.fullmatch(r"\[(?P<ip>[^\]]*)\]:(?P<port>[0-9]{1,5})", text)
    plain = re.fullmatch(r"(?P<ip>[^:\[\]]*):(?P<port>[0-9]{1,5})", text)
    match = bracketed or plain
    ip = parse_address(match["ip"] if match else text)
    port = _port(match["port"]) if match else default_port
    return ListenAddress(ip, port) if port else None


def _port(text: str) -> int:
    if int(text) >= 2**16:
        message = f"{text} is not a port number"
        raise ValueError(message)
    return int(text)


def listen_address(default_port: int) -> Grammar[ListenAddress | None]:
    """Return the grammar of a listen address with an optional port."""
    return Grammar("IP:PORT", lambda text: parse_listen_address(text, default_port), lambda value: str(value or ""))


class ListenSelector(NamedTuple):
    """The local addresses on which a server listens, before they are known."""

    where: Network | str
    """A CIDR block or the name of an interface: all its addresses in this network namespace."""
    port: int

    def __str__(self) -> str:
        is_ipv6 = isinstance(self.where, Network) and self.where.family is Family.IPV6
        return f"[{self.where}]:{self.port}" if is_ipv6 else f"{self.where}:{self.port}"


_HOST_AND_PORT = re.compile(r"(?:\[(?P<bracketed>[^\]]*)\]|(?P<plain>[^:\[\]]*))(?::(?P<port>[0-9]{1,5}))?")
# A possible name of an interface (the kernel's dev_valid_name()) with at least one letter, so not a mistyped address.
_LETTERS = re.compile(r"(?=.*[A-Za-z])[^\s/:]{1,15}")


def parse_listen_selector(text: str, default_port: int) -> ListenAddress | ListenSelector | None:
    """Read what `parse_listen_address` reads; the address may also be a CIDR block or the name of an interface."""
    match = _HOST_AND_PORT.fullmatch(text)
    host = (match["bracketed"] or match["plain"] or "") if match else text
    if "/" in host:
        where: Network | str = _network(host)
    elif match and match["plain"] and host != "localhost" and _LETTERS.fullmatch(host):
        where = host
    else:
        return parse_listen_address(text, default_port)
    port = _port(match["port"]) if match and match["port"] else default_port
    return ListenSelector(where, port) if port else None


def listen_selector(default_port: int) -> Grammar[ListenAddress | ListenSelector | None]:
    """Return the grammar of a listen address that may be a CIDR block or an interface."""
    return Grammar(
        "IP|CIDR|INTERFACE:PORT", lambda text: parse_listen_selector(text, default_port), lambda value: str(value or "")
    )


def one_of(kind: type[EnumT], *, empty: EnumT | None = None) -> Grammar[EnumT]:
    """Return the grammar of one of an Enum's values.

    Args:
        kind: its members' values are accepted; case counts.
        empty: the member for an empty text; None if an empty text is an error.
    """
    words = [str(member.value) for member in kind]

    def parse(text: str) -> EnumT:
        if not text and empty is not None:
            return empty
        try:
            return kind(text)
        except ValueError:
            message = f"{text!r} is not one of {', '.join(words)}{suggestion(text, words)}"
            raise ValueError(message) from None

    return Grammar("|".join(words), parse, lambda member: str(member.value), choices=tuple(words))


SWITCH = Grammar("", parse_bool, write_bool)
TEXT = Grammar("TEXT", str)
PATH = Grammar("PATH", str)
INT = Grammar("INT", parse_int32)
COUNT = Grammar("INT", parse_uint32)
FLOAT = Grammar("FLOAT", parse_float)
DURATION = Grammar("DURATION", parse_duration, write_duration)
ADDRESS = Grammar("IP", parse_address, ip_text)
CIDRS = Grammar("CIDR,...", parse_networks, write_list)
CIDRS_REPEATED = Grammar("CIDR,...", parse_networks, write_list, repeats=True)
URL = Grammar("URL", str, without_credentials)
URLS = Grammar("URL,...", parse_strings, write_urls, repeats=True)
VMODULE = Grammar("PATTERN=LEVEL,...", parse_vmodule)
GATES = Grammar("NAME=BOOL,...", parse_gates, write_gates, repeats=True)
