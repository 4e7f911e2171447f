"""Validation of single fields, as in the API server.

A function takes the text or number of one field and returns its value. For an invalid one it adds an entry to `Problems`
and returns None or the default; it never raises. pyproxy validates again because files do not pass through an API server,
and because names are written into kernel rules: an invalid name must never reach them.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton

from pyproxy.model.address import LOOPBACK_NETWORKS, Family, Network, parse_ip, parse_network
from pyproxy.model.names import Protocol
from pyproxy.model.suggestion import suggestion

Problems = list[tuple[str, str]]
"""Path of each invalid field and the reason, in the order found."""

FieldErrors = tuple[tuple[str, str], ...]
"""Immutable problems."""

PORTS = range(1, 65536)

# k8s.io/apimachinery/pkg/util/validation: IsDNS1123Label, IsValidLabelValue and IsDNS1123Subdomain.
_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")

# ::ffff:a.b.c.d is the IPv4 address a.b.c.d, as in Go's net.ParseIP.
_IPV4_MAPPED = bytes(10) + b"\xff\xff"
_UNSPECIFIED = frozenset({bytes(4), bytes(16)})
# Loopback, link-local and link-local multicast: k8s.io/kubernetes/pkg/apis/core/validation, ValidateNonSpecialIP.
_SPECIAL = (
    *LOOPBACK_NETWORKS.values(),
    *map(parse_network, ("169.254.0.0/16", "224.0.0.0/24", "fe80::/10", "ff02::/16")),
)
# Protocol names are upper case in the API, and case counts.
_PROTOCOLS = {protocol.name: protocol for protocol in Protocol}
_MAX_SHOWN = 80  # characters of a text in a message: enough for a name, and little of a wrong file


def plain_ip(text: str, family: Family) -> bytes | None:
    """Return an address of a family if it is valid in its usual notation; None if `read_ip` has to examine it."""
    try:
        ip = inet_pton(family.socket_family, text)
    except (OSError, ValueError):
        return None
    return None if ip in _UNSPECIFIED or ip.startswith(_IPV4_MAPPED) else ip


def packed_ip(text: str) -> bytes:
    """Return the result of `parse_ip`, eight times faster for addresses in their usual notation.

    Raises:
        ValueError: the text is not a valid address.
    """
    try:
        ip = inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except OSError:
        return parse_ip(text)
    return ip[12:] if ip.startswith(_IPV4_MAPPED) else ip


def shown(text: str) -> str:
    """Return text of an object for use in a message: unchanged if it is printable ASCII, else quoted; long text is cut."""
    # A message is one line of the log: text of a user must not bring its own line ends or terminal codes.
    if text and text.isascii() and text.isprintable() and " " not in text and len(text) <= _MAX_SHOWN:
        return text
    return ascii(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")


@lru_cache(maxsize=4096)
def is_label(text: str) -> bool:
    """Return whether a text is a DNS-1123 label; cached, for texts that many objects have, such as namespaces."""
    return _LABEL.fullmatch(text) is not None


def read_label(text: str, field: str, problems: Problems) -> str | None:
    """Return a DNS-1123 label, the form of the names of namespaces, Services and ports, or None."""
    if _LABEL.fullmatch(text):
        return text
    problems.append(
        (field, f"{shown(text)} is not a valid name: at most 63 lower-case letters, digits and inner hyphens")
    )
    return None


@lru_cache(maxsize=8192)
def is_subdomain(text: str) -> bool:
    """Return whether a text is a DNS-1123 subdomain; cached for the Node names of endpoints, 5,000 in the largest clusters."""
    return _SUBDOMAIN.fullmatch(text) is not None


def read_subdomain(text: str, field: str, problems: Problems) -> str | None:
    """Return a DNS-1123 subdomain, the form of the names of EndpointSlices and Nodes, or None."""
    # Slices of a Service with a long name, and Nodes with a domain name, are longer than a label.
    if is_subdomain(text):
        return text
    problems.append((field, f"{shown(text)} is not a valid name: lower-case letters, digits, hyphens and dots"))
    return None


def read_label_value(text: str, field: str, problems: Problems) -> str:
    """Return the value of a label; empty if it is invalid."""
    if _LABEL_VALUE.fullmatch(text):
        return text
    reason = "at most 63 letters, digits, hyphens, dots and underscores"
    problems.append((field, f"{shown(text)} is not a valid value of a label: {reason}"))
    return ""


def read_word(text: str | None, known: Sequence[str], field: str, problems: Problems) -> str:
    """Return one of the known words; empty if absent or unknown, so that the caller can add the default with `or`."""
    if not text or text in known:
        return text or ""
    problems.append((field, f"{shown(text)} is not one of {', '.join(known)}{suggestion(text, known)}"))
    return ""


def read_protocol(text: str | None, field: str, problems: Problems) -> Protocol | None:
    """Return a protocol; TCP if absent (the API's default), None if unknown."""
    protocol = _PROTOCOLS.get(text or "TCP")
    if protocol is None:
        read_word(text, tuple(_PROTOCOLS), field, problems)
    return protocol


def read_port(number: int | None, field: str, problems: Problems) -> int | None:
    """Return a port number, or None."""
    if number is None:
        problems.append((field, "missing"))
        return None
    return read_number(number, PORTS, field, problems)


def read_family(text: str | None, field: str, problems: Problems) -> Family | None:
    """Return the family that the API calls IPv4 or IPv6; None for any other text."""
    if text == "IPv4":
        return Family.IPV4
    if text == "IPv6":
        return Family.IPV6
    problems.append((field, f"{shown(text or '')} is not one of IPv4, IPv6"))
    return None


def read_number(number: int, allowed: range, field: str, problems: Problems) -> int | None:
    """Return a number within a range, or None."""
    if number in allowed:
        return number
    problems.append((field, f"{number} is not between {allowed[0]} and {allowed[-1]}"))
    return None


def read_ip(text: str, field: str, problems: Problems) -> bytes | None:
    """Return an address that can be a destination, or None; 0.0.0.0 and :: cannot."""
    try:
        ip = packed_ip(text)
    except ValueError:
        problems.append((field, f"{shown(text)} is not a valid IP address"))
        return None
    if ip in _UNSPECIFIED:
        problems.append((field, f"{text} is the unspecified address, which cannot be a destination"))
        return None
    return ip


def read_network(text: str, field: str, problems: Problems) -> Network | None:
    """Return a CIDR block, without white space around it as in the API, or None."""
    try:
        return parse_network(text.strip())
    except ValueError:
        problems.append((field, f"{shown(text)} is not a valid CIDR block such as 10.0.0.0/8"))
        return None


def read_networks(texts: Iterable[str], field: str, problems: Problems) -> tuple[Network, ...]:
    """Return the valid CIDR blocks of a list."""
    read = (read_network(text, f"{field}[{index}]", problems) for index, text in enumerate(texts))
    return tuple(network for network in read if network is not None)


def read_external_ip(text: str, field: str, problems: Problems) -> bytes | None:
    """Return an address that a Service may have in ``externalIPs``, or None."""
    ip = read_ip(text, field, problems)
    network = next((network for network in _SPECIAL if ip and ip in network), None)
    if network is None:
        return ip
    problems.append((field, f"{text} is in {network}, which Services may not use"))
    return None
