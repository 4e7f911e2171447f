"""What a source tells the tracker: values, whether they come from the API server or from files."""

from dataclasses import dataclass
from enum import Enum

from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.service import Service
from pyproxy.model.service_cidr import ServiceCidr

Object = Service | EndpointSlice | Node | ServiceCidr


class Kind(Enum):
    """A kind of object that is watched; the value is its API name."""

    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    NODE = "Node"
    SERVICE_CIDR = "ServiceCIDR"


@dataclass(frozen=True, slots=True)
class Put:
    """An object was added or changed."""

    object: Object


@dataclass(frozen=True, slots=True)
class Removed:
    """An object is gone, or is none of ours any more. Removing an unknown object is no error."""

    kind: Kind
    name: NamespacedName


@dataclass(frozen=True, slots=True)
class Replaced:
    """A complete list: what is not in it is gone. The first one of a kind says that the kind is known."""

    kind: Kind
    objects: tuple[Object, ...]


ObjectChange = Put | Removed | Replaced
