"""The chains and hooks of the iptables mode that do not depend on Services.

A packet to a Service passes, in this order: *nat* PREROUTING (OUTPUT for packets of the node), where KUBE-SERVICES sends the
first packet of a connection to an endpoint; *filter* FORWARD, INPUT or OUTPUT, where connections that were not translated,
because their Service has no endpoint or does not allow the client, are rejected or dropped; *nat* POSTROUTING, which masquerades.

Texts, order and reasons are those of kube-proxy (`pkg/proxy/iptables/proxier.go`), except for the hairpin rule: one rule for
all Services instead of one for each endpoint (`docs/decisions/001-hairpin.md`).
"""

from dataclasses import dataclass

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.chains import forward_chain, hairpin_rule, mark_chain, postrouting_chain
from pyproxy.backends.iptables.rules import comment, destination, rules
from pyproxy.backends.iptables.ruleset import FILTER, NAT, ChainKey, HookKey, RulesetKey
from pyproxy.model.address import Family, is_loopback
from pyproxy.node.context import FamilySettings

# Chains with a rule for each Service are entered by the first packet of a connection only: filter, unlike nat, sees them all.
_NEW = "-m conntrack --ctstate NEW "
# With route_localnet a host on the same network could send packets to 127.0.0.0/8 of this node. Allowed are packets of the
# node itself, replies, and translated connections, which is what node ports on localhost are. The kubelet has the same rule.
_LOCALNET_GUARD = (
    "! -s 127.0.0.0/8 -d 127.0.0.0/8 "
    + comment("block incoming localnet connections")
    + " -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
)
INVALID_COUNTER = "ct_state_invalid_dropped_pkts"
"""The name of kube-proxy's counter, so that its metric can be read from it."""
INVALID_COUNT = f"-m nfacct --nfacct-name {INVALID_COUNTER}"
LOCALHOST_COUNTER = "localhost_nps_accepted_pkts"
"""The name of kube-proxy's counter."""
LOCALHOST_COUNT = f"-m conntrack --ctstate DNAT --ctorigdst 127.0.0.0/8 -m nfacct --nfacct-name {LOCALHOST_COUNTER}"
"""Counts the first packet of each connection to a node port on 127.0.0.0/8, which is translated and marked.

This is one rule in POSTROUTING; kube-proxy has one for each node port, before the rule that serves it.
"""
_NODE_PORTS_LAST = comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")

# (table, chain, match, comment, target), in kube-proxy's order. Each is inserted at the top, so the last one of a chain
# becomes its first rule.
_HOOKS = (
    # Reject and drop for external frontends. In INPUT, because node ports, and load balancer IPs that are bound to the node, are
    # local addresses; in FORWARD for the rest.
    (FILTER, "INPUT", _NEW, "kubernetes externally-visible service portals", names.EXTERNAL_SERVICES),
    (FILTER, "FORWARD", _NEW, "kubernetes externally-visible service portals", names.EXTERNAL_SERVICES),
    # Accepts load balancers' health checks, which a host firewall further down may drop.
    (FILTER, "INPUT", "", "kubernetes health check service ports", names.NODE_PORTS),
    # Reject and drop for cluster IPs. The nat table, where these packets are recognised first, knows neither target.
    (FILTER, "FORWARD", _NEW, "kubernetes service portals", names.SERVICES),
    (FILTER, "OUTPUT", _NEW, "kubernetes service portals", names.SERVICES),
    # For every packet, because it also accepts and drops packets of connections that exist.
    (FILTER, "FORWARD", "", "kubernetes forwarding rules", names.FORWARD),
    # Inserted after the chains above, so it comes before them: what the source ranges do not allow is dropped first.
    (FILTER, "INPUT", _NEW, "kubernetes load balancer firewall", names.PROXY_FIREWALL),
    (FILTER, "OUTPUT", _NEW, "kubernetes load balancer firewall", names.PROXY_FIREWALL),
    (FILTER, "FORWARD", _NEW, "kubernetes load balancer firewall", names.PROXY_FIREWALL),
    # The DNAT has to be before the routing decision: PREROUTING is for packets from pods and other hosts, OUTPUT for those of
    # the node itself, which the kernel routes again after it.
    (NAT, "OUTPUT", "", "kubernetes service portals", names.SERVICES),
    (NAT, "PREROUTING", "", "kubernetes service portals", names.SERVICES),
    # Masquerading uses an address of the outgoing interface, which is known after routing only.
    (NAT, "POSTROUTING", "", "kubernetes postrouting rules", names.POSTROUTING),
    # As the kubelet has them: it creates the chain as well, and either of the two may be first.
    (FILTER, "INPUT", "", "", names.KUBELET_FIREWALL),
    (FILTER, "OUTPUT", "", "", names.KUBELET_FIREWALL),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IptablesSettings(FamilySettings):
    """The settings that the rules of one family depend on, besides Services."""

    localhost_node_ports: bool = True
    """Serve node ports on 127.0.0.0/8. Always false for IPv6, which has no route_localnet."""
    node_port_ips: tuple[bytes, ...] | None = None
    """Addresses of this node on which node ports are served; None: all."""
    drop_invalid: bool = True
    """Drop packets in conntrack state INVALID; false if `nf_conntrack_tcp_be_liberal` is set.

    Conntrack calls a packet out of the TCP window INVALID and does not translate it. If it reached the client with the
    address of a pod, the client would answer with a reset and end the connection.
    """
    count_invalid: bool = False
    """Count these packets; the kernel has xt_nfacct and the counter."""
    count_localhost_node_ports: bool = False
    """Count connections to node ports on 127.0.0.0/8; the kernel has xt_nfacct and the counter."""
    random_fully: bool = True
    """Masquerade with random source ports (iptables 1.6.2 and later)."""
    hairpin_by_packet: bool = True
    """Match hairpin traffic with one rule, which needs xt_bpf, instead of a chain for each endpoint."""


def known_hooks(family: Family) -> tuple[HookKey, ...]:
    """Return every hook that pyproxy may have, whatever its settings."""
    everything = static_rules(IptablesSettings(family=family))
    return tuple(key for key in everything if isinstance(key, HookKey))


def static_rules(settings: IptablesSettings) -> dict[RulesetKey, str]:
    """Return the chains and hooks that do not depend on Services."""
    count_invalid = f"{INVALID_COUNT} " if settings.count_invalid else ""
    drop_invalid = [f"-m conntrack --ctstate INVALID {count_invalid}-j DROP"] if settings.drop_invalid else []
    hairpin = [hairpin_rule(settings, "-m conntrack --ctstate DNAT")] if settings.hairpin_by_packet else []
    postrouting = postrouting_chain(
        settings,
        *hairpin,
        marked=LOCALHOST_COUNT if settings.count_localhost_node_ports else "",
        random_fully=settings.random_fully,
    )
    found: dict[RulesetKey, str] = {
        ChainKey(FILTER, names.FORWARD): forward_chain(settings, *drop_invalid),
        ChainKey(FILTER, names.KUBELET_FIREWALL): "",
        ChainKey(NAT, names.POSTROUTING): postrouting,
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
    """Return the last rules of the dispatch chain: packets to an address of the node may be for a node port.

    They come last because a load balancer IP or an external IP may be an address of the node as well, and has precedence.
    """
    if settings.node_port_ips is not None:
        # With route_localnet a neighbour can send packets to 127.0.0.1, and kube-proxy serves it. A packet with a source of
        # this node that arrives from elsewhere is a martian, which the kernel drops (`fib_validate_source`).
        matches = [
            f"{destination(ip)} {_NODE_PORTS_LAST}{' -m addrtype --src-type LOCAL' if is_loopback(ip) else ''}"
            for ip in settings.node_port_ips
        ]
    elif settings.family is Family.IPV6:
        # A packet with source ::1 is never routed out of the node, so a node port on ::1 could not work.
        matches = [f"! -d ::1/128 {_NODE_PORTS_LAST} -m addrtype --dst-type LOCAL"]
    else:
        loopback = "" if settings.localhost_node_ports else "! -d 127.0.0.0/8 "
        matches = [f"{loopback}{_NODE_PORTS_LAST} -m addrtype --dst-type LOCAL"]
    return rules(names.SERVICES, *(f"{match} -j {names.NODE_PORTS}" for match in matches))
