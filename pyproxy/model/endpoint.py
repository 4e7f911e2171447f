"""EndpointSlices, reduced to the fields that rules depend on."""

from msgspec import Struct

from pyproxy.model.address import Family, socket_text
from pyproxy.model.names import NamespacedName, Protocol

# A cluster has hundreds of thousands of these. gc=False: they cannot be part of a cycle, so the garbage collector need not
# visit them (docs/decisions/007-value-types.md).


class Endpoint(Struct, frozen=True, order=True, gc=False):
    """Address and port of a pod or an external server behind a Service."""

    ip: bytes
    port: int

    def __str__(self) -> str:
        return socket_text(self.ip, self.port)


class SliceEndpoint(Struct, frozen=True, gc=False):
    """One entry of ``endpoints`` in a slice; absent conditions have the API's defaults."""

    ip: bytes
    """The first address; kube-proxy ignores the rest too."""
    node_name: str = ""
    """Empty means unknown: such an endpoint is not local to any node."""
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
    """An EndpointSlice that belongs to a Service."""

    name: NamespacedName
    service: NamespacedName
    family: Family
    ports: tuple[SlicePort, ...]
    endpoints: tuple[SliceEndpoint, ...]
    triggered_at: float = 0.0
    """Time of the change that led to this version, in seconds since 1970; 0 if unknown. Ignored by comparisons."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EndpointSlice) and self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash(self._compared())

    def _compared(self) -> tuple[object, ...]:
        # Without the time, which serves a metric only: a version that differs in nothing else must not lead to a sync.
        return self.name, self.service, self.family, self.ports, self.endpoints
