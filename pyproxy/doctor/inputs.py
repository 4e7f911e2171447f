"""What all checks start from: the configuration, the objects in files, the agent's answers and the installed rules."""

from dataclasses import dataclass, field

from pyproxy.config.config import Config, ProxyMode
from pyproxy.linux.iptables_programs import Variant
from pyproxy.model.address import Family, Network
from pyproxy.model.node import Node
from pyproxy.plan.service_values import ServiceValues

PYPROXY = "pyproxy"
KUBE_PROXY = "kube-proxy"


@dataclass(frozen=True, slots=True)
class Objects:
    """The Services as this node serves them, from the agent or from files."""

    services: tuple[ServiceValues, ...]
    nodes: tuple[Node, ...] = ()
    """Those in files."""
    has_own_node: bool | None = None
    """Whether the agent finds its own Node; None if the objects come from files."""


@dataclass(frozen=True, slots=True)
class AgentAnswers:
    """What the servers of the proxy on this node answer."""

    proxy: str = ""
    """`PYPROXY`, `KUBE_PROXY`, or nothing if no proxy answers."""
    mode: str = ""
    metrics_url: str = ""
    health_url: str = ""
    """Empty if no health server is configured."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Samples by name and labels."""
    healthz: dict[str, object] = field(default_factory=dict)
    readyz: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, order=True)
class RuleSet:
    """Rules of one proxy in one mode that are in the kernel."""

    owner: str
    """`PYPROXY` or `KUBE_PROXY`."""
    mode: str
    variant: str = ""
    """Variant of iptables; empty for nftables mode."""

    def __str__(self) -> str:
        return f"{self.owner} in {self.mode} mode{f' (iptables-{self.variant})' if self.variant else ''}"


@dataclass(frozen=True, slots=True)
class InstalledRules:
    """The rule sets in the kernel."""

    found: tuple[RuleSet, ...] = ()
    kubelet_variants: tuple[Variant, ...] = ()
    """The variants of iptables in which the kubelet has a chain."""
    error: str = ""
    """Why they could not be read."""

    @property
    def service_variants(self) -> list[Variant]:
        """The variants of iptables that have rules of Services."""
        return [variant for variant in Variant if any(each.variant == variant.value for each in self.found)]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The input of every check."""

    config: Config
    node: Node
    """Has addresses only if a file or a flag has them."""
    objects: Objects | None = None
    """None without ``--manifests`` and without an agent."""
    objects_error: str = ""
    """Why the agent, which runs, cannot be asked."""
    agent: AgentAnswers = AgentAnswers()
    rules: InstalledRules = InstalledRules()
    families: tuple[Family, ...] = tuple(Family)
    """Those that the kernel supports."""

    @property
    def pod_networks(self) -> tuple[Network, ...]:
        """The networks of pods, as far as the configuration and files say."""
        return tuple(dict.fromkeys((*self.node.pod_cidrs, *self.config.cluster_cidr)))

    @property
    def mode(self) -> str:
        """The mode of the agent, or else of the rules in the kernel, or else of the configuration."""
        # A running proxy knows its mode; rules may be left from another one, and the configuration may have changed since.
        if self.agent.mode:
            return self.agent.mode
        if self.rules.found:
            return max(self.rules.found).mode
        return "" if self.config.proxy_mode is ProxyMode.AUTO else self.config.proxy_mode.value
