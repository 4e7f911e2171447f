"""The entries of one plan in IPVS mode, and the entries that a change of a plan touches."""

from dataclasses import replace

import pytest
from msgspec import structs

from pyproxy.backends.iptables.ruleset import FILTER, MANGLE, NAT, ChainKey, HookKey
from pyproxy.backends.ipvs.attribution import list_entries
from pyproxy.backends.ipvs.entries import (
    HASH_PORT,
    PERSISTENT,
    IpvsKey,
    IpvsValue,
    Member,
    RealServer,
    Scheduling,
    Set,
    Vip,
    VirtualServer,
)
from pyproxy.backends.ipvs.program import IpvsProgram, port_entries
from pyproxy.backends.ipvs.static_rules import (
    ALLOWED,
    CLUSTER_IP,
    EXTERNAL,
    EXTERNAL_LOCAL,
    FIREWALL,
    NO_LOCAL,
    NO_LOCAL_EXTERNAL,
    REMOTE_EXTERNAL_IPS,
    VIP,
    IpvsSettings,
    ipvs_hooks,
    is_ours,
    is_ours_alone,
    set_prefix,
    static_rules,
    static_sets,
)
from pyproxy.model.address import Family, ip_text, parse_ip, parse_network
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import Protocol
from pyproxy.model.node import LocalTraffic
from pyproxy.plan.service_plan import ServicePlan
from tests.unit.plan.building import PLAN, endpoints, ips, port_name

NODE_IP, POD_SIDE = ips("172.18.0.11", "10.244.1.1")
SETTINGS = IpvsSettings(
    family=Family.IPV4,
    local_traffic=LocalTraffic(cidr=parse_network("10.244.0.0/16")),
    local_ips=frozenset((NODE_IP, POD_SIDE)),
    node_port_ips=(NODE_IP,),
    source_ip=NODE_IP,
)
CLUSTER, EXTERNAL_IP = ips("10.96.0.10", "203.0.113.1")
BOTH = endpoints("10.244.1.11:8080", "10.244.2.11:8080")
LOCAL, REMOTE = BOTH
AT_CLUSTER = VirtualServer(CLUSTER, 6, 80)
AT_EXTERNAL = VirtualServer(EXTERNAL_IP, 6, 80)
PLAIN = structs.replace(PLAN, cluster_ip=CLUSTER, cluster_endpoints=BOTH, any_usable=True)
OUTSIDE = structs.replace(PLAIN, external_ips=(EXTERNAL_IP,))
BALANCED = structs.replace(PLAIN, load_balancer_ips=(EXTERNAL_IP,))
EXTERNALLY_LOCAL = structs.replace(BALANCED, external_local=True, local_endpoints=(LOCAL,))
LONGEST_SET_NAME = 31
"""IPSET_MAXNAMELEN is 32, with the final zero."""
LONGEST_CHAIN_NAME = 28


def compiled(plan: ServicePlan, **changed: object) -> dict[IpvsKey, IpvsValue]:
    """Return the entries of a plan."""
    return port_entries(plan, replace(SETTINGS, **changed))  # type: ignore[arg-type]  # names of its fields


def weights(plan: ServicePlan, virtual: VirtualServer = AT_CLUSTER) -> dict[object, IpvsValue]:
    """Return the real servers of one virtual server, with their weights."""
    found = compiled(plan)
    return {
        key.endpoint: value for key, value in found.items() if isinstance(key, RealServer) and key.virtual == virtual
    }


def rules(plan: ServicePlan, chain: str) -> str:
    """Return the rules of a plan in a chain of table nat."""
    return str(compiled(plan).get(ChainKey(NAT, chain), ""))


def test_cluster_ip() -> None:
    """A cluster IP is a virtual server, a route with the node's own source address, and a member of two sets."""
    assert compiled(PLAIN) == {
        AT_CLUSTER: Scheduling("rr"),
        RealServer(AT_CLUSTER, LOCAL): 1,
        RealServer(AT_CLUSTER, REMOTE): 1,
        Vip(CLUSTER): NODE_IP,
        Member(CLUSTER_IP, *AT_CLUSTER): "default/web",
        Member(VIP, CLUSTER): "",
    }


def test_load_balancer_address_is_masqueraded() -> None:
    """Under policy Cluster an external address has the same endpoints, and is in the set of masqueraded addresses."""
    found = compiled(BALANCED)

    assert dict.fromkeys(BOTH, 1) == weights(BALANCED, AT_EXTERNAL)
    assert Member(EXTERNAL, *AT_EXTERNAL) in found
    assert Vip(EXTERNAL_IP) in found


def test_external_ip_takes_one_port_of_an_address() -> None:
    """An external IP may be another node's: this node does not answer for it, and translates only its Service port."""
    found = compiled(OUTSIDE)

    assert {AT_EXTERNAL, Vip(EXTERNAL_IP), Member(VIP, EXTERNAL_IP)}.isdisjoint(found)
    assert Member(REMOTE_EXTERNAL_IPS, *AT_EXTERNAL) in found
    packets = '-d 203.0.113.1/32 -p tcp -m comment --comment "default/web external IP" -m tcp --dport 80'
    assert [
        f"-A KUBE-SVC-EXTERNAL-IPS {packets} -j KUBE-MARK-MASQ",
        f"-A KUBE-SVC-EXTERNAL-IPS {packets} -j DNAT --to-destination 10.96.0.10:80",
    ] == rules(OUTSIDE, "KUBE-SVC-EXTERNAL-IPS").splitlines()


def test_external_ip_under_policy_local() -> None:
    """Pods and the node use all endpoints; other clients are sent to a placeholder with the local ones."""
    plan = structs.replace(OUTSIDE, external_local=True, local_endpoints=(LOCAL,))
    found = compiled(plan)

    [placeholder] = [key for key in found if isinstance(key, VirtualServer) and key != AT_CLUSTER]
    assert {LOCAL: 1} == weights(plan, placeholder)
    jumps = [rule.rpartition(" -j ")[2] for rule in rules(plan, "KUBE-SVC-EXTERNAL-IPS").splitlines()]
    target = f"{ip_text(placeholder.ip)}:{placeholder.port}"
    assert ["KUBE-EXT-LOLE4ISW44XBNF3G", f"DNAT --to-destination {target}"] == jumps


def test_address_of_the_node_is_served_and_not_made() -> None:
    """An external IP that is an address of the node is a virtual server without a route; its other ports stay open."""
    found = compiled(structs.replace(PLAIN, external_ips=(NODE_IP,)))

    assert VirtualServer(NODE_IP, 6, 80) in found
    assert {Vip(NODE_IP), Member(VIP, NODE_IP)}.isdisjoint(found)


def test_node_port_has_a_virtual_server_for_each_address() -> None:
    """Node ports are on the node port addresses only."""
    found = compiled(structs.replace(PLAIN, node_port=30080))

    assert VirtualServer(NODE_IP, 6, 30080) in found
    assert VirtualServer(POD_SIDE, 6, 30080) not in found
    assert Member(EXTERNAL, NODE_IP, 6, 30080) in found


def test_external_policy_local_has_its_own_endpoints() -> None:
    """Outside clients get the local endpoints; a rule sends pods and the node to the cluster IP, which has all."""
    assert {LOCAL: 1} == weights(EXTERNALLY_LOCAL, AT_EXTERNAL)
    assert Member(EXTERNAL_LOCAL, *AT_EXTERNAL) in compiled(EXTERNALLY_LOCAL)
    assert "-d 203.0.113.1/32 -p tcp" in rules(EXTERNALLY_LOCAL, "KUBE-SVC-EXTERNAL-LOCAL")
    assert [
        "-A KUBE-EXT-LOLE4ISW44XBNF3G -s 10.244.0.0/16 -p tcp -j DNAT --to-destination 10.96.0.10:80",
        "-A KUBE-EXT-LOLE4ISW44XBNF3G -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ",
        "-A KUBE-EXT-LOLE4ISW44XBNF3G -p tcp -m addrtype --src-type LOCAL -j DNAT --to-destination 10.96.0.10:80",
    ] == rules(EXTERNALLY_LOCAL, "KUBE-EXT-LOLE4ISW44XBNF3G").splitlines()


@pytest.mark.parametrize("family", Family)
def test_stand_in(family: Family) -> None:
    """If the cluster IP has other endpoints, or there is no cluster IP, a placeholder address has all endpoints."""
    internal, outside = (CLUSTER, EXTERNAL_IP) if family is Family.IPV4 else ips("fd00:96::a", "2001:db8::1")
    both = BOTH if family is Family.IPV4 else endpoints("[fd00:244::1]:8080", "[fd00:244::2]:8080")
    plan = structs.replace(
        EXTERNALLY_LOCAL,
        family=family,
        cluster_ip=internal,
        internal_local=True,
        load_balancer_ips=(outside,),
        cluster_endpoints=both,
        local_endpoints=both[:1],
    )
    found = compiled(plan, family=family)

    [placeholder] = [key for key in found if isinstance(key, VirtualServer) and key.ip not in {internal, outside}]
    assert placeholder.ip in parse_network("240.0.0.0/4" if family is Family.IPV4 else "100::/64")
    assert placeholder.port in range(1, 65536)
    assert set(both) == {key.endpoint for key in found if isinstance(key, RealServer) and key.virtual == placeholder}
    assert Vip(placeholder.ip) in found


@pytest.mark.parametrize(
    ("plan", "name", "virtual"),
    [
        (structs.replace(PLAIN, internal_local=True), NO_LOCAL, AT_CLUSTER),
        (structs.replace(EXTERNALLY_LOCAL, local_endpoints=()), NO_LOCAL_EXTERNAL, AT_EXTERNAL),
    ],
)
def test_dropped_where_only_other_nodes_may_answer(plan: ServicePlan, name: str, virtual: VirtualServer) -> None:
    """Without a local endpoint under policy Local packets are dropped, never sent to another node."""
    assert Member(name, *virtual) in compiled(plan)
    assert {} == weights(plan, virtual)


def test_refused_where_nobody_answers() -> None:
    """Without endpoints the virtual server is empty, and nothing is dropped."""
    found = compiled(structs.replace(PLAN, cluster_ip=CLUSTER))

    assert AT_CLUSTER in found
    assert Member(NO_LOCAL, *AT_CLUSTER) not in found


def test_source_ranges_guard_load_balancer_addresses_only() -> None:
    """Source ranges are members of the set; an address that is an external IP as well is open to all."""
    block = parse_network("198.51.100.0/24")
    also_external = parse_ip("203.0.113.2")
    plan = structs.replace(PLAIN, load_balancer_ips=(EXTERNAL_IP, also_external), source_ranges=(block,))

    found = compiled(structs.replace(plan, external_ips=(also_external,)))

    assert [Member(FIREWALL, *AT_EXTERNAL)] == [key for key in found if isinstance(key, Member) and key.set == FIREWALL]
    assert Member(ALLOWED, *AT_EXTERNAL, block) in found


def test_range_of_all_addresses_is_no_firewall() -> None:
    """A source range of length 0 allows all clients, so there is no firewall; the kernel's sets do not accept it."""
    plan = structs.replace(PLAIN, load_balancer_ips=(EXTERNAL_IP,), source_ranges=(parse_network("0.0.0.0/0"),))

    assert Member(FIREWALL, *AT_EXTERNAL) not in compiled(plan)


@pytest.mark.parametrize(
    ("protocol", "serving", "expected"),
    [
        (Protocol.TCP, frozenset(), {REMOTE: 1, LOCAL: 0}),
        (Protocol.SCTP, frozenset(), {REMOTE: 1, LOCAL: 0}),
        (Protocol.UDP, frozenset((LOCAL,)), {REMOTE: 1, LOCAL: 0}),
        (Protocol.UDP, frozenset(), {REMOTE: 1}),
    ],
)
def test_draining_endpoints_have_weight_0(
    protocol: Protocol, serving: frozenset[Endpoint], expected: dict[object, int]
) -> None:
    """A terminating endpoint gets no new connections; one that no longer serves gets no UDP packets either."""
    plan = structs.replace(
        PLAIN,
        name=port_name(protocol=protocol),
        cluster_endpoints=(REMOTE,),
        draining_endpoints=(LOCAL,),
        serving_endpoints=serving,
    )

    assert expected == weights(plan, VirtualServer(CLUSTER, protocol.number, 80))


def test_terminating_endpoint_that_is_used_has_weight_1() -> None:
    """If all endpoints are terminating, they serve."""
    assert {LOCAL: 1} == weights(structs.replace(PLAIN, cluster_endpoints=(LOCAL,), draining_endpoints=(LOCAL,)))


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (structs.replace(PLAIN, affinity_seconds=600), Scheduling("rr", PERSISTENT, 600)),
        (structs.replace(PLAIN, scheduler="lc"), Scheduling("lc")),
        (structs.replace(PLAIN, scheduler="mh"), Scheduling("mh", HASH_PORT)),
    ],
)
def test_scheduling(plan: ServicePlan, expected: Scheduling) -> None:
    """Session affinity is the kernel's persistence; the scheduler of a Service takes precedence over the node's."""
    assert expected == compiled(plan)[AT_CLUSTER]


def test_health_check_port_is_let_in() -> None:
    """The rule that accepts health checks is in the chain KUBE-NODEPORTS, which is the first in INPUT."""
    found = compiled(structs.replace(PLAIN, health_check_node_port=32000))

    assert "--dport 32000 -j ACCEPT" in str(found[ChainKey(FILTER, "KUBE-NODEPORTS")])


def test_change_of_an_endpoint_touches_its_real_server_only() -> None:
    """A change of one endpoint is a change of one key for each virtual server, whatever addresses the Service has."""
    program = IpvsProgram(SETTINGS)
    program.put(PLAIN.name, EXTERNALLY_LOCAL)

    changed = program.put(PLAIN.name, structs.replace(EXTERNALLY_LOCAL, cluster_endpoints=(LOCAL,)))

    assert {RealServer(AT_CLUSTER, REMOTE)} == changed
    assert program.value(RealServer(AT_CLUSTER, REMOTE)) is None


def test_address_of_two_ports_stays_with_the_second() -> None:
    """An address is removed with the last port that uses it, in whatever order its ports are removed."""
    program = IpvsProgram(SETTINGS)
    other = structs.replace(PLAIN, name=port_name(port="admin"), port=81)
    program.put(PLAIN.name, PLAIN)
    program.put(other.name, other)

    assert Vip(CLUSTER) not in program.put(PLAIN.name, None)
    assert NODE_IP == program.value(Vip(CLUSTER))
    assert Vip(CLUSTER) in program.put(other.name, None)
    assert program.value(Vip(CLUSTER)) is None


def test_two_services_exchange_their_addresses_and_node_ports() -> None:
    """Two Services can exchange addresses and node ports in either order, and removing both leaves nothing."""
    number = VirtualServer(NODE_IP, 6, 80)
    one = structs.replace(PLAIN, external_ips=(NODE_IP,), node_port=30001)
    other = structs.replace(PLAIN, name=port_name("other"), cluster_ip=EXTERNAL_IP, node_port=30002)
    swapped = (
        structs.replace(one, cluster_ip=EXTERNAL_IP, external_ips=(), node_port=30002),
        structs.replace(other, cluster_ip=CLUSTER, external_ips=(NODE_IP,), node_port=30001),
    )
    for plans in (swapped, swapped[::-1]):
        program, fresh = IpvsProgram(SETTINGS), IpvsProgram(SETTINGS)
        for plan in (one, other):
            program.put(plan.name, plan)
        for plan in plans:
            program.put(plan.name, plan)
            fresh.put(plan.name, plan)

        assert fresh.value(number) is not None
        assert {key: fresh.value(key) for key in fresh.keys()} == {key: program.value(key) for key in program.keys()}  # noqa: SIM118
        for plan in plans:
            program.put(plan.name, None)
        assert set(IpvsProgram(SETTINGS).keys()) == set(program.keys())


def test_external_ip_beats_a_node_port_on_the_nodes_address() -> None:
    """If an external IP is an address of the node, and its port another Service's node port, the external IP wins."""
    program = IpvsProgram(SETTINGS)
    contested = VirtualServer(NODE_IP, 6, 30080)
    with_node_port = structs.replace(PLAIN, node_port=30080, cluster_endpoints=(LOCAL,))
    on_node = structs.replace(PLAN, name=port_name("other"), port=30080, external_ips=(NODE_IP,), any_usable=True)
    program.put(with_node_port.name, with_node_port)

    taken = program.put(on_node.name, structs.replace(on_node, cluster_endpoints=(REMOTE,)))

    assert {RealServer(contested, LOCAL), RealServer(contested, REMOTE)} <= taken
    assert (None, 1) == (program.value(RealServer(contested, LOCAL)), program.value(RealServer(contested, REMOTE)))
    program.put(on_node.name, None)
    assert (1, None) == (program.value(RealServer(contested, LOCAL)), program.value(RealServer(contested, REMOTE)))


def test_program_forgets_what_is_gone() -> None:
    """After all ports are removed a program is as it was at the start."""
    program = IpvsProgram(SETTINGS)
    before = {key: program.value(key) for key in program.keys()}  # noqa: SIM118  # no mapping
    program.put(PLAIN.name, EXTERNALLY_LOCAL)

    changed = program.put(PLAIN.name, None)

    assert before == {key: program.value(key) for key in program.keys()}  # noqa: SIM118  # no mapping
    assert set(compiled(EXTERNALLY_LOCAL)) == changed


@pytest.mark.parametrize("family", Family)
def test_names_are_short_enough(family: Family) -> None:
    """Names of sets and chains fit the kernel's limits."""
    sets = [set_prefix(family) + key.name for key in static_sets()]
    chains = [key.chain for key in static_rules(IpvsSettings(family=family))]

    assert [] == [name for name in sets if len(name) > LONGEST_SET_NAME]
    assert [] == [name for name in chains if len(name) > LONGEST_CHAIN_NAME]


@pytest.mark.parametrize("family", Family)
def test_every_set_that_rules_name_exists(family: Family) -> None:
    """Every set that a rule names exists."""
    text = "".join(static_rules(IpvsSettings(family=family, masquerade_all=True)).values())

    words = text.split()
    named = {words[at + 1] for at, word in enumerate(words) if word == "--match-set"}
    assert {set_prefix(family) + key.name for key in static_sets()} >= named


@pytest.mark.parametrize("family", Family)
def test_every_chain_is_known_as_ours(family: Family) -> None:
    """Every entry that is written is recognised at the next start, and removed by the clean-up."""
    written = static_rules(IpvsSettings(family=family))

    assert all(is_ours(key.table, key.chain) for key in written if isinstance(key, ChainKey))
    assert {key for key in written if isinstance(key, HookKey)} <= set(ipvs_hooks(family))


def test_rules_of_the_kubelet_are_never_ours() -> None:
    """The kubelet's firewall and the jumps to it are kept in every mode."""
    assert not is_ours(FILTER, "KUBE-FIREWALL")
    assert [] == [hook for hook in ipvs_hooks(Family.IPV4) if "KUBE-FIREWALL" in hook.rule]


def test_what_the_iptables_mode_does_not_know() -> None:
    """Chains that only this mode has are distinguished from those that the iptables mode has as well."""
    assert is_ours_alone(MANGLE, "KUBE-PROXY-FIREWALL")
    assert is_ours_alone(FILTER, "KUBE-IPVS-FILTER")
    assert not is_ours_alone(NAT, "KUBE-SERVICES")


def test_listing_has_every_entry_of_a_port_under_its_name() -> None:
    """Entries of a port are listed under its name, common ones are not."""
    entries = compiled(BALANCED)
    entries.update(static_sets().items())

    listing = list_entries(Family.IPV4, entries, [], {})

    assert [PLAIN.name] == list(listing.services)
    assert len(compiled(BALANCED)) == len(listing.services[PLAIN.name])
    assert {f"create {set_prefix(Family.IPV4)}{key.name}" for key in static_sets() if isinstance(key, Set)} == {
        " ".join(rule.rule.split()[:2]) for rule in listing.common
    }
