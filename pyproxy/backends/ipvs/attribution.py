"""Which Service port each entry of the IPVS mode belongs to, told from the entries alone.

Entries from a plan and entries from the kernel go through the same code, so that a difference between the two is a
difference of entries. A virtual server has no room for a name: the remark of its member in a set says whose it is.
"""

from collections.abc import Iterable, Iterator, Mapping

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.ruleset import ChainKey
from pyproxy.backends.ipvs.entries import (
    HASH_PORT,
    PERSISTENT,
    PROTOCOL_NAMES,
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
from pyproxy.model.names import NamespacedName, Protocol, ServicePortName

IPVS, IPSET, ROUTE = "ipvs", "ipset", "route"
"""What stands in the place of an iptables table: `ipvsadm`, `ipset` and `ip route` take the rest of the line."""
REMARK = "  # "
_PROTOCOLS = {protocol.number: protocol for protocol in Protocol}
_OPTIONS = {6: "-t", 17: "-u", 132: "--sctp-service"}
_ORDER = (IPVS, ROUTE, IPSET)


def list_entries(
    family: Family,
    entries: Mapping[IpvsKey, IpvsValue],
    rules: Iterable[ListedRule],
    states: Mapping[RealServer, RealServerState],
) -> RuleListing:
    """Sort entries by the Service port that they belong to.

    Args:
        family: the family.
        entries: all but rules.
        rules: those of iptables, in order.
        states: what the kernel says of real servers; empty where entries come from a plan.
    """
    owners = _owners(entries)
    chains = {f"KUBE-EXT-{names.service_suffix(name)}": name for name in owners.values()}
    remarks = ("health check node port", "external IP")
    named = {f"{name} {remark}": name for name in sorted(owners.values(), reverse=True) for remark in remarks}
    common: list[ListedRule] = []
    services: dict[ServicePortName, list[ListedRule]] = {}
    for owner, rule in _listed(family, entries, owners, states):
        (services.setdefault(owner, []) if owner else common).append(rule)
    last: list[ListedRule] = []
    for rule in rules:
        jump = rule.rule.rpartition(" -j ")[2]
        owner = chains.get(rule.chain) or chains.get(jump) or named.get(_remark(rule))
        ends = last if rule.chain == LOCAL_DISPATCH else common
        (services.setdefault(owner, []) if owner else ends).append(rule)
    return RuleListing(
        family,
        chains=tuple(sorted({(key.table, key.chain) for key in entries if isinstance(key, ChainKey)})),
        common=tuple(sorted(common, key=_place)),
        services={name: tuple(sorted(services[name], key=_place)) for name in sorted(services)},
        last=tuple(last),
    )


def _owners(entries: Mapping[IpvsKey, IpvsValue]) -> dict[VirtualServer, ServicePortName]:
    found: dict[VirtualServer, ServicePortName] = {}
    for key, value in entries.items():
        if isinstance(key, Member) and key.set in (*SERVED, REMOTE_EXTERNAL_IPS) and isinstance(value, str) and value:
            service, _, port = value.partition(":")
            name = NamespacedName(*service.split("/", 1))
            found[VirtualServer(key.ip, key.protocol, key.port)] = ServicePortName(name, port, _PROTOCOLS[key.protocol])
    return found


def _listed(
    family: Family,
    entries: Mapping[IpvsKey, IpvsValue],
    owners: Mapping[VirtualServer, ServicePortName],
    states: Mapping[RealServer, RealServerState],
) -> Iterator[tuple[ServicePortName | None, ListedRule]]:
    by_ip = {virtual.ip: owners[virtual] for virtual in sorted(owners, reverse=True)}
    prefix = set_prefix(family)
    for key, value in entries.items():
        match key, value:
            case VirtualServer(), Scheduling():
                yield owners.get(key), ListedRule(IPVS, str(key), f"-A {_virtual_text(key)} {_scheduling_text(value)}")
            case RealServer(), int():
                yield owners.get(key.virtual), ListedRule(IPVS, str(key.virtual), _real_text(key, value, states))
            case Vip(), bytes():
                source = f" src {ip_text(value)}" if value else ""
                yield (
                    by_ip.get(key.ip),
                    ListedRule(ROUTE, "local", f"local {ip_text(key.ip)} dev kube-ipvs0 proto static{source}"),
                )
            case Member(), str():
                virtual = VirtualServer(key.ip, key.protocol, key.port)
                owner = owners.get(virtual) if key.port else by_ip.get(key.ip)
                yield owner, ListedRule(IPSET, prefix + key.set, f"add {prefix}{_member_text(key, value)}")
            case Set(), str():
                comment = " comment" if value == "hash:ip,port" else ""
                text = f"create {prefix}{key.name} {value} family {_inet(family)} maxelem 1048576{comment}"
                yield None, ListedRule(IPSET, "", text)
            case _:
                pass


def _remark(rule: ListedRule) -> str:
    return rule.rule.partition('--comment "')[2].partition('"')[0]


def _virtual_text(virtual: VirtualServer) -> str:
    return f"{_OPTIONS.get(virtual.protocol, '-t')} {socket_text(virtual.ip, virtual.port)}"


def _scheduling_text(how: Scheduling) -> str:
    persistence = f" -p {how.timeout}" if how.flags & PERSISTENT else ""
    port = " -b mh-port" if how.flags & HASH_PORT else ""
    return f"-s {how.scheduler}{persistence}{port}"


def _real_text(real: RealServer, weight: int, states: Mapping[RealServer, RealServerState]) -> str:
    text = f"-a {_virtual_text(real.virtual)} -r {real.endpoint} -m -w {weight}"
    state = states.get(real)
    return f"{text}{REMARK}{state.active} active, {state.inactive} inactive connections" if state else text


def _member_text(member: Member, remark: str) -> str:
    text = f"{member.set} {ip_text(member.ip)}"
    if member.port:
        text += f",{PROTOCOL_NAMES[member.protocol]}:{member.port}"
    if member.network is not None:
        text += f",{member.network}"
    return f'{text} comment "{remark}"' if remark else text


def _inet(family: Family) -> str:
    return "inet" if family is Family.IPV4 else "inet6"


def _place(rule: ListedRule) -> tuple[int, str, str]:
    if rule.table in _ORDER:
        # -A, which makes a virtual server, sorts before -a, which needs it; and create before add.
        return _ORDER.index(rule.table), rule.chain, "" if rule.table == IPSET and not rule.chain else rule.rule
    return len(_ORDER), "", ""
