"""What the IPVS mode has in iptables and in ipsets whatever Services there are.

IPVS takes packets at LOCAL_IN and LOCAL_OUT, between the tables' own hooks. What follows from that:

- Dropped is in *mangle*, before anything else: the node's own packets have passed IPVS when *filter* OUTPUT sees them, and
  *nat* may not drop.
- Refused is by a virtual server without real servers: IPVS answers "port unreachable", as a REJECT rule does.
- *nat* decides on masquerading while a packet still has the Service's address, and says so by the mark. What it does not
  send elsewhere it accepts, so that nobody's host port takes over the port of a Service.
- *filter* INPUT refuses what is for an address of Services but no port of theirs: the address is the node's own, and so
  would be whatever listens on the node.
"""

from dataclasses import dataclass

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.chains import forward_chain, hairpin_rule, mark_chain, postrouting_chain
from pyproxy.backends.iptables.rules import comment, if_local, if_not_local, rules
from pyproxy.backends.iptables.ruleset import FILTER, MANGLE, NAT, ChainKey, HookKey, RulesetKey
from pyproxy.backends.iptables.static_rules import known_hooks
from pyproxy.backends.ipvs.entries import Set
from pyproxy.model.address import Family
from pyproxy.model.node import LocalTraffic
from pyproxy.node.context import FamilySettings

CLUSTER_IP = "CLUSTER-IP"
EXTERNAL = "EXTERNAL"
EXTERNAL_LOCAL = "EXTERNAL-LOCAL"
FIREWALL = "FIREWALL"
ALLOWED = "ALLOWED"
NO_LOCAL = "NO-LOCAL"
NO_LOCAL_EXTERNAL = "NO-LOCAL-EXTERNAL"
REMOTE_EXTERNAL_IPS = "ELSEWHERE"
"""External IPs, which may be another node's addresses: only the ports of Services are taken, by rules."""
VIP = "VIP"
SET_TYPES = {
    CLUSTER_IP: "hash:ip,port",
    EXTERNAL: "hash:ip,port",
    EXTERNAL_LOCAL: "hash:ip,port",
    FIREWALL: "hash:ip,port",
    ALLOWED: "hash:ip,port,net",
    NO_LOCAL: "hash:ip,port",
    NO_LOCAL_EXTERNAL: "hash:ip,port",
    REMOTE_EXTERNAL_IPS: "hash:ip,port",
    VIP: "hash:ip",
}
SERVED = (CLUSTER_IP, EXTERNAL, EXTERNAL_LOCAL)
"""Each virtual server is in exactly one of these."""

LOCAL_DISPATCH = "KUBE-SVC-EXTERNAL-LOCAL"
REMOTE_EXTERNAL_DISPATCH = "KUBE-SVC-EXTERNAL-IPS"
"""Both are named so that kube-proxy, where it takes over again, deletes them as stale."""
NO_LOCAL_CHAIN = "KUBE-NO-LOCAL-ENDPOINTS"

_FIXED = {
    FILTER: {names.NODE_PORTS, names.FORWARD, names.IPVS_FILTER, names.CANARY},
    NAT: {
        *(names.SERVICES, names.NODE_PORTS, names.POSTROUTING, names.MARK_MASQUERADE, names.CANARY),
        *(LOCAL_DISPATCH, REMOTE_EXTERNAL_DISPATCH),
    },
    MANGLE: {names.PROXY_FIREWALL, names.SOURCE_RANGES, NO_LOCAL_CHAIN, names.CANARY, names.KUBE_PROXY_CANARY},
}
_NEW = "-m conntrack --ctstate NEW "
# As in the iptables mode: each is inserted at the top, so the last one of a chain ends up first.
_HOOKS = (
    (MANGLE, "PREROUTING", _NEW, "kubernetes load balancer firewall", names.PROXY_FIREWALL),
    (MANGLE, "OUTPUT", _NEW, "kubernetes load balancer firewall", names.PROXY_FIREWALL),
    (FILTER, "INPUT", _NEW, "kubernetes ipvs access filter", names.IPVS_FILTER),
    (FILTER, "INPUT", "", "kubernetes health check service ports", names.NODE_PORTS),
    (FILTER, "FORWARD", "", "kubernetes forwarding rules", names.FORWARD),
    (NAT, "OUTPUT", "", "kubernetes service portals", names.SERVICES),
    (NAT, "PREROUTING", "", "kubernetes service portals", names.SERVICES),
    (NAT, "POSTROUTING", "", "kubernetes postrouting rules", names.POSTROUTING),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IpvsSettings(FamilySettings):
    """What the entries of one family depend on besides Services."""

    local_ips: frozenset[bytes] = frozenset()
    """Addresses of this node: served where a Service claims them, but never made or removed."""
    node_port_ips: tuple[bytes, ...] = ()
    """Those of them that serve node ports."""
    source_ip: bytes = b""
    """The node's address from which it speaks to Services; empty: the kernel's choice."""
    scheduler: str = "rr"


def set_prefix(family: Family) -> str:
    """Return how the names of a family's sets begin."""
    return f"PYPROXY-{family.value}-"


def is_ours(table: str, chain: str) -> bool:
    """Say whether a chain is one that pyproxy owns whole in this mode, or takes over from the iptables mode."""
    return chain in _FIXED[table] or (table != MANGLE and names.is_ours(table, chain))


def is_ours_alone(table: str, chain: str) -> bool:
    """Say whether a chain is one that pyproxy owns in this mode and not in the iptables mode."""
    return chain in _FIXED[table] and (table == MANGLE or not names.is_ours(table, chain))


def ipvs_hooks(family: Family) -> tuple[HookKey, ...]:
    """Return every rule that pyproxy may have in a chain of others, in this mode or left from the iptables mode.

    The kubelet's part of those is left out: it stays whatever the mode.
    """
    own = tuple(key for key in static_rules(IpvsSettings(family=family)) if isinstance(key, HookKey))
    return own + tuple(
        hook
        for hook in known_hooks(family)
        if hook not in own and names.KUBELET_FIREWALL not in (hook.chain, hook.rule.rpartition(" ")[2])
    )


def match(settings: IpvsSettings, name: str, directions: str = "dst,dst") -> str:
    """Return the match on membership in one of our sets."""
    return f"-m set --match-set {set_prefix(settings.family)}{name} {directions}"


def static_sets() -> dict[Set, str]:
    """Return the sets, with their types."""
    return {Set(name): kind for name, kind in SET_TYPES.items()}


def static_rules(settings: IpvsSettings) -> dict[RulesetKey, str]:
    """Return the chains and hooks that are there whatever Services there are."""
    found: dict[RulesetKey, str] = {
        ChainKey(MANGLE, names.PROXY_FIREWALL): _firewall(settings),
        ChainKey(MANGLE, names.SOURCE_RANGES): rules(
            names.SOURCE_RANGES, f"{match(settings, ALLOWED, 'dst,dst,src')} -j RETURN", "-j DROP"
        ),
        ChainKey(MANGLE, NO_LOCAL_CHAIN): _no_local(settings),
        ChainKey(FILTER, names.IPVS_FILTER): _access_filter(settings),
        ChainKey(FILTER, names.FORWARD): forward_chain(settings),
        ChainKey(NAT, names.SERVICES): _services(settings),
        ChainKey(NAT, names.POSTROUTING): postrouting_chain(settings, hairpin_rule(settings, "-m ipvs --ipvs")),
        ChainKey(NAT, names.MARK_MASQUERADE): mark_chain(settings),
    }
    found |= {ChainKey(table, names.CANARY): "" for table in (MANGLE, FILTER, NAT)}
    for table, chain, condition, text, target in _HOOKS:
        rule = f"-A {chain} {condition}{comment(text)} -j {target}"
        found[HookKey(table, chain, rule)] = rule
    return found


def _firewall(settings: IpvsSettings) -> str:
    return rules(
        names.PROXY_FIREWALL,
        f"{match(settings, FIREWALL)} -j {names.SOURCE_RANGES}",
        f"{match(settings, NO_LOCAL)} -j DROP",
        f"{match(settings, NO_LOCAL_EXTERNAL)} -j {NO_LOCAL_CHAIN}",
    )


def _no_local(settings: IpvsSettings) -> str:
    # Pods and the node itself are not "external": they may use every endpoint of the cluster.
    pods = [f"{if_local(settings.local_traffic)} -j RETURN"] if settings.local_traffic is not None else []
    return rules(NO_LOCAL_CHAIN, *pods, "-m addrtype --src-type LOCAL -j RETURN", "-j DROP")


def _access_filter(settings: IpvsSettings) -> str:
    icmp = "icmp" if settings.family is Family.IPV4 else "icmp6"
    return rules(
        names.IPVS_FILTER,
        *(f"{match(settings, name)} -j RETURN" for name in SERVED),
        f"{match(settings, VIP, 'dst')} -j REJECT --reject-with {icmp}-port-unreachable",
    )


def _services(settings: IpvsSettings) -> str:
    mark = f"-j {names.MARK_MASQUERADE}"
    bodies = []
    if settings.masquerade_all:
        bodies.append(f"{match(settings, CLUSTER_IP)} {mark}")
    elif settings.local_traffic is not None:
        bodies.append(_cluster_ip_masquerade(settings, settings.local_traffic))
    bodies += [
        f"{match(settings, REMOTE_EXTERNAL_IPS)} -j {REMOTE_EXTERNAL_DISPATCH}",
        # Where the node speaks with an address that every node has, the answer would never come back.
        f"{match(settings, VIP, 'src')} {mark}",
        f"{match(settings, EXTERNAL)} {mark}",
        f"{match(settings, EXTERNAL_LOCAL)} -j {LOCAL_DISPATCH}",
        f"{match(settings, VIP, 'dst')} -j ACCEPT",
        *(f"{match(settings, name)} -j ACCEPT" for name in (EXTERNAL, EXTERNAL_LOCAL)),
    ]
    return rules(names.SERVICES, *bodies)


def _cluster_ip_masquerade(settings: IpvsSettings, traffic: LocalTraffic) -> str:
    # iptables-save prints addresses and interfaces before matches.
    return f"{if_not_local(traffic)} {match(settings, CLUSTER_IP)} -j {names.MARK_MASQUERADE}"
