"""The objects and settings of a running agent, as it sends them over the control socket."""

from msgspec import Struct

from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.node import Node
from pyproxy.model.service import Service
from pyproxy.model.service_cidr import ServiceCidr
from pyproxy.model.unserved import UnservedService


class AgentObjects(Struct):
    """What an agent knows about its cluster."""

    node: Node
    mode: str
    """The proxy mode, never ``auto``."""
    settings: dict[str, str]
    """Values of options that are not the default, by attribute of Config, as flags take them."""
    services: list[Service]
    slices: list[EndpointSlice]
    unserved: list[UnservedService]
    service_cidrs: list[ServiceCidr] | None
    """None: they have not been listed."""
