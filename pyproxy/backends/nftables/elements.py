"""Keys and values of the nftables mode: elements of a fixed list of sets and maps.

An element is bytes exactly as the kernel keeps them: each field of a concatenation in network order, filled
up with zeros to 4 bytes, except for numbers, which are in the order of the machine. That makes a message to
the kernel a concatenation, and the comparison of what is wanted with what it has a comparison of bytes.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import NewType

from pyproxy.model.address import Family
from pyproxy.model.names import Protocol

ElementKey = NewType("ElementKey", bytes)
"""One byte for the set (`ElementSet.number`), then the key; for an interval both its ends. `LAYOUT` is one, too."""


class KeyField(Enum):
    """A field of a key or of data; the value is the type's name, which for an address depends on the family."""

    ADDRESS = "addr"
    PROTOCOL = "inet_proto"
    PORT = "inet_service"
    NUMBER = "classid"
    """A count, a slot, an id, seconds. ``classid`` is the type of the packet's priority, through which it passes."""
    VERDICT = "verdict"

    def size(self, family: Family) -> int:
        """Return the bytes that the field takes, filled up."""
        return family.bits // 8 if self is KeyField.ADDRESS else 4

    def type_name(self, family: Family) -> str:
        """Return the name of the type in rules."""
        return f"ipv{family.value}_addr" if self is KeyField.ADDRESS else self.value


@dataclass(frozen=True, slots=True)
class ElementSet:
    """A set, or a map, of which each family's table has one."""

    number: int
    """Begins the keys of its elements, and sorts them."""
    name: str
    key: tuple[KeyField, ...]
    data: tuple[KeyField, ...] = ()
    is_interval: bool = False
    """Keys are ranges: each field has two ends."""
    is_named: bool = False
    """Elements carry the name of their Service port as comment."""
    prefix: bytes = field(init=False, compare=False)
    """The byte that begins the keys of its elements."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", bytes((self.number,)))

    @property
    def leads_to_chains(self) -> bool:
        """Say whether the data is a verdict: each element comes and goes with a chain of its own."""
        return KeyField.VERDICT in self.data

    def key_size(self, family: Family) -> int:
        """Return the bytes of one key, or of one end of it."""
        return sum(field.size(family) for field in self.key)

    def data_size(self, family: Family) -> int:
        """Return the bytes of the data; none for a set."""
        return sum(field.size(family) for field in self.data)


@dataclass(frozen=True, slots=True)
class PortSets:
    """The sets for what is addressed to a Service port: by address and port, or by node port."""

    prefix: str
    """Before the names of sets and chains."""
    external_cluster: ElementSet
    """Has policy Cluster for traffic from outside: packets must come back through this node."""
    external_local: ElementSet
    """Has policy Local for traffic from outside."""
    timeouts: ElementSet
    """To how long a client stays with an endpoint, in seconds."""
    main: "EndpointChoice"
    local: "EndpointChoice"
    """For traffic from outside, where its policy is Local."""
    rejected: ElementSet
    dropped: ElementSet


@dataclass(frozen=True, slots=True)
class EndpointChoice:
    """The sets out of which one endpoint is chosen."""

    prefix: str
    """Before the names of sets and chains."""
    counts: ElementSet
    """To how many endpoints there are."""
    endpoints: ElementSet
    """With a slot (0 to count - 1), or for clients that stay with an endpoint its id, to the endpoint."""
    slots: ElementSet
    """With a slot to the id of an endpoint; only where clients stay with an endpoint."""
    find: ElementSet
    """From a count to the chain that finds the endpoint that a client stays with, or draws one."""
    sticky: ElementSet
    """From seconds to the chain that keeps a client with its endpoint for so long."""


_ADDRESSED = (KeyField.ADDRESS, KeyField.PROTOCOL, KeyField.PORT)
_NODE_PORT = (KeyField.PROTOCOL, KeyField.PORT)
_ENDPOINT = (KeyField.ADDRESS, KeyField.PORT)

CLUSTER_IPS = ElementSet(1, "cluster-ips", (KeyField.ADDRESS,))
NODE_PORT_IPS = ElementSet(2, "nodeport-ips", (KeyField.ADDRESS,))
HAIRPIN = ElementSet(3, "hairpin-connections", (KeyField.ADDRESS, *_ADDRESSED))
FIREWALL = ElementSet(4, "firewall", _ADDRESSED)
ALLOWED_SOURCES = ElementSet(5, "allowed-sources", (*_ADDRESSED, KeyField.ADDRESS), is_interval=True)
PICK = ElementSet(6, "pick", (KeyField.NUMBER,), (KeyField.VERDICT,))
"""From a count to the chain that draws a slot."""
PINS = ElementSet(7, "pins", (KeyField.ADDRESS, KeyField.NUMBER))
"""Clients, each with the id of an endpoint that it stays with. The kernel makes them; they are no entries."""
SERVICE_CIDRS = ElementSet(8, "service-cidrs", (KeyField.ADDRESS, KeyField.PROTOCOL), is_interval=True)
"""All protocols of each range. With a second field the kernel keeps both ends of a range in one element."""


def _choice(number: int, prefix: str, key: tuple[KeyField, ...]) -> EndpointChoice:
    by_number = (*key, KeyField.NUMBER)
    return EndpointChoice(
        prefix,
        counts=ElementSet(number, f"{prefix}counts", key, (KeyField.NUMBER,), is_named=True),
        endpoints=ElementSet(number + 1, f"{prefix}endpoints", by_number, _ENDPOINT),
        slots=ElementSet(number + 2, f"{prefix}slots", by_number, (KeyField.NUMBER,)),
        find=ElementSet(number + 3, f"{prefix}find", (KeyField.NUMBER,), (KeyField.VERDICT,)),
        sticky=ElementSet(number + 4, f"{prefix}sticky", (KeyField.NUMBER,), (KeyField.VERDICT,)),
    )


def _port_sets(number: int, prefix: str, key: tuple[KeyField, ...]) -> PortSets:
    return PortSets(
        prefix,
        external_cluster=ElementSet(number, f"{prefix}external-cluster", key),
        external_local=ElementSet(number + 1, f"{prefix}external-local", key),
        timeouts=ElementSet(number + 2, f"{prefix}timeouts", key, (KeyField.NUMBER,)),
        main=_choice(number + 3, prefix, key),
        local=_choice(number + 8, f"{prefix}local-", key),
        rejected=ElementSet(number + 13, f"{prefix}rejected", key, is_named=True),
        dropped=ElementSet(number + 14, f"{prefix}dropped", key, is_named=True),
    )


ADDRESSED = _port_sets(16, "", _ADDRESSED)
NODE_PORTS = _port_sets(32, "nodeport-", _NODE_PORT)


def _all_sets() -> dict[int, ElementSet]:
    found = [CLUSTER_IPS, NODE_PORT_IPS, HAIRPIN, FIREWALL, ALLOWED_SOURCES, PICK, SERVICE_CIDRS]
    for sets in (ADDRESSED, NODE_PORTS):
        found += [sets.external_cluster, sets.external_local, sets.timeouts, sets.rejected, sets.dropped]
        for choice in (sets.main, sets.local):
            found += [choice.counts, choice.endpoints, choice.slots, choice.find, choice.sticky]
    return {kind.number: kind for kind in sorted(found, key=lambda kind: kind.number)}


SETS: Mapping[int, ElementSet] = _all_sets()
"""Every set by number; `PINS` is not among them."""

ID_BIT = 1 << 31
"""Tells the id of a Service port's endpoint from a slot."""

LAYOUT = ElementKey(b"\0layout")
"""The key of everything that does not depend on Services; its value is a `Layout`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Sets, chains and rules of a family's table; two are equal if their versions are."""

    version: str
    """A digest of the text; empty for a table that is not as it was made."""


Value = bytes | Layout
"""Data of an element and behind it the comment, if any; nothing for an element of a set."""


def pack_number(number: int) -> bytes:
    """Return a number as the kernel keeps it."""
    return _SMALL_NUMBERS[number] if number < len(_SMALL_NUMBERS) else number.to_bytes(4, sys.byteorder)


def unpack_number(data: bytes) -> int:
    """Return the number that the kernel keeps so."""
    return int.from_bytes(data[:4], sys.byteorder)


@lru_cache(maxsize=1024)
def pack_port(port: int) -> bytes:
    """Return a port as the kernel keeps it in a concatenation."""
    return port.to_bytes(2) + b"\0\0"


def pack_protocol(protocol: Protocol) -> bytes:
    """Return a protocol as the kernel keeps it in a concatenation."""
    return _PROTOCOLS[protocol]


def pack_slots(count: int) -> Sequence[bytes]:
    """Return the numbers from 0 to count - 1 as the kernel keeps them."""
    return _SMALL_NUMBERS[:count] if count <= len(_SMALL_NUMBERS) else [*map(pack_number, range(count))]


_PROTOCOLS = {protocol: bytes((protocol.number, 0, 0, 0)) for protocol in Protocol}
_SMALL_NUMBERS = [number.to_bytes(4, sys.byteorder) for number in range(256)]
