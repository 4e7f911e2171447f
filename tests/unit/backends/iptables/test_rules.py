"""Rules that are easy to get wrong by one character. `tests.properties` checks that the kernel prints them equally."""

from dataclasses import replace

import pytest
from msgspec import structs

from pyproxy.backends.iptables.program import port_rules
from pyproxy.backends.iptables.rules import equal_shares, random_share
from pyproxy.backends.iptables.ruleset import FILTER, NAT, ChainKey
from pyproxy.backends.iptables.static_rules import IptablesSettings, node_port_jumps, static_rules
from pyproxy.model.address import Family, parse_network
from pyproxy.model.node import LocalTraffic
from tests.unit.plan.building import PLAN, endpoints, ips

IPV4 = IptablesSettings(family=Family.IPV4)
IPV6 = IptablesSettings(family=Family.IPV6, localhost_node_ports=False)
SVC = ChainKey(NAT, "KUBE-SVC-LOLE4ISW44XBNF3G")
FW = ChainKey(NAT, "KUBE-FW-LOLE4ISW44XBNF3G")
POSTROUTING = ChainKey(NAT, "KUBE-POSTROUTING")
WEB = structs.replace(
    PLAN,
    cluster_ip=ips("10.96.0.10")[0],
    any_usable=True,
    cluster_endpoints=endpoints("10.244.1.11:80", "10.244.1.12:80"),
)


@pytest.mark.parametrize(
    ("left", "probability"), [(2, "0.50000000000"), (3, "0.33333333349"), (7, "0.14285714272"), (3000, "0.00033333339")]
)
def test_probability_as_the_kernel_prints_it(left: int, probability: str) -> None:
    """A probability is the 31-bit fraction that the kernel stores, with 11 decimals."""
    assert f"-m statistic --mode random --probability {probability} " == random_share(left)


def test_last_share_takes_the_rest() -> None:
    """The last of several rules, and a single rule, has no probability."""
    assert ["ab"] == equal_shares([("a", "b")])
    assert not equal_shares([("a", "b")] * 3)[-1].count("statistic")


@pytest.mark.parametrize(
    ("settings", "matches"),
    [
        pytest.param(IPV4, ["-m addrtype --dst-type LOCAL"], id="all"),
        pytest.param(
            replace(IPV4, localhost_node_ports=False),
            ["! -d 127.0.0.0/8", "-m addrtype --dst-type LOCAL"],
            id="all but loopback",
        ),
        pytest.param(IPV6, ["! -d ::1/128", "-m addrtype --dst-type LOCAL"], id="IPv6 never on loopback"),
        pytest.param(replace(IPV4, node_port_ips=ips("172.18.0.11")), ["-d 172.18.0.11/32"], id="listed"),
    ],
)
def test_way_to_node_ports(settings: IptablesSettings, matches: list[str]) -> None:
    """The dispatch chain ends with a rule for packets to addresses of the node."""
    (rule,) = node_port_jumps(settings).splitlines()
    body = rule.removeprefix("-A KUBE-SERVICES ").removesuffix(" -j KUBE-NODEPORTS")
    before, remark, after = body.partition(
        '-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain"'
    )

    assert remark
    assert matches == [part.strip() for part in (before, after) if part.strip()]


@pytest.mark.parametrize(("addresses", "count"), [(ips("172.18.0.11", "172.19.0.11"), 2), ((), 0)])
def test_listed_node_port_addresses(addresses: tuple[bytes, ...], count: int) -> None:
    """Each listed address has a rule; without addresses there are no node ports."""
    assert count == node_port_jumps(replace(IPV4, node_port_ips=addresses)).count("\n")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param(IPV4, None, id="no way to recognize pods"),
        pytest.param(
            replace(IPV4, local_traffic=LocalTraffic(cidr=parse_network("10.244.0.0/16"))),
            "! -s 10.244.0.0/16 -d 10.96.0.10/32",
            id="by range",
        ),
        pytest.param(
            replace(IPV4, local_traffic=LocalTraffic(interface="cni0")), "-d 10.96.0.10/32 ! -i cni0", id="by bridge"
        ),
        pytest.param(
            replace(IPV4, local_traffic=LocalTraffic(interface_prefix="veth")),
            "-d 10.96.0.10/32 ! -i veth+",
            id="by prefix",
        ),
        pytest.param(replace(IPV4, masquerade_all=True), "-d 10.96.0.10/32", id="masquerade all"),
    ],
)
def test_what_is_masqueraded_to_a_cluster_ip(settings: IptablesSettings, expected: str | None) -> None:
    """Traffic to a cluster IP that is not from a pod is masqueraded, if pods can be distinguished."""
    rules = port_rules(WEB, settings)[SVC].splitlines()
    found = [rule.split(" ", 2)[2].removesuffix(" -j KUBE-MARK-MASQ") for rule in rules if "MARK-MASQ" in rule]

    assert ([expected] if expected else []) == found


def test_range_of_all_addresses() -> None:
    """A source range of all addresses has no match, as in the kernel's output."""
    ranges = (parse_network("0.0.0.0/0"),)
    plan = structs.replace(WEB, load_balancer_ips=ips("203.0.113.10"), source_ranges=ranges)

    assert f"-A {FW.chain} -j KUBE-EXT-LOLE4ISW44XBNF3G\n" == port_rules(plan, IPV4)[FW]


def test_chain_for_each_endpoint_where_packets_do_not_tell() -> None:
    """Without xt_bpf a chain for each endpoint masquerades hairpin traffic, as in kube-proxy."""
    settings = replace(IPV4, hairpin_by_packet=False)
    chains = [key.chain for key in port_rules(WEB, settings) if key.chain.startswith("KUBE-SEP-")]
    rules = port_rules(WEB, settings)[ChainKey(NAT, chains[0])].splitlines()

    assert 2 == len(chains)
    assert f"-A {chains[0]} -s 10.244.1.11/32 -j KUBE-MARK-MASQ" == rules[0]
    assert "bpf" not in static_rules(settings)[POSTROUTING]


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_rule_for_hairpins(family: Family) -> None:
    """With xt_bpf one rule compares every word of source and destination, except for packets that leave by lo."""
    first, *_ = static_rules(IptablesSettings(family=family))[POSTROUTING].splitlines()

    assert first.startswith("-A KUBE-POSTROUTING ! -o lo ")
    assert family.bits // 32 == first.count("7 0 0 0")


def test_mark() -> None:
    """The masquerade mark is the configured bit, and is cleared before the source is translated."""
    rules = static_rules(replace(IPV4, masquerade_mark=1 << 31))

    assert "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x80000000/0x80000000\n" == rules[ChainKey(NAT, "KUBE-MARK-MASQ")]
    assert "-A KUBE-POSTROUTING -j MARK --set-xmark 0x80000000/0x0\n" in rules[POSTROUTING]


def test_liberal_conntrack() -> None:
    """Packets in conntrack state INVALID are not dropped if nf_conntrack_tcp_be_liberal is set."""
    forward = ChainKey(FILTER, "KUBE-FORWARD")

    assert "INVALID" in static_rules(IPV4)[forward]
    assert "INVALID" not in static_rules(replace(IPV4, drop_invalid=False))[forward]
    assert (
        "--ctstate INVALID -m nfacct --nfacct-name ct_state_invalid_dropped_pkts -j DROP"
        in (static_rules(replace(IPV4, count_invalid=True))[forward])
    )


def test_count_of_localhost_node_ports() -> None:
    """With the counter, one rule counts marked packets to node ports on 127.0.0.0/8."""
    rules = static_rules(replace(IPV4, count_localhost_node_ports=True))[POSTROUTING].splitlines()
    [count] = [rule for rule in rules if "localhost_nps_accepted_pkts" in rule]

    assert (
        "-A KUBE-POSTROUTING -m conntrack --ctstate DNAT --ctorigdst 127.0.0.0/8"
        " -m nfacct --nfacct-name localhost_nps_accepted_pkts"
    ) == count
    assert "-j RETURN" in rules[rules.index(count) - 1]
    assert "nfacct" not in static_rules(IPV4)[POSTROUTING]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (IPV4, True),
        (replace(IPV4, localhost_node_ports=False), False),
        (replace(IPV6, localhost_node_ports=True), False),
    ],
    ids=["IPv4", "IPv4 without", "IPv6"],
)
def test_guard_of_loopback(settings: IptablesSettings, expected: object) -> None:
    """A rule drops packets to 127.0.0.0/8 from outside only if node ports are served there."""
    assert expected is any("localnet" in text for text in static_rules(settings).values())
