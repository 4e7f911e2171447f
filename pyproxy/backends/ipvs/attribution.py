"""Finds the Service port that each entry of the IPVS mode belongs to, from the entries alone.

Planned entries and entries read from the kernel go through the same code, so every difference between the two listings is a
difference of entries. A virtual server has no field for a name: the comment of its member in a set has the Service port.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.ruleset import ChainKey
from pyproxy.backends.ipvs.entries import (
    HASH_PORT,
    PERSISTENT,
    IpvsKey,
    IpvsValue,
    Member,
    RealServer,
    RealServerState,
    Scheduling,
    Set,
    Vip,
    VirtualServer,
)
from pyproxy.backends.ipvs.static_rules import LOCAL_DISPATCH, REMOTE_EXTERNAL_IPS, SERVED, set_prefix
from pyproxy.backends.listing import ListedRule, RuleListing
from pyproxy.model.address import Family, ip_text, socket_text
from pyproxy.model.names import PROTOCOLS, NamespacedName, ServicePortName

IPVS, IPSET, ROUTE = "ipvs", "ipset", "route"
"""In place of the name of an iptables table: the rest of the line is for `ipvsadm`, `ipset` or `ip route`."""
REMARK = "  # "
"""Separates what the tool reads from what only people read."""
# Of ipvsadm.
_OPTIONS = {6: "-t", 17: "-u", 132: "--sctp-service"}
_ORDER = (IPVS, ROUTE, IPSET)


def list_entries(
    family: Family,
    entries: Mapping[IpvsKey, IpvsValue],
    rules: Iterable[ListedRule],
    states: Mapping[RealServer, RealServerState],
    also: Mapping[IpvsKey, IpvsValue] = MappingProxyType({}),
) -> RuleListing:
    """Sort entries by the Service port that they belong to.

    Args:
        family: the family.
        entries: the entries; rules are skipped.
        rules: the iptables rules, in order.
        states: the states of real servers in the kernel; empty for planned entries.
        also: other entries, not listed, whose names of Service ports are used for virtual servers without one.
    """
    owners: dict[VirtualServer, ServicePortName] = {}
    for key, value in (*also.items(), *entries.items()):
        if isinstance(key, Member) and key.set in (*SERVED, REMOTE_EXTERNAL_IPS) and isinstance(value, str) and value:
            service, _, port = value.partition(":")
            name = NamespacedName(*service.split("/", 1))
            virtual = VirtualServer(key.ip, key.protocol, key.port)
            owners[virtual] = ServicePortName(name, port, PROTOCOLS[key.protocol])
    # Rules of one Service port are in its chain KUBE-EXT, or have its name in a comment with one of these remarks.
    chains = {f"KUBE-EXT-{names.service_suffix(name)}": name for name in owners.values()}
    remarks = ("health check node port", "external IP")
    named = {f"{name} {remark}": name for name in sorted(owners.values(), reverse=True) for remark in remarks}
    common: list[ListedRule] = []
    services: dict[ServicePortName, list[ListedRule]] = {}
    for owner, rule in _listed(family, entries, owners, states):
        (services.setdefault(owner, []) if owner else common).append(rule)
    # LOCAL_DISPATCH ends with a jump that has to stay behind the rules of all Services.
    last: list[ListedRule] = []
    for rule in rules:
        jump = rule.rule.rpartition(" -j ")[2]
        comment = rule.rule.partition('--comment "')[2].partition('"')[0]
        owner = chains.get(rule.chain) or chains.get(jump) or named.get(comment)
        ends = last if rule.chain == LOCAL_DISPATCH else common
        (services.setdefault(owner, []) if owner else ends).append(rule)
    return RuleListing(
        family,
        chains=tuple(sorted({(key.table, key.chain) for key in entries if isinstance(key, ChainKey)})),
        common=tuple(sorted(common, key=_place)),
        services={name: tuple(sorted(services[name], key=_place)) for name in sorted(services)},
        last=tuple(last),
    )


def _listed(
    family: Family,
    entries: Mapping[IpvsKey, IpvsValue],
    owners: Mapping[VirtualServer, ServicePortName],
    states: Mapping[RealServer, RealServerState],
) -> Iterator[tuple[ServicePortName | None, ListedRule]]:
    # A VIP has no port. If several Service ports use it, it is listed with the first one.
    by_ip = {virtual.ip: owners[virtual] for virtual in sorted(owners, reverse=True)}
    prefix = set_prefix(family)
    for key, value in entries.items():
        match key, value:
            case VirtualServer(), Scheduling():
                persistence = f" -p {value.timeout}" if value.flags & PERSISTENT else ""
                hash_port = " -b mh-port" if value.flags & HASH_PORT else ""
                text = f"-A {_virtual_text(key)} -s {value.scheduler}{persistence}{hash_port}"
                yield owners.get(key), ListedRule(IPVS, str(key), text)
            case RealServer(), int():
                # The method is always NAT (-m), the only one with which an endpoint may have another port than its Service.
                text = f"-a {_virtual_text(key.virtual)} -r {key.endpoint} -m -w {value}"
                if state := states.get(key):
                    text += f"{REMARK}{state.active} active, {state.inactive} inactive connections"
                yield owners.get(key.virtual), ListedRule(IPVS, str(key.virtual), text)
            case Vip(), bytes():
                source = f" src {ip_text(value)}" if value else ""
                yield (
                    by_ip.get(key.ip),
                    ListedRule(ROUTE, "local", f"local {ip_text(key.ip)} dev kube-ipvs0 proto static{source}"),
                )
            case Member(), str():
                # A member of the set of VIPs has an address only.
                virtual = VirtualServer(key.ip, key.protocol, key.port)
                owner = owners.get(virtual) if key.port else by_ip.get(key.ip)
                yield owner, ListedRule(IPSET, prefix + key.set, f"add {prefix}{_member_text(key, value)}")
            case Set(), str():
                comment = " comment" if value == "hash:ip,port" else ""
                inet = "inet" if family is Family.IPV4 else "inet6"
                text = f"create {prefix}{key.name} {value} family {inet} maxelem 1048576{comment}"
                yield None, ListedRule(IPSET, "", text)
            case _:
                pass


def _virtual_text(virtual: VirtualServer) -> str:
    return f"{_OPTIONS.get(virtual.protocol, '-t')} {socket_text(virtual.ip, virtual.port)}"


def _member_text(member: Member, remark: str) -> str:
    text = f"{member.set} {ip_text(member.ip)}"
    if member.port:
        text += f",{PROTOCOLS[member.protocol].value}:{member.port}"
    if member.network is not None:
        text += f",{member.network}"
    return f'{text} comment "{remark}"' if remark else text


def _place(rule: ListedRule) -> tuple[int, str, str]:
    if rule.table in _ORDER:
        # In an order that can be loaded: -A, which creates a virtual server, is before -a, which needs it, and the creation of
        # a set, which has no chain here, before its members.
        return _ORDER.index(rule.table), rule.chain, "" if rule.table == IPSET and not rule.chain else rule.rule
    return len(_ORDER), "", ""
