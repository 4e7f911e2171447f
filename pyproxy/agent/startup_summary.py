"""The log line at the start with the derived values and their origins."""

from collections.abc import Collection

from pyproxy.config.config import ProxyMode
from pyproxy.config.grammar import write_list
from pyproxy.config.settings import ResolvedSettings
from pyproxy.model.address import Family, ip_text
from pyproxy.model.node import DetectLocalMode


def startup_summary(settings: ResolvedSettings, node_name: str, mode: ProxyMode, families: Collection[Family]) -> str:
    """Return the values that the agent derived from its configuration and the node, and the origin of each.

    Args:
        settings: configuration and origins of its values.
        node_name: name of the Node object.
        mode: proxy mode that is used.
        families: families that this node supports in the mode.
    """
    config = settings.config
    name_from = settings.origin("hostname_override") if config.hostname_override else "this machine's host name"
    mode_from = settings.origin("proxy_mode") + (": auto" if config.proxy_mode is ProxyMode.AUTO else "")
    addresses = "the Node object's"
    if any(config.bind_address):
        addresses = f"{ip_text(config.bind_address)} ({settings.origin('bind_address')}), else {addresses}"
    # The most frequent mistake of a new cluster is a missing or wrong --cluster-cidr, so the line says what it means.
    by_option = {
        DetectLocalMode.CLUSTER_CIDR: ("cluster_cidr", write_list(config.cluster_cidr)),
        DetectLocalMode.BRIDGE_INTERFACE: ("pod_bridge_interface", config.pod_bridge_interface),
        DetectLocalMode.INTERFACE_NAME_PREFIX: ("pod_interface_name_prefix", config.pod_interface_name_prefix),
    }
    if config.detect_local_mode is DetectLocalMode.NODE_CIDR:
        pods = "the Node object's podCIDRs"
    else:
        attribute, value = by_option[config.detect_local_mode]
        pods = f"{value} ({settings.origin(attribute)})"
        if not value:
            pods = "nothing, as no --cluster-cidr is given: traffic from outside to cluster IPs is not masqueraded"
    parts = (
        f"node name {node_name} ({name_from})",
        f"node addresses {addresses}",
        "zone and podCIDRs the Node object's",
        f"{mode.value} mode ({mode_from}) for {' and '.join(map(str, families))}",
        f"pods detected by {config.detect_local_mode.value} ({settings.origin('detect_local_mode')}): {pods}",
    )
    return "; ".join(parts)
