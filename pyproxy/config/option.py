"""What an option of Config knows besides its type and default: flag, help, grammar, limits, and whether it has an effect.

An option is declared by `option` as a field of Config, or of a group of options that Config has as a field (`group`). A
check raises ValueError with the words that follow the value in ``--flag: VALUE is not ...``. `config` has the options.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from pyproxy.config.grammar import Grammar
from pyproxy.errors import ConfigError
from pyproxy.model.address import Network

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Option:
    """An option, without its default."""

    group: str
    """Field of Config that holds the group of the option; empty for an option of Config itself."""
    name: str
    """Field of the group, or of Config."""
    flag: str
    """Long name without dashes."""
    help: str
    grammar: Grammar[object]
    check: Callable[[Any], None]
    """Raises ValueError for a value out of its limits."""
    ignored: str
    """Text of the warning when the option is set; empty if it has an effect."""
    own: bool
    """Whether kube-proxy does not have it; such an option is a field of a PyproxyConfiguration."""
    environment: str
    """Environment variable that is read if the flag is not given; empty if there is none."""

    def value(self, config: object) -> Any:  # noqa: ANN401  # the option's type
        """Return the value of the option in a Config."""
        return getattr(getattr(config, self.group) if self.group else config, self.name)

    def require_usable(self, value: object) -> None:
        """Check a value.

        Raises:
            ConfigError: the value is out of its limits; the message names the flag.
        """
        try:
            self.require_limits(value)
        except ValueError as error:
            message = f"--{self.flag}: {error}"
            raise ConfigError(message) from None

    def require_limits(self, value: object) -> None:
        """Check a value.

        Raises:
            ValueError: the value is out of its limits; the message has the value but not the flag.
        """
        try:
            self.check(value)
        except ValueError as error:
            message = f"{self.grammar.write(value)} {error}"
            raise ValueError(message) from None


def option(  # noqa: PLR0913  # all keywords of a declaration
    default: T,
    grammar: Grammar[object],
    text: str,
    *,
    check: Callable[[Any], None] = lambda _: None,
    ignored: str = "",
    own: bool = False,
    environment: str = "",
) -> T:
    """Declare a field that is an option.

    Its name is the flag's in snake_case, with ``_seconds`` added for a duration. For the arguments see `Option`.
    """
    # The metadata of the field has the arguments of `Option` that are not its names; those follow from the field.
    about = {
        "help": text,
        "grammar": grammar,
        "check": check,
        "ignored": ignored,
        "own": own,
        "environment": environment,
    }
    return field(default=default, metadata=about)


def group(default: T, prefix: str = "") -> T:
    """Declare a field that holds a group of options; the prefix and a hyphen precede their names in flags."""
    return field(default=default, metadata={"prefix": prefix})


def options_of(config: type[Any]) -> Mapping[str, Option]:
    """Return the options of a Config by attribute: the name of the flag in snake_case, with ``_seconds`` for a duration."""
    # Of the default values of groups only their types are used: a group is a dataclass with options of its own.
    return dict(_options(config, "", ""))


def _options(owner: type[Any], group_name: str, prefix: str) -> Iterator[tuple[str, Option]]:
    for declared in fields(owner):
        if "grammar" in declared.metadata:
            attribute = f"{prefix}_{declared.name}" if prefix else declared.name
            flag = attribute.removesuffix("_seconds").replace("_", "-")
            # A duration is a float in seconds; the unit is part of the field's name, but not of the flag's.
            yield attribute, Option(group_name, declared.name, flag, **declared.metadata)
        else:
            yield from _options(type(declared.default), declared.name, declared.metadata["prefix"])


def within(low: float, high: float) -> Callable[[float], None]:
    """Return a check that accepts numbers from low to high."""

    def check(value: float) -> None:
        if not low <= value <= high:
            message = f"is not within {low}..{high}"
            raise ValueError(message)

    return check


def positive(value: float) -> None:
    """Accept numbers above 0."""
    if not value > 0:  # not `value <= 0`: NaN compares false with everything
        message = "is not greater than 0"
        raise ValueError(message)


def not_negative(value: float | None) -> None:
    """Accept numbers from 0, and None."""
    if value is not None and not value >= 0:
        message = "is less than 0"
        raise ValueError(message)


# The kernel's dev_valid_name() refuses white space, "/" and ":", and more than IFNAMSIZ - 1 = 15 bytes. Quotes and
# backslashes have a meaning in the input of iptables-restore, and "+" at the end is the wildcard of iptables.
_INTERFACE = re.compile(r"[^\s/:\"'\\\x00-\x1f\x7f]*(?<!\+)")


def interface_name(longest: int) -> Callable[[str], None]:
    """Return a check that accepts names of interfaces, or prefixes of names, of at most this many bytes."""

    # Bytes, not characters: the kernel's limit counts the former.
    def check(value: str) -> None:
        if not _INTERFACE.fullmatch(value) or value in {".", ".."} or len(value.encode()) > longest:
            message = f"is not a valid interface name of at most {longest} bytes (without + at the end)"
            raise ValueError(message)

    return check


# A label value of Kubernetes (apimachinery, `IsValidLabelValue`).
_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


def label_value(value: str) -> None:
    """Accept values that a label of Kubernetes can have."""
    if not _LABEL_VALUE.fullmatch(value):
        message = (
            "is not a valid label value: at most 63 letters, digits, '-', '_' and '.', beginning and ending with a"
            " letter or digit"
        )
        raise ValueError(message)


def one_for_each_family(networks: tuple[Network, ...]) -> None:
    """Accept at most one CIDR block for each IP family."""
    if len({network.family for network in networks}) < len(networks):
        message = "has two CIDR blocks of one IP family"
        raise ValueError(message)
