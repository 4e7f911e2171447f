"""A connection tracking entry, as far as we care."""

from typing import NamedTuple


class Flow(NamedTuple):
    """Where a tracked flow was addressed to, and who answers it."""

    destination: bytes
    """Packed destination address of the first packet, before any translation."""
    destination_port: int
    reply_source: bytes
    """Packed source address of replies: the endpoint, or the destination itself where nothing was translated."""
    reply_source_port: int


class Destination(NamedTuple):
    """Flows with this destination before any translation; None means any."""

    ip: bytes | None
    port: int | None
