"""Names of iptables chains. kube-proxy's own, so that either can take over from the other and tools know them."""

from base64 import b32encode
from hashlib import sha256

from pyproxy.backends.iptables.ruleset import FILTER, NAT
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import ServicePortName

SERVICES = "KUBE-SERVICES"
EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
NODE_PORTS = "KUBE-NODEPORTS"
POSTROUTING = "KUBE-POSTROUTING"
MARK_MASQUERADE = "KUBE-MARK-MASQ"
FORWARD = "KUBE-FORWARD"
PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
SOURCE_RANGES = "KUBE-SOURCE-RANGES-FIREWALL"
IPVS_FILTER = "KUBE-IPVS-FILTER"
"""This and the one before are of IPVS mode only."""
KUBELET_FIREWALL = "KUBE-FIREWALL"
"""Shared with the kubelet: never flushed, never removed."""
CANARY = "PYPROXY-CANARY"
"""Says that the chains with kube-proxy's names in this table are pyproxy's."""

KUBE_PROXY_CANARY = "KUBE-PROXY-CANARY"
"""Says that kube-proxy has started in its iptables mode; it looks for it every sync period."""

SERVICE_PREFIXES = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-")
"""What chains of single Service ports begin with; kube-proxy deletes every such chain that it does not want."""

_FIXED = {
    FILTER: {SERVICES, EXTERNAL_SERVICES, NODE_PORTS, FORWARD, PROXY_FIREWALL, CANARY, KUBE_PROXY_CANARY},
    NAT: {SERVICES, NODE_PORTS, POSTROUTING, MARK_MASQUERADE, CANARY, KUBE_PROXY_CANARY},
}
_SUFFIX_LENGTH = 16
_KUBE = "KUBE-"
_SIDE_BY_SIDE = "PYPROXY-"
_NOT_SIDE_BY_SIDE = {CANARY, "PYPROXY-PROBE"}


def is_ours(table: str, chain: str) -> bool:
    """Say whether a chain is one that pyproxy owns whole, or takes over from kube-proxy."""
    return chain in _FIXED.get(table, ()) or (table == NAT and chain.startswith(SERVICE_PREFIXES))


def is_side_by_side(table: str, chain: str) -> bool:
    """Say whether a chain is one of a trial beside kube-proxy, which shares none with it."""
    return (
        chain.startswith(_SIDE_BY_SIDE) and chain not in _NOT_SIDE_BY_SIDE and is_ours(table, from_side_by_side(chain))
    )


def to_side_by_side(text: str) -> str:
    """Return a chain, or rules, with the names that chains have on trial; names of Services have no capital letters."""
    return text.replace(_KUBE, _SIDE_BY_SIDE)


def from_side_by_side(text: str) -> str:
    """Return what `to_side_by_side` was given."""
    return text.replace(_SIDE_BY_SIDE, _KUBE)


def service_suffix(name: ServicePortName) -> str:
    """Return the end of the chain names of a Service port (kube-proxy: ``portProtoHash``)."""
    return _hash(f"{name}{name.protocol.value}")


def endpoint_chain(name: ServicePortName, endpoint: Endpoint) -> str:
    """Return the chain of one endpoint of a Service port (kube-proxy: ``servicePortEndpointChainName``)."""
    return f"KUBE-SEP-{_hash(f'{name}{name.protocol.value}{endpoint}')}"


def _hash(text: str) -> str:
    return b32encode(sha256(text.encode()).digest())[:_SUFFIX_LENGTH].decode()
