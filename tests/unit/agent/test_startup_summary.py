"""The line of the log that says where derived values come from."""

from typing import Any

import pytest

from pyproxy.agent.startup_summary import startup_summary
from pyproxy.config.config import Config, ProxyMode
from pyproxy.config.settings import ResolvedSettings
from pyproxy.model.address import Family, parse_ip, parse_network
from pyproxy.model.node import DetectLocalMode

FILE = "/var/lib/kube-proxy/config.conf"


def summary(mode: ProxyMode = ProxyMode.IPTABLES, **values: Any) -> list[str]:  # noqa: ANN401 - pairs of any value
    """Return the parts of the line for values with their origins, as pairs."""
    config = Config(**{name: value for name, (value, _) in values.items()})
    settings = ResolvedSettings(config=config, origins={name: origin for name, (_, origin) in values.items()}, texts={})
    return startup_summary(settings, "node-1", mode, (Family.IPV4, Family.IPV6)).split("; ")


def test_defaults() -> None:
    """The defaults: the host name, the addresses of the Node object, and no detection of pods, with the consequence."""
    nothing = "nothing, as no --cluster-cidr is given: traffic from outside to cluster IPs is not masqueraded"

    assert [
        "node name node-1 (this machine's host name)",
        "node addresses the Node object's",
        "zone and podCIDRs the Node object's",
        "iptables mode (default) for IPv4 and IPv6",
        f"pods detected by ClusterCIDR (default): {nothing}",
    ] == summary()


def test_origins() -> None:
    """Each configured value is logged with its flag, or with its file and field."""
    found = summary(
        ProxyMode.NFTABLES,
        hostname_override=("node-1", "--hostname-override"),
        bind_address=(parse_ip("192.0.2.1"), f"{FILE}: bindAddress"),
        proxy_mode=(ProxyMode.AUTO, f"{FILE}: mode"),
        cluster_cidr=((parse_network("10.244.0.0/16"),), f"{FILE}: clusterCIDR"),
    )

    assert [
        "node name node-1 (--hostname-override)",
        f"node addresses 192.0.2.1 ({FILE}: bindAddress), else the Node object's",
        "zone and podCIDRs the Node object's",
        f"nftables mode ({FILE}: mode: auto) for IPv4 and IPv6",
        f"pods detected by ClusterCIDR (default): 10.244.0.0/16 ({FILE}: clusterCIDR)",
    ] == found


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        (DetectLocalMode.NODE_CIDR, {}, "NodeCIDR (--detect-local-mode): the Node object's podCIDRs"),
        (
            DetectLocalMode.BRIDGE_INTERFACE,
            {"pod_bridge_interface": ("cni0", "--pod-bridge-interface")},
            "BridgeInterface (--detect-local-mode): cni0 (--pod-bridge-interface)",
        ),
        (
            DetectLocalMode.INTERFACE_NAME_PREFIX,
            {"pod_interface_name_prefix": ("veth", f"{FILE}: x")},
            f"InterfaceNamePrefix (--detect-local-mode): veth ({FILE}: x)",
        ),
    ],
)
def test_how_pods_are_detected(mode: DetectLocalMode, values: dict[str, Any], expected: str) -> None:
    """Each detection mode is logged with its value."""
    assert f"pods detected by {expected}" == summary(detect_local_mode=(mode, "--detect-local-mode"), **values)[-1]
