"""Invariants of the elements of the nftables mode, for any cluster and any order of changes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.backends.nftables.elements import (
    ADDRESSED,
    ALLOWED_SOURCES,
    CLUSTER_IPS,
    FIREWALL,
    ID_BIT,
    LAYOUT,
    NODE_PORTS,
    PICK,
    SETS,
    ElementKey,
    ElementSet,
    PortSets,
    Value,
    pack_number,
    unpack_number,
)
from pyproxy.backends.nftables.layout import NftablesSettings, layout_of, layout_text
from pyproxy.backends.nftables.program import NftablesProgram
from pyproxy.backends.nftables.text import elements_text, table_text
from pyproxy.model.address import Family
from pyproxy.plan.service_plan import ServicePlan
from tests.packets.each import families
from tests.packets.nft_agent import cluster_ip, node_namespace, node_settings, plan
from tests.packets.own_namespace import run
from tests.properties.planning import Plans, filled, plans_of, wanted
from tests.properties.strategies import Cluster, clusters, nftables_settings

Elements = Mapping[bytes, bytes]
"""Elements of one set: keys without the number of the set, and values."""

FEW = settings(max_examples=max(1, settings().max_examples // 10))
"""An example starts several processes, and waits for the time that unused elements are kept."""
KINDS = tuple((sets, choice) for sets in (ADDRESSED, NODE_PORTS) for choice in (sets.main, sets.local))


def by_set(entries: Mapping[ElementKey, Value]) -> defaultdict[ElementSet, dict[bytes, bytes]]:
    """Return the elements of each set."""
    found: defaultdict[ElementSet, dict[bytes, bytes]] = defaultdict(dict)
    for key, value in entries.items():
        if key != LAYOUT:
            assert isinstance(value, bytes)
            found[SETS[key[0]]][key[1:]] = value
    return found


def numbers(elements: Elements) -> set[int]:
    """Return the numbers that lead to endpoints."""
    return {unpack_number(key[-4:]) for key in elements}


def compiled(cluster: Cluster, chosen: NftablesSettings) -> defaultdict[ElementSet, dict[bytes, bytes]]:
    """Return the elements that a node wants for a cluster."""
    return by_set(wanted_by(plans_of(cluster, chosen.family), chosen))


def wanted_by(plans: Plans, chosen: NftablesSettings) -> dict[ElementKey, Value]:
    """Return the elements that are wanted for plans."""
    return wanted(filled(NftablesProgram(chosen), plans))


# -- every element is reachable, and leads to existing elements


@given(clusters(), nftables_settings())
def test_every_count_leads_to_endpoints(cluster: Cluster, chosen: NftablesSettings) -> None:
    """Every count has exactly one endpoint for each slot, and a chain that draws a slot."""
    found = compiled(cluster, chosen)

    for sets, choice in KINDS:
        for key, value in found[choice.counts].items():
            count = unpack_number(value)
            slots = [key + pack_number(slot) for slot in range(count)]
            if key in found[sets.timeouts]:
                ids = [found[choice.slots][slot] for slot in slots]
                assert found[choice.find].get(pack_number(count)) == b""
                assert found[choice.sticky].get(found[sets.timeouts][key]) == b""
                assert {unpack_number(number) & ID_BIT for number in ids} == {ID_BIT}
                slots = [key + number for number in ids]
            else:
                assert found[PICK].get(pack_number(count)) == b""
            assert sorted(slots) == sorted(other for other in found[choice.endpoints] if other[:-4] == key)
            assert len(set(slots)) == count


@given(clusters(), nftables_settings())
def test_every_element_of_a_choice_is_used(cluster: Cluster, chosen: NftablesSettings) -> None:
    """Endpoints, slots, time-outs and chains for numbers exist only if a count leads to them."""
    found = compiled(cluster, chosen)
    drawn: set[bytes] = set()

    for sets, choice in KINDS:
        counts, timeouts = found[choice.counts], found[sets.timeouts]
        assert {key[:-4] for key in found[choice.endpoints]} == counts.keys()
        assert {key[:-4] for key in found[choice.slots]} == counts.keys() & timeouts.keys()
        assert found[choice.find].keys() == {counts[key][:4] for key in counts.keys() & timeouts.keys()}
        assert found[choice.sticky].keys() == {timeouts[key] for key in counts.keys() & timeouts.keys()}
        drawn |= {counts[key][:4] for key in counts.keys() - timeouts.keys()}
    assert found[PICK].keys() == drawn
    for sets in (ADDRESSED, NODE_PORTS):
        assert found[sets.timeouts].keys() <= found[sets.main.counts].keys() | found[sets.local.counts].keys()


@given(clusters(), nftables_settings())
def test_fate_of_an_address_is_one(cluster: Cluster, chosen: NftablesSettings) -> None:
    """An address is rejected or dropped, Cluster or Local, and has a second choice of endpoints only under Local."""
    found = compiled(cluster, chosen)

    for sets in (ADDRESSED, NODE_PORTS):
        assert set() == found[sets.rejected].keys() & found[sets.dropped].keys()
        assert set() == found[sets.rejected].keys() & found[sets.main.counts].keys()
        assert set() == found[sets.external_cluster].keys() & found[sets.external_local].keys()
        assert found[sets.local.counts].keys() <= found[sets.external_local].keys()
        assert served(found, sets) == expected_to_be_served(found, sets)


def served(found: Mapping[ElementSet, Elements], sets: PortSets) -> set[bytes]:
    """Return the frontends that lead to endpoints or are refused."""
    kinds = (sets.main.counts, sets.local.counts, sets.rejected, sets.dropped)
    return {key for kind in kinds for key in found.get(kind, ())}


def expected_to_be_served(found: Mapping[ElementSet, Elements], sets: PortSets) -> set[bytes]:
    """Return the external frontends, and the other frontends with cluster IPs."""
    external = {*found.get(sets.external_cluster, ()), *found.get(sets.external_local, ())}
    ips = found.get(CLUSTER_IPS, {})
    size = len(next(iter(ips))) if ips else 0
    internal = {key for key in served(found, sets) if key[:size] in ips} if sets is ADDRESSED else set()
    return external | internal


@given(clusters(), nftables_settings())
def test_sources_are_apart_and_asked_for(cluster: Cluster, chosen: NftablesSettings) -> None:
    """Source ranges of one address do not overlap, which the kernel would refuse, and their address has a firewall."""
    found = compiled(cluster, chosen)
    size = ALLOWED_SOURCES.key_size(chosen.family)
    ranges: defaultdict[bytes, list[tuple[bytes, bytes]]] = defaultdict(list)
    for key in found[ALLOWED_SOURCES]:
        ip = chosen.family.bits // 8
        assert key[: size - ip] == key[size : 2 * size - ip]
        ranges[key[: size - ip]].append((key[size - ip : size], key[2 * size - ip :]))

    assert ranges.keys() == found[FIREWALL].keys()
    for found_ranges in ranges.values():
        assert all(first <= last for first, last in found_ranges)
        assert all(left[1] < right[0] for left, right in pairwise(sorted(found_ranges)))


@given(clusters(), nftables_settings())
def test_keys_have_the_size_of_their_set(cluster: Cluster, chosen: NftablesSettings) -> None:
    """Every key and value has the length that the kernel expects; only elements of named Services have a comment."""
    for kind, elements in compiled(cluster, chosen).items():
        size = kind.key_size(chosen.family) * (2 if kind.is_interval else 1)
        data = 0 if kind.leads_to_chains else kind.data_size(chosen.family)
        for key, value in elements.items():
            assert len(key) == size
            assert len(value) > data if kind.is_named else len(value) == data


# -- changes of state


PORTS = (1, 2, 3)
SHARED_IPS = tuple(cluster_ip(Family.IPV4, 100 + number) for number in range(2))


@given(st.data(), st.lists(st.lists(st.sampled_from(PORTS), min_size=2, max_size=2), min_size=2, max_size=3))
def test_ports_that_come_late_do_no_harm(data: st.DataObject, owners: list[list[int]]) -> None:
    """A port that keeps old addresses, as in quarantine, does not affect their new owners, also when it gives them up."""
    states = [{port: claiming(port, state) for port in PORTS} for state in owners]
    program = NftablesProgram(NftablesSettings(family=Family.IPV4))
    for state in states:
        for port in data.draw(st.permutations(PORTS))[: data.draw(st.integers(0, len(PORTS)))]:
            program.put(state[port].name, state[port])
    last = {each.name: each for each in states[-1].values()}
    for name in data.draw(st.permutations(sorted(last))):
        program.put(name, last[name])

    assert wanted_by(last, NftablesSettings(family=Family.IPV4)) == wanted(program)


def claiming(port: int, owners: Sequence[int]) -> ServicePlan:
    """Return the plan of a port with only the addresses that it owns."""
    ips = tuple(ip for ip, owner in zip(SHARED_IPS, owners, strict=True) if owner == port)
    return plan(Family.IPV4, port, port, port + 10, external_ips=ips)


# -- the text and the kernel


@given(clusters())
def test_families_are_apart(cluster: Cluster) -> None:
    """The elements of a family contain no address of the other."""
    for family, foreign in ((Family.IPV4, "2001:db8"), (Family.IPV6, "203.0.113")):
        chosen = NftablesSettings(family=family)
        entries = wanted_by(plans_of(cluster, family), chosen)
        assert [] == [text for _, text in elements_text(family, entries) if foreign in text]


@families
@pytest.mark.usefixtures("needs_root")
@FEW
@given(st.data())
def test_text_equals_the_kernel_state(family: Family, data: st.DataObject) -> None:
    """To a table that `nft` has loaded from text, an agent with the same plans adds only its layout marker."""
    chosen = data.draw(nftables_settings(family))
    plans = plans_of(data.draw(clusters()), family)
    entries = wanted_by(plans, chosen)
    with node_namespace(chosen) as start:
        run("nft", "-f", "-", stdin=table_text(family, layout_text(chosen), entries))
        found = start().read()

    assert layout_of(chosen) == entries.pop(LAYOUT)
    found.pop(LAYOUT)
    assert entries == found


@families
@pytest.mark.usefixtures("needs_root")
@FEW
@given(st.data(), st.lists(clusters(), min_size=2, max_size=4))
def test_walk(family: Family, data: st.DataObject, states: list[Cluster]) -> None:
    """After every change of Services or settings the kernel has the wanted elements, and a second sync writes nothing."""
    with node_namespace(node_settings(family)) as start:
        agent = start()
        before: Plans = {}
        for state in states:
            if data.draw(st.booleans()):
                agent.configure(data.draw(nftables_settings(family)))
            plans = plans_of(state, family)
            agent.reconciler.stage({**dict.fromkeys(before), **plans})
            before = plans
            agent.sync()
            agent.reconciler.mark_stale()

            assert agent.wanted() == agent.read()
            assert 0 == agent.commits_during(agent.sync)
