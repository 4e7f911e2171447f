"""A connection tracking entry, reduced to the fields that pyproxy reads."""

from typing import NamedTuple


class Flow(NamedTuple):
    """Destination of a tracked flow, and the source of its replies."""

    destination: bytes
    """Packed destination address of the first packet, before DNAT."""
    destination_port: int
    reply_source: bytes
    """Packed source address of replies: the endpoint, or the destination if there was no DNAT."""
    reply_source_port: int


class Destination(NamedTuple):
    """Selects flows by their destination before DNAT; None means any."""

    ip: bytes | None
    port: int | None
