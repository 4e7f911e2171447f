"""The chains and hooks of the iptables mode that do not depend on Services.

Texts, order and reasons are kube-proxy's (`pkg/proxy/iptables/proxier.go`), except for the hairpin
rule: one rule for all Services instead of one for each endpoint (`docs/decisions/001-hairpin.md`).
"""

from dataclasses import dataclass

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.chains import forward_chain, hairpin_rule, mark_chain, postrouting_chain
from pyproxy.backends.iptables.rules import comment, destination, rules
from pyproxy.backends.iptables.ruleset import FILTER, NAT, ChainKey, HookKey, RulesetKey
from pyproxy.model.address import Family
from pyproxy.node.context import FamilySettings

_NEW = "-m conntrack --ctstate NEW "
_LOCALNET_GUARD = (
    "! -s 127.0.0.0/8 -d 127.0.0.0/8 "
    + comment("block incoming localnet connections")
    + " -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
)
INVALID_COUNTER = "ct_state_invalid_dropped_pkts"
"""kube-proxy's name for it."""
INVALID_COUNT = f"-m nfacct --nfacct-name {INVALID_COUNTER}"
LOCALHOST_COUNTER = "localhost_nps_accepted_pkts"
"""kube-proxy's name, too."""
LOCALHOST_COUNT = f"-m conntrack --ctstate DNAT --ctorigdst 127.0.0.0/8 -m nfacct --nfacct-name {LOCALHOST_COUNTER}"
"""Counts the first packet of each connection that was made to a node port on 127.0.0.0/8: it is translated, and marked.

One rule, where kube-proxy has one for each node port in front of the one that serves it.
"""
_NODE_PORTS_LAST = comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")

# (table, from, match, comment, to), in kube-proxy's order. Each is inserted at the top, so the last one of
# a chain ends up first.
_HOOKS = (
    (FILTER, "INPUT", _NEW, "kubernetes externally-visible service portals", names.EXTERNAL_SERVICES),
    (FILTER, "FORWARD", _NEW, "kubernetes externally-visible service portals", names.EXTERNAL_SERVICES),
    (FILTER, "INPUT", "", "kubernetes health check service ports", names.NODE_PORTS),
    (FILTER, "FORWARD", _NEW, "kubernetes service portals", names.SERVICES),
    (FILTER, "OUTPUT", _NEW, "kubernetes service portals", names.SERVICES),
    (FILTER, "FORWARD", "", "kubernetes forwarding rules", names.FORWARD),
    (FILTER, "INPUT", _NEW, "kubernetes load balancer firewall", names.PROXY_FIREWALL),
    (FILTER, "OUTPUT", _NEW, "kubernetes load balancer firewall", names.PROXY_FIREWALL),
    (FILTER, "FORWARD", _NEW, "kubernetes load balancer firewall", names.PROXY_FIREWALL),
    (NAT, "OUTPUT", "", "kubernetes service portals", names.SERVICES),
    (NAT, "PREROUTING", "", "kubernetes service portals", names.SERVICES),
    (NAT, "POSTROUTING", "", "kubernetes postrouting rules", names.POSTROUTING),
    (FILTER, "INPUT", "", "", names.KUBELET_FIREWALL),
    (FILTER, "OUTPUT", "", "", names.KUBELET_FIREWALL),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IptablesSettings(FamilySettings):
    """What the rules of one family depend on besides Services."""

    localhost_node_ports: bool = True
    """Serve node ports on 127.0.0.0/8. Never for IPv6, which has no route_localnet."""
    node_port_ips: tuple[bytes, ...] | None = None
    """Addresses of this node that serve node ports; None means all."""
    drop_invalid: bool = True
    """Drop packets that conntrack calls INVALID; off where ``nf_conntrack_tcp_be_liberal`` is on."""
    count_invalid: bool = False
    """The kernel has xt_nfacct and a counter for those packets."""
    count_localhost_node_ports: bool = False
    """Count packets to node ports on 127.0.0.0/8 that are accepted; the kernel has xt_nfacct and the counter."""
    random_fully: bool = True
    """Masquerade with fully random source ports (iptables 1.6.2 and later)."""
    hairpin_by_packet: bool = True
    """The kernel has xt_bpf: hairpin connections are told by the packet, not by a chain for each endpoint."""


def known_hooks(family: Family) -> tuple[HookKey, ...]:
    """Return every rule that pyproxy may have in a chain of others, whatever the settings."""
    everything = static_rules(IptablesSettings(family=family))
    return tuple(key for key in everything if isinstance(key, HookKey))


def static_rules(settings: IptablesSettings) -> dict[RulesetKey, str]:
    """Return the chains and hooks that are there whatever Services there are; the Services' own rules go between."""
    found: dict[RulesetKey, str] = {
        ChainKey(FILTER, names.FORWARD): _forward_chain(settings),
        ChainKey(FILTER, names.KUBELET_FIREWALL): "",
        ChainKey(NAT, names.POSTROUTING): _postrouting_chain(settings),
        ChainKey(NAT, names.MARK_MASQUERADE): mark_chain(settings),
        ChainKey(FILTER, names.CANARY): "",
        ChainKey(NAT, names.CANARY): "",
    }
    for table, chain, match, text, target in _HOOKS:
        remark = f"{comment(text)} " if text else ""
        rule = f"-A {chain} {match}{remark}-j {target}"
        found[HookKey(table, chain, rule)] = rule
    if settings.family is Family.IPV4 and settings.localhost_node_ports:
        rule = f"-A {names.KUBELET_FIREWALL} {_LOCALNET_GUARD}"
        found[HookKey(FILTER, names.KUBELET_FIREWALL, rule)] = rule
    return found


def node_port_jumps(settings: IptablesSettings) -> str:
    """Return the end of the dispatch chain: what is addressed to the node itself may be a node port's."""
    if settings.node_port_ips is not None:
        matches = [f"{destination(ip)} {_NODE_PORTS_LAST}" for ip in settings.node_port_ips]
    elif settings.family is Family.IPV6:
        matches = [f"! -d ::1/128 {_NODE_PORTS_LAST} -m addrtype --dst-type LOCAL"]
    else:
        loopback = "" if settings.localhost_node_ports else "! -d 127.0.0.0/8 "
        matches = [f"{loopback}{_NODE_PORTS_LAST} -m addrtype --dst-type LOCAL"]
    return rules(names.SERVICES, *(f"{match} -j {names.NODE_PORTS}" for match in matches))


def _forward_chain(settings: IptablesSettings) -> str:
    count = f"{INVALID_COUNT} " if settings.count_invalid else ""
    drop = [f"-m conntrack --ctstate INVALID {count}-j DROP"] if settings.drop_invalid else []
    return forward_chain(settings, *drop)


def _postrouting_chain(settings: IptablesSettings) -> str:
    hairpin = [hairpin_rule(settings, "-m conntrack --ctstate DNAT")] if settings.hairpin_by_packet else []
    count = LOCALHOST_COUNT if settings.count_localhost_node_ports else ""
    return postrouting_chain(settings, *hairpin, marked=count, random_fully=settings.random_fully)
