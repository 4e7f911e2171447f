"""Names of iptables chains. They are kube-proxy's names, for three reasons.

- Takeover and rollback are one atomic rewrite of the same chains, without a moment in which no rule or both rules apply.
- Tools, network plugins and people that know kube-proxy's chains find them.
- The kubelet and kube-proxy jump to some of them, or look for them.

The chain `PYPROXY-CANARY` marks the chains with these names as ours.
"""

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
"""Used in IPVS mode only."""
IPVS_FILTER = "KUBE-IPVS-FILTER"
"""Used in IPVS mode only."""
KUBELET_FIREWALL = "KUBE-FIREWALL"
"""Shared with the kubelet: never flushed, never removed."""
CANARY = "PYPROXY-CANARY"
"""Our marker chain: the chains with kube-proxy's names in this table are ours."""

KUBE_PROXY_CANARY = "KUBE-PROXY-CANARY"
"""Created by kube-proxy in its iptables mode; it checks every sync period whether its tables were flushed."""

SERVICE_PREFIXES = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-")
"""Prefixes of the chains of one Service port. kube-proxy deletes every chain with such a name that it does not use."""

_FIXED = {
    FILTER: {SERVICES, EXTERNAL_SERVICES, NODE_PORTS, FORWARD, PROXY_FIREWALL, CANARY, KUBE_PROXY_CANARY},
    NAT: {SERVICES, NODE_PORTS, POSTROUTING, MARK_MASQUERADE, CANARY, KUBE_PROXY_CANARY},
}
# A chain name has at most 28 characters (XT_EXTENSION_MAXNAMELEN less one, `linux/netfilter/x_tables.h`), so the names of
# Services are hashed. 16 characters of base32 are 80 bits.
_SUFFIX_LENGTH = 16
_KUBE = "KUBE-"
_SIDE_BY_SIDE = "PYPROXY-"
_NOT_SIDE_BY_SIDE = {CANARY, "PYPROXY-PROBE"}


def is_ours(table: str, chain: str) -> bool:
    """Return whether pyproxy owns a chain with all its rules, or takes it over from kube-proxy."""
    return chain in _FIXED.get(table, ()) or (table == NAT and chain.startswith(SERVICE_PREFIXES))


def is_side_by_side(table: str, chain: str) -> bool:
    """Return whether a chain belongs to a pyproxy that runs side-by-side with kube-proxy; it shares no chain with it."""
    return (
        chain.startswith(_SIDE_BY_SIDE) and chain not in _NOT_SIDE_BY_SIDE and is_ours(table, from_side_by_side(chain))
    )


def to_side_by_side(text: str) -> str:
    """Return a chain name, or rules, with the names used side-by-side.

    Names of Services in comments are not changed: they have no capital letters.
    """
    return text.replace(_KUBE, _SIDE_BY_SIDE)


def from_side_by_side(text: str) -> str:
    """Return the text that `to_side_by_side` was given."""
    return text.replace(_SIDE_BY_SIDE, _KUBE)


def service_suffix(name: ServicePortName) -> str:
    """Return the end of the chain names of a Service port (in kube-proxy: ``portProtoHash``)."""
    return _hash(f"{name}{name.protocol.value}")


def endpoint_chain(name: ServicePortName, endpoint: Endpoint) -> str:
    """Return the chain of one endpoint of a Service port (in kube-proxy: ``servicePortEndpointChainName``)."""
    return f"KUBE-SEP-{_hash(f'{name}{name.protocol.value}{endpoint}')}"


# kube-proxy has the same function (`pkg/proxy/iptables/proxier.go`); chains would not match if it were another one.
def _hash(text: str) -> str:
    return b32encode(sha256(text.encode()).digest())[:_SUFFIX_LENGTH].decode()
