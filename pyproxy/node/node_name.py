"""The name of this node, and the values of its Node that the configuration overrides."""

import socket
from dataclasses import replace

from pyproxy.config.config import Config
from pyproxy.errors import ConfigError
from pyproxy.model.address import family_of, is_loopback
from pyproxy.model.node import Node


def own_node_name(config: Config) -> str:
    """Return the name of this node's Node object.

    Raises:
        ConfigError: this machine has no host name, and none is configured.
    """
    # Names of Nodes are lower case; the kubelet and kube-proxy convert a host name in the same way.
    name = config.hostname_override or socket.gethostname().strip().lower()
    if not name:
        message = "--hostname-override: must be given, because this machine has no host name"
        raise ConfigError(message)
    return name


def own_node(config: Config, node: Node | None, name: str) -> Node:
    """Return the Node as plans use it: ``--bind-address`` replaces the Node object's IPs of its family.

    Loopback addresses are left out, because no other node reaches this node there.
    """
    node = node or Node(name=name)
    # As in kube-proxy, the first address of a family is its primary one.
    ips = tuple(ip for ip in node.ips if not is_loopback(ip))
    address = config.bind_address
    if any(address) and not is_loopback(address):
        ips = (address, *(ip for ip in ips if family_of(ip) is not family_of(address)))
    return replace(node, ips=ips)
