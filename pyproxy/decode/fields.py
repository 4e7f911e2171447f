"""What the API server would have checked in one field, checked again.

Law of this file: a function takes the text or number of one field and gives the value of it, or notes in `Problems`
what is wrong and gives None or the default. It never raises and knows no object. pyproxy checks again because files
come past no API server, and because names end up in kernel rules: what is not a name must never get that far.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton

from pyproxy.model.address import LOOPBACK_NETWORKS, Family, Network, parse_ip, parse_network
from pyproxy.model.names import Protocol
from pyproxy.model.suggestion import suggestion

Problems = list[tuple[str, str]]
"""Path of a field and what is wrong with it, in the order found."""

FieldErrors = tuple[tuple[str, str], ...]
"""Problems that do not grow any more."""

PORTS = range(1, 65536)

# k8s.io/apimachinery/pkg/util/validation: IsDNS1123Label and IsDNS1123Subdomain.
_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")

_IPV4_MAPPED = bytes(10) + b"\xff\xff"
_UNSPECIFIED = frozenset({bytes(4), bytes(16)})
# Loopback, link-local and link-local multicast: k8s.io/kubernetes/pkg/apis/core/validation, ValidateNonSpecialIP.
_SPECIAL = (
    *LOOPBACK_NETWORKS.values(),
    *map(parse_network, ("169.254.0.0/16", "224.0.0.0/24", "fe80::/10", "ff02::/16")),
)
_PROTOCOLS = {protocol.name: protocol for protocol in Protocol}
_MAX_SHOWN = 80


def plain_ip(text: str, family: Family) -> bytes | None:
    """Give an address of a family if nothing is to be said of it; None where `read_ip` has to look."""
    try:
        ip = inet_pton(family.socket_family, text)
    except (OSError, ValueError):
        return None
    return None if ip in _UNSPECIFIED or ip.startswith(_IPV4_MAPPED) else ip


def packed_ip(text: str) -> bytes:
    """Give what `parse_ip` gives, eight times faster for addresses that need no forgiveness.

    Raises:
        ValueError: the text is no address.
    """
    try:
        ip = inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except OSError:
        return parse_ip(text)
    return ip[12:] if ip.startswith(_IPV4_MAPPED) else ip


def shown(text: str) -> str:
    """Write foreign text for a message: as it is where that is harmless, else quoted and cut short."""
    if text and text.isascii() and text.isprintable() and " " not in text and len(text) <= _MAX_SHOWN:
        return text
    return ascii(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")


@lru_cache(maxsize=4096)
def is_label(text: str) -> bool:
    """Tell whether a text is a DNS-1123 label; for texts that stand in many objects, as namespaces do."""
    return _LABEL.fullmatch(text) is not None


def read_label(text: str, field: str, problems: Problems) -> str | None:
    """Give a DNS-1123 label, the form of namespaces, Services and port names, or None."""
    if _LABEL.fullmatch(text):
        return text
    problems.append((field, f"{shown(text)} is no name: lower-case letters, digits and inner hyphens, at most 63"))
    return None


def read_subdomain(text: str, field: str, problems: Problems) -> str | None:
    """Give a DNS-1123 subdomain, the form of the names of EndpointSlices and Nodes, or None."""
    if _SUBDOMAIN.fullmatch(text):
        return text
    problems.append((field, f"{shown(text)} is no name: labels of lower-case letters, digits and hyphens, with dots"))
    return None


def read_word(text: str | None, known: Sequence[str], field: str, problems: Problems) -> str:
    """Give one of the known words; empty for none or an unknown one, so that the API's default can follow by `or`."""
    if not text or text in known:
        return text or ""
    problems.append((field, f"{shown(text)} is none of {', '.join(known)}{suggestion(text, known)}"))
    return ""


def read_protocol(text: str | None, field: str, problems: Problems) -> Protocol | None:
    """Give a protocol, TCP where none is written (the API's default), None for an unknown one."""
    protocol = _PROTOCOLS.get(text or "TCP")
    if protocol is None:
        read_word(text, tuple(_PROTOCOLS), field, problems)
    return protocol


def read_port(number: int | None, field: str, problems: Problems) -> int | None:
    """Give a port number, or None."""
    if number is None:
        problems.append((field, "missing"))
        return None
    return read_number(number, PORTS, field, problems)


def read_family(text: str | None, field: str, problems: Problems) -> Family | None:
    """Give the family that the API calls IPv4 or IPv6, None for any other."""
    if text == "IPv4":
        return Family.IPV4
    if text == "IPv6":
        return Family.IPV6
    problems.append((field, f"{shown(text or '')} is none of IPv4, IPv6"))
    return None


def read_number(number: int, allowed: range, field: str, problems: Problems) -> int | None:
    """Give a number within a range, or None."""
    if number in allowed:
        return number
    problems.append((field, f"{number} is not between {allowed[0]} and {allowed[-1]}"))
    return None


def read_ip(text: str, field: str, problems: Problems) -> bytes | None:
    """Give an address that traffic can be sent to, or None; 0.0.0.0 and :: are none."""
    try:
        ip = packed_ip(text)
    except ValueError:
        problems.append((field, f"{shown(text)} is no IP address"))
        return None
    if ip in _UNSPECIFIED:
        problems.append((field, f"{text} is the unspecified address, which is no destination"))
        return None
    return ip


def read_network(text: str, field: str, problems: Problems) -> Network | None:
    """Give a CIDR block with blanks around it dropped, as the API does, or None."""
    try:
        return parse_network(text.strip())
    except ValueError:
        problems.append((field, f"{shown(text)} is no CIDR block such as 10.0.0.0/8"))
        return None


def read_networks(texts: Iterable[str], field: str, problems: Problems) -> tuple[Network, ...]:
    """Give the good ones of a list of CIDR blocks."""
    read = (read_network(text, f"{field}[{index}]", problems) for index, text in enumerate(texts))
    return tuple(network for network in read if network is not None)


def read_external_ip(text: str, field: str, problems: Problems) -> bytes | None:
    """Give an address that a Service may list in ``externalIPs``, or None."""
    ip = read_ip(text, field, problems)
    network = next((network for network in _SPECIAL if ip and ip in network), None)
    if network is None:
        return ip
    problems.append((field, f"{text} is in {network}, which no Service may take over"))
    return None
