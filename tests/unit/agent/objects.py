"""A cluster as big as a test wants: Services by number, each with a slice of endpoints."""

from collections.abc import Iterable

from pyproxy.model.address import Family
from pyproxy.model.change import Kind, Put, Replaced
from pyproxy.model.endpoint import EndpointSlice, SliceEndpoint, SlicePort
from pyproxy.model.names import NamespacedName, Protocol, ServicePortName
from pyproxy.model.service import Service, ServicePort

_CLUSTER_IPS = int.from_bytes(bytes((10, 96, 0, 0)))
_PODS = int.from_bytes(bytes((10, 128, 0, 0)))
_PODS_APART = 256


def port_name(number: int) -> ServicePortName:
    """Return the name of a Service's only port."""
    return ServicePortName(_name(number), "", Protocol.TCP)


def service(number: int, external_ips: tuple[bytes, ...] = ()) -> Service:
    """Return the Service of a number."""
    return Service(
        name=_name(number),
        families=(Family.IPV4,),
        cluster_ips=((_CLUSTER_IPS + number).to_bytes(4),),
        ports=(ServicePort("", Protocol.TCP, 80, 0),),
        external_ips=external_ips,
    )


def endpoint_slice(number: int, endpoints: Iterable[int] = (1,)) -> EndpointSlice:
    """Return the slice of a Service; its endpoints are given by the last octets of their addresses."""
    ips = ((_PODS + number * _PODS_APART + last).to_bytes(4) for last in endpoints)
    port = SlicePort("", Protocol.TCP, 8080)
    return EndpointSlice(_name(number), _name(number), Family.IPV4, (port,), tuple(map(SliceEndpoint, ips)))


def address(number: int, last: int = 1) -> str:
    """Return what the rules say of an endpoint."""
    return f"{'.'.join(map(str, (_PODS + number * _PODS_APART + last).to_bytes(4)))}:8080"


def everything(count: int, endpoints: Iterable[int] = (1,)) -> tuple[Replaced, Replaced]:
    """Return complete lists of a number of Services and their slices."""
    endpoints = tuple(endpoints)
    services = tuple(service(number) for number in range(count))
    slices = tuple(endpoint_slice(number, endpoints) for number in range(count))
    return Replaced(Kind.SERVICE, services), Replaced(Kind.ENDPOINT_SLICE, slices)


def endpoints_changed(number: int, endpoints: Iterable[int]) -> list[Put]:
    """Return the change that gives a Service other endpoints."""
    return [Put(endpoint_slice(number, endpoints))]


def _name(number: int) -> NamespacedName:
    return NamespacedName("default", f"web-{number}")
