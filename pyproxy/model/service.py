"""Services, reduced to the fields that rules depend on.

Services without rules (headless, ExternalName, or with the label of another proxy) are left out when they are decoded.
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
    """Empty if the only port has no name."""
    protocol: Protocol
    port: int
    node_port: int
    """0 means none."""


class Service(Struct, frozen=True, kw_only=True, gc=False):
    """A Service that has rules."""

    name: NamespacedName
    families: tuple[Family, ...]
    """The Service's ``ipFamilies``."""
    cluster_ips: tuple[bytes, ...]
    """At most one for each family; empty if the Service comes from a file without them."""
    ports: tuple[ServicePort, ...]
    external_ips: tuple[bytes, ...] = ()
    load_balancer_ips: tuple[bytes, ...] = ()
    """Ingress addresses with ``ipMode: VIP`` (the default)."""
    proxied_ips: tuple[bytes, ...] = ()
    """Ingress addresses with ``ipMode: Proxy``: the load balancer itself handles traffic to them."""
    is_load_balancer_pending: bool = False
    """The type is LoadBalancer, and no controller has set an ingress address or host name."""
    load_balancer_source_ranges: tuple[Network, ...] = ()
    """Sources that may use the load balancer IPs; empty means all. Each family counts separately."""
    affinity_seconds: int | None = None
    """Timeout of ClientIP affinity; None means no affinity."""
    internal_policy_local: bool = False
    external_policy_local: bool = False
    """True only for types that can have external traffic."""
    health_check_node_port: int = 0
    """0 means none."""
    scheduler: str = ""
    """IPVS scheduler that the Service requests; empty means none."""
    created: str = ""
    """``metadata.creationTimestamp``, RFC 3339; decides which of two Services gets an address that both list."""
