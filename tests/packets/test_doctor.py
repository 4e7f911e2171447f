"""``pyproxy doctor``: each check finds what it is for, in a namespace that is broken in one way."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from dataclasses import replace

import pytest

from pyproxy.config.config import Config
from pyproxy.doctor import conntrack, kernel
from pyproxy.doctor.finding import Severity
from pyproxy.doctor.inputs import KUBE_PROXY, PYPROXY, AgentAnswers, Inputs
from pyproxy.doctor.installed_rules import find_installed_rules
from pyproxy.linux.iptables_programs import Variant, program
from pyproxy.model.address import Family, parse_ip, parse_network

from .doctor_checks import NODE, PODS, SYS, findings, only, write
from .each import variants
from .own_namespace import load, run

pytestmark = pytest.mark.usefixtures("own_tables")

KUBE_SERVICES = "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n"
OURS = KUBE_SERVICES.replace(":KUBE-SERVICES", ":PYPROXY-CANARY - [0:0]\n:KUBE-SERVICES")
KUBE_PROXY_MARKER = KUBE_SERVICES.replace(":KUBE-SERVICES", ":KUBE-PROXY-CANARY - [0:0]\n:KUBE-SERVICES")


def add_bridge(name: str = "cni0", address: str = "10.244.1.1/24") -> None:
    """Create a bridge as a network plugin does, with the port of one pod."""
    run("ip", "link", "add", name, "type", "bridge")
    run("ip", "link", "add", "veth-pod", "type", "veth", "peer", "pod")
    run("ip", "link", "set", "veth-pod", "master", name)
    run("ip", "address", "add", address, "dev", name)
    run("ip", "link", "set", name, "up")


def test_forwarding() -> None:
    """Forwarding that is off is a failure; IPv6 counts if the node has pods of that family."""
    write("ipv4/ip_forward", 0)

    assert (Severity.FAIL, "net.ipv4.ip_forward is 0: packets to pods are dropped") == only("forwarding")

    write("ipv4/ip_forward", 1)
    write("ipv6/conf/all/forwarding", 0)
    dual = replace(NODE, pod_cidrs=(PODS, parse_network("fd00:10:244::/64")))

    assert [] == findings("forwarding")
    text = "net.ipv6.conf.all.forwarding is 0: packets to pods are dropped"
    assert (Severity.FAIL, text) == only("forwarding", Inputs(Config(), dual))


def test_reverse_path_filter() -> None:
    """Strict mode is a warning that names the interface; loose mode for all interfaces overrides it."""
    run("ip", "link", "add", "eth9", "type", "bridge")
    run("ip", "address", "add", "192.0.2.1/24", "dev", "eth9")
    run("ip", "link", "set", "eth9", "up")
    write("ipv4/conf/all/rp_filter", 0)
    write("ipv4/conf/eth9/rp_filter", 1)

    severity, text = only("rp-filter")

    assert (Severity.WARN, True) == (severity, text.startswith("rp_filter is strict on eth9:"))
    write("ipv4/conf/all/rp_filter", 2)
    assert [] == findings("rp-filter")


def test_bridge_netfilter() -> None:
    """A bridge with pods needs bridge netfilter; another bridge does not."""
    write("bridge/bridge-nf-call-iptables", 0)
    add_bridge("docker0", "172.17.0.1/16")
    assert [] == findings("bridge-netfilter")
    for device in ("docker0", "veth-pod"):
        run("ip", "link", "delete", device)
    add_bridge()

    text = (
        "net.bridge.bridge-nf-call-iptables is 0: on cni0 a pod cannot reach a pod of the same node through a Service"
    )
    assert (Severity.WARN, text) == only("bridge-netfilter")
    write("bridge/bridge-nf-call-iptables", 1)
    assert [] == findings("bridge-netfilter")


def test_hairpin_mode() -> None:
    """With bridge netfilter, the ports of a bridge with pods need hairpin mode."""
    add_bridge()
    write("bridge/bridge-nf-call-iptables", 1)

    text = "hairpin mode is off on 1 of 1 ports of bridge cni0 (veth-pod): a pod cannot reach itself through a Service"
    assert (Severity.WARN, text) == only("hairpin-mode")
    run("bridge", "link", "set", "dev", "veth-pod", "hairpin", "on")
    assert [] == findings("hairpin-mode")


def test_local_ports() -> None:
    """Local ports that overlap with node ports are a warning, unless they are reserved."""
    write("ipv4/ip_local_port_range", "1024 60999")

    severity, text = only("local-ports")

    assert (Severity.WARN, True) == (severity, text.startswith("local ports 1024-60999 overlap with node ports"))
    write("ipv4/ip_local_reserved_ports", "30000-32767")
    assert [] == findings("local-ports")


def test_strict_arp() -> None:
    """In IPVS mode, an address of a Service that is in a network of the node needs strict ARP."""
    for device, address in (("eth9", "192.0.2.1/24"), ("kube-ipvs0", "192.0.2.100/32")):
        run("ip", "link", "add", device, "type", "bridge")
        run("ip", "address", "add", address, "dev", device)
    run("ip", "link", "set", "eth9", "up")
    ipvs = Inputs(Config(), NODE, agent=AgentAnswers(PYPROXY, "ipvs"))

    severity, text = only("strict-arp", ipvs)

    assert (Severity.WARN, True) == (severity, "192.0.2.100" in text)
    assert [] == findings("strict-arp", replace(ipvs, agent=AgentAnswers(PYPROXY, "iptables")))
    write("ipv4/conf/all/arp_ignore", 1)
    write("ipv4/conf/all/arp_announce", 2)
    assert [] == findings("strict-arp", ipvs)


@pytest.mark.parametrize(
    ("table", "severity"), [("MATCHES", Severity.FAIL), ("TARGETS", Severity.FAIL), ("OPTIONAL_MATCHES", Severity.INFO)]
)
def test_missing_extension(monkeypatch: pytest.MonkeyPatch, table: str, severity: Severity) -> None:
    """An extension that the kernel does not have is named, for both families."""
    assert [] == [each for each in findings("kernel-features") if each.severity is Severity.FAIL]
    monkeypatch.setitem(getattr(kernel, table), "nosuch", 0)

    found = [each for each in findings("kernel-features") if "xt_nosuch" in each.text]

    assert [severity] * 2 == [each.severity for each in found]
    assert ["IPv4", "IPv6"] == [each.text[:4] for each in found]


def test_conntrack_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is nearly full is a warning with its usage."""
    flow = ("-p", "udp", "-s", "10.0.0.1", "-d", "10.0.0.2", "--sport", "1000", "--dport", "53", "-t", "99")
    run("conntrack", "-I", *flow)
    most = int((SYS / "netfilter/nf_conntrack_max").read_text())
    assert [] == findings("conntrack-usage")

    # A namespace cannot have a limit of its own, and it is too large to fill it.
    monkeypatch.setattr(conntrack, "WARN_SHARE", 1 / most)
    assert (Severity.WARN, f"conntrack 0 % of {most}") == only("conntrack-usage")
    monkeypatch.setattr(conntrack, "FAIL_SHARE", 1 / most)
    assert (Severity.FAIL, f"conntrack 0 % of {most}") == only("conntrack-usage")


def test_invalid_packets() -> None:
    """Packets in state INVALID are a warning while their number grows, unless conntrack is liberal."""
    run("ip", "link", "set", "lo", "up")
    # Connection tracking is off in a namespace until a rule needs it.
    run(program(Family.IPV4, Variant.NFT), "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW")
    assert [] == findings("conntrack-losses")
    stopped = threading.Event()

    def keep_sending() -> None:
        # Ports 1000 and 80, a header of 20 bytes, flags SYN and FIN.
        header = struct.pack("!HHIIBBHHH", 1000, 80, 1, 0, 5 << 4, 0b11, 1000, 0, 0)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
            while not stopped.wait(0.01):
                raw.sendto(header, ("127.0.0.1", 0))

    # A thread that starts here is in this namespace.
    thread = threading.Thread(target=keep_sending)
    thread.start()
    try:
        severity, text = only("conntrack-losses")
        write("netfilter/nf_conntrack_tcp_be_liberal", 1)
        with_be_liberal = findings("conntrack-losses")
    finally:
        stopped.set()
        thread.join()

    assert (Severity.WARN, True) == (severity, text.endswith(" packets a minute are in conntrack state INVALID"))
    assert [] == with_be_liberal


def test_both_variants() -> None:
    """Rules of Services in both variants of iptables are a failure."""
    for variant in Variant:
        load(Family.IPV4, variant, OURS)

    text = "iptables-nft and iptables-legacy both have rules of Services, and both apply"
    assert (Severity.FAIL, text) == only("iptables-variant")


@variants
def test_variant_of_the_kubelet(variant: Variant) -> None:
    """Rules of Services in another variant than the kubelet's are a warning; in the same one they are fine."""
    [other] = set(Variant) - {variant}
    load(Family.IPV4, variant, OURS)
    assert [] == findings("iptables-variant")
    load(Family.IPV4, other, "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n")

    text = f"rules of Services are in iptables-{variant.value}, the kubelet uses iptables-{other.value}"
    assert (Severity.WARN, text) == only("iptables-variant")


@variants
def test_stale_rules_of_kube_proxy(variant: Variant) -> None:
    """Rules of kube-proxy beside ours are left over; alone they are those of the node's proxy."""
    load(Family.IPV4, variant, KUBE_PROXY_MARKER)
    assert [] == findings("stale-rules")
    run("nft", "add table ip6 pyproxy")

    severity, text = only("stale-rules")

    assert Severity.WARN is severity
    wanted = (
        f"rules of kube-proxy in iptables mode (iptables-{variant.value}) are left, beside those of pyproxy in nftables"
    )
    assert text.startswith(wanted)


def test_stale_rules_of_another_mode() -> None:
    """Rules of a mode that the agent does not use are left over."""
    load(Family.IPV6, Variant.NFT, OURS)
    rules = asyncio.run(find_installed_rules())
    inputs = Inputs(Config(), NODE, agent=AgentAnswers(PYPROXY, "iptables"), rules=rules)
    assert [] == findings("stale-rules", inputs)

    text = "rules of pyproxy in iptables mode (iptables-nft) are left, beside those of pyproxy in nftables mode"
    assert (Severity.WARN, text) == only("stale-rules", replace(inputs, agent=AgentAnswers(PYPROXY, "nftables")))
    text = "rules of pyproxy in iptables mode (iptables-nft) are left, beside those of kube-proxy in nftables mode"
    assert (Severity.WARN, text) == only("stale-rules", replace(inputs, agent=AgentAnswers(KUBE_PROXY, "nftables")))


@variants
def test_forward_policy(variant: Variant) -> None:
    """A FORWARD policy of DROP is a failure if no rule accepts traffic of pods, our own rules excepted."""
    tool = program(Family.IPV4, variant)
    run(tool, "-P", "FORWARD", "DROP")
    for rule in (
        "FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "FORWARD -i docker0 ! -o docker0 -j ACCEPT",
        "FORWARD -s 192.0.2.0/24 -j ACCEPT",
        "FORWARD -i docker0 -o docker0 -j ACCEPT",
    ):
        run(tool, "-A", *rule.split())
    load(
        Family.IPV4,
        variant,
        "*filter\n:KUBE-FORWARD - [0:0]\n-A FORWARD -j KUBE-FORWARD\n"
        "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\nCOMMIT\n",
    )

    assert (Severity.FAIL, "FORWARD policy is DROP and nothing accepts 10.244.1.0/24") == only("forward-policy")


@pytest.mark.parametrize(
    "rule",
    [
        "-s 10.244.0.0/16 -j ACCEPT",
        '-d 10.244.1.0/24 -m comment --comment "pods of this node" -j ACCEPT',
        "-i cni+ -j ACCEPT",
        "-j ACCEPT",
        "-m mark --mark 0x10000/0x10000 -j ACCEPT",
    ],
)
@variants
def test_forward_policy_with_a_rule_for_pods(variant: Variant, rule: str) -> None:
    """A rule for pods, also in a chain of a network plugin, is enough."""
    add_bridge()
    plugin = f"*filter\n:PLUGIN - [0:0]\n-A FORWARD -j PLUGIN\n-A PLUGIN {rule}\nCOMMIT\n"
    load(Family.IPV4, variant, plugin)
    run(program(Family.IPV4, variant), "-P", "FORWARD", "DROP")

    assert [] == findings("forward-policy")


def test_forward_policy_that_iptables_cannot_print() -> None:
    """A table with rules that only nft can print is reported as not checked."""
    run(program(Family.IPV4, Variant.NFT), "-P", "FORWARD", "DROP")
    run("nft", "insert rule ip filter FORWARD ct state vmap { established : accept, invalid : drop }")

    [found] = findings("forward-policy")

    assert (Severity.WARN, True) == (
        found.severity,
        found.text.startswith("not checked: FORWARD policy: iptables-nft-save"),
    )


def test_forward_policy_of_a_native_chain() -> None:
    """A chain of nftables that drops forwarded packets by default is a warning, unless a rule accepts pods."""
    run("nft", "add table inet host; add chain inet host forward { type filter hook forward priority 0; policy drop; }")
    run("nft", "add rule inet host forward ct state established accept")

    text = "policy of nftables chain inet host forward is drop and no rule of it accepts 10.244.1.0/24"
    assert (Severity.WARN, text) == only("forward-policy")
    run("nft", "add rule inet host forward ip saddr 10.244.0.0/16 accept")
    assert [] == findings("forward-policy")


@variants
def test_host_port_that_hides_a_node_port(variant: Variant) -> None:
    """A hostPort with the number of a node port is a warning if its chain comes first."""
    text = (
        "*nat\n:PYPROXY-CANARY - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:CNI-HOSTPORT-DNAT - [0:0]\n"
        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n-A PREROUTING -j KUBE-SERVICES\n"
        "-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j RETURN\n"
        "-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports {} -j RETURN\nCOMMIT\n"
    )
    load(Family.IPV4, variant, text.format("30080,8080"))

    wanted = "IPv4: hostPort of a pod hides node port 30080/TCP: CNI-HOSTPORT-DNAT comes before KUBE-SERVICES"
    assert (Severity.WARN, wanted) == only("foreign-jumps")

    run(program(Family.IPV4, variant), "-t", "nat", "-F", "CNI-HOSTPORT-DNAT")
    wanted = "IPv4: rules of other programs come before those of Services in nat PREROUTING: CNI-HOSTPORT-DNAT"
    assert (Severity.INFO, wanted) == only("foreign-jumps")


@pytest.mark.parametrize(
    ("address", "severity", "text"),
    [
        ("127.0.0.1", Severity.FAIL, "node address 127.0.0.1 is a loopback address"),
        (
            "10.0.2.15",
            Severity.WARN,
            "node address 10.0.2.15 is what VirtualBox gives to every machine; other nodes cannot reach it",
        ),
        ("192.0.2.77", Severity.WARN, "node address 192.0.2.77 is on no interface of this machine"),
    ],
)
def test_node_address(address: str, severity: Severity, text: str) -> None:
    """An address at which other nodes cannot reach this one is found."""
    assert (severity, text) == only("node-ip", Inputs(Config(), replace(NODE, ips=(parse_ip(address),))))


def test_node_address_of_an_interface() -> None:
    """An address of an interface is fine."""
    run("ip", "address", "add", "192.0.2.1/24", "dev", "lo")

    assert [] == findings("node-ip", Inputs(Config(), replace(NODE, ips=(parse_ip("192.0.2.1"),))))


def test_host_port_in_nftables_mode() -> None:
    """In nftables mode a hostPort with the number of a node port is a warning, other chains of iptables are not."""
    load(Family.IPV4, Variant.NFT, "*nat\n:DOCKER - [0:0]\n-A PREROUTING -j DOCKER\nCOMMIT\n")
    inputs = Inputs(Config(), NODE, agent=AgentAnswers(PYPROXY, "nftables"))
    assert [] == findings("foreign-jumps", inputs)
    load(
        Family.IPV4,
        Variant.NFT,
        "*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n-A PREROUTING -j CNI-HOSTPORT-DNAT\n"
        "-A CNI-HOSTPORT-DNAT -p udp -m multiport --dports 30053 -j RETURN\nCOMMIT\n",
    )

    text = "IPv4: hostPort of a pod hides node port 30053/UDP: only one of them can work"
    assert (Severity.WARN, text) == only("foreign-jumps", inputs)
