"""A KubeProxyConfiguration file (v1alpha1) to the values that flags would have given.

Each field of kube-proxy's type stands in `FIELDS` once, beside the flag that says the same; limits and defaults are the
flag's. What kube-proxy takes for «not given» is so here: null, an empty text or list, and for most fields zero
(``apis/config/v1alpha1/defaults.go``), so that a file that kubeadm wrote says little. Fields that nobody knows are
warned of and passed over, as kube-proxy does; a value of the wrong kind is an error.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pyproxy.config import METRICS_PORT, OPTIONS, Config, ProxyMode
from pyproxy.errors import ConfigError
from pyproxy.flags import ListenAddress, write_bool
from pyproxy.ignored import HEALTHZ_PORT, JSON_ONLY
from pyproxy.model.address import Family, family_of, parse_ip
from pyproxy.source.yaml_documents import YamlDocument, YamlError, yaml_documents

_API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
_KIND = "KubeProxyConfiguration"
_WINDOWS = "is for Windows, and not acted on"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(value, "a text")
    return value


def _switch(value: object) -> str:
    if not isinstance(value, bool):
        raise _wrong(value, "true or false")
    return write_bool(value)


def _number(value: object) -> str:
    """Take a whole number; one with a point comes as text from our reader of YAML, and so do quantities."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _wrong(value, "a number")
    return str(value)


def _nanoseconds(value: object) -> str:
    """Take a duration as text, or a number of nanoseconds."""
    return f"{value}ns" if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _list(value: object) -> str:
    if not isinstance(value, list):
        raise _wrong(value, "a list")
    return ",".join(map(_text, value))


def _gates(value: object) -> str:
    if not isinstance(value, dict):
        raise _wrong(value, "a mapping of names to true or false")
    return ",".join(f"{name}={_switch(wanted)}" for name, wanted in value.items())


def _anything(value: object) -> str:
    return json.dumps(value) if value else ""


def _wrong(value: object, wanted: str) -> ValueError:
    return ValueError(f"{json.dumps(value)} is not {wanted}")


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the file."""

    attribute: str
    """Of Config; empty where no flag says the same."""
    read: Callable[[object], str]
    """The value, which is not null, as the text that the flag would have; ValueError where it is of the wrong kind."""
    keeps_zero: bool = False
    """Zero and false are values; in other fields they stand for the default."""
    ignored: str = ""
    """What a warning says of a field without a flag."""


FIELDS: Mapping[str, Field] = {
    "featureGates": Field("feature_gates", _gates),
    "clientConnection.kubeconfig": Field("kubeconfig", _text),
    "clientConnection.acceptContentTypes": Field("", _text, ignored=JSON_ONLY),
    "clientConnection.contentType": Field("kube_api_content_type", _text),
    "clientConnection.qps": Field("kube_api_qps", _number),
    "clientConnection.burst": Field("kube_api_burst", _number),
    "logging.format": Field("logging_format", _text),
    "logging.flushFrequency": Field("log_flush_frequency_seconds", _nanoseconds),
    "logging.verbosity": Field("v", _number),
    "logging.vmodule": Field("vmodule", _anything),
    "logging.options.text.splitStream": Field("log_text_split_stream", _switch),
    "logging.options.text.infoBufferSize": Field("log_text_info_buffer_size", _number),
    "logging.options.json.splitStream": Field("log_json_split_stream", _switch),
    "logging.options.json.infoBufferSize": Field("log_json_info_buffer_size", _number),
    "hostnameOverride": Field("hostname_override", _text),
    "bindAddress": Field("bind_address", _text),
    "healthzBindAddress": Field("healthz_bind_address", _text),
    "metricsBindAddress": Field("metrics_bind_address", _text),
    "bindAddressHardFail": Field("bind_address_hard_fail", _switch),
    "enableProfiling": Field("profiling", _switch),
    "showHiddenMetricsForVersion": Field("show_hidden_metrics_for_version", _text),
    "mode": Field("proxy_mode", _text),
    "iptables.masqueradeBit": Field("iptables_masquerade_bit", _number, keeps_zero=True),
    "iptables.masqueradeAll": Field("masquerade_all", _switch),
    "iptables.localhostNodePorts": Field("iptables_localhost_nodeports", _switch, keeps_zero=True),
    "iptables.syncPeriod": Field("iptables_sync_period_seconds", _text),
    "iptables.minSyncPeriod": Field("iptables_min_sync_period_seconds", _text),
    "ipvs.syncPeriod": Field("ipvs_sync_period_seconds", _text),
    "ipvs.minSyncPeriod": Field("ipvs_min_sync_period_seconds", _text),
    "ipvs.scheduler": Field("ipvs_scheduler", _text),
    "ipvs.excludeCIDRs": Field("ipvs_exclude_cidrs", _list),
    "ipvs.strictARP": Field("ipvs_strict_arp", _switch),
    "ipvs.tcpTimeout": Field("ipvs_tcp_timeout_seconds", _text),
    "ipvs.tcpFinTimeout": Field("ipvs_tcpfin_timeout_seconds", _text),
    "ipvs.udpTimeout": Field("ipvs_udp_timeout_seconds", _text),
    "nftables.masqueradeBit": Field("iptables_masquerade_bit", _number, keeps_zero=True),
    "nftables.masqueradeAll": Field("masquerade_all", _switch),
    "nftables.syncPeriod": Field("iptables_sync_period_seconds", _text),
    "nftables.minSyncPeriod": Field("iptables_min_sync_period_seconds", _text),
    "winkernel.networkName": Field("", _text, ignored=_WINDOWS),
    "winkernel.sourceVip": Field("", _text, ignored=_WINDOWS),
    "winkernel.enableDSR": Field("", _switch, ignored=_WINDOWS),
    "winkernel.rootHnsEndpointName": Field("", _text, ignored=_WINDOWS),
    "winkernel.forwardHealthCheckVip": Field("", _switch, ignored=_WINDOWS),
    "windowsRunAsService": Field("", _switch, ignored=_WINDOWS),
    "detectLocalMode": Field("detect_local_mode", _text),
    "detectLocal.bridgeInterface": Field("pod_bridge_interface", _text),
    "detectLocal.interfaceNamePrefix": Field("pod_interface_name_prefix", _text),
    "clusterCIDR": Field("cluster_cidr", _text),
    "nodePortAddresses": Field("nodeport_addresses", _list),
    "oomScoreAdj": Field("oom_score_adj", _number, keeps_zero=True),
    "conntrack.maxPerCore": Field("conntrack_max_per_core", _number, keeps_zero=True),
    "conntrack.min": Field("conntrack_min", _number, keeps_zero=True),
    "conntrack.tcpEstablishedTimeout": Field("conntrack_tcp_timeout_established_seconds", _text, keeps_zero=True),
    "conntrack.tcpCloseWaitTimeout": Field("conntrack_tcp_timeout_close_wait_seconds", _text, keeps_zero=True),
    "conntrack.tcpBeLiberal": Field("conntrack_tcp_be_liberal", _switch),
    "conntrack.udpTimeout": Field("conntrack_udp_timeout_seconds", _text),
    "conntrack.udpStreamTimeout": Field("conntrack_udp_timeout_stream_seconds", _text),
    "configSyncPeriod": Field("config_sync_period_seconds", _text),
    "portRange": Field("", _text, ignored="is accepted but not acted on: kube-proxy has no use for it either"),
}
_SECTIONS = {path[:at] for path in FIELDS for at, letter in enumerate(path) if letter == "."}


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a file says."""

    path: str
    values: Mapping[str, Any]
    """By attribute of Config. What the file leaves to the defaults, and what flags say otherwise, is not here."""
    warnings: tuple[str, ...]
    _fields: Mapping[str, str]
    """Attribute to the field that its value came from, or would have come from."""

    def blamed(self, message: str) -> str:
        """Return a message of Config with file and fields in place of the flags that nobody gave."""

        def field_of(match: re.Match[str]) -> str:
            return self._fields.get(match[1], match[0])

        told = re.sub(r"--([a-z][a-z-]*[a-z])", field_of, message)
        return message if told == message else f"{self.path}: {told}"


def read_config_file(path: str, typed: Mapping[str, Any]) -> ConfigFile:
    """Read a file.

    Args:
        path: of the file.
        typed: by attribute of Config, what the command line says; it wins.

    Raises:
        ConfigError: the file cannot be read, is none of ours, or a value is out of its limits; names file and field.
    """
    document = _document(path)
    found = [(name, value) for name, value in _leaves(document.tree, "") if value is not None]
    values: dict[str, Any] = {}
    fields = {OPTIONS[field.attribute].flag: name for name, field in reversed([*FIELDS.items()]) if field.attribute}
    warnings: list[str] = []
    mode = typed.get("proxy_mode") or _mode(path, document, dict(found))
    for name, raw in found:
        if name in _SECTIONS:
            message = f"{path}: line {document.line(name)}: {name}: {json.dumps(raw)} is not a mapping of fields"
            raise ConfigError(message)
        if name not in FIELDS:
            warnings.append(f"{path}: {name} {_unknown(name)}")
            continue
        value = _value(path, document, name, raw)
        if value is _NOT_GIVEN or not _applies(name, mode):
            continue
        attribute = FIELDS[name].attribute
        if ignored := FIELDS[name].ignored or _ignored(attribute, value):
            warnings.append(f"{path}: {name} {ignored}")
        if attribute and attribute not in typed:
            values[attribute] = value
            fields[OPTIONS[attribute].flag] = name
    if "manifests" in typed:  # which replace the API server
        values.pop("kubeconfig", None)
    given = {OPTIONS[attribute].flag for attribute in typed}
    return ConfigFile(
        path,
        _with_listen_defaults(values, typed),
        tuple(warnings),
        {flag: name for flag, name in fields.items() if flag not in given},
    )


def _document(path: str) -> YamlDocument:
    try:
        documents = list(yaml_documents(Path(path).read_text()))
    except (OSError, UnicodeDecodeError) as unreadable:
        message = f"--config: {path}: {getattr(unreadable, 'strerror', 'is not UTF-8')}"
        raise ConfigError(message) from unreadable
    match documents:
        case [YamlDocument(tree=dict() as tree) as document]:
            pass
        case [YamlError() as error, *_]:
            message = f"{path}: {error}"
            raise ConfigError(message)
        case _:
            message = f"{path}: is not one {_KIND}"
            raise ConfigError(message)
    for name, wanted in (("apiVersion", _API_VERSION), ("kind", _KIND)):
        if tree.get(name) != wanted:
            message = f"{path}: {name}: {json.dumps(tree.get(name))} is not {wanted}"
            raise ConfigError(message)
    del tree["apiVersion"], tree["kind"]
    return document


def _leaves(tree: object, section: str) -> Iterator[tuple[str, object]]:
    """Yield each field below a section with its value; a section that is none is a field that nobody knows."""
    for name, value in tree.items() if isinstance(tree, dict) else ():
        path = f"{section}.{name}".lstrip(".")
        if path in _SECTIONS and isinstance(value, dict):
            yield from _leaves(value, path)
        else:
            yield path, value


_NOT_GIVEN = object()


def _value(path: str, document: YamlDocument, name: str, raw: object) -> Any:  # noqa: ANN401  # the attribute's type
    try:
        return _checked_value(FIELDS[name], raw)
    except ValueError as error:
        message = f"{path}: line {document.line(name)}: {name}: {error}"
        raise ConfigError(message) from None


def _checked_value(field: Field, raw: object) -> object:
    text = field.read(raw)
    if not text or (not field.attribute and raw is False):
        return _NOT_GIVEN
    if not field.attribute:
        return text
    option = OPTIONS[field.attribute]
    value = option.grammar.parse(text)
    # None is a value: «no server», which an address with port 0 asks for.
    if value is not None and not value and not field.keeps_zero:
        return _NOT_GIVEN
    option.require_limits(value)
    return value


def _mode(path: str, document: YamlDocument, found: Mapping[str, object]) -> ProxyMode:
    value = _value(path, document, "mode", found.get("mode", ""))
    return Config().proxy_mode if value is _NOT_GIVEN else value


def _applies(name: str, mode: ProxyMode) -> bool:
    """Say whether a mode reads a field: nftables has its block, the others (ipvs beside its own) that of iptables."""
    match name.partition(".")[0]:
        case "nftables":
            return mode in {ProxyMode.NFTABLES, ProxyMode.AUTO}
        case "iptables":
            return mode is not ProxyMode.NFTABLES
    return True


def _ignored(attribute: str, value: object) -> str:
    return "" if value == getattr(Config(), attribute) else OPTIONS[attribute].ignored


def _unknown(name: str) -> str:
    close = get_close_matches(name, FIELDS, n=1, cutoff=0.8)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"is unknown, and passed over{hint}"


def _with_listen_defaults(values: dict[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Let servers listen on IPv6 where the node's address is one and nobody says where."""
    address = values.get("bind_address")
    if address is None or family_of(address) is Family.IPV4:
        return values
    defaults = {
        "metrics_bind_address": ListenAddress(parse_ip("::1"), METRICS_PORT),
        "healthz_bind_address": ListenAddress(parse_ip("::"), HEALTHZ_PORT),
    }
    return {name: value for name, value in defaults.items() if name not in typed} | values
