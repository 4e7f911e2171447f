"""The Service port of each rule, found from the rules alone."""

import pytest

from pyproxy.backends.iptables.attribution import list_rules
from pyproxy.backends.listing import ListedRule, RuleListing
from pyproxy.model.address import Family
from pyproxy.model.names import Protocol, ServicePortName
from tests.unit.plan.building import port_name

WEB = "LOLE4ISW44XBNF3G"
"""The suffix of the chains of default/web, TCP."""
CLUSTER_IP = ListedRule(
    "nat",
    "KUBE-SERVICES",
    '-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "default/web cluster IP" -m tcp --dport 80'
    f" -j KUBE-SVC-{WEB}",
)
NODE_PORTS_LAST = ListedRule(
    "nat",
    "KUBE-SERVICES",
    '-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this'
    ' chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS',
)


def nat(chain: str, body: str) -> ListedRule:
    """Return a rule of the nat table."""
    return ListedRule("nat", chain, f"-A {chain} {body}")


def listed(*rules: ListedRule) -> RuleListing:
    """Sort rules by Service port."""
    return list_rules(Family.IPV4, (), rules)


@pytest.mark.parametrize(
    "rule",
    [
        nat(f"KUBE-SVC-{WEB}", "-p tcp -j DNAT --to-destination 10.244.1.11:8080"),
        nat("KUBE-SERVICES", f"-d 203.0.113.1/32 -p tcp -m tcp --dport 80 -j KUBE-EXT-{WEB}"),
        nat("KUBE-NODEPORTS", f"-p tcp -m tcp --dport 30080 -j KUBE-EXT-{WEB}"),
        nat(f"KUBE-EXT-{WEB}", "-j KUBE-MARK-MASQ"),
    ],
    ids=["own chain", "external IP", "node port", "to a shared chain"],
)
def test_rule_without_a_name(rule: ListedRule) -> None:
    """One comment has the name of the port; the names of its chains, which are derived from it, do the rest."""
    assert rule in listed(CLUSTER_IP, rule).services[port_name()]


@pytest.mark.parametrize("is_jump_first", [True, False])
def test_endpoint_chain(is_jump_first: object) -> None:
    """The chain of an endpoint belongs to the port whose chain jumps to it, wherever in the table the jump is."""
    jump = nat(f"KUBE-SVC-{WEB}", "-j KUBE-SEP-QBMWJ7Q236QVVXD6")
    rule = nat("KUBE-SEP-QBMWJ7Q236QVVXD6", "-p tcp -j DNAT --to-destination 10.244.1.11:8080")
    rules = (jump, rule) if is_jump_first else (rule, jump)

    assert rule in listed(*rules, CLUSTER_IP).services[port_name()]


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("default/web:dns has no endpoints", port_name(port="dns", protocol=Protocol.UDP)),
        ("default/web:dns has no local endpoints", port_name(port="dns", protocol=Protocol.UDP)),
        ("default/web external address", port_name(protocol=Protocol.UDP)),
        ("default/web traffic not accepted by KUBE-FW-X", port_name(protocol=Protocol.UDP)),
    ],
)
def test_names_in_comments(comment: str, expected: ServicePortName) -> None:
    """Namespace, name and port come from comments, the protocol from the match."""
    rule = ListedRule("filter", "KUBE-X", f'-A KUBE-X -d 10.96.0.10/32 -p udp -m comment --comment "{comment}" -j DROP')

    assert {expected: (rule,)} == listed(rule).services


HEALTH_CHECK = ListedRule(
    "filter",
    "KUBE-NODEPORTS",
    '-A KUBE-NODEPORTS -p tcp -m comment --comment "default/web:dns health check node port" -m tcp --dport 32000'
    " -j ACCEPT",
)


def test_health_check_of_a_udp_port() -> None:
    """A health check is TCP, and belongs to the port with its name, whatever that port's protocol is."""
    refusal = ListedRule(
        "filter",
        "KUBE-SERVICES",
        '-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m comment --comment "default/web:dns has no endpoints" -j DROP',
    )

    assert {port_name(port="dns", protocol=Protocol.UDP)} == set(listed(HEALTH_CHECK, refusal).services)


def test_health_check_alone() -> None:
    """If a health check is the only rule of a port, no rule has the port's protocol."""
    assert {port_name(port="dns", protocol=Protocol.TCP)} == set(listed(HEALTH_CHECK).services)


def test_rules_of_all_services() -> None:
    """The jumps to node ports are last, after the rules of Services; other common rules are first."""
    mark = nat("KUBE-MARK-MASQ", "-j MARK --set-xmark 0x4000/0x4000")
    listing = listed(NODE_PORTS_LAST, CLUSTER_IP, mark)

    assert ((mark,), (NODE_PORTS_LAST,)) == (listing.common, listing.last)


def test_order() -> None:
    """The rules of a port are listed in packet order: refusals, dispatch, firewall, entry, balancing, endpoints."""
    chains = [f"KUBE-{kind}-{WEB}" for kind in ("FW", "EXT", "SVC", "SVL")]
    rules = [nat(chain, "-j KUBE-MARK-MASQ") for chain in chains]
    refusal = ListedRule(
        "filter", "KUBE-Z", '-A KUBE-Z -p tcp -m comment --comment "default/web has no endpoints" -j DROP'
    )
    expected = [refusal, CLUSTER_IP, *rules]

    assert expected == list(listed(*reversed(expected)).services[port_name()])
