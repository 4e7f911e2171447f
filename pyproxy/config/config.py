"""What the user can choose: one frozen Config, the only place where the default of an option is written.

An option is a field of Config or of one of its groups, and is a flag: ``proxy_mode`` is ``--proxy-mode``, ``ipvs.scheduler``
is ``--ipvs-scheduler``. The command line, its help and docs/cli.md are made from the options, and configuration files are
read into the same values (`config.config_file`). Nothing here reads the state of the machine. Names, types and defaults
are those of kube-proxy 1.37 (``cmd/kube-proxy/app/options.go``), limits those of its ``apis/config/validation``, unless
the help says otherwise.

An option is identified by its attribute, the name of its flag in snake_case: ``ipvs_scheduler``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

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
from pyproxy.config.ignored_options import HEALTHZ_PORT, METRICS_PORT, IgnoredOptions
from pyproxy.config.ipvs_options import IpvsOptions
from pyproxy.config.option import (
    group,
    interface_name,
    label_value,
    not_negative,
    one_for_each_family,
    option,
    options_of,
    positive,
    within,
)
from pyproxy.errors import ConfigError
from pyproxy.logs import LogFormat
from pyproxy.model.address import LOOPBACK_IPS, Family, ListenAddress, Network, parse_ip, parse_network
from pyproxy.model.node import DetectLocalMode
from pyproxy.model.suggestion import suggestion


class ProxyMode(Enum):
    """A way to program the kernel; values as ``--proxy-mode`` takes them."""

    AUTO = "auto"
    """The nftables mode if kernel and ``nft`` support everything that it needs, else the iptables mode."""
    IPTABLES = "iptables"
    IPVS = "ipvs"
    NFTABLES = "nftables"


class IptablesVariant(Enum):
    """The kernel interface behind ``iptables``; values as ``--iptables-variant`` takes them."""

    AUTO = "auto"
    """The variant that the node already uses."""
    LEGACY = "legacy"
    NFT = "nft"


class Takeover(Enum):
    """How to deal with kube-proxy on the node; values as ``--takeover`` takes them."""

    AUTO = "auto"
    """Wait for a running kube-proxy to stop; remove its stale rules once our own rules are complete."""
    NEVER = "never"
    """Neither wait nor remove."""


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


def parse_nodeport_addresses(text: str) -> tuple[Network | NodePortAddresses, ...]:
    """Read comma-separated CIDR blocks and keywords."""
    # Keywords are matched exactly, as in kube-proxy; `Primary` is an error.
    found: list[Network | NodePortAddresses] = []
    for item in map(str.strip, parse_strings(text)):
        try:
            found.append(_KEYWORDS.get(item) or parse_network(item))
        except ValueError:
            hint = suggestion(item, _KEYWORDS)
            message = f"{item!r} is not a CIDR block or one of the keywords {', '.join(_KEYWORDS)}{hint}"
            raise ValueError(message) from None
    return tuple(found)


def keywords_once(value: tuple[Network | NodePortAddresses, ...]) -> None:
    """Accept each keyword at most once, as kube-proxy's validation does; a block may be repeated."""
    for word in NodePortAddresses:
        if value.count(word) > 1:
            message = f"has the keyword {word} twice"
            raise ValueError(message)


NODE_NAME = Grammar("NAME", lambda text: text.strip().lower())
NODEPORT_ADDRESSES = Grammar("CIDR|KEYWORD,...", parse_nodeport_addresses, write_list, repeats=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that the user can choose. Times are in seconds; an empty text means that nothing was given.

    Raises:
        ConfigError: a value is out of its limits, or two values contradict each other; the message names the flag.
    """

    # The help of an option says what it does for the user. Values are parsed by its grammar, from flags and files alike, and
    # its check sees the parsed value.
    # The manifests set both variables, so that commands in the agent's container use the agent's configuration.
    config: str = option(
        "",
        PATH,
        "KubeProxyConfiguration file (v1alpha1), such as the one that kubeadm writes. Flags override it.",
        environment="KUBE_PROXY_CONFIG",
    )
    pyproxy_config: str = option(
        "",
        PATH,
        "PyproxyConfiguration file, for pyproxy's own settings. Overrides --config; flags override both.",
        own=True,
        environment="PYPROXY_CONFIG",
    )
    write_config_to: str = option(
        "", PATH, "Write the configuration, including defaults, as a KubeProxyConfiguration to this file and exit."
    )
    manifests: str = option(
        "",
        PATH,
        "Directory or file with Kubernetes objects in YAML or JSON, or - for standard input. Replaces the API server.",
        own=True,
    )
    kubeconfig: str = option(
        "",
        PATH,
        "Kubeconfig file with address and credentials of the API server. Without this flag and --master, pyproxy uses"
        " the pod's service account.",
    )
    master: str = option("", URL, "URL of the API server. Overrides the URL in the kubeconfig.")
    api_servers: tuple[str, ...] = option(
        (),
        URLS,
        "URLs of several API servers, instead of the one in the kubeconfig. pyproxy uses one server until it fails, then"
        " the next one.",
        own=True,
    )
    hostname_override: str = option(
        "",
        NODE_NAME,
        "Name of this node's Node object, instead of the host name. White space around it is removed, and upper case"
        " becomes lower case.",
    )
    bind_address: bytes = option(
        parse_ip("0.0.0.0"),  # noqa: S104 (nothing listens on it)
        ADDRESS,
        "Primary IP of this node; 0.0.0.0 or :: selects the IP of the Node object. Despite its name nothing listens on"
        " it.",
    )
    # In a file and as a flag an empty mode means kube-proxy's default on Linux.
    proxy_mode: ProxyMode = option(
        ProxyMode.IPTABLES,
        one_of(ProxyMode, empty=ProxyMode.IPTABLES),
        "How to program the kernel. auto selects nftables if kernel and nft support everything it needs, else iptables.",
    )
    iptables_variant: IptablesVariant = option(
        IptablesVariant.AUTO,
        one_of(IptablesVariant),
        "Kernel interface behind iptables. auto selects the one that the kubelet and other rules on this node use.",
        own=True,
    )
    takeover: Takeover = option(
        Takeover.AUTO,
        one_of(Takeover),
        "How to deal with kube-proxy on this node. auto waits until kube-proxy has stopped, and removes its rules once"
        " pyproxy's own rules are complete; never does neither.",
        own=True,
    )
    service_proxy_name: str = option(
        "",
        TEXT,
        "Run side-by-side with kube-proxy: serve only Services whose label service.kubernetes.io/service-proxy-name has"
        " this value, and do not touch kube-proxy's rules. For iptables and nftables mode.",
        check=label_value,
        own=True,
    )
    cluster_cidr: tuple[Network, ...] = option(
        (),
        CIDRS,
        "CIDR blocks of the cluster's pods, one for each IP family; for --detect-local-mode=ClusterCIDR.",
        check=one_for_each_family,
    )
    # Packets to a cluster IP that do not come from a pod of this node are masqueraded, so that replies return through it.
    detect_local_mode: DetectLocalMode = option(
        DetectLocalMode.CLUSTER_CIDR,
        one_of(DetectLocalMode, empty=DetectLocalMode.CLUSTER_CIDR),
        "How to recognise packets from pods of this node.",
    )
    pod_bridge_interface: str = option(
        "",
        TEXT,
        "Bridge interface on which packets from pods arrive; for --detect-local-mode=BridgeInterface.",
        check=interface_name(15),
    )
    # One byte less than a name may have (IFNAMSIZ - 1 = 15): a prefix as long as a name would match only that name.
    pod_interface_name_prefix: str = option(
        "",
        TEXT,
        "Prefix of the names of the pods' interfaces; for --detect-local-mode=InterfaceNamePrefix.",
        check=interface_name(14),
    )
    masquerade_all: bool = option(False, SWITCH, "Masquerade all traffic to cluster IPs.")
    # Network plugins use other bits of the mark, so the bit can be moved.
    iptables_masquerade_bit: int = option(
        14, INT, "Bit of the packet mark, 0 to 31, that marks packets to masquerade.", check=within(0, 31)
    )
    nodeport_addresses: tuple[Network | NodePortAddresses, ...] = option(
        (),
        NODEPORT_ADDRESSES,
        "Local addresses that serve node ports: CIDR blocks and the keywords primary (the IP of the Node object),"
        " localhost (127.0.0.0/8 and ::1/128) and all. Without this flag: all; in nftables mode primary.",
        check=keywords_once,
    )
    iptables_localhost_nodeports: bool = option(True, SWITCH, "Also serve node ports on IPv4 loopback addresses.")
    # None is not 0: without a value the time between syncs grows with the cost of a sync.
    iptables_min_sync_period_seconds: float | None = option(
        None,
        DURATION,
        "Shortest time between two syncs; 0 for no limit. Without this flag the time depends on how long a sync takes.",
        check=not_negative,
    )
    iptables_sync_period_seconds: float = option(
        30.0,
        DURATION,
        "Longest time until a failed sync is retried, and time between two retries of quarantined Services. It is not a"
        " resync period: external changes are detected independently of it. Only if the kernel cannot report every change"
        " (legacy iptables), all rules are compared every ten periods, unless --drift-check-interval is 0.",
        check=positive,
    )
    # kube-proxy's limits of connection tracking. A node forwards the connections of all its pods, so the kernel's limit, which
    # depends on the memory, can be too low; the larger of the two values below counts.
    conntrack_max_per_core: int = option(
        32768,
        INT,
        "Largest number of tracked connections per CPU; 0 keeps the kernel's limit and ignores --conntrack-min.",
        check=not_negative,
    )
    conntrack_min: int = option(
        131072,
        INT,
        "Lower bound for the largest number of tracked connections, regardless of --conntrack-max-per-core.",
        check=not_negative,
    )
    # The kernel keeps an idle connection for five days, which fills the table with connections of pods that are gone.
    conntrack_tcp_timeout_established_seconds: float = option(
        86400.0,
        DURATION,
        "Time for which an idle TCP connection is tracked; 0 keeps the kernel's value.",
        check=not_negative,
    )
    # The kernel forgets a half-closed connection after 60 s; a server may take longer to finish its response.
    conntrack_tcp_timeout_close_wait_seconds: float = option(
        3600.0,
        DURATION,
        "Time for which a TCP connection in CLOSE_WAIT is tracked; 0 keeps the kernel's value.",
        check=not_negative,
    )
    # An INVALID packet is not translated back: the client sees the pod's address, and resets the connection.
    conntrack_tcp_be_liberal: bool = option(
        False, SWITCH, "Track TCP packets outside the window as part of their connection instead of as invalid."
    )
    conntrack_udp_timeout_seconds: float = option(
        0.0,
        DURATION,
        "Time for which a UDP flow without replies is tracked; 0 keeps the kernel's value.",
        check=not_negative,
    )
    conntrack_udp_timeout_stream_seconds: float = option(
        0.0,
        DURATION,
        "Time for which a UDP flow with replies is tracked; 0 keeps the kernel's value.",
        check=not_negative,
    )
    # Loopback, because metrics tell much about a cluster; the health server must answer load balancers.
    metrics_bind_address: ListenAddress | ListenSelector | None = option(
        ListenAddress(LOOPBACK_IPS[Family.IPV4], METRICS_PORT),
        listen_selector(METRICS_PORT),
        "Address of the metrics server: an IP, or a CIDR block or interface for all local addresses in it. Empty or"
        " port 0 disables the server.",
    )
    healthz_bind_address: ListenAddress | None = option(
        ListenAddress(parse_ip("0.0.0.0"), HEALTHZ_PORT),  # noqa: S104 (load balancers connect from outside)
        listen_address(HEALTHZ_PORT),
        "Address of the health server; 0.0.0.0 or :: for all addresses of both families. Empty or port 0 disables the"
        " server.",
    )
    control_socket: str = option(
        "/run/pyproxy/control.sock",
        PATH,
        "Unix socket on which the agent answers commands of root, such as pyproxy services. Empty disables it.",
        own=True,
    )
    drift_check_interval_seconds: float = option(
        600.0,
        DURATION,
        "Time between two comparisons of all rules in the kernel with those that pyproxy wrote; 0 disables them. In"
        " legacy iptables and IPVS mode the time is at most ten sync periods. Changes that the kernel reports are"
        " repaired within seconds in any case.",
        check=not_negative,
        own=True,
    )
    bind_address_hard_fail: bool = option(
        False, SWITCH, "Exit if pyproxy cannot listen on the address for health or metrics, instead of retrying."
    )
    init_only: bool = option(
        False, SWITCH, "Only set the kernel parameters that need full privileges, then exit; for an init container."
    )
    # kube-proxy's value. -1000 would exempt the process altogether, even if it had a memory leak.
    oom_score_adj: int = option(
        -999,
        INT,
        "Value for /proc/self/oom_score_adj, -1000 to 1000; the kernel kills processes with low values last.",
        check=within(-1000, 1000),
    )
    v: int = option(0, COUNT, "Log level: 2 and 3 log each sync, 4 and above every step.")
    logging_format: LogFormat = option(LogFormat.TEXT, one_of(LogFormat), "Format of log lines.")
    ipvs: IpvsOptions = group(IpvsOptions(), prefix="ipvs")
    ignored: IgnoredOptions = group(IgnoredOptions())

    def __post_init__(self) -> None:
        for about in OPTIONS.values():
            about.require_usable(about.value(self))
        # The checks of single options came first: what follows compares values that are valid.
        for mode, shortest, longest in (
            ("iptables", self.iptables_min_sync_period_seconds, self.iptables_sync_period_seconds),
            ("ipvs", self.ipvs.min_sync_period_seconds, self.ipvs.sync_period_seconds),
        ):
            if shortest is not None and shortest > longest:
                message = (
                    f"--{mode}-min-sync-period: {write_duration(shortest)} is longer than"
                    f" --{mode}-sync-period, {write_duration(longest)}"
                )
                raise ConfigError(message)
        needed = {
            DetectLocalMode.BRIDGE_INTERFACE: ("pod-bridge-interface", self.pod_bridge_interface),
            DetectLocalMode.INTERFACE_NAME_PREFIX: ("pod-interface-name-prefix", self.pod_interface_name_prefix),
        }
        flag, value = needed.get(self.detect_local_mode, ("", "nothing is needed"))
        if not value:
            message = f"--{flag}: must be given with --detect-local-mode={self.detect_local_mode.value}"
            raise ConfigError(message)
        if self.manifests and (self.kubeconfig or self.master):
            message = "--manifests: replaces the API server; --kubeconfig and --master cannot be given with it"
            raise ConfigError(message)
        if self.api_servers and (self.manifests or self.master):
            message = "--api-servers: selects the API servers; --manifests and --master cannot be given with it"
            raise ConfigError(message)

    @property
    def min_sync_period_seconds(self) -> float | None:
        """Return the shortest time between two syncs in this mode; None if it depends on how long a sync takes."""
        is_ipvs = self.proxy_mode is ProxyMode.IPVS
        return self.ipvs.min_sync_period_seconds if is_ipvs else self.iptables_min_sync_period_seconds

    @property
    def sync_period_seconds(self) -> float:
        """Return the longest time until a failed sync is retried in this mode."""
        return self.ipvs.sync_period_seconds if self.proxy_mode is ProxyMode.IPVS else self.iptables_sync_period_seconds

    @property
    def own_ports(self) -> dict[int, str]:
        """Return the ports on which the agent listens with this configuration, with the name of each for messages."""
        servers = {"metrics-bind-address": self.metrics_bind_address, "healthz-bind-address": self.healthz_bind_address}
        return {address.port: f"pyproxy (--{flag})" for flag, address in servers.items() if address is not None}


OPTIONS = options_of(Config)
"""All options, by attribute."""


def build_config(values: Mapping[str, Any]) -> Config:
    """Return a Config with these values, by attribute, and defaults for all other options.

    Raises:
        ConfigError: see `Config`.
    """
    grouped: dict[str, dict[str, Any]] = {}
    for attribute, value in values.items():
        about = OPTIONS[attribute]
        grouped.setdefault(about.group, {})[about.name] = value
    # A group is frozen as well: replace makes a copy of its defaults with the given values.
    ungrouped = grouped.pop("", {})
    defaults = Config()
    groups = {name: replace(getattr(defaults, name), **inner) for name, inner in grouped.items()}
    return Config(**ungrouped, **groups)


def ignored_warnings(given: Iterable[str]) -> tuple[str, ...]:
    """Return a warning for each given attribute that has no effect."""
    return tuple(f"--{OPTIONS[name].flag} {OPTIONS[name].ignored}" for name in given if OPTIONS[name].ignored)
