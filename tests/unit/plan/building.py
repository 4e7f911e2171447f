"""Short ways to write down what a test is not about: standard objects, and text in place of packed addresses."""

from pyproxy.model.address import Family, parse_ip
from pyproxy.model.endpoint import Endpoint, EndpointSlice, SliceEndpoint, SlicePort
from pyproxy.model.names import NamespacedName, Protocol, ServicePortName
from pyproxy.model.service import Service, ServicePort
from pyproxy.plan.service_plan import ServicePlan

WEB = NamespacedName("default", "web")


def ips(*texts: str) -> tuple[bytes, ...]:
    """Pack addresses."""
    return tuple(map(parse_ip, texts))


def endpoints(*texts: str) -> tuple[Endpoint, ...]:
    """Read endpoints written ``ip:port``."""
    parts = (text.rpartition(":") for text in texts)
    return tuple(Endpoint(parse_ip(ip.strip("[]")), int(port)) for ip, _, port in parts)


def port_name(name: str = "web", port: str = "", protocol: Protocol = Protocol.TCP) -> ServicePortName:
    """Return the name of a Service port in namespace default."""
    return ServicePortName(NamespacedName("default", name), port, protocol)


SERVICE = Service(
    name=WEB, families=(Family.IPV4,), cluster_ips=ips("10.96.0.10"), ports=(ServicePort("", Protocol.TCP, 80, 0),)
)
"""Port 80 behind a cluster IP; to be varied by `replace`."""


def endpoint_slice(
    *items: SliceEndpoint, name: str = "web-x", port: SlicePort | None = None, family: Family = Family.IPV4
) -> EndpointSlice:
    """Return a slice of default/web with one port, 8080 unless given."""
    ports = (port or SlicePort("", Protocol.TCP, 8080),)
    return EndpointSlice(NamespacedName("default", name), WEB, family, ports, items)


PLAN = ServicePlan(
    name=port_name(),
    family=Family.IPV4,
    port=80,
    cluster_ip=None,
    external_ips=(),
    load_balancer_ips=(),
    node_port=0,
    source_ranges=(),
    allow_load_balancer_ips_as_source=False,
    affinity_seconds=None,
    internal_local=False,
    external_local=False,
    health_check_node_port=0,
    cluster_endpoints=(),
    local_endpoints=(),
    any_usable=False,
)
"""Port 80 without addresses or endpoints; to be varied by `replace`."""
