"""A Service reduced to what a packet path depends on.

A Service that makes no rules (headless, ExternalName, another proxy's) never becomes one of these; `source` sees to it.
"""

from enum import Enum

from msgspec import Struct

from pyproxy.model.address import Family, Network
from pyproxy.model.names import NamespacedName, Protocol


class NoPacketPath(Enum):
    """Why a Service has no rules."""

    HEADLESS = "headless"
    EXTERNAL_NAME = "ExternalName"
    OTHER_PROXY = "other proxy"
    """Its label ``service.kubernetes.io/service-proxy-name`` selects another proxy."""


class ServicePort(Struct, frozen=True, gc=False):
    """One entry of ``spec.ports``. ``targetPort`` is absent: the endpoint's port always comes from the EndpointSlice."""

    name: str
    """Empty where the only port has no name."""
    protocol: Protocol
    port: int
    node_port: int
    """0 means none."""


class Service(Struct, frozen=True, kw_only=True, gc=False):
    """One Service of a type that has a packet path."""

    name: NamespacedName
    families: tuple[Family, ...]
    """Families in which the Service exists."""
    cluster_ips: tuple[bytes, ...]
    """At most one for each family; none where a file left it out."""
    ports: tuple[ServicePort, ...]
    external_ips: tuple[bytes, ...] = ()
    load_balancer_ips: tuple[bytes, ...] = ()
    """Ingress addresses with ``ipMode: VIP`` (the default); others are the load balancer's own business."""
    load_balancer_source_ranges: tuple[Network, ...] = ()
    """Empty means everybody. One family's ranges may be empty while the other's are not."""
    affinity_seconds: int | None = None
    """Timeout of ClientIP affinity; None means no affinity."""
    internal_policy_local: bool = False
    external_policy_local: bool = False
    """True only for a type that can have external traffic."""
    health_check_node_port: int = 0
    """0 means none."""
    scheduler: str = ""
    """The Service's own choice of an IPVS scheduler; empty means none."""
    created: str = ""
    """``metadata.creationTimestamp``, RFC 3339; settles who keeps an address that two Services claim."""
