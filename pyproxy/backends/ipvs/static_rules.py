"""The ipsets and the helper rules of the IPVS mode that do not depend on Services.

IPVS processes packets in two hooks (`ip_vs_core.c`): in LOCAL_IN with priority 98, which is after *filter* (0), and in LOCAL_OUT
with priority -99, which is after *nat* (-100) and before *filter*. This decides which table does what:

- *mangle* drops, before anything else: packets of the node itself have passed IPVS when *filter* OUTPUT sees them, and *nat*
  cannot drop.
- Nothing rejects on behalf of Services without endpoints. They have a virtual server without real servers, for which IPVS
  answers "port unreachable", as a REJECT rule does.
- *nat* decides on masquerading while a packet still has the Service's address, and marks it. It accepts packets to Services
  that it does not translate, so that no later rule, such as that of a host port, takes over the port of a Service.
- *filter* INPUT rejects packets to a VIP whose port no Service has. The node owns the address, so otherwise every program that
  listens on the node would be reachable on it.

A rule matches a set, so the number of rules does not grow with the number of Services.
"""

from dataclasses import dataclass

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.chains import forward_chain, hairpin_rule, mark_chain, postrouting_chain
from pyproxy.backends.iptables.rules import comment, if_local, if_not_local, rules
from pyproxy.backends.iptables.ruleset import FILTER, MANGLE, NAT, ChainKey, HookKey, RulesetKey
from pyproxy.backends.iptables.static_rules import known_hooks
from pyproxy.backends.ipvs.entries import Set
from pyproxy.model.address import Family
from pyproxy.node.context import FamilySettings

CLUSTER_IP = "CLUSTER-IP"
EXTERNAL = "EXTERNAL"
EXTERNAL_LOCAL = "EXTERNAL-LOCAL"
FIREWALL = "FIREWALL"
ALLOWED = "ALLOWED"
NO_LOCAL = "NO-LOCAL"
NO_LOCAL_EXTERNAL = "NO-LOCAL-EXTERNAL"
REMOTE_EXTERNAL_IPS = "ELSEWHERE"
"""External IPs that this node does not own. They may be addresses of another node, so rules translate the Services' ports
only."""
VIP = "VIP"
SET_TYPES = {
    # Virtual servers. Of the three, external traffic with policy Cluster is masqueraded always, cluster IPs depending on the
    # client, and policy Local keeps the address of the client.
    CLUSTER_IP: "hash:ip,port",
    EXTERNAL: "hash:ip,port",
    EXTERNAL_LOCAL: "hash:ip,port",
    # Load balancer IPs with source ranges, and the ranges.
    FIREWALL: "hash:ip,port",
    ALLOWED: "hash:ip,port,net",
    # Policy Local without a local endpoint: dropped for all clients, or for those outside the cluster.
    NO_LOCAL: "hash:ip,port",
    NO_LOCAL_EXTERNAL: "hash:ip,port",
    REMOTE_EXTERNAL_IPS: "hash:ip,port",
    VIP: "hash:ip",
}
SERVED = (CLUSTER_IP, EXTERNAL, EXTERNAL_LOCAL)
"""Each virtual server is a member of exactly one of these sets, which shows that it is ours."""

LOCAL_DISPATCH = "KUBE-SVC-EXTERNAL-LOCAL"
REMOTE_EXTERNAL_DISPATCH = "KUBE-SVC-EXTERNAL-IPS"
"""Both names begin with KUBE-SVC-, so that kube-proxy deletes the chains as stale after a rollback."""
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
# (table, chain, match, comment, target). Each is inserted at the top, so the last one of a chain becomes its first rule.
_HOOKS = (
    # Drops, before IPVS and the DNAT in nat: later, the address of the Service is lost, and connections are scheduled.
    (MANGLE, "PREROUTING", _NEW, "kubernetes load balancer firewall", names.PROXY_FIREWALL),
    (MANGLE, "OUTPUT", _NEW, "kubernetes load balancer firewall", names.PROXY_FIREWALL),
    # Rejects ports of VIPs that no Service has. IPVS processes packets in LOCAL_IN after this table, so it sees them first.
    (FILTER, "INPUT", _NEW, "kubernetes ipvs access filter", names.IPVS_FILTER),
    # Accepts load balancers' health checks, which a host firewall further down may drop.
    (FILTER, "INPUT", "", "kubernetes health check service ports", names.NODE_PORTS),
    # Accepts what IPVS sends to pods, for nodes whose FORWARD policy is DROP.
    (FILTER, "FORWARD", "", "kubernetes forwarding rules", names.FORWARD),
    # Marks for masquerading, and the DNAT to other virtual servers: before routing, and before IPVS.
    (NAT, "OUTPUT", "", "kubernetes service portals", names.SERVICES),
    (NAT, "PREROUTING", "", "kubernetes service portals", names.SERVICES),
    # Masquerades what is marked, after IPVS has chosen a real server. With `net.ipv4.vs.conntrack` its packets pass here.
    (NAT, "POSTROUTING", "", "kubernetes postrouting rules", names.POSTROUTING),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IpvsSettings(FamilySettings):
    """The settings that the entries of one family depend on, besides Services."""

    local_ips: frozenset[bytes] = frozenset()
    """Addresses of this node. A Service may use them, but they are never added or removed."""
    node_port_ips: tuple[bytes, ...] = ()
    """Addresses of this node on which node ports are served."""
    source_ip: bytes = b""
    """The source address for packets of the node to Services; empty: chosen by the kernel."""
    scheduler: str = "rr"


def set_prefix(family: Family) -> str:
    """Return the prefix of the names of a family's sets."""
    # Sets of both families are in one name space. A name has at most 31 characters (IPSET_MAXNAMELEN).
    return f"PYPROXY-{family.value}-"


def is_ours(table: str, chain: str) -> bool:
    """Return whether pyproxy owns a chain with all its rules in this mode, or takes it over from the iptables mode."""
    return chain in _FIXED[table] or (table != MANGLE and names.is_ours(table, chain))


def is_ours_alone(table: str, chain: str) -> bool:
    """Return whether pyproxy owns a chain in this mode and not in the iptables mode."""
    return chain in _FIXED[table] and (table == MANGLE or not names.is_ours(table, chain))


def ipvs_hooks(family: Family) -> tuple[HookKey, ...]:
    """Return every hook of pyproxy in this mode, and those of the iptables mode, which are stale here.

    Hooks for the kubelet's chain are excluded: they are kept in all modes.
    """
    own = tuple(key for key in static_rules(IpvsSettings(family=family)) if isinstance(key, HookKey))
    return own + tuple(
        hook
        for hook in known_hooks(family)
        if hook not in own and names.KUBELET_FIREWALL not in (hook.chain, hook.rule.rpartition(" ")[2])
    )


def match(settings: IpvsSettings, name: str, directions: str = "dst,dst") -> str:
    """Return the match for packets whose address and port are a member of one of our sets."""
    return f"-m set --match-set {set_prefix(settings.family)}{name} {directions}"


def static_sets() -> dict[Set, str]:
    """Return the sets with their types."""
    return {Set(name): kind for name, kind in SET_TYPES.items()}


def static_rules(settings: IpvsSettings) -> dict[RulesetKey, str]:
    """Return the chains and hooks that do not depend on Services."""
    icmp = "icmp" if settings.family is Family.IPV4 else "icmp6"
    # Traffic from pods and from the node is not external: it may use all endpoints of the cluster.
    pods = [f"{if_local(settings.local_traffic)} -j RETURN"] if settings.local_traffic is not None else []
    found: dict[RulesetKey, str] = {
        ChainKey(MANGLE, names.PROXY_FIREWALL): rules(
            names.PROXY_FIREWALL,
            f"{match(settings, FIREWALL)} -j {names.SOURCE_RANGES}",
            f"{match(settings, NO_LOCAL)} -j DROP",
            f"{match(settings, NO_LOCAL_EXTERNAL)} -j {NO_LOCAL_CHAIN}",
        ),
        ChainKey(MANGLE, names.SOURCE_RANGES): rules(
            names.SOURCE_RANGES, f"{match(settings, ALLOWED, 'dst,dst,src')} -j RETURN", "-j DROP"
        ),
        ChainKey(MANGLE, NO_LOCAL_CHAIN): rules(
            NO_LOCAL_CHAIN, *pods, "-m addrtype --src-type LOCAL -j RETURN", "-j DROP"
        ),
        ChainKey(FILTER, names.IPVS_FILTER): rules(
            names.IPVS_FILTER,
            *(f"{match(settings, name)} -j RETURN" for name in SERVED),
            f"{match(settings, VIP, 'dst')} -j REJECT --reject-with {icmp}-port-unreachable",
        ),
        ChainKey(FILTER, names.FORWARD): forward_chain(settings),
        ChainKey(NAT, names.SERVICES): _services_chain(settings),
        ChainKey(NAT, names.POSTROUTING): postrouting_chain(settings, hairpin_rule(settings, "-m ipvs --ipvs")),
        ChainKey(NAT, names.MARK_MASQUERADE): mark_chain(settings),
    }
    found |= {ChainKey(table, names.CANARY): "" for table in (MANGLE, FILTER, NAT)}
    for table, chain, condition, text, target in _HOOKS:
        rule = f"-A {chain} {condition}{comment(text)} -j {target}"
        found[HookKey(table, chain, rule)] = rule
    return found


def _services_chain(settings: IpvsSettings) -> str:
    mark = f"-j {names.MARK_MASQUERADE}"
    bodies = []
    if settings.masquerade_all:
        bodies.append(f"{match(settings, CLUSTER_IP)} {mark}")
    elif settings.local_traffic is not None:
        # Traffic from outside the cluster. iptables-save prints addresses and interfaces before matches.
        bodies.append(f"{if_not_local(settings.local_traffic)} {match(settings, CLUSTER_IP)} {mark}")
    bodies += [
        # No virtual server has these addresses, because the node does not own them.
        f"{match(settings, REMOTE_EXTERNAL_IPS)} -j {REMOTE_EXTERNAL_DISPATCH}",
        # A packet of the node with a VIP as its source: every node owns that address, so the reply would not come back.
        f"{match(settings, VIP, 'src')} {mark}",
        # Policy Cluster: the endpoint may be on another node, whose reply must come back through this one.
        f"{match(settings, EXTERNAL)} {mark}",
        # Policy Local: pods and the node go to all endpoints, from here, and the rest goes on to IPVS.
        f"{match(settings, EXTERNAL_LOCAL)} -j {LOCAL_DISPATCH}",
        f"{match(settings, VIP, 'dst')} -j ACCEPT",
        *(f"{match(settings, name)} -j ACCEPT" for name in (EXTERNAL, EXTERNAL_LOCAL)),
    ]
    return rules(names.SERVICES, *bodies)
