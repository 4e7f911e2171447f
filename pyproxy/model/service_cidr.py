"""ServiceCIDRs: the ranges from which the API server allocates cluster IPs."""

from dataclasses import dataclass

from pyproxy.model.address import Network
from pyproxy.model.names import NamespacedName


@dataclass(frozen=True, slots=True)
class ServiceCidr:
    """A ServiceCIDR. A cluster has at least one, and a cluster IP may be allocated from any of them."""

    name: NamespacedName
    cidrs: tuple[Network, ...]
