"""The interpreter of nf_tables on small rulesets: rules of firewalls, what cannot be evaluated. Packets: tests/properties."""

import pytest

from pyproxy.backends.explanation import NOT_EVALUATED, Fate, Host, Packet, Path
from pyproxy.backends.nftables.explain import paths
from pyproxy.backends.nftables.ruleset_text import read_ruleset
from pyproxy.model.address import parse_ip
from pyproxy.model.names import Protocol

HOST = Host(frozenset({parse_ip("172.18.0.11")}))
PACKET = Packet(parse_ip("192.0.2.7"), parse_ip("10.96.0.10"), Protocol.TCP, 80, "eth0")


def explained(*rules: str, family: str = "inet", policy: str = "accept", more: str = "") -> tuple[Path, ...]:
    """Return the paths of a packet through a chain of the hook forward."""
    body = "".join(f"\t\t{rule}\n" for rule in rules)
    hook = f"\t\ttype filter hook forward priority filter; policy {policy};\n"
    return paths(read_ruleset(f"table {family} fw {{\n{more}\tchain forward {{\n{hook}{body}\t}}\n}}\n"), PACKET, HOST)


@pytest.mark.parametrize(
    "rule",
    [
        "tcp dport 80 drop",
        "tcp dport { 22, 80-90 } counter packets 3 bytes 180 drop",
        'ct state new ip saddr 192.0.2.0/24 log prefix "no " drop',
        "ct state vmap { established : accept, related : accept, new : drop }",
        'iifname "eth*" drop',
        'iifname { "lo", "eth0" } drop comment "all of it"',
        'oifname != "lo" drop',
        "meta mark & 0x00004000 == 0x00000000 drop",
        "meta mark set 0x00000001 meta mark 0x00000001 drop",
        "ip daddr . th dport { 10.96.0.10 . 80 } drop",
        "ip saddr @blocked drop",
        "ip saddr . ip daddr @pairs drop",
        "tcp dport < 1024 drop",
        "meta nfproto ipv4 meta l4proto tcp drop",
        "fib daddr type != local drop",
        "jump checks",
        "ip daddr . tcp dport vmap @verdicts",
        "ip saddr . th dport vmap @rest",
        "ip daddr vmap { 10.96.0.0/24 : drop, * : accept }",
        "ip daddr vmap { 192.0.2.0/24 : accept, 198.51.100.1 : accept, * : drop }",
        'iifname vmap { "eth*" : drop, * : accept }',
        "update @clients { ip saddr timeout 1m } drop",
    ],
)
def test_rules_that_drop(rule: str) -> None:
    """Matches, sets, maps and jumps of a firewall are evaluated."""
    more = """\
\tset blocked {
\t\ttype ipv4_addr
\t\tflags interval
\t\telements = { 192.0.2.0/29, 198.51.100.1-198.51.100.9,
\t\t\t     203.0.113.1 counter packets 0 bytes 0 }
\t}
\tset pairs {
\t\ttypeof ip saddr . ip daddr
\t\tflags interval
\t\telements = { 192.0.2.1-192.0.2.9 . 10.96.0.0/16 }
\t}
\tmap verdicts {
\t\ttype ipv4_addr . inet_service : verdict
\t\telements = { 10.96.0.10 . 80 comment "a, b" : jump checks }
\t}
\tmap rest {
\t\ttype ipv4_addr . inet_service : verdict
\t\telements = { 192.0.2.7 . 53 : accept, * : drop }
\t}
\tset clients {
\t\ttype ipv4_addr
\t\tflags dynamic
\t}
\tchain checks {
\t\tip daddr 10.96.0.10 drop
\t}
"""
    (path,) = explained(rule, more=more)

    assert (Fate.DROPPED, True) == (path.fate, path.is_certain)
    assert path.steps


@pytest.mark.parametrize(
    "rule",
    [
        "udp dport 80 drop",
        "ip6 saddr ::/0 drop",
        "ct state established,related drop",
        "tcp dport != 80 drop",
        'iifname "lo" drop',
        "ct status dnat drop",
        "counter packets 1 bytes 2",
        'limit rate 10/second log prefix "x"',
        "tcp dport 80 accept",
        "goto checks",
    ],
)
def test_rules_that_do_not_drop(rule: str) -> None:
    """A rule that does not match, or that only counts, leaves no step and no doubt."""
    checks = "\tchain checks {\n\t\tudp dport 53 drop\n\t}\n"
    (path,) = explained(rule, more=checks)

    assert (Fate.UNCHANGED, (), True) == (path.fate, path.steps, path.is_certain)


@pytest.mark.parametrize(
    "rule",
    [
        "limit rate 10/second drop",
        "tcp flags & (fin | syn) == syn drop",
        "meta skuid 0 drop",
        'xt match "owner" drop',
        'oifname "cali*" drop',
        'oifname vmap { "cali*" : accept, * : drop }',
        "dccp dport 80 drop",
        "@th,16,16 80 drop",
        "ip saddr . dccp dport 192.0.2.7 . 80 drop",
        "meta mark set dccp dport map { 80 : 0x00000001 } drop",
        "update @clients { ip saddr limit rate 10/second } drop",
        "add @clients { ip saddr ct count over 20 } reject",
        "update @clients { ip saddr quota over 10 mbytes } drop",
    ],
)
def test_rules_that_cannot_be_evaluated(rule: str) -> None:
    """A rule with an unknown expression is skipped, and the path names it and is not certain."""
    (path,) = explained(rule)

    assert (Fate.UNCHANGED, False) == (path.fate, path.is_certain)
    assert [f"{NOT_EVALUATED}{rule}"] == [step.rule for step in path.steps]


def nat(*rules: str, more: str = "") -> tuple[Path, ...]:
    """Return the paths of a packet through a nat chain of the hook prerouting."""
    body = "".join(f"\t\t{rule}\n" for rule in rules)
    hook = "\t\ttype nat hook prerouting priority dstnat; policy accept;\n"
    return paths(read_ruleset(f"table ip a {{\n\tchain pre {{\n{hook}{body}\t}}\n}}\n{more}"), PACKET, HOST)


def test_translations() -> None:
    """The first nat chain that translates decides, by address, with or without a port, or to the node itself."""
    later = "table ip b {\n\tchain pre {\n\t\ttype nat hook prerouting priority -99;\n\t\tdnat to 10.9.9.9\n\t}\n}\n"
    found = [
        nat(rule, more=later) for rule in ("dnat to 10.1.1.1:8080", "dnat to 10.1.1.1", "redirect to :99", "accept")
    ]

    assert ["10.1.1.1:8080", "10.1.1.1:80", "172.18.0.11:99", "10.9.9.9:80"] == [
        str(path.endpoint) for (path,) in found
    ]


def test_untracked_packets_are_not_translated() -> None:
    """Rules that turn off connection tracking turn off nat."""
    raw = (
        "table ip r {\n\tchain raw {\n\t\ttype filter hook prerouting priority raw;\n\t\ttcp dport 80 notrack\n\t}\n}\n"
    )
    (path,) = nat("dnat to 10.1.1.1", more=raw)

    assert (Fate.UNCHANGED, ["tcp dport 80 notrack"]) == (path.fate, [step.rule for step in path.steps])


def test_policy() -> None:
    """A packet that no rule accepts is dropped by the policy, also after a goto to a chain without a verdict."""
    (dropped,) = explained("tcp dport 22 accept", policy="drop")
    (after_goto,) = explained("goto checks", policy="drop", more="\tchain checks {\n\t}\n")
    (accepted,) = explained("tcp dport 80 accept", policy="drop")

    assert ("forward", "policy drop") == (dropped.steps[-1].place, dropped.steps[-1].rule)
    assert [Fate.DROPPED, Fate.UNCHANGED] == [after_goto.fate, accepted.fate]


def test_other_families_are_left_out() -> None:
    """Tables of IPv6, of bridges and of interfaces do not see IPv4 packets in the hooks of IP."""
    assert [Fate.UNCHANGED] * 3 == [explained("drop", family=family)[0].fate for family in ("ip6", "bridge", "netdev")]


def test_sets_that_cannot_be_read() -> None:
    """A set of another program with unknown elements spoils only the rules that use it."""
    more = (
        "\tset odd { # handle 3\n\t\ttype ipv4_addr\n\t\telements = { nonsense }\n\t}\n"
        "\tset macs {\n\t\ttype ether_addr\n\t\telements = { aa:bb:cc:dd:ee:ff }\n\t}\n"
        "\tcounter c {\n\t\tpackets 1 bytes 2\n\t}\n\tflowtable f {\n\t\thook ingress priority filter\n\t}\n"
    )
    (path,) = explained("ip saddr @odd drop", "ether saddr @macs drop", more=more)
    (dropped,) = explained("ip saddr 192.0.2.7 drop", more=more)

    assert [f"{NOT_EVALUATED}ip saddr @odd drop", f"{NOT_EVALUATED}ether saddr @macs drop"] == [
        step.rule for step in path.steps
    ]
    assert Fate.DROPPED is dropped.fate


def test_catch_all_elements() -> None:
    """The element ``*`` is listed, and applies to keys without another element, unless one of these cannot be read."""
    more = "\tmap odd {\n\t\ttype ipv4_addr : verdict\n\t\telements = { nonsense : accept, * : drop }\n\t}\n"
    (path,) = explained("ip saddr vmap @odd", more=more)
    (table,) = read_ruleset(f"table inet fw {{\n{more}}}\n")

    assert (Fate.UNCHANGED, False) == (path.fate, path.is_certain)
    assert ["* : drop"] == [element.text for element in table.sets["odd"].elements]


def test_no_ruleset() -> None:
    """Text that is not a ruleset is refused with its line."""
    with pytest.raises(ValueError, match="line 1 is not output of nft list ruleset"):
        read_ruleset("apiVersion: v1")
