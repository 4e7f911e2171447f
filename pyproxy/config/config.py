"""What the user can ask for: one frozen Config, the only place where the default of a flag with effect is written.

A field of Config is a flag: ``proxy_mode`` is ``--proxy-mode``, ``iptables_sync_period_seconds`` is
``--iptables-sync-period``. Command line, help and docs are made from these fields, and a configuration file is read
into the same values (`config.config_file`). Nothing here looks at the machine. Names, types and defaults are those of kube-proxy 1.37
(``cmd/kube-proxy/app/options.go``), limits those of its ``apis/config/validation``, unless the help says otherwise.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum

from pyproxy.config.grammar import (
    ADDRESS,
    CIDRS,
    COUNT,
    DURATION,
    INT,
    PATH,
    SWITCH,
    TEXT,
    URL,
    URLS,
    Grammar,
    ListenSelector,
    listen_address,
    listen_selector,
    one_of,
    parse_strings,
    write_duration,
    write_list,
)
from pyproxy.config.ignored_flags import HEALTHZ_PORT, METRICS_PORT
from pyproxy.config.ipvs_flags import IpvsFlags
from pyproxy.config.option import (
    interface_name,
    not_negative,
    one_for_each_family,
    option,
    options_of,
    positive,
    within,
)
from pyproxy.errors import ConfigError
from pyproxy.logs import LogFormat
from pyproxy.model.address import ListenAddress, Network, parse_ip, parse_network
from pyproxy.model.node import DetectLocalMode


class ProxyMode(Enum):
    """A way to program the kernel; values as ``--proxy-mode`` takes them."""

    AUTO = "auto"
    """The nftables mode where kernel and ``nft`` have all that it needs, else the iptables mode."""
    IPTABLES = "iptables"
    IPVS = "ipvs"
    NFTABLES = "nftables"


class IptablesVariant(Enum):
    """Which kernel interface behind ``iptables`` to program; values as ``--iptables-variant`` takes them."""

    AUTO = "auto"
    """The one that the node uses already."""
    LEGACY = "legacy"
    NFT = "nft"


class NodePortAddresses(Enum):
    """A keyword of ``--nodeport-addresses`` beside CIDR blocks (kube-proxy 1.37, ``expandNodePortAddressKeywords``)."""

    PRIMARY = "primary"
    """The node's own IP in each family."""
    LOCALHOST = "localhost"
    """127.0.0.0/8 and ::1/128."""
    ALL = "all"
    """0.0.0.0/0 and ::/0."""

    def __str__(self) -> str:
        """Return the keyword as it is typed."""
        return self.value


_KEYWORDS = {word.value: word for word in NodePortAddresses}


def _parse_nodeport_addresses(text: str) -> tuple[Network | NodePortAddresses, ...]:
    return tuple(_KEYWORDS.get(item) or _node_port_block(item) for item in map(str.strip, parse_strings(text)))


def _node_port_block(text: str) -> Network:
    try:
        return parse_network(text)
    except ValueError:
        close = get_close_matches(text.lower(), _KEYWORDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        message = f"{text!r} is not a CIDR block or one of the keywords {', '.join(_KEYWORDS)}{hint}"
        raise ValueError(message) from None


def _keywords_once(value: tuple[Network | NodePortAddresses, ...]) -> None:
    """Take each keyword at most once, as kube-proxy's validation does; a block may be repeated."""
    for word in NodePortAddresses:
        if value.count(word) > 1:
            message = f"has the keyword {word} twice"
            raise ValueError(message)


NODE_NAME = Grammar("NAME", lambda text: text.strip().lower())
NODEPORT_ADDRESSES = Grammar("CIDR|KEYWORD,...", _parse_nodeport_addresses, write_list, repeats=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(IpvsFlags):
    """Everything that the user can choose. Times are in seconds; an empty text means that nothing was given.

    Raises:
        ConfigError: a value is out of its limits, or two values contradict each other; the message names the flag.
    """

    config: str = option("", PATH, "KubeProxyConfiguration file (v1alpha1), as kubeadm writes it; flags win over it.")
    pyproxy_config: str = option(
        "",
        PATH,
        "PyproxyConfiguration file, for what is pyproxy's own; wins over --config, and flags win over it.",
        own=True,
    )
    write_config_to: str = option(
        "", PATH, "Write the configuration as a KubeProxyConfiguration, defaults included, to this file and exit."
    )
    manifests: str = option(
        "",
        PATH,
        "Directory or file with Kubernetes objects in YAML or JSON, or - for standard input; replaces the API server.",
        own=True,
    )
    kubeconfig: str = option(
        "",
        PATH,
        "Kubeconfig that says how to reach the API server. Without it and --master: the pod's service account.",
    )
    master: str = option("", URL, "URL of the API server; wins over the one in the kubeconfig.")
    api_servers: tuple[str, ...] = option(
        (),
        URLS,
        "URLs of several API servers, in place of the kubeconfig's: one is used for as long as it answers, then the next.",
        own=True,
    )
    hostname_override: str = option(
        "", NODE_NAME, "Name of this node's Node object; without it, the host name. Trimmed and lower-cased."
    )
    bind_address: bytes = option(
        parse_ip("0.0.0.0"),  # noqa: S104 (nothing listens on it)
        ADDRESS,
        "Primary IP of this node; 0.0.0.0 and :: mean the Node object's. Despite its name nothing listens on it.",
    )
    proxy_mode: ProxyMode = option(
        ProxyMode.IPTABLES,
        one_of(ProxyMode, empty=ProxyMode.IPTABLES),
        "How to program the kernel; auto: nftables where kernel and nft have all it needs, else iptables.",
    )
    iptables_variant: IptablesVariant = option(
        IptablesVariant.AUTO,
        one_of(IptablesVariant),
        "Kernel interface behind iptables; auto uses the one that this node's kubelet and other rules use.",
        own=True,
    )
    cluster_cidr: tuple[Network, ...] = option(
        (),
        CIDRS,
        "Addresses of the cluster's pods, one block for each IP family; for --detect-local-mode=ClusterCIDR.",
        check=one_for_each_family,
    )
    detect_local_mode: DetectLocalMode = option(
        DetectLocalMode.CLUSTER_CIDR,
        one_of(DetectLocalMode, empty=DetectLocalMode.CLUSTER_CIDR),
        "How to tell that a packet comes from a pod.",
    )
    pod_bridge_interface: str = option(
        "",
        TEXT,
        "Bridge that pods' packets come in on; for --detect-local-mode=BridgeInterface.",
        check=interface_name(15),
    )
    pod_interface_name_prefix: str = option(
        "",
        TEXT,
        "How the names of pods' interfaces begin; for --detect-local-mode=InterfaceNamePrefix.",
        check=interface_name(14),
    )
    masquerade_all: bool = option(False, SWITCH, "Masquerade all traffic to cluster IPs.")
    iptables_masquerade_bit: int = option(
        14, INT, "Bit of the packet mark, 0 to 31, that says: masquerade this packet.", check=within(0, 31)
    )
    nodeport_addresses: tuple[Network | NodePortAddresses, ...] = option(
        (),
        NODEPORT_ADDRESSES,
        "Local addresses on which node ports answer: CIDR blocks and the keywords primary (the Node object's), localhost"
        " (127.0.0.0/8 and ::1/128) and all. Without the flag: all; in nftables mode primary.",
        check=_keywords_once,
    )
    iptables_localhost_nodeports: bool = option(True, SWITCH, "Let node ports answer on IPv4 loopback addresses too.")
    iptables_min_sync_period_seconds: float | None = option(
        None,
        DURATION,
        "Shortest time between two writes to the kernel; 0: none. Without the flag: chosen by what a write costs.",
        check=not_negative,
    )
    iptables_sync_period_seconds: float = option(
        30.0,
        DURATION,
        "Longest time until a failed sync is repeated. External changes are detected at any time, not by this period.",
        check=positive,
    )
    conntrack_max_per_core: int = option(
        32768,
        INT,
        "Connections to track for each CPU; 0 leaves the kernel's limit, and --conntrack-min, alone.",
        check=not_negative,
    )
    conntrack_min: int = option(
        131072, INT, "Connections to track at least, whatever --conntrack-max-per-core comes to.", check=not_negative
    )
    conntrack_tcp_timeout_established_seconds: float = option(
        86400.0,
        DURATION,
        "How long an idle TCP connection is tracked; 0 leaves the kernel's value.",
        check=not_negative,
    )
    conntrack_tcp_timeout_close_wait_seconds: float = option(
        3600.0,
        DURATION,
        "How long a TCP connection in CLOSE_WAIT is tracked; 0 leaves the kernel's value.",
        check=not_negative,
    )
    conntrack_tcp_be_liberal: bool = option(
        False, SWITCH, "Let TCP packets outside the window pass as part of their connection."
    )
    conntrack_udp_timeout_seconds: float = option(
        0.0, DURATION, "How long a UDP flow without reply is tracked; 0 leaves the kernel's value.", check=not_negative
    )
    conntrack_udp_timeout_stream_seconds: float = option(
        0.0, DURATION, "How long a UDP flow with replies is tracked; 0 leaves the kernel's value.", check=not_negative
    )
    metrics_bind_address: ListenAddress | ListenSelector | None = option(
        ListenAddress(parse_ip("127.0.0.1"), METRICS_PORT),
        listen_selector(METRICS_PORT),
        "Where metrics are served: on an address, or on all that are in a CIDR block or of an interface; empty or port 0:"
        " nowhere.",
    )
    healthz_bind_address: ListenAddress | None = option(
        ListenAddress(parse_ip("0.0.0.0"), HEALTHZ_PORT),  # noqa: S104 (load balancers ask from outside)
        listen_address(HEALTHZ_PORT),
        "Where health is served; empty or port 0: nowhere. 0.0.0.0 and :: are every address of both families.",
    )
    bind_address_hard_fail: bool = option(
        False, SWITCH, "Exit when an address for health or metrics cannot be had; without it, it is tried again."
    )
    init_only: bool = option(
        False, SWITCH, "Only set the kernel settings that need full privileges, then exit; for an init container."
    )
    oom_score_adj: int = option(
        -999,
        INT,
        "Value for /proc/self/oom_score_adj, -1000 to 1000; the lower, the later the kernel kills pyproxy.",
        check=within(-1000, 1000),
    )
    v: int = option(0, COUNT, "Log level: 2 and 3 tell each sync, 4 and above every step.")
    logging_format: LogFormat = option(LogFormat.TEXT, one_of(LogFormat), "How log lines look.")

    def __post_init__(self) -> None:
        for attribute, about in OPTIONS.items():
            about.require_usable(getattr(self, attribute))
        self._require_ordered_periods()
        self._require_interface()
        self._require_one_source()

    @property
    def min_sync_period_seconds(self) -> float | None:
        """Return the shortest time between two writes in this mode; None: chosen by what a write costs."""
        is_ipvs = self.proxy_mode is ProxyMode.IPVS
        return self.ipvs_min_sync_period_seconds if is_ipvs else self.iptables_min_sync_period_seconds

    @property
    def sync_period_seconds(self) -> float:
        """Return the time between two looks at what failed, and at what others did, in this mode."""
        return self.ipvs_sync_period_seconds if self.proxy_mode is ProxyMode.IPVS else self.iptables_sync_period_seconds

    @property
    def own_ports(self) -> dict[int, str]:
        """Return the ports that this configuration makes the agent listen on, and how messages name each."""
        servers = {"metrics-bind-address": self.metrics_bind_address, "healthz-bind-address": self.healthz_bind_address}
        return {address.port: f"pyproxy (--{flag})" for flag, address in servers.items() if address is not None}

    def _require_ordered_periods(self) -> None:
        for mode, shortest, longest in (
            ("iptables", self.iptables_min_sync_period_seconds, self.iptables_sync_period_seconds),
            ("ipvs", self.ipvs_min_sync_period_seconds, self.ipvs_sync_period_seconds),
        ):
            if shortest is not None and shortest > longest:
                message = (
                    f"--{mode}-min-sync-period: {write_duration(shortest)} is longer than"
                    f" --{mode}-sync-period, {write_duration(longest)}"
                )
                raise ConfigError(message)

    def _require_interface(self) -> None:
        needed = {
            DetectLocalMode.BRIDGE_INTERFACE: ("pod-bridge-interface", self.pod_bridge_interface),
            DetectLocalMode.INTERFACE_NAME_PREFIX: ("pod-interface-name-prefix", self.pod_interface_name_prefix),
        }
        flag, value = needed.get(self.detect_local_mode, ("", "nothing is needed"))
        if not value:
            message = f"--{flag}: must be given with --detect-local-mode={self.detect_local_mode.value}"
            raise ConfigError(message)

    def _require_one_source(self) -> None:
        if self.manifests and (self.kubeconfig or self.master):
            message = "--manifests: replaces the API server; --kubeconfig and --master cannot be given with it"
            raise ConfigError(message)
        if self.api_servers and (self.manifests or self.master):
            message = "--api-servers: are the API servers; --manifests and --master cannot be given with it"
            raise ConfigError(message)


OPTIONS = options_of(Config)
"""Attribute of Config to what is known of its flag."""


def ignored_warnings(given: Iterable[str]) -> tuple[str, ...]:
    """Return a warning for each given attribute that pyproxy does not act on."""
    return tuple(f"--{OPTIONS[name].flag} {OPTIONS[name].ignored}" for name in given if OPTIONS[name].ignored)
