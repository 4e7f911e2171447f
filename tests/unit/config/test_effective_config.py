"""A Config as a KubeProxyConfiguration: writing and reading it gives the same Config.

tests/cluster/test_configuration.py tests that kube-proxy accepts it and writes the same.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pyproxy.config.config import Config, NodePortAddresses, ProxyMode, build_config
from pyproxy.config.config_file import FIELDS, read_config_file
from pyproxy.config.effective_config import effective_configuration, go_duration, write_configuration
from pyproxy.errors import ConfigError
from pyproxy.logs import LogFormat
from pyproxy.model.address import ListenAddress, parse_ip, parse_network
from pyproxy.model.node import DetectLocalMode


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"proxy_mode": ProxyMode.NFTABLES, "nodeport_addresses": (NodePortAddresses.PRIMARY,)},
        {"proxy_mode": ProxyMode.IPVS, "ipvs_scheduler": "mh", "ipvs_exclude_cidrs": (parse_network("10.0.0.0/8"),)},
        {"ipvs_min_sync_period_seconds": 2.5, "ipvs_strict_arp": True, "ipvs_udp_timeout_seconds": 0.25},
        {"iptables_min_sync_period_seconds": 1.5, "iptables_sync_period_seconds": 5400.0},
        {"iptables_masquerade_bit": 0, "masquerade_all": True, "iptables_localhost_nodeports": False},
        {"cluster_cidr": (parse_network("10.244.0.0/16"), parse_network("fd00::/56"))},
        {"nodeport_addresses": (parse_network("10.0.0.0/8"), parse_network("fd00::/8"))},
        {"nodeport_addresses": (NodePortAddresses.LOCALHOST, parse_network("fd00::/8"), NodePortAddresses.ALL)},
        {"detect_local_mode": DetectLocalMode.BRIDGE_INTERFACE, "pod_bridge_interface": "cni0"},
        {"conntrack_max_per_core": 0, "conntrack_tcp_timeout_established_seconds": 0.0, "oom_score_adj": 0},
        {"bind_address": parse_ip("fd00::1"), "metrics_bind_address": ListenAddress(parse_ip("::"), 9090)},
        {"feature_gates": (("A", True), ("B", False)), "kube_api_qps": 7.5, "kube_api_burst": 20},
        {"v": 4, "logging_format": LogFormat.JSON, "vmodule": "a=1,b*=2", "hostname_override": "node-1"},
    ],
)
def test_what_is_written_is_read_as_the_same(tmp_path: Path, values: dict[str, Any]) -> None:
    """Every setting that kube-proxy's file can hold survives being written and read."""
    config = build_config(values)
    path = tmp_path / "config.conf"
    write_configuration(config, str(path))
    read = read_config_file(str(path), {}).values

    assert config == build_config(read)


def test_every_field_is_written() -> None:
    """Each field is written, except the empty ones that kube-proxy omits as well."""
    tree = effective_configuration(Config())

    def has(path: str) -> bool:
        branch: Any = tree
        for name in path.split("."):
            branch = branch.get(name, {}) if isinstance(branch, dict) else {}
        return bool(branch != {})

    assert {path for path, field in FIELDS.items() if field.omit_empty} == {path for path in FIELDS if not has(path)}


def test_values_that_kube_proxy_does_not_know() -> None:
    """Mode auto is written as kube-proxy's empty text, and the default node port addresses of nftables mode as primary."""
    assert "" == effective_configuration(Config(proxy_mode=ProxyMode.AUTO))["mode"]
    assert ["primary"] == effective_configuration(Config(proxy_mode=ProxyMode.NFTABLES))["nodePortAddresses"]
    assert "" == effective_configuration(Config(metrics_bind_address=None))["metricsBindAddress"]


def test_the_file_is_yaml_that_says_what_it_is(tmp_path: Path) -> None:
    """The file has kind and version, and a text that looks like a number is quoted."""
    path = tmp_path / "config.conf"
    write_configuration(Config(hostname_override="0x10"), str(path))
    tree = yaml.safe_load(path.read_text())

    expected = ("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration", "0x10")
    assert expected == (tree["apiVersion"], tree["kind"], tree["hostnameOverride"])


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """The error names flag, file and reason."""
    with pytest.raises(ConfigError, match=f"^--write-config-to: {tmp_path}/no/x: No such file or directory$"):
        write_configuration(Config(), f"{tmp_path}/no/x")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (1, "1s"),
        (90, "1m30s"),
        (900, "15m0s"),
        (3600, "1h0m0s"),
        (86400, "24h0m0s"),
        (3600.5, "1h0m0.5s"),
        (0.5, "500ms"),
        (0.0015, "1.5ms"),
        (0.000002, "2µs"),
        (0.000000003, "3ns"),
        (-1.5, "-1.5s"),
    ],
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    """Durations are written like Go's ``time.Duration.String``."""
    assert text == go_duration(seconds)
