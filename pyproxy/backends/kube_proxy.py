"""What kube-proxy 1.37 has in the kernel in each of its modes: how its work is told from others', and from ours.

Its iptables mode shares names with ours. There the last one to have written is told by the canaries: each of the two
takes the other's away when it begins (kube-proxy by `--cleanup` only, so ours can stand beside a newer one of its own).
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
# Those of its IPVS mode that its iptables mode, and ours, has not (`proxier.go`, `iptablesJumpChain`).
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
"""Rules in chains of others that only kube-proxy makes."""

_LONGEST_SET_NAME = 31
BY_ADDRESS = ("CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "LOAD-BALANCER", "NODE-PORT-SCTP-HASH")
"""Sets that between them have address, protocol and port of each virtual server, but those of `BY_PORT`."""
BY_PORT = {"NODE-PORT-TCP": 6, "NODE-PORT-UDP": 17}
"""Sets of ports that have a virtual server on addresses of the node, with the number of the protocol."""
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
    """Return how the names of a family's sets begin."""
    return "KUBE-" if family is Family.IPV4 else "KUBE-6-"


def cut(family: Family, name: str) -> str:
    """Return what stands behind the prefix in the name of a set: the kernel has no longer ones."""
    return name[: _LONGEST_SET_NAME - len(set_prefix(family))]


def is_kube_proxys(table: str, chain: str) -> bool:
    """Say whether kube-proxy has a chain of this name in its iptables or IPVS mode."""
    return _is_of_iptables_mode(table, chain) or chain in _IPVS_CHAINS.get(table, ())


def _is_of_iptables_mode(table: str, chain: str) -> bool:
    if table == MANGLE:
        return chain == names.KUBE_PROXY_CANARY
    return chain != names.CANARY and names.is_ours(table, chain)


def is_stale_hook(chains: Iterable[tuple[str, str]], hook: HookKey) -> bool:
    """Say whether a hook leads to a chain of kube-proxy's IPVS mode that is back, from where that does not."""
    leads_to = hook.rule.rpartition(" ")[2]
    is_shared = hook.table == FILTER and leads_to in (names.PROXY_FIREWALL, names.IPVS_FILTER)
    return is_shared and hook not in HOOKS and (NAT, _LOAD_BALANCER) in chains


def is_needed_by(chains: Iterable[tuple[str, str]], table: str, chain: str) -> bool:
    """Say whether a kube-proxy that has been here since we wrote last needs a chain; all chains that there are tell.

    What we take over loses kube-proxy's canaries of its iptables mode, and the chain that only its IPVS mode has.
    """
    found = set(chains)
    if (NAT, names.KUBE_PROXY_CANARY) in found and _is_of_iptables_mode(table, chain):
        return True
    return (NAT, _LOAD_BALANCER) in found and chain in _IPVS_CHAINS.get(table, ())
