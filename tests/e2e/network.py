"""The network of the cluster: one bridge in the control plane's namespace, to which the namespaces of the nodes are connected.

Pods of different nodes reach each other by routes, as with a CNI plugin that uses no tunnel. The namespace of the control plane
is also where the suite runs: it is the client from outside the cluster, and the router for addresses of load balancers.
"""

import subprocess
from dataclasses import dataclass

CONTROL_NAMESPACE = "pyproxy-e2e-control"
CONTROL_ADDRESS = "172.18.0.1"
_CONTROL_ADDRESS_IPV6 = "fd00:18::1"
OUTSIDE_ADDRESS = "198.18.0.1"
"""The client's address towards load balancers: a test needs a client outside of the nodes' subnet."""
POD_CIDRS = "10.244.0.0/16,fd00:10:244::/56"


@dataclass(frozen=True, slots=True)
class NodeNetwork:
    """The names and addresses of one node."""

    number: int

    @property
    def name(self) -> str:
        """The name of the Node."""
        return f"node{self.number}"

    @property
    def namespace(self) -> str:
        """The name of its network namespace, and of its cgroup."""
        return f"pyproxy-e2e-{self.name}"

    @property
    def addresses(self) -> tuple[str, str]:
        """Its addresses, IPv4 and IPv6."""
        return f"172.18.0.1{self.number}", f"fd00:18::1{self.number}"

    @property
    def pod_cidrs(self) -> tuple[str, str]:
        """The subnets of its pods, IPv4 and IPv6."""
        return f"10.244.{self.number}.0/24", f"fd00:10:244:{self.number}::/64"

    @property
    def zone(self) -> str:
        """Its zone: each node has its own."""
        return f"zone{self.number}"


NODES = tuple(NodeNetwork(number) for number in (1, 2, 3))
NAMESPACES = (CONTROL_NAMESPACE, *(node.namespace for node in NODES))


def create() -> None:
    """Create the namespaces, links, addresses and routes."""
    _add_namespace(CONTROL_NAMESPACE, "net.ipv4.fib_multipath_hash_policy=1", "net.bridge.bridge-nf-call-iptables=0")
    _ip(CONTROL_NAMESPACE, "link add bridge type bridge")
    _ip(CONTROL_NAMESPACE, f"address add {CONTROL_ADDRESS}/24 dev bridge")
    _ip(CONTROL_NAMESPACE, f"address add {_CONTROL_ADDRESS_IPV6}/64 dev bridge nodad")
    _ip(CONTROL_NAMESPACE, f"address add {OUTSIDE_ADDRESS}/32 dev lo")
    _ip(CONTROL_NAMESPACE, "link set bridge up")
    for node in NODES:
        _add_namespace(
            node.namespace,
            *("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0"),
            *("net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1"),
        )
        _ip(node.namespace, f"link add eth0 type veth peer name {node.name} netns {CONTROL_NAMESPACE}")
        _ip(CONTROL_NAMESPACE, f"link set {node.name} master bridge up")
        ipv4, ipv6 = node.addresses
        _ip(node.namespace, f"address add {ipv4}/24 dev eth0")
        _ip(node.namespace, f"address add {ipv6}/64 dev eth0 nodad")
        _ip(node.namespace, "link set eth0 up")
        for gateway in (CONTROL_ADDRESS, _CONTROL_ADDRESS_IPV6):
            _ip(node.namespace, f"route add default via {gateway}")
    for node in NODES:
        for namespace in NAMESPACES:
            if namespace != node.namespace:
                for subnet, gateway in zip(node.pod_cidrs, node.addresses, strict=True):
                    _ip(namespace, f"route add {subnet} via {gateway}")


def remove() -> None:
    """End all processes in the namespaces, those of an interrupted run included, and remove the namespaces."""
    present = subprocess.run(["ip", "netns", "list"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    for namespace in NAMESPACES:
        if namespace in present:
            pids = subprocess.run(
                ["ip", "netns", "pids", namespace], check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            subprocess.run(["kill", "-9", *pids.split()], check=False, stderr=subprocess.DEVNULL)
            subprocess.run(["ip", "netns", "delete", namespace], check=True)


def _add_namespace(name: str, *settings: str) -> None:
    subprocess.run(["ip", "netns", "add", name], check=True)
    _ip(name, "link set lo up")
    forwarding = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    subprocess.run(["ip", "netns", "exec", name, "sysctl", "--quiet", "--write", *forwarding, *settings], check=True)


def _ip(namespace: str, words: str) -> None:
    subprocess.run(["ip", "-netns", namespace, *words.split()], check=True)
