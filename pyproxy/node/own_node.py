"""Keeps the Node on which the agent runs: waits for its address, keeps its last values, and logs its changes.

If the Node is deleted and created again, or has no address for some time, node ports keep working: the last known values
stay. A change of a value counts at once.
"""

import logging
from dataclasses import replace

from pyproxy.config.config import Config
from pyproxy.model.address import ip_text, is_loopback, parse_ip
from pyproxy.model.node import Node
from pyproxy.node.node_name import own_node

logger = logging.getLogger(__name__)

ADDRESS_FIX = (
    "set --node-ip of the kubelet, or --bind-address of pyproxy, to the address at which other nodes reach this one"
)
# The address of the first interface of every Vagrant machine with VirtualBox, from VirtualBox's NAT.
VIRTUALBOX_NAT = parse_ip("10.0.2.15")


class OwnNode:
    """This node.

    Args:
        config: overrides values of the object.
        name: name of the object.
    """

    def __init__(self, config: Config, name: str) -> None:
        self._config = config
        self._is_listed = False
        self._listed: Node | None = None
        self._seen: Node | None = None
        """The last object; addresses and podCIDRs that it lacks come from earlier ones."""
        self._is_awaited = True
        self._warnings: set[str] = set()
        self._logged = ""
        self.node = own_node(config, None, name)
        """The Node as plans use it."""
        if is_loopback(config.bind_address):
            self._warn(
                f"--bind-address: {ip_text(config.bind_address)} is a loopback address, and not used; {ADDRESS_FIX}"
            )

    @property
    def is_awaited(self) -> bool:
        """Return whether rules should wait for the object, or for its address."""
        return self._is_awaited

    def listed(self, node: Node | None) -> None:
        """Record the current object; None means that there is none. Cheap if it is the same as before."""
        if self._is_listed and node is self._listed:
            return
        self._is_listed, self._listed = True, node
        if node is not None:
            # An update without addresses or podCIDRs keeps the earlier ones: removing the rules of node ports would cost more
            # than serving an address for too long.
            known = self._seen or node
            self._seen = replace(node, ips=node.ips or known.ips, pod_cidrs=node.pod_cidrs or known.pod_cidrs)
            for ip in filter(is_loopback, node.ips):
                self._warn(
                    f"node {node.name}: its address {ip_text(ip)} is a loopback address, and not used; {ADDRESS_FIX}"
                )
            if VIRTUALBOX_NAT in node.ips[:1] and not any(self._config.bind_address):
                self._warn(
                    f"node {node.name}: its address is {ip_text(VIRTUALBOX_NAT)}, which VirtualBox's NAT gives to every"
                    f" machine: if other nodes cannot reach it, {ADDRESS_FIX}"
                )
        self.node = own_node(self._config, self._seen, self.node.name)
        values = {
            "addresses": map(ip_text, self.node.ips),
            "podCIDRs": map(str, self.node.pod_cidrs),
            "zone": [self.node.zone] if self.node.zone else [],
        }
        description = "" if node else "there is no such Node object; "
        description += ", ".join(f"{name} {' '.join(texts) or 'none'}" for name, texts in values.items())
        if description != self._logged:
            self._logged = description
            logger.info("node %s: %s", self.node.name, description)
        # In files a Node without an address does not get one later.
        if self.node.ips or self._config.manifests:
            self._is_awaited = False

    def stop_waiting(self) -> None:
        """Continue without the object or its address."""
        if not self._is_awaited:
            return
        self._is_awaited = False
        if self._seen is None:
            self._warn(
                f"node {self.node.name}: there is no such Node object; going on without its addresses."
                " If it has another name, set --hostname-override"
            )
        else:
            self._warn(f"node {self.node.name}: has no address; going on without, until it has one; {ADDRESS_FIX}")

    def _warn(self, message: str) -> None:
        # Each text once: a Node is updated every few minutes, and most updates change nothing here.
        if message not in self._warnings:
            self._warnings.add(message)
            logger.warning("%s", message)
