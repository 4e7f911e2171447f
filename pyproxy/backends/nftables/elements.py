"""Keys and values of the nftables mode: elements of a fixed list of sets and maps.

Keys and data are the bytes that the kernel stores: the fields of a concatenation one after the other, each padded with zeros
to a multiple of 4 bytes. Addresses, protocols and ports are in network byte order; numbers that ``meta`` and ``numgen`` put
into a register are in the machine's byte order. So packing an element copies bytes, and comparing plan and kernel compares
bytes.

The rules look up one map after the other (`layout` has them):

    address . protocol . port          -> counts: how many endpoints there are
    count                              -> pick: a chain that draws a slot, 0 to count - 1
    address . protocol . port . slot   -> endpoints: address . port

All maps that lead from a Service to an endpoint have plain data. A map with verdicts would cost more with every Service,
because each transaction with a new jump makes the kernel validate all chains that can be reached, element by element
(`nft_chain_validate`). Only the few numbers in use lead to chains.
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
"""One byte for the set (`ElementSet.number`), then the key, which for a range has both ends. `LAYOUT` is also one."""


class KeyField(Enum):
    """A field of a key or of data. The value is nft's name of the type; that of an address depends on the family."""

    ADDRESS = "addr"
    PROTOCOL = "inet_proto"
    PORT = "inet_service"
    NUMBER = "classid"
    """A count, slot, endpoint ID, or number of seconds. ``classid`` is the type of ``meta priority``, which carries it."""
    VERDICT = "verdict"

    def size(self, family: Family) -> int:
        """Return the size of the field in bytes, with padding."""
        return family.bits // 8 if self is KeyField.ADDRESS else 4

    def type_name(self, family: Family) -> str:
        """Return nft's name of the type."""
        return f"ipv{family.value}_addr" if self is KeyField.ADDRESS else self.value


@dataclass(frozen=True, slots=True)
class ElementSet:
    """A set or map; the table of each family has one."""

    number: int
    """The first byte of `ElementKey`, so keys sort by set."""
    name: str
    key: tuple[KeyField, ...]
    data: tuple[KeyField, ...] = ()
    is_interval: bool = False
    """Whether keys are ranges: each field has a first and a last value."""
    is_named: bool = False
    """Whether the comment of each element is the name of its Service port."""
    prefix: bytes = field(init=False, compare=False)
    """`number` as bytes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", bytes((self.number,)))

    @property
    def leads_to_chains(self) -> bool:
        """Whether the data is a verdict; each element then has its own chain, created and deleted with it."""
        return KeyField.VERDICT in self.data

    def key_size(self, family: Family) -> int:
        """Return the size of a key, or of one end of a range, in bytes."""
        return sum(field.size(family) for field in self.key)

    def data_size(self, family: Family) -> int:
        """Return the size of the data in bytes, 0 for a set."""
        return sum(field.size(family) for field in self.data)


@dataclass(frozen=True, slots=True)
class PortSets:
    """The sets for packets to a Service port, which are looked up by address and port, or by node port."""

    prefix: str
    """Prefix of the names of sets and chains."""
    external_cluster: ElementSet
    """External frontends with traffic policy Cluster, which are masqueraded so that replies return through this node."""
    external_local: ElementSet
    """External frontends with traffic policy Local."""
    timeouts: ElementSet
    """Map from a frontend to the time-out of session affinity in seconds."""
    main: "EndpointChoice"
    local: "EndpointChoice"
    """The endpoints for external traffic with policy Local."""
    rejected: ElementSet
    dropped: ElementSet


@dataclass(frozen=True, slots=True)
class EndpointChoice:
    """The maps by which the rules choose one endpoint of a frontend."""

    prefix: str
    """Prefix of the names of sets and chains."""
    counts: ElementSet
    """From a frontend to the number of its endpoints."""
    endpoints: ElementSet
    """From frontend and slot to the endpoint; with session affinity, from frontend and endpoint ID."""
    slots: ElementSet
    """From frontend and slot to the endpoint ID; only with session affinity."""
    find: ElementSet
    """From a count to the chain that finds the endpoint of a pinned client, or draws one."""
    sticky: ElementSet
    """From a time-out in seconds to the chain that pins a client to its endpoint for that time."""


_ADDRESSED = (KeyField.ADDRESS, KeyField.PROTOCOL, KeyField.PORT)
_NODE_PORT = (KeyField.PROTOCOL, KeyField.PORT)
_ENDPOINT = (KeyField.ADDRESS, KeyField.PORT)

# The first byte of each key in memory. They are written down nowhere else, so they may change with a version.
CLUSTER_IPS = ElementSet(1, "cluster-ips", (KeyField.ADDRESS,))
NODE_PORT_IPS = ElementSet(2, "nodeport-ips", (KeyField.ADDRESS,))
# Source address, then destination address, protocol and port after DNAT: an endpoint that talks to itself.
HAIRPIN = ElementSet(3, "hairpin-connections", (KeyField.ADDRESS, *_ADDRESSED))
FIREWALL = ElementSet(4, "firewall", _ADDRESSED)
ALLOWED_SOURCES = ElementSet(5, "allowed-sources", (*_ADDRESSED, KeyField.ADDRESS), is_interval=True)
PICK = ElementSet(6, "pick", (KeyField.NUMBER,), (KeyField.VERDICT,))
"""From a count to the chain that draws a slot."""
PINS = ElementSet(7, "pins", (KeyField.ADDRESS, KeyField.NUMBER))
"""Session affinity: clients with the ID of their endpoint. Rules add them, so they are not entries."""
SERVICE_CIDRS = ElementSet(8, "service-cidrs", (KeyField.ADDRESS, KeyField.PROTOCOL), is_interval=True)
"""The ServiceCIDRs, with all protocols. With a second field the kernel stores both ends of a range in one element."""


# Numbers are the order of writing: a long change is several transactions, and sets with higher numbers come first. So what
# leads to other elements has the lower number: frontends before counts, counts before endpoints.
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
"""All sets by number, without `PINS`."""

_CHOICES = tuple(choice for sets in (ADDRESSED, NODE_PORTS) for choice in (sets.main, sets.local))
CHAINED = frozenset(kind.number for kind in SETS.values() if kind.leads_to_chains)
"""Numbers of the sets whose elements lead to chains."""
ENDPOINTS = frozenset(choice.endpoints.number for choice in _CHOICES)
SLOTS = frozenset(choice.slots.number for choice in _CHOICES)

ID_BIT = 1 << 31
"""Set in each endpoint ID, so that none equals a slot."""

LAYOUT = ElementKey(b"\0layout")
"""The key of everything that does not depend on Services: the existence of the table. Its value is a `Layout`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Sets, chains and rules of a family's table, identified by a version."""

    version: str
    """A digest of the text; empty for a table that was changed since it was created."""


Value = bytes | Layout
"""Data of an element followed by its comment, if any. An element of a set without a comment has an empty value."""

ElementChange = Mapping[ElementKey, tuple[Value | None, Value | None]]
"""Present and wanted value by key; None means that the element does not exist."""


def pack_number(number: int) -> bytes:
    """Return a number as the kernel stores it."""
    # In the byte order of the machine, because ``meta`` and ``numgen`` put such numbers into registers. Nearly all are small.
    return _SMALL_NUMBERS[number] if number < len(_SMALL_NUMBERS) else number.to_bytes(4, sys.byteorder)


def unpack_number(data: bytes) -> int:
    """Return the number that the kernel stores as these bytes."""
    return int.from_bytes(data[:4], sys.byteorder)


# A cluster has many endpoints and few ports.
@lru_cache(maxsize=1024)
def pack_port(port: int) -> bytes:
    """Return a port as the kernel stores it in a concatenation."""
    return port.to_bytes(2) + b"\0\0"


def pack_protocol(protocol: Protocol) -> bytes:
    """Return a protocol as the kernel stores it in a concatenation."""
    return _PROTOCOLS[protocol]


def pack_slots(count: int) -> Sequence[bytes]:
    """Return the numbers from 0 to count - 1 as the kernel stores them."""
    return _SMALL_NUMBERS[:count] if count <= len(_SMALL_NUMBERS) else [*map(pack_number, range(count))]


_PROTOCOLS = {protocol: bytes((protocol.number, 0, 0, 0)) for protocol in Protocol}
_SMALL_NUMBERS = [number.to_bytes(4, sys.byteorder) for number in range(256)]
