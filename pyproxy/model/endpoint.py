"""EndpointSlices reduced to what a packet path depends on."""

from dataclasses import dataclass, field
from typing import NamedTuple

from pyproxy.model.address import Family, socket_text
from pyproxy.model.names import NamespacedName, Protocol


class Endpoint(NamedTuple):
    """Address and port that a connection can be sent to."""

    ip: bytes
    port: int

    def __str__(self) -> str:
        return socket_text(self.ip, self.port)


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """One entry of ``endpoints`` in a slice, with the API's defaults for absent conditions filled in."""

    ip: bytes
    """The first address; kube-proxy uses no other."""
    node_name: str = ""
    """Empty means unknown: such an endpoint is local to no node."""
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SlicePort:
    """One entry of ``ports`` in a slice."""

    name: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """One EndpointSlice that names its Service."""

    name: NamespacedName
    service: NamespacedName
    family: Family
    ports: tuple[SlicePort, ...]
    endpoints: tuple[SliceEndpoint, ...]
    triggered_at: float = field(default=0.0, compare=False)
    """When the change behind this version was made, in seconds since 1970; 0 where nobody says. No change by itself."""
