"""What a source of objects reports: the same values, whether they come from the API server or from files."""

from dataclasses import dataclass
from enum import Enum

from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.request_record import RequestRecord
from pyproxy.model.service import Service
from pyproxy.model.service_cidr import ServiceCidr
from pyproxy.model.unserved import UnservedService

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
    """An object was deleted, or no longer concerns pyproxy. It need not be known."""

    kind: Kind
    name: NamespacedName


@dataclass(frozen=True, slots=True)
class Replaced:
    """A complete list: objects that are not in it do not exist. The first list of a kind makes the kind known."""

    kind: Kind
    objects: tuple[Object, ...]
    unserved: tuple[UnservedService, ...] = ()
    """In a list of Services, those without rules."""


@dataclass(frozen=True, slots=True)
class Unserved:
    """A Service was added or changed that has no rules. If it is invalid, its last good version stays in use."""

    service: UnservedService


ObjectChange = Put | Removed | Replaced | Unserved


@dataclass(frozen=True, slots=True)
class WatchState:
    """Whether objects of a kind arrive."""

    kind: Kind
    reason: str
    """Why they do not; empty means that they do."""


@dataclass(frozen=True, slots=True)
class ProblemsChanged:
    """What is wrong with objects has changed; each text names the object, and the field if it is one field."""

    appeared: tuple[str, ...]
    gone: tuple[str, ...] = ()


SourceEvent = ObjectChange | WatchState | ProblemsChanged | RequestRecord
