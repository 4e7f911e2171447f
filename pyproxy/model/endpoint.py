"""EndpointSlices reduced to what a packet path depends on."""

from msgspec import Struct

from pyproxy.model.address import Family, socket_text
from pyproxy.model.names import NamespacedName, Protocol


class Endpoint(Struct, frozen=True, order=True, gc=False):
    """Address and port that a connection can be sent to."""

    ip: bytes
    port: int

    def __str__(self) -> str:
        return socket_text(self.ip, self.port)


class SliceEndpoint(Struct, frozen=True, gc=False):
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


class SlicePort(Struct, frozen=True, gc=False):
    """One entry of ``ports`` in a slice."""

    name: str
    protocol: Protocol
    port: int


class EndpointSlice(Struct, frozen=True, gc=False):
    """One EndpointSlice that names its Service."""

    name: NamespacedName
    service: NamespacedName
    family: Family
    ports: tuple[SlicePort, ...]
    endpoints: tuple[SliceEndpoint, ...]
    triggered_at: float = 0.0
    """When the change behind this version was made, in seconds since 1970; 0 where nobody says. No change by itself."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EndpointSlice) and self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash(self._compared())

    def _compared(self) -> tuple[object, ...]:
        return self.name, self.service, self.family, self.ports, self.endpoints
