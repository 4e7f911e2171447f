"""The structure of a KubeProxyConfiguration (v1alpha1, kube-proxy 1.37), with the option that each field sets.

Every field may be absent or null: Go's decoder takes null for an absent field. `config_file` reads the structs, and
`effective_config` writes them. Limits and defaults are those of the options (`config`).
"""

from typing import Annotated

from msgspec import Meta, Struct, field

from pyproxy.config.config_fields import Number, has_no_effect, sets
from pyproxy.config.ignored_options import JSON_ONLY

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"

_WINDOWS = has_no_effect("is for Windows and has no effect")


class ClientConnection(Struct, rename="camel"):
    """How to connect to the API server."""

    kubeconfig: Annotated[str | None, sets("kubeconfig")] = None
    accept_content_types: Annotated[str | None, has_no_effect(JSON_ONLY)] = None
    content_type: Annotated[str | None, sets("kube_api_content_type")] = None
    qps: Annotated[Number | None, sets("kube_api_qps")] = None
    burst: Annotated[int | None, sets("kube_api_burst")] = None


class VModuleItem(Struct, rename="camel"):
    """The log level of some source files."""

    file_pattern: str
    verbosity: int

    @classmethod
    def from_text(cls, text: str) -> "VModuleItem":
        """Read an item of ``--vmodule``."""
        pattern, _, level = text.partition("=")
        return cls(pattern, int(level))

    def __str__(self) -> str:
        """Return the item as ``--vmodule`` takes it."""
        return f"{self.file_pattern}={self.verbosity}"


class TextLogging(Struct, rename="camel"):
    """Options of the log format text."""

    split_stream: Annotated[bool | None, sets("log_text_split_stream", omit_empty=True)] = None
    info_buffer_size: Annotated[Number | None, sets("log_text_info_buffer_size")] = None


class JsonLogging(Struct, rename="camel"):
    """Options of the log format JSON."""

    split_stream: Annotated[bool | None, sets("log_json_split_stream", omit_empty=True)] = None
    info_buffer_size: Annotated[Number | None, sets("log_json_info_buffer_size")] = None


class LoggingOptions(Struct):
    """Options of the log formats."""

    text: TextLogging | None = None
    json: JsonLogging | None = None


class Logging(Struct, rename="camel"):
    """Logging; ``flushFrequency`` is a duration, or a number of nanoseconds."""

    format: Annotated[str | None, sets("logging_format")] = None
    flush_frequency: Annotated[Number | None, sets("log_flush_frequency_seconds")] = None
    verbosity: Annotated[int | None, sets("v")] = None
    vmodule: Annotated[list[VModuleItem] | None, sets("vmodule", omit_empty=True)] = None
    options: LoggingOptions | None = None


class Iptables(Struct, rename="camel"):
    """The iptables mode; the ipvs mode reads it as well."""

    masquerade_bit: Annotated[int | None, sets("iptables_masquerade_bit", keeps_zero=True)] = None
    masquerade_all: Annotated[bool | None, sets("masquerade_all")] = None
    localhost_node_ports: Annotated[bool | None, sets("iptables_localhost_nodeports", keeps_zero=True)] = None
    sync_period: Annotated[str | None, sets("iptables_sync_period_seconds")] = None
    min_sync_period: Annotated[str | None, sets("iptables_min_sync_period_seconds")] = None


class Ipvs(Struct, rename="camel"):
    """The ipvs mode."""

    sync_period: Annotated[str | None, sets("ipvs_sync_period_seconds")] = None
    min_sync_period: Annotated[str | None, sets("ipvs_min_sync_period_seconds")] = None
    scheduler: Annotated[str | None, sets("ipvs_scheduler")] = None
    exclude_cidrs: Annotated[list[str] | None, sets("ipvs_exclude_cidrs")] = field(name="excludeCIDRs", default=None)
    strict_arp: Annotated[bool | None, sets("ipvs_strict_arp")] = field(name="strictARP", default=None)
    tcp_timeout: Annotated[str | None, sets("ipvs_tcp_timeout_seconds")] = None
    tcp_fin_timeout: Annotated[str | None, sets("ipvs_tcpfin_timeout_seconds")] = None
    udp_timeout: Annotated[str | None, sets("ipvs_udp_timeout_seconds")] = None


class Nftables(Struct, rename="camel"):
    """The nftables mode; it follows the iptables mode here, and so wins over it in mode auto, which reads both."""

    masquerade_bit: Annotated[int | None, sets("iptables_masquerade_bit", keeps_zero=True)] = None
    masquerade_all: Annotated[bool | None, sets("masquerade_all")] = None
    sync_period: Annotated[str | None, sets("iptables_sync_period_seconds")] = None
    min_sync_period: Annotated[str | None, sets("iptables_min_sync_period_seconds")] = None


class Winkernel(Struct, rename="camel"):
    """The mode for Windows."""

    network_name: Annotated[str | None, _WINDOWS] = None
    source_vip: Annotated[str | None, _WINDOWS] = None
    enable_dsr: Annotated[bool | None, _WINDOWS] = field(name="enableDSR", default=None)
    root_hns_endpoint_name: Annotated[str | None, _WINDOWS] = None
    forward_health_check_vip: Annotated[bool | None, _WINDOWS] = None


class DetectLocal(Struct, rename="camel"):
    """How to recognise packets from pods of this node."""

    bridge_interface: Annotated[str | None, sets("pod_bridge_interface")] = None
    interface_name_prefix: Annotated[str | None, sets("pod_interface_name_prefix")] = None


# Pointers in Go, and so are masqueradeBit, localhostNodePorts and oomScoreAdj: zero is a value in these fields.
class Conntrack(Struct, rename="camel"):
    """Kernel parameters of connection tracking."""

    max_per_core: Annotated[int | None, sets("conntrack_max_per_core", keeps_zero=True)] = None
    min: Annotated[int | None, sets("conntrack_min", keeps_zero=True)] = None
    tcp_established_timeout: Annotated[
        str | None, sets("conntrack_tcp_timeout_established_seconds", keeps_zero=True)
    ] = None
    tcp_close_wait_timeout: Annotated[str | None, sets("conntrack_tcp_timeout_close_wait_seconds", keeps_zero=True)] = (
        None
    )
    tcp_be_liberal: Annotated[bool | None, sets("conntrack_tcp_be_liberal")] = None
    udp_timeout: Annotated[str | None, sets("conntrack_udp_timeout_seconds")] = None
    udp_stream_timeout: Annotated[str | None, sets("conntrack_udp_timeout_stream_seconds")] = None


class KubeProxyConfiguration(Struct, rename="camel"):
    """A KubeProxyConfiguration, without ``apiVersion`` and ``kind``."""

    feature_gates: Annotated[dict[str, bool | None] | None, sets("feature_gates", omit_empty=True)] = None
    client_connection: ClientConnection | None = None
    logging: Logging | None = None
    hostname_override: Annotated[str | None, sets("hostname_override")] = None
    bind_address: Annotated[str | None, sets("bind_address")] = None
    healthz_bind_address: Annotated[str | None, sets("healthz_bind_address")] = None
    metrics_bind_address: Annotated[str | None, sets("metrics_bind_address")] = None
    bind_address_hard_fail: Annotated[bool | None, sets("bind_address_hard_fail")] = None
    enable_profiling: Annotated[bool | None, sets("profiling")] = None
    show_hidden_metrics_for_version: Annotated[str | None, sets("show_hidden_metrics_for_version")] = None
    mode: Annotated[str | None, sets("proxy_mode")] = None
    iptables: Iptables | None = None
    ipvs: Ipvs | None = None
    nftables: Nftables | None = None
    winkernel: Winkernel | None = None
    windows_run_as_service: Annotated[bool | None, _WINDOWS, Meta(extra={"omit_empty": True})] = None
    detect_local_mode: Annotated[str | None, sets("detect_local_mode")] = None
    detect_local: DetectLocal | None = None
    cluster_cidr: Annotated[str | None, sets("cluster_cidr")] = field(name="clusterCIDR", default=None)
    node_port_addresses: Annotated[list[str] | None, sets("nodeport_addresses")] = None
    oom_score_adj: Annotated[int | None, sets("oom_score_adj", keeps_zero=True)] = None
    conntrack: Conntrack | None = None
    config_sync_period: Annotated[str | None, sets("config_sync_period_seconds")] = None
    port_range: Annotated[str | None, has_no_effect("is accepted but has no effect, as in kube-proxy")] = None
