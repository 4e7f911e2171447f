"""The layout of the nftables mode: the settings that change it, and those that do not."""

from dataclasses import replace

import pytest

from pyproxy.backends.nftables.elements import ADDRESSED, CLUSTER_IPS, NODE_PORTS, PICK, SETS, ElementSet
from pyproxy.backends.nftables.layout import NftablesSettings, layout_of, layout_text, numbered_chain
from pyproxy.model.address import Family, parse_network
from pyproxy.model.node import LocalTraffic
from tests.unit.plan.building import ips

IPV4 = NftablesSettings(family=Family.IPV4)
POD_CIDR = LocalTraffic(cidr=parse_network("10.244.0.0/16"))
DIFFERENT = (
    IPV4,
    NftablesSettings(family=Family.IPV6),
    replace(IPV4, masquerade_mark=0x8000),
    replace(IPV4, masquerade_all=True),
    replace(IPV4, local_traffic=POD_CIDR),
    replace(IPV4, local_traffic=LocalTraffic(interface="cni0")),
    replace(IPV4, local_traffic=LocalTraffic(interface_prefix="cni0")),
    replace(IPV4, node_port_ips=ips("172.18.0.11")),
    replace(IPV4, relays_localhost=True),
)
"""Settings that lead to different rules."""


def test_layouts_differ_where_rules_do() -> None:
    """Settings with different rules have different versions, so that a table of one is never adopted for the other."""
    assert len(DIFFERENT) == len({layout_of(settings) for settings in DIFFERENT})


@pytest.mark.parametrize("addresses", [(), ips("172.18.0.12"), ips("172.18.0.11", "172.18.0.12")])
def test_addresses_of_the_node_are_elements(addresses: tuple[bytes, ...]) -> None:
    """A new address of the node changes no rule, so the layout stays."""
    one = replace(IPV4, node_port_ips=ips("172.18.0.11"))

    assert layout_of(one) == layout_of(replace(IPV4, node_port_ips=addresses))


def test_version_fits_into_the_name_of_a_chain() -> None:
    """The version has 16 hexadecimal digits and no hyphen, because hyphens separate it in the name of the marker."""
    version = layout_of(IPV4).version

    assert 16 == len(version)
    assert int(version, 16)


def test_foreign_marks_are_kept() -> None:
    """Rules change one bit of the mark and keep all other bits."""
    marking = [line for line in layout_text(IPV4).splitlines() if "mark set" in line]

    assert marking
    assert all("meta mark set meta mark | 0x00004000" in line or "meta mark ^ 0x00004000" in line for line in marking)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (replace(IPV4, local_traffic=POD_CIDR), "ip daddr @cluster-ips ip saddr != 10.244.0.0/16 "),
        (replace(IPV4, local_traffic=LocalTraffic(interface="a")), 'ip daddr @cluster-ips iifname != "a" '),
        (replace(IPV4, local_traffic=LocalTraffic(interface_prefix="b")), 'ip daddr @cluster-ips iifname != "b*" '),
        (replace(IPV4, masquerade_all=True, local_traffic=POD_CIDR), "ip daddr @cluster-ips "),
    ],
)
def test_what_is_masqueraded_to_cluster_ips(settings: NftablesSettings, rule: str) -> None:
    """Traffic to cluster IPs that does not come from a local pod is masqueraded, or all of it."""
    assert f"\t\t{rule}meta mark set meta mark | 0x00004000\n" in layout_text(settings)


def test_nothing_is_masqueraded_to_cluster_ips_where_pods_are_unknown() -> None:
    """If local pods cannot be detected, nothing is marked."""
    assert f"@{CLUSTER_IPS.name} meta mark set" not in layout_text(IPV4)


@pytest.mark.parametrize(
    ("family", "loopback"), [(Family.IPV4, "ip daddr != 127.0.0.0/8"), (Family.IPV6, "ip6 daddr != ::1")]
)
def test_node_ports_are_not_on_loopback(family: Family, loopback: str) -> None:
    """If all addresses of the node serve node ports, loopback addresses are still excluded."""
    text = layout_text(NftablesSettings(family=family))

    assert 2 == text.count(f"{loopback} fib daddr type local ")


def test_every_set_is_looked_up() -> None:
    """A rule of the layout or of a numbered chain looks up each set."""
    chains = [numbered_chain(kind, 2, Family.IPV4).text for kind in SETS.values() if kind.leads_to_chains]
    text = layout_text(replace(IPV4, node_port_ips=ips("172.18.0.11"))) + "".join(chains)

    assert [] == [kind.name for kind in SETS.values() if f"@{kind.name} " not in text.replace("\n", " ")]


# -- numbered chains


def test_chain_that_draws_a_slot() -> None:
    """The chain of a count has one rule, which depends on the count only."""
    chain = numbered_chain(PICK, 17, Family.IPV6)

    assert ("slot-of-17", "jump") == (chain.name, chain.verdict)
    assert "\tchain slot-of-17 {\n\t\tmeta priority set numgen random mod 17\n\t}\n" == chain.text


@pytest.mark.parametrize(
    ("kind", "family", "name", "key"),
    [
        (ADDRESSED.main.find, Family.IPV4, "find-2", "ip daddr . meta l4proto . th dport"),
        (ADDRESSED.local.find, Family.IPV6, "local-find-2", "ip6 daddr . meta l4proto . th dport"),
        (NODE_PORTS.main.find, Family.IPV4, "nodeport-find-2", "meta l4proto . th dport"),
    ],
)
def test_chain_that_finds_a_pin(kind: ElementSet, family: Family, name: str, key: str) -> None:
    """For each slot the chain looks up the endpoint ID and the client's pin to it; the last rules draw a slot."""
    chain = numbered_chain(kind, 2, family)
    slots = kind.name.replace("find", "slots")
    client = "ip saddr" if family is Family.IPV4 else "ip6 saddr"
    to_id = f"meta priority set {key} . meta priority map @{slots}"

    assert (name, "jump") == (chain.name, chain.verdict)
    assert (
        f"meta priority set 0:0 {to_id} {client} . meta priority @pins return",
        f"meta priority set 0:1 {to_id} {client} . meta priority @pins return",
        "meta priority set numgen random mod 2",
        to_id,
    ) == chain.rules


def test_name_of_a_chain_for_any_number() -> None:
    """A chain has a name without its rules being built: another program may add an element with any number."""
    assert "find-4294967295" == numbered_chain(ADDRESSED.main.find, (1 << 32) - 1, Family.IPV4).name


def test_chain_tries_slots_above_nine_in_hexadecimal() -> None:
    """Slots are written as a class of the packet scheduler, which is hexadecimal."""
    assert numbered_chain(ADDRESSED.main.find, 18, Family.IPV4).rules[17].startswith("meta priority set 0:11 ")


@pytest.mark.parametrize("kind", [ADDRESSED.local.sticky, NODE_PORTS.local.sticky], ids=lambda kind: kind.name)
def test_chain_that_keeps_a_client(kind: ElementSet) -> None:
    """The chain finds or draws the endpoint, restarts the time of the pin, and delivers the packet."""
    chain = numbered_chain(kind, 10800, Family.IPV4)
    prefix = kind.name.removesuffix("sticky")

    assert (f"{prefix}sticky-10800", "goto") == (chain.name, chain.verdict)
    assert f"meta priority vmap @{prefix}find" == chain.rules[1]
    assert "update @pins { ip saddr . meta priority timeout 10800s }" == chain.rules[2]
    assert f"goto {prefix}deliver" == chain.rules[3]


def test_names_of_numbered_chains_are_apart() -> None:
    """Chains of different maps have different names."""
    names = [numbered_chain(kind, 2, Family.IPV4).name for kind in SETS.values() if kind.leads_to_chains]

    assert len(names) == len(set(names))


def test_other_sets_have_no_chains() -> None:
    """A set without verdicts has no numbered chains, so the call raises an error."""
    with pytest.raises(KeyError):
        numbered_chain(ADDRESSED.main.counts, 1, Family.IPV4)
