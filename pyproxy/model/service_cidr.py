"""Where a cluster's Services get their cluster IPs from."""

from dataclasses import dataclass

from pyproxy.model.address import Network
from pyproxy.model.names import NamespacedName


@dataclass(frozen=True, slots=True)
class ServiceCidr:
    """An object of kind ServiceCIDR: a cluster has at least one, and a cluster IP may come from any of them."""

    name: NamespacedName
    cidrs: tuple[Network, ...]
