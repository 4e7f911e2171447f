"""The Node that the agent is on, as long as it runs: waited for, kept while its object is away, and told of in the log.

A Node that is deleted and made again, or that has no address for a while, is no reason to take node ports away: what
was known of it stays. A change of what is known counts at once.
"""

import logging
from collections.abc import Iterable
from dataclasses import replace

from pyproxy.config.config import Config
from pyproxy.model.address import ip_text, is_loopback, parse_ip
from pyproxy.model.node import Node
from pyproxy.node.node_name import own_node

logger = logging.getLogger(__name__)

_FIX = "set --node-ip of the kubelet, or --bind-address of pyproxy, to the address at which other nodes reach this one"
_VIRTUALBOX_NAT = parse_ip("10.0.2.15")
"""What VirtualBox's NAT, the first interface of a Vagrant machine, gives to every machine."""


class OwnNode:
    """This node.

    Args:
        config: says what wins over the object.
        name: of the object.
    """

    def __init__(self, config: Config, name: str) -> None:
        self._config = config
        self._is_listed = False
        self._listed: Node | None = None
        self._seen: Node | None = None
        """The last object, with what those before it had and it has not."""
        self._is_awaited = True
        self._said: set[str] = set()
        self._told = ""
        self.node = own_node(config, None, name)
        """The Node as plans see it."""
        if is_loopback(config.bind_address):
            self._warn(f"--bind-address: {ip_text(config.bind_address)} is a loopback address, and not used; {_FIX}")

    @property
    def is_awaited(self) -> bool:
        """Say whether rules should wait for what the object has yet to say."""
        return self._is_awaited

    def listed(self, node: Node | None) -> None:
        """Take note of the object, or that there is none, as of now; cheap for one that was noted before."""
        if self._is_listed and node is self._listed:
            return
        self._is_listed, self._listed = True, node
        if node is not None:
            self._seen = _completed(node, self._seen)
            self._warn_of(node)
        self.node = own_node(self._config, self._seen, self.node.name)
        self._tell(f"{'' if node else 'there is no such Node object; '}{_described(self.node)}")
        # Files have what they have: nobody will give their Node an address.
        if self.node.ips or self._config.manifests:
            self._is_awaited = False

    def stop_waiting(self) -> None:
        """Go on with what is known."""
        if not self._is_awaited:
            return
        self._is_awaited = False
        if self._seen is None:
            self._warn(
                f"node {self.node.name}: there is no such Node object; going on without its addresses."
                " If it has another name, set --hostname-override"
            )
        else:
            self._warn(f"node {self.node.name}: has no address; going on without, until it has one; {_FIX}")

    def _warn_of(self, node: Node) -> None:
        for ip in filter(is_loopback, node.ips):
            self._warn(f"node {node.name}: its address {ip_text(ip)} is a loopback address, and not used; {_FIX}")
        if _VIRTUALBOX_NAT in node.ips[:1] and not any(self._config.bind_address):
            self._warn(
                f"node {node.name}: its address is {ip_text(_VIRTUALBOX_NAT)}, which VirtualBox's NAT gives to every"
                f" machine: if other nodes cannot reach it, {_FIX}"
            )

    def _tell(self, description: str) -> None:
        if description != self._told:
            self._told = description
            logger.info("node %s: %s", self.node.name, description)

    def _warn(self, message: str) -> None:
        """Say something once."""
        if message not in self._said:
            self._said.add(message)
            logger.warning("%s", message)


def _completed(node: Node, before: Node | None) -> Node:
    """Return a Node with the addresses and pod ranges of the one before, where it has none at all."""
    if before is None:
        return node
    return replace(node, ips=node.ips or before.ips, pod_cidrs=node.pod_cidrs or before.pod_cidrs)


def _described(node: Node) -> str:
    parts = {
        "addresses": map(ip_text, node.ips),
        "podCIDRs": map(str, node.pod_cidrs),
        "zone": [node.zone] if node.zone else [],
    }
    return ", ".join(f"{name} {_listed(values)}" for name, values in parts.items())


def _listed(values: Iterable[str]) -> str:
    return " ".join(values) or "none"
