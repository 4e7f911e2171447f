"""Rules of packet filters: which first packets they decide about, as iptables-save and nft print them."""

import json
import re

import pytest

from pyproxy.doctor.packet_rules import Effect, Flow, Rule, Table, iptables_chains, nft_chains
from pyproxy.model.address import parse_ip, parse_network
from tests.packets.foreign import DOCKER

ENDPOINT = Flow(parse_ip("10.244.2.11"), "tcp", 8080, "default/far")
NODE_PORT = Flow(parse_ip("172.18.0.11"), "tcp", 30080, "default/far")
PODS = (parse_network("10.244.0.0/16"),)
ALL = frozenset(Effect) - {Effect.ACCEPT, Effect.CALL, Effect.GO_TO, Effect.RETURN, Effect.NOTHING}


def decides(chains: dict[str, list[Rule]], flow: Flow = ENDPOINT, *, skipped: tuple[str, ...] = ()) -> str:
    """Return the key of the rule that decides about a packet in FORWARD, or nothing."""
    table = Table(chains, PODS, {"eth0", "cni0"}, {parse_ip("172.18.0.11")}, ALL, 0x4000, skipped)
    return next((rule.key for rule, _ in table.deciding_rules("FORWARD", [flow])), "")


@pytest.mark.parametrize(
    "rule",
    [
        "-j DROP",
        "-d 10.244.2.0/24 -p tcp -m tcp --dport 8080 -j DROP",
        "-s 10.244.1.0/24 -j REJECT --reject-with icmp-port-unreachable",
        '-m comment --comment "deny \\"all\\"" -j DROP',
        "-p tcp -m multiport --dports 80,8000:9000 -j DROP",
        "-m conntrack --ctstate INVALID,NEW -j DROP",
        "-m conntrack ! --ctstate ESTABLISHED -j DROP",
        "-i eth0 -o cni+ -j DROP",
        "! -i docker0 -j DROP",
        "-j MARK --set-xmark 0x4000/0x4000",
        "-j CT --notrack",
        "-m addrtype ! --dst-type LOCAL -j DROP",
    ],
)
def test_rule_that_decides(rule: str) -> None:
    """A rule whose conditions the packet meets is found."""
    line = f"-A FORWARD {rule}"

    assert line == decides(iptables_chains(line))


@pytest.mark.parametrize(
    "rule",
    [
        "-d 10.244.3.0/24 -j DROP",
        "-p udp -j DROP",
        "-p tcp -m tcp --dport 80 -j DROP",
        "-m conntrack --ctstate INVALID -j DROP",
        "-m conntrack ! --ctstate NEW -j DROP",
        "-o docker0 -j DROP",
        "-s 192.0.2.0/24 -j DROP",
        "-m set --match-set blocked src -j DROP",
        "! -s 10.244.0.0/16 -j DROP",
        "-p tcp -m tcp --sport 99 -j DROP",
        "-m limit --limit 1/sec -j DROP",
        "-j MARK --set-xmark 0x8000/0x8000",
        "-j MARK --and-mark 0x4000",
        "-j LOG --log-prefix x",
        "-m addrtype --dst-type LOCAL -j DROP",
        "-j ACCEPT\n-A FORWARD -j DROP",
        "-m mark --mark 0x10000/0x10000 -j ACCEPT\n-A FORWARD -j DROP",
        "-j KUBE-FORWARD\n-A KUBE-FORWARD -j DROP",
        "-j loop\n-A loop -j loop",
        "-j leaves\n-A leaves -j RETURN\n-A leaves -j DROP",
        '-m comment --comment "unbalanced -j DROP',
    ],
)
def test_rule_that_does_not_decide(rule: str) -> None:
    """A rule that does not match, that may not match, or that comes after one that may accept, is not found."""
    assert "" == decides(iptables_chains(f"-A FORWARD {rule}"), skipped=("KUBE-",))


def test_chains() -> None:
    """Rules of other chains are found, in the order in which the packet passes them."""
    saved = ":FORWARD ACCEPT [0:0]\n:mine - [0:0]\n-A FORWARD -p tcp -g mine\n-A FORWARD -j DROP\n-A mine -p tcp -j REJECT\n"

    assert "-A mine -p tcp -j REJECT" == decides(iptables_chains(saved))
    assert "" == decides(iptables_chains(saved.replace("-A mine -p tcp -j REJECT\n", "-A mine -j ACCEPT\n")))


def test_policy() -> None:
    """The policy of a base chain counts as its last rule on request."""
    saved = ":FORWARD DROP [0:0]\n-A FORWARD -p udp -j ACCEPT\n"

    assert "" == decides(iptables_chains(saved))
    assert "-P FORWARD DROP" == decides(iptables_chains(saved, policy_of="FORWARD"))


def test_rules_of_docker() -> None:
    """The rules of Docker do not decide about pods."""
    saved = re.sub(r"(?s).*\*filter\n(.*?)COMMIT.*", r"\1", DOCKER)

    assert "-A FORWARD -j DOCKER-USER" in saved
    assert "" == decides(iptables_chains(saved))


def match(left: object, right: object, op: str = "==") -> dict[str, object]:
    """Return a match as nft prints it."""
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, name: str) -> dict[str, object]:
    """Return the left side of a match of a header field."""
    return {"payload": {"protocol": protocol, "field": name}}


def meta(key: str) -> dict[str, object]:
    """Return the left side of a match of metadata."""
    return {"meta": {"key": key}}


DROP = {"drop": None}
STATE = {"ct": {"key": "state"}}
PORT = payload("tcp", "dport")
POD_RANGE = {"prefix": {"addr": "10.244.2.0", "len": 24}}
MARK = {"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"|": [{"meta": {"key": "mark"}}, 0x4000]}}}


@pytest.mark.parametrize(
    ("expressions", "is_found"),
    [
        ([DROP], True),
        ([match(PORT, 8080), {"counter": {"packets": 0, "bytes": 0}}, DROP], True),
        ([match(PORT, {"set": [80, {"range": [8000, 9000]}]}), {"reject": None}], True),
        ([match(PORT, {"set": [80, 81]}), DROP], False),
        ([match(payload("th", "dport"), 8080), DROP], True),
        ([match(payload("udp", "dport"), 8080), DROP], False),
        ([match(payload("ip", "daddr"), POD_RANGE), {"log": None}, DROP], True),
        ([match(payload("ip", "daddr"), "10.244.3.1"), DROP], False),
        ([match(payload("ip", "saddr"), "@blocked"), DROP], False),
        ([match(payload("ip", "daddr"), "10.244.3.1", "!="), DROP], False),
        ([match(meta("l4proto"), {"set": ["udp", "tcp"]}), DROP], True),
        ([match(meta("nfproto"), "ipv6"), DROP], False),
        ([match(meta("nfproto"), "ipv4"), DROP], True),
        ([match(meta("nfproto"), "ipv4"), match(payload("ip", "daddr"), "10.244.3.1"), DROP], False),
        ([match(meta("protocol"), "ip"), DROP], True),
        ([match(meta("protocol"), "ip6"), DROP], False),
        ([match(meta("iifname"), "docker0"), DROP], False),
        ([match(meta("oifname"), "docker0", "!="), DROP], True),
        ([match(STATE, ["established", "related"], "in"), DROP], False),
        ([match(STATE, ["new", "invalid"], "in"), DROP], True),
        ([match({"ct": {"key": "status"}}, "dnat", "in"), DROP], False),
        ([{"limit": {"rate": 5, "per": "second"}}, DROP], False),
        ([{"notrack": None}], True),
        ([MARK], True),
        ([{"mangle": {"key": {"meta": {"key": "priority"}}, "value": 0x4000}}], False),
        ([{"jump": {"target": "more"}}], True),
        ([{"goto": {"target": "absent"}}], False),
    ],
)
def test_rules_of_nft(expressions: list[object], *, is_found: bool) -> None:
    """Conditions and statements of nft count like those of iptables."""
    rules = [("FORWARD", 1, expressions), ("more", 2, [DROP])]
    items = [{"rule": {"chain": chain, "handle": handle, "expr": each}} for chain, handle, each in rules]

    assert is_found == bool(re.fullmatch("[12]", decides(nft_chains(items))))


@pytest.mark.parametrize(("state", "key"), [("new", ""), ("invalid", "2")])
def test_verdict_map_of_nft(state: str, key: str) -> None:
    """A verdict map of connection states decides only if it has the state of first packets; then it may accept."""
    text = json.dumps({"vmap": {"key": STATE, "data": {"set": [["established", {"accept": None}], [state, DROP]]}}})
    items = [
        {"rule": {"chain": "FORWARD", "handle": number, "expr": each}}
        for number, each in ((1, [json.loads(text)]), (2, [DROP]))
    ]

    assert key == decides(nft_chains(items))


def test_policy_of_nft() -> None:
    """The policy of a base chain is added for the hooks that are given."""
    items = [{"chain": {"name": "FORWARD", "hook": "forward", "policy": "drop"}}]

    assert ["policy drop", ""] == [
        decides(nft_chains(items, with_policies=hooks)) for hooks in (("forward",), ("input",))
    ]


def test_source_of_a_node_port() -> None:
    """A condition on local addresses matches packets to the node."""
    line = "-A FORWARD -m addrtype --dst-type LOCAL -j DROP"

    assert line == decides(iptables_chains(line), NODE_PORT)
