"""What kube-proxy 1.37 has in the kernel in each of its modes, to distinguish it from foreign rules and from ours.

kube-proxy's iptables mode uses the same chain names as ours. The marker chains show which of the two wrote last: pyproxy
removes kube-proxy's canary when it starts. kube-proxy removes ours with `--cleanup` only, so a newer canary of kube-proxy
may be beside our marker.
"""

from collections.abc import Collection, Iterable, Mapping

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.rules import comment
from pyproxy.backends.iptables.ruleset import FILTER, MANGLE, NAT, HookKey
from pyproxy.model.address import Family

NFT_TABLE = "kube-proxy"
_NODE_PORT = "KUBE-NODE-PORT"
_LOAD_BALANCER = "KUBE-LOAD-BALANCER"
_OUT_FILTER = "KUBE-IPVS-OUT-FILTER"
_IPVS_CHAINS: Mapping[str, Collection[str]] = {
    FILTER: {names.FORWARD, _NODE_PORT, names.PROXY_FIREWALL, names.SOURCE_RANGES, names.IPVS_FILTER, _OUT_FILTER},
    NAT: {names.SERVICES, names.POSTROUTING, _NODE_PORT, _LOAD_BALANCER, names.MARK_MASQUERADE},
}
# Hooks of kube-proxy's IPVS mode that its iptables mode, and ours, does not have (`proxier.go`, `iptablesJumpChain`).
_IPVS_HOOKS = (
    (FILTER, "INPUT", "kubernetes health check rules", _NODE_PORT),
    (FILTER, "INPUT", "kube-proxy firewall rules", names.PROXY_FIREWALL),
    (FILTER, "FORWARD", "kube-proxy firewall rules", names.PROXY_FIREWALL),
    (FILTER, "INPUT", "kubernetes ipvs access filter", names.IPVS_FILTER),
    (FILTER, "OUTPUT", "kubernetes ipvs access filter", _OUT_FILTER),
)
HOOKS = tuple(
    HookKey(table, chain, f"-A {chain} {comment(text)} -j {target}") for table, chain, text, target in _IPVS_HOOKS
)
"""Hooks that only kube-proxy creates."""

# IPSET_MAXNAMELEN less the final zero (`linux/netfilter/ipset/ip_set.h`).
_LONGEST_SET_NAME = 31
BY_ADDRESS = ("CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "LOAD-BALANCER", "NODE-PORT-SCTP-HASH")
"""Sets whose members have address, protocol and port of the virtual servers, except for those in `BY_PORT`."""
BY_PORT = {"NODE-PORT-TCP": 6, "NODE-PORT-UDP": 17}
"""Sets of node ports, with the protocol number. kube-proxy has a virtual server for each port and address of the node."""
_FURTHER_SETS = (
    "LOOP-BACK",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
)
SETS = (*BY_ADDRESS, *BY_PORT, *_FURTHER_SETS)


def set_prefix(family: Family) -> str:
    """Return the prefix of the names of a family's sets."""
    return "KUBE-" if family is Family.IPV4 else "KUBE-6-"


def cut(family: Family, name: str) -> str:
    """Return the name of a set without its prefix, shortened to the kernel's limit as kube-proxy does."""
    return name[: _LONGEST_SET_NAME - len(set_prefix(family))]


def is_kube_proxys(table: str, chain: str) -> bool:
    """Return whether kube-proxy has a chain of this name in its iptables or IPVS mode."""
    return _is_of_iptables_mode(table, chain) or chain in _IPVS_CHAINS.get(table, ())


def _is_of_iptables_mode(table: str, chain: str) -> bool:
    if table == MANGLE:
        return chain == names.KUBE_PROXY_CANARY
    return chain != names.CANARY and names.is_ours(table, chain)


def is_stale_hook(chains: Iterable[tuple[str, str]], hook: HookKey) -> bool:
    """Return whether a hook is stale because kube-proxy's IPVS mode has returned.

    That mode uses two chains with the names of ours, and jumps to them from other built-in chains than we do.
    """
    leads_to = hook.rule.rpartition(" ")[2]
    is_shared = hook.table == FILTER and leads_to in (names.PROXY_FIREWALL, names.IPVS_FILTER)
    return is_shared and hook not in HOOKS and (NAT, _LOAD_BALANCER) in chains


def is_needed_by(chains: Iterable[tuple[str, str]], table: str, chain: str) -> bool:
    """Return whether a kube-proxy that has written since we did needs a chain.

    A takeover removes the canary of kube-proxy's iptables mode, and the chain KUBE-LOAD-BALANCER, which only its IPVS mode
    has. So if one of them exists, kube-proxy has written since.

    Args:
        chains: all chains that exist, with their tables.
        table: the table of the chain.
        chain: the name of the chain.
    """
    # Its iptables mode creates the canary at the start. KUBE-LOAD-BALANCER exists in its IPVS mode only.
    found = set(chains)
    if (NAT, names.KUBE_PROXY_CANARY) in found and _is_of_iptables_mode(table, chain):
        return True
    return (NAT, _LOAD_BALANCER) in found and chain in _IPVS_CHAINS.get(table, ())
