"""Config: kube-proxy's defaults and limits, and the flag of each option. `test_grammar` has the notation of flags."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from pyproxy.config.config import OPTIONS, Config, NodePortAddresses, ProxyMode, build_config, ignored_warnings
from pyproxy.errors import ConfigError
from pyproxy.model.address import parse_ip, parse_network
from pyproxy.model.node import DetectLocalMode

# Flags and defaults of kube-proxy 1.37, in its own notation, and those of klog that older ones took; pyproxy's one difference is the empty
# --iptables-min-sync-period, where kube-proxy has 1s.
KUBE_PROXY_DEFAULTS = {
    "add-dir-header": "false",
    "alsologtostderr": "false",
    "bind-address": "0.0.0.0",  # noqa: S104 (nothing listens on it)
    "bind-address-hard-fail": "false",
    "boot-id-file": "/proc/sys/kernel/random/boot_id",
    "cluster-cidr": "",
    "config": "",
    "config-sync-period": "15m",
    "conntrack-max-per-core": "32768",
    "conntrack-min": "131072",
    "conntrack-tcp-be-liberal": "false",
    "conntrack-tcp-timeout-close-wait": "1h",
    "conntrack-tcp-timeout-established": "24h",
    "conntrack-udp-timeout": "0s",
    "conntrack-udp-timeout-stream": "0s",
    "detect-local-mode": "ClusterCIDR",
    "feature-gates": "",
    "healthz-bind-address": "0.0.0.0:10256",
    "healthz-port": "10256",
    "hostname-override": "",
    "init-only": "false",
    "iptables-localhost-nodeports": "true",
    "iptables-masquerade-bit": "14",
    "iptables-min-sync-period": "",
    "iptables-sync-period": "30s",
    "ipvs-exclude-cidrs": "",
    "ipvs-min-sync-period": "",
    "ipvs-scheduler": "",
    "ipvs-strict-arp": "false",
    "ipvs-sync-period": "30s",
    "ipvs-tcp-timeout": "0s",
    "ipvs-tcpfin-timeout": "0s",
    "ipvs-udp-timeout": "0s",
    "kube-api-burst": "10",
    "kube-api-content-type": "application/vnd.kubernetes.protobuf",
    "kube-api-qps": "5.0",
    "kubeconfig": "",
    "log-backtrace-at": "",
    "log-dir": "",
    "log-file": "",
    "log-file-max-size": "1800",
    "log-flush-frequency": "5s",
    "log-json-info-buffer-size": "0",
    "log-json-split-stream": "false",
    "log-text-info-buffer-size": "0",
    "log-text-split-stream": "false",
    "logging-format": "text",
    "logtostderr": "true",
    "machine-id-file": "/etc/machine-id,/var/lib/dbus/machine-id",
    "masquerade-all": "false",
    "master": "",
    "metrics-bind-address": "127.0.0.1:10249",
    "metrics-port": "10249",
    "nodeport-addresses": "",
    "one-output": "false",
    "oom-score-adj": "-999",
    "pod-bridge-interface": "",
    "pod-interface-name-prefix": "",
    "profiling": "false",
    "proxy-mode": "iptables",
    "show-hidden-metrics-for-version": "",
    "skip-headers": "false",
    "skip-log-headers": "false",
    "stderrthreshold": "2",
    "v": "0",
    "vmodule": "",
    "write-config-to": "",
}


def test_flags_and_defaults_are_those_of_kube_proxy() -> None:
    """Each flag of kube-proxy exists with its default, and every other flag is declared as pyproxy's own."""
    config = Config()
    values = {about.flag: (about.grammar, about.value(config)) for about in OPTIONS.values() if not about.own}

    written = {flag: "" if value is None else grammar.write(value) for flag, (grammar, value) in values.items()}

    assert KUBE_PROXY_DEFAULTS == written


def test_a_default_is_read_as_it_is_written() -> None:
    """Writing a default as text and parsing it gives the default."""
    config = Config()
    defaults = {name: about.value(config) for name, about in OPTIONS.items() if about.value(config) is not None}

    assert defaults == {
        name: OPTIONS[name].grammar.parse(OPTIONS[name].grammar.write(defaults[name])) for name in defaults
    }


def test_every_flag_has_help() -> None:
    """Each flag has a sentence of help."""
    assert [] == [about.flag for about in OPTIONS.values() if not about.help.endswith(".")]


def test_config_cannot_be_changed() -> None:
    """A Config is immutable."""
    with pytest.raises(FrozenInstanceError):
        Config().v = 4  # type: ignore[misc]


def test_options_of_groups() -> None:
    """The flag of an option in a group has the group's prefix, and its value is set in the group."""
    config = build_config({"ipvs_scheduler": "mh", "profiling": True, "v": 2})

    assert ("ipvs-scheduler", "profiling") == (OPTIONS["ipvs_scheduler"].flag, OPTIONS["profiling"].flag)
    assert ("mh", True, 2) == (config.ipvs.scheduler, config.ignored.profiling, config.v)
    assert ("mh", True) == tuple(OPTIONS[name].value(config) for name in ("ipvs_scheduler", "profiling"))


@pytest.mark.parametrize(
    "values",
    [
        {"iptables_masquerade_bit": 0},
        {"iptables_masquerade_bit": 31},
        {"oom_score_adj": -1000},
        {"oom_score_adj": 1000},
        {"iptables_min_sync_period_seconds": 0.0},
        {"iptables_min_sync_period_seconds": 30.0},
        {"iptables_min_sync_period_seconds": 60.0, "iptables_sync_period_seconds": 60.0},
        {"proxy_mode": ProxyMode.AUTO},
        {"bind_address": parse_ip("::")},
        {"metrics_bind_address": None},
        {"nodeport_addresses": tuple(NodePortAddresses)},
        {"cluster_cidr": (parse_network("10.244.0.0/16"), parse_network("fd00::/56"))},
        {"detect_local_mode": DetectLocalMode.NODE_CIDR},
        {"detect_local_mode": DetectLocalMode.BRIDGE_INTERFACE, "pod_bridge_interface": "cni0"},
        {"detect_local_mode": DetectLocalMode.INTERFACE_NAME_PREFIX, "pod_interface_name_prefix": "veth"},
        {"conntrack_max_per_core": 0, "conntrack_min": 0},
        {"conntrack_tcp_timeout_established_seconds": 0.0},
        {"manifests": "examples"},
        {"kubeconfig": "kubeconfig.conf", "master": "https://10.0.0.1:6443"},
    ],
)
def test_values_that_kube_proxy_accepts(values: dict[str, Any]) -> None:
    """Values at their limits and valid combinations are accepted unchanged."""
    config = build_config(values)

    assert values == {name: OPTIONS[name].value(config) for name in values}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iptables_masquerade_bit": 32}, "--iptables-masquerade-bit: 32 is not within 0..31"),
        ({"iptables_masquerade_bit": -1}, "--iptables-masquerade-bit: -1 is not within 0..31"),
        ({"oom_score_adj": 1001}, "--oom-score-adj: 1001 is not within -1000..1000"),
        ({"config_sync_period_seconds": 0.0}, "--config-sync-period: 0s is not greater than 0"),
        ({"iptables_sync_period_seconds": 0.0}, "--iptables-sync-period: 0s is not greater than 0"),
        ({"iptables_min_sync_period_seconds": -1.0}, "--iptables-min-sync-period: -1s is less than 0"),
        (
            {"iptables_min_sync_period_seconds": 31.0},
            "--iptables-min-sync-period: 31s is longer than --iptables-sync-period, 30s",
        ),
        ({"conntrack_min": -1}, "--conntrack-min: -1 is less than 0"),
        ({"conntrack_udp_timeout_seconds": -0.5}, "--conntrack-udp-timeout: -500ms is less than 0"),
        ({"kube_api_burst": -1}, "--kube-api-burst: -1 is less than 0"),
        ({"ipvs_tcp_timeout_seconds": -1.0}, "--ipvs-tcp-timeout: -1s is less than 0"),
        (
            {"cluster_cidr": (parse_network("10.0.0.0/16"), parse_network("10.1.0.0/16"))},
            "--cluster-cidr: 10.0.0.0/16,10.1.0.0/16 has two CIDR blocks of one IP family",
        ),
        (
            {"detect_local_mode": DetectLocalMode.BRIDGE_INTERFACE},
            "--pod-bridge-interface: must be given with --detect-local-mode=BridgeInterface",
        ),
        (
            {"detect_local_mode": DetectLocalMode.INTERFACE_NAME_PREFIX},
            "--pod-interface-name-prefix: must be given with --detect-local-mode=InterfaceNamePrefix",
        ),
        (
            {"api_servers": ("https://10.0.0.1:6443",), "master": "https://10.0.0.1:6443"},
            "--api-servers: selects the API servers; --manifests and --master cannot be given with it",
        ),
        (
            {"manifests": "examples", "master": "https://10.0.0.1:6443"},
            "--manifests: replaces the API server; --kubeconfig and --master cannot be given with it",
        ),
    ],
)
def test_errors_name_the_flag(values: dict[str, Any], message: str) -> None:
    """A value out of its limits gives an error with flag, value and limit."""
    with pytest.raises(ConfigError) as refusal:
        build_config(values)

    assert message == str(refusal.value)


@pytest.mark.parametrize(
    "name", ["cni 0", "a/b", "a:b", 'a"b', "a'b", "a\\b", "a\nb", "cni+", ".", "..", "sixteen-letters!"]
)
def test_invalid_interface_names_are_refused(name: str) -> None:
    """Names that the kernel refuses for an interface, or that have a special meaning in a rule, are refused."""
    with pytest.raises(ConfigError, match="--pod-bridge-interface: "):
        Config(pod_bridge_interface=name)


def test_a_prefix_leaves_room_for_the_wildcard() -> None:
    """The + that iptables requires after a prefix counts as a character of the name."""
    with pytest.raises(ConfigError, match="at most 14 bytes"):
        Config(pod_interface_name_prefix="a" * 15)


def test_a_flag_without_effect_causes_a_warning() -> None:
    """Each given flag without effect causes a warning of one line; a flag with effect causes none."""
    expected = (
        "--profiling is accepted but has no effect: the profiles are those of a Go program",
        "--feature-gates is accepted but has no effect: pyproxy has no feature gates",
    )

    assert expected == ignored_warnings(["v", "profiling", "proxy_mode", "feature_gates"])
