"""What a field of Config says of itself beyond its type: help, way of writing, limits, whether pyproxy acts on it.

A check raises ValueError with the words that follow the value in «--flag: VALUE must be …». Which fields there are
is `config`'s.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from pyproxy.config.grammar import Grammar
from pyproxy.errors import ConfigError
from pyproxy.model.address import Network

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of a flag apart from its default."""

    flag: str
    """Long name without dashes."""
    help: str
    grammar: Grammar[object]
    check: Callable[[Any], None]
    """Raises ValueError when a value, wherever it comes from, cannot be used."""
    ignored: str
    """What the warning says when the flag is given; empty means that pyproxy acts on it."""
    own: bool
    """kube-proxy does not have it: in a file it stands in a PyproxyConfiguration."""

    def require_usable(self, value: object) -> None:
        """Let usable values pass.

        Raises:
            ConfigError: the value is out of its limits; the message names the flag.
        """
        try:
            self.require_limits(value)
        except ValueError as error:
            message = f"--{self.flag}: {error}"
            raise ConfigError(message) from None

    def require_limits(self, value: object) -> None:
        """Let usable values pass.

        Raises:
            ValueError: the value is out of its limits; the message tells the value, and not whose it is.
        """
        try:
            self.check(value)
        except ValueError as error:
            message = f"{self.grammar.write(value)} {error}"
            raise ValueError(message) from None


def _anything(_: object) -> None:
    """Take every value."""


def option(  # noqa: PLR0913  # what a flag says of itself, by name
    default: T,
    grammar: Grammar[object],
    text: str,
    *,
    check: Callable[[Any], None] = _anything,
    ignored: str = "",
    own: bool = False,
) -> T:
    """Declare a field that is a flag; its name is the flag's in snake_case, ``_seconds`` added for a duration."""
    about = {"help": text, "grammar": grammar, "check": check, "ignored": ignored, "own": own}
    return field(default=default, metadata=about)


def options_of(config: type[Any]) -> Mapping[str, Option]:
    """Return what is known of the flag behind each field of a dataclass, in the order of the fields."""
    return {
        declared.name: Option(declared.name.removesuffix("_seconds").replace("_", "-"), **declared.metadata)
        for declared in fields(config)
    }


def within(low: float, high: float) -> Callable[[float], None]:
    """Return a check that takes numbers from low to high."""

    def check(value: float) -> None:
        if not low <= value <= high:
            message = f"is not within {low}..{high}"
            raise ValueError(message)

    return check


def positive(value: float) -> None:
    """Take numbers above 0."""
    if not value > 0:
        message = "is not greater than 0"
        raise ValueError(message)


def not_negative(value: float | None) -> None:
    """Take numbers from 0, and the absence of one."""
    if value is not None and not value >= 0:
        message = "is less than 0"
        raise ValueError(message)


# The kernel's dev_valid_name() refuses blanks, "/" and ":", and more than IFNAMSIZ - 1 = 15 bytes. Quotes and
# backslashes mean something to iptables-restore, and "+" at the end is iptables' own wildcard.
_INTERFACE = re.compile(r"[^\s/:\"'\\\x00-\x1f\x7f]*(?<!\+)")


def interface_name(longest: int) -> Callable[[str], None]:
    """Return a check that takes names of interfaces, or beginnings of names, of so many bytes at most."""

    def check(value: str) -> None:
        if not _INTERFACE.fullmatch(value) or value in {".", ".."} or len(value.encode()) > longest:
            message = f"is not a name, of at most {longest} bytes, that an interface can have (without + at the end)"
            raise ValueError(message)

    return check


def one_for_each_family(networks: tuple[Network, ...]) -> None:
    """Take at most one CIDR block for each IP family."""
    if len({network.family for network in networks}) < len(networks):
        message = "has two CIDR blocks of one IP family"
        raise ValueError(message)
