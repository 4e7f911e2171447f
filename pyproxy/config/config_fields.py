"""The fields of a KubeProxyConfiguration (v1alpha1, kube-proxy 1.37), each beside the flag that says the same.

Law of this file: a table, and how the types in it become text of flags and come back. Which file a value stands in, and
which of several counts, is `config_file`'s. Limits and defaults are the flag's (`config`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyproxy.config.grammar import Grammar, write_bool
from pyproxy.config.ignored_flags import JSON_ONLY

Write = Callable[[Any, Grammar[object]], object]
"""The value of a flag, with the flag's grammar, as JSON has it."""


@dataclass(frozen=True, slots=True)
class Type:
    """A type of a field."""

    read: Callable[[object], str]
    """A value of the file, which is not null, as the text that the flag would have; ValueError if of the wrong kind."""
    write: Write
    empty: object = ""
    """What stands in a file where nothing is said, for fields without a flag."""


def _wrong(value: object, wanted: str) -> ValueError:
    return ValueError(f"{json.dumps(value)} is not {wanted}")


def _read_text(value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(value, "a text")
    return value


def _read_switch(value: object) -> str:
    if not isinstance(value, bool):
        raise _wrong(value, "true or false")
    return write_bool(value)


def _read_number(value: object) -> str:
    """Take a whole number; one with a point comes as text from our reader of YAML, and so do quantities."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _wrong(value, "a number")
    return str(value)


def _read_nanoseconds(value: object) -> str:
    """Take a duration as text, or a number of nanoseconds."""
    return f"{value}ns" if isinstance(value, int) and not isinstance(value, bool) else _read_text(value)


def _read_list(value: object) -> str:
    if not isinstance(value, list):
        raise _wrong(value, "a list")
    return ",".join(map(_read_text, value))


def _read_gates(value: object) -> str:
    if not isinstance(value, dict):
        raise _wrong(value, "a mapping of names to true or false")
    return ",".join(f"{name}={_read_switch(wanted)}" for name, wanted in value.items())


def _read_levels(value: object) -> str:
    try:
        return ",".join(f"{item['filePattern']}={item['verbosity']}" for item in value)  # type: ignore[attr-defined]  # as below
    except (TypeError, KeyError):
        raise _wrong(value, "a list of filePattern and verbosity") from None


def _read_any(value: object) -> str:
    """Take what a flag could be given: a text, a number, true or false, or a list of texts."""
    match value:
        case bool():
            return write_bool(value)
        case int() | str():
            return str(value)
        case list():
            return _read_list(value)
    raise _wrong(value, "a text, a number, true or false, or a list")


def _write_text(value: object, grammar: Grammar[object]) -> str:
    return grammar.write(value)


def _write_number(value: float, _: Grammar[object]) -> float:
    return int(value) if value == int(value) else value


def _write_switch(value: bool, _: Grammar[object]) -> bool:  # noqa: FBT001  # one of many types
    return value


def _write_list(value: object, grammar: Grammar[object]) -> list[str] | None:
    text = grammar.write(value)
    return text.split(",") if text else None


def _write_gates(value: tuple[tuple[str, bool], ...], _: Grammar[object]) -> dict[str, bool]:
    return dict(value)


def _write_levels(value: str, _: Grammar[object]) -> list[dict[str, object]]:
    pairs = (item.partition("=") for item in value.split(",") if item)
    return [{"filePattern": pattern, "verbosity": int(level)} for pattern, _, level in pairs]


def _write_duration(seconds: float | None, _: Grammar[object]) -> str:
    return go_duration(seconds or 0.0)


def go_duration(seconds: float) -> str:
    """Write a duration as Go's ``Duration.String`` does: ``24h0m0s``, ``1m30s``, ``500ms``."""
    if seconds < 0:
        return f"-{go_duration(-seconds)}"
    if 0 < seconds < 1:
        unit, factor = next(pair for pair in (("ms", 10**3), ("µs", 10**6), ("ns", 10**9)) if seconds * pair[1] >= 1)
        return f"{_shortest(seconds * factor)}{unit}"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    head = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{head}{_shortest(rest)}s"


def _shortest(number: float) -> str:
    return f"{number:.9f}".rstrip("0").rstrip(".")


_TEXT = Type(_read_text, _write_text)
_SWITCH = Type(_read_switch, _write_switch, empty=False)
_NUMBER = Type(_read_number, _write_number)
_QUANTITY = Type(_read_number, _write_text)
_DURATION = Type(_read_text, _write_duration)
_LOG_DURATION = Type(_read_nanoseconds, _write_duration)
_LIST = Type(_read_list, _write_list)
_GATES = Type(_read_gates, _write_gates)
_LEVELS = Type(_read_levels, _write_levels)
ANY = Type(_read_any, _write_text)
"""Of a setting that is pyproxy's own, whatever its flag takes."""


@dataclass(frozen=True, slots=True)
class ConfigField:
    """A field of a file."""

    attribute: str
    """Of Config; empty where no flag says the same."""
    type: Type
    keeps_zero: bool = False
    """Zero and false are values; in other fields they stand for the default."""
    ignored: str = ""
    """What a warning says of a field without a flag."""
    may_be_left_out: bool = False
    """kube-proxy writes it only where it says something (``omitempty``)."""


_WINDOWS = "is for Windows, and not acted on"

FIELDS: Mapping[str, ConfigField] = {
    "featureGates": ConfigField("feature_gates", _GATES, may_be_left_out=True),
    "clientConnection.kubeconfig": ConfigField("kubeconfig", _TEXT),
    "clientConnection.acceptContentTypes": ConfigField("", _TEXT, ignored=JSON_ONLY),
    "clientConnection.contentType": ConfigField("kube_api_content_type", _TEXT),
    "clientConnection.qps": ConfigField("kube_api_qps", _NUMBER),
    "clientConnection.burst": ConfigField("kube_api_burst", _NUMBER),
    "logging.format": ConfigField("logging_format", _TEXT),
    "logging.flushFrequency": ConfigField("log_flush_frequency_seconds", _LOG_DURATION),
    "logging.verbosity": ConfigField("v", _NUMBER),
    "logging.vmodule": ConfigField("vmodule", _LEVELS, may_be_left_out=True),
    "logging.options.text.splitStream": ConfigField("log_text_split_stream", _SWITCH, may_be_left_out=True),
    "logging.options.text.infoBufferSize": ConfigField("log_text_info_buffer_size", _QUANTITY),
    "logging.options.json.splitStream": ConfigField("log_json_split_stream", _SWITCH, may_be_left_out=True),
    "logging.options.json.infoBufferSize": ConfigField("log_json_info_buffer_size", _QUANTITY),
    "hostnameOverride": ConfigField("hostname_override", _TEXT),
    "bindAddress": ConfigField("bind_address", _TEXT),
    "healthzBindAddress": ConfigField("healthz_bind_address", _TEXT),
    "metricsBindAddress": ConfigField("metrics_bind_address", _TEXT),
    "bindAddressHardFail": ConfigField("bind_address_hard_fail", _SWITCH),
    "enableProfiling": ConfigField("profiling", _SWITCH),
    "showHiddenMetricsForVersion": ConfigField("show_hidden_metrics_for_version", _TEXT),
    "mode": ConfigField("proxy_mode", _TEXT),
    "iptables.masqueradeBit": ConfigField("iptables_masquerade_bit", _NUMBER, keeps_zero=True),
    "iptables.masqueradeAll": ConfigField("masquerade_all", _SWITCH),
    "iptables.localhostNodePorts": ConfigField("iptables_localhost_nodeports", _SWITCH, keeps_zero=True),
    "iptables.syncPeriod": ConfigField("iptables_sync_period_seconds", _DURATION),
    "iptables.minSyncPeriod": ConfigField("iptables_min_sync_period_seconds", _DURATION),
    "ipvs.syncPeriod": ConfigField("ipvs_sync_period_seconds", _DURATION),
    "ipvs.minSyncPeriod": ConfigField("ipvs_min_sync_period_seconds", _DURATION),
    "ipvs.scheduler": ConfigField("ipvs_scheduler", _TEXT),
    "ipvs.excludeCIDRs": ConfigField("ipvs_exclude_cidrs", _LIST),
    "ipvs.strictARP": ConfigField("ipvs_strict_arp", _SWITCH),
    "ipvs.tcpTimeout": ConfigField("ipvs_tcp_timeout_seconds", _DURATION),
    "ipvs.tcpFinTimeout": ConfigField("ipvs_tcpfin_timeout_seconds", _DURATION),
    "ipvs.udpTimeout": ConfigField("ipvs_udp_timeout_seconds", _DURATION),
    "nftables.masqueradeBit": ConfigField("iptables_masquerade_bit", _NUMBER, keeps_zero=True),
    "nftables.masqueradeAll": ConfigField("masquerade_all", _SWITCH),
    "nftables.syncPeriod": ConfigField("iptables_sync_period_seconds", _DURATION),
    "nftables.minSyncPeriod": ConfigField("iptables_min_sync_period_seconds", _DURATION),
    "winkernel.networkName": ConfigField("", _TEXT, ignored=_WINDOWS),
    "winkernel.sourceVip": ConfigField("", _TEXT, ignored=_WINDOWS),
    "winkernel.enableDSR": ConfigField("", _SWITCH, ignored=_WINDOWS),
    "winkernel.rootHnsEndpointName": ConfigField("", _TEXT, ignored=_WINDOWS),
    "winkernel.forwardHealthCheckVip": ConfigField("", _SWITCH, ignored=_WINDOWS),
    "windowsRunAsService": ConfigField("", _SWITCH, ignored=_WINDOWS, may_be_left_out=True),
    "detectLocalMode": ConfigField("detect_local_mode", _TEXT),
    "detectLocal.bridgeInterface": ConfigField("pod_bridge_interface", _TEXT),
    "detectLocal.interfaceNamePrefix": ConfigField("pod_interface_name_prefix", _TEXT),
    "clusterCIDR": ConfigField("cluster_cidr", _TEXT),
    "nodePortAddresses": ConfigField("nodeport_addresses", _LIST),
    "oomScoreAdj": ConfigField("oom_score_adj", _NUMBER, keeps_zero=True),
    "conntrack.maxPerCore": ConfigField("conntrack_max_per_core", _NUMBER, keeps_zero=True),
    "conntrack.min": ConfigField("conntrack_min", _NUMBER, keeps_zero=True),
    "conntrack.tcpEstablishedTimeout": ConfigField(
        "conntrack_tcp_timeout_established_seconds", _DURATION, keeps_zero=True
    ),
    "conntrack.tcpCloseWaitTimeout": ConfigField(
        "conntrack_tcp_timeout_close_wait_seconds", _DURATION, keeps_zero=True
    ),
    "conntrack.tcpBeLiberal": ConfigField("conntrack_tcp_be_liberal", _SWITCH),
    "conntrack.udpTimeout": ConfigField("conntrack_udp_timeout_seconds", _DURATION),
    "conntrack.udpStreamTimeout": ConfigField("conntrack_udp_timeout_stream_seconds", _DURATION),
    "configSyncPeriod": ConfigField("config_sync_period_seconds", _DURATION),
    "portRange": ConfigField("", _TEXT, ignored="is accepted but not acted on: kube-proxy has no use for it either"),
}
API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
KIND = "KubeProxyConfiguration"
