"""Virtual servers: whose they are, what becomes of those of others, how they schedule, and how they come and go."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from pyproxy.backends.ipvs.entries import RealServer, VirtualServer
from pyproxy.backends.ipvs.virtual_servers import IpvsConnection
from pyproxy.model.address import Family, parse_ip
from pyproxy.model.endpoint import Endpoint
from tests.guest.ipvs import IPVS, connections, virtual_servers, weights
from tests.lab import tcp
from tests.packets.cluster import CLUSTER_CIDR_FLAG, PYPROXY, Cluster, wait_until
from tests.packets.modes import LEGACY
from tests.packets.objects import JsonObject, ingress, port, service, slices
from tests.packets.own_namespace import inside
from tests.packets.table import Row, rows

WEB = service("web", 160, port(80), port(81, name="admin"))
IP = WEB["spec"]["clusterIPs"][0]
HASHED = service("hashed", 161, port(80))
UNKNOWN = service("unknown", 162, port(80))
BALANCED = service("balanced", 163, port(80), type="LoadBalancer", ingress=ingress(163))
WEB_TCP = f"TCP {IP}:80"
CLEANUP = (PYPROXY, "cleanup", "--iptables-variant=legacy")
FOREIGN = "198.51.100.7:80"
MANY = range(2000, 2200)
"""Ports of so many virtual servers that the kernel's list of them is several pages."""


def scheduled(item: JsonObject, scheduler: str) -> JsonObject:
    """Return a Service that asks for a scheduler."""
    metadata = {**item["metadata"], "annotations": {"pyproxy.io/ipvs-scheduler": scheduler}}
    return {**item, "metadata": metadata}


@pytest.fixture(autouse=True)
def objects(ipvs: Cluster) -> Iterator[None]:
    """Have two Services with endpoints, one of which has an external address."""
    with ipvs.having(WEB, *slices(WEB, "pod1-1", "pod2-1"), BALANCED, *slices(BALANCED, "pod1-1")):
        yield


def schedulers(ipvs: Cluster) -> dict[str, str]:
    """Return the scheduler of each TCP virtual server of the first node."""
    lines = ipvs.lab["node1"].run("ipvsadm", "-Sn").splitlines()
    return {words[2]: words[4] for words in map(str.split, lines) if words[:2] == ["-A", "-t"]}


def counted(ipvs: Cluster) -> int:
    """Send packets to the Service; return how many connections the kernel has counted, which it does every two seconds."""
    node = ipvs.lab["node1"]
    before = connections(node).get(WEB_TCP, 0)
    ipvs.lab.client_pod.probe(*[tcp(IP, 80)] * 4)
    wait_until(lambda: connections(node)[WEB_TCP] >= before + 4, "connections are counted")
    return connections(node)[WEB_TCP]


def counted_rules(ipvs: Cluster) -> list[str]:
    """Return the rules of our chains in table nat, with packets and bytes in front."""
    lines = ipvs.run(ipvs.lab["node1"], "iptables-legacy-save", "-c", "-t", "nat").splitlines()
    return [line for line in lines if "-A KUBE-" in line]


def test_restart_leaves_counters_alone(ipvs: Cluster) -> None:
    """What is right is not written again: virtual servers keep their counts of connections, and rules theirs."""
    node = ipvs.lab["node1"]
    before = counted(ipvs)
    rules = [rule for rule in counted_rules(ipvs) if not rule.startswith("[0:0]")]

    ipvs.restart()

    assert before <= connections(node)[WEB_TCP]
    assert rules
    used = {rule.partition("] ")[2] for rule in rules}
    assert [] == [rule for rule in counted_rules(ipvs) if rule.startswith("[0:0]") and rule.partition("] ")[2] in used]


def test_foreign_virtual_servers_stay(ipvs: Cluster) -> None:
    """A virtual server of somebody else outlives every sync, and a restart, with its real servers."""
    node = ipvs.lab["node1"]
    node.run("ipvsadm", "-A", "-t", FOREIGN, "-s", "wlc")
    node.run("ipvsadm", "-a", "-t", FOREIGN, "-r", "10.244.1.11:8080", "-m", "-w", "7")

    ipvs.restart()

    assert {"10.244.1.11:8080": 7} == weights(node, f"TCP {FOREIGN}")
    node.run("ipvsadm", "-D", "-t", FOREIGN)


def test_foreign_virtual_server_in_a_services_place_is_taken_over(ipvs: Cluster) -> None:
    """One that claims the address of a Service becomes the Service's, in place: its counts go on."""
    node = ipvs.lab["node1"]
    ipvs.stop()
    ipvs.run(node, *CLEANUP)
    node.run("ipvsadm", "-A", "-t", f"{IP}:80", "-s", "wlc")
    node.run("ipvsadm", "-a", "-t", f"{IP}:80", "-r", "10.244.1.11:8080", "-m", "-w", "7")
    node.run("ipvsadm", "-a", "-t", f"{IP}:80", "-r", "10.244.1.99:8080", "-m")

    ipvs.start()

    expected = {"10.244.1.11:8080": 1, "10.244.2.11:8080": 1}
    wait_until(lambda: weights(node, f"TCP {IP}:80") == expected, "the Service's endpoints")
    assert "rr" == schedulers(ipvs)[f"{IP}:80"]


def test_excluded_addresses_are_left_alone(ipvs: Cluster) -> None:
    """Virtual servers in --ipvs-exclude-cidrs stay even where they were ours once."""
    node = ipvs.lab["node1"]
    virtual = f"TCP {BALANCED['spec']['clusterIPs'][0]}:80"
    ipvs.restart(CLUSTER_CIDR_FLAG, f"--ipvs-exclude-cidrs={BALANCED['spec']['clusterIPs'][0]}/32")

    ipvs.remove(BALANCED)
    ipvs.restart(CLUSTER_CIDR_FLAG)

    assert virtual in virtual_servers(node)
    node.run("ipvsadm", "-D", "-t", virtual.removeprefix("TCP "))


def test_schedulers(ipvs: Cluster) -> None:
    """The flag is for all Services, and a Service's annotation for that one; connections stay when it changes."""
    with ipvs.having(scheduled(HASHED, "sh"), *slices(HASHED, "pod1-1")):
        assert ["rr", "sh"] == [schedulers(ipvs)[f"{ip}:80"] for ip in (IP, HASHED["spec"]["clusterIPs"][0])]

        ipvs.restart(CLUSTER_CIDR_FLAG, "--ipvs-scheduler=lc")

        assert ["lc", "sh"] == [schedulers(ipvs)[f"{ip}:80"] for ip in (IP, HASHED["spec"]["clusterIPs"][0])]
    ipvs.restart(CLUSTER_CIDR_FLAG)


def test_service_with_an_unknown_scheduler_disturbs_no_other(ipvs: Cluster) -> None:
    """It is named in the log, and all others are programmed."""
    with ipvs.having(scheduled(UNKNOWN, "nonsense"), HASHED, *slices(HASHED, "pod1-1")):
        [outcome] = ipvs.lab.client_pod.probe(tcp(HASHED["spec"]["clusterIPs"][0], 80))

        assert "pod1-1" == outcome.server
        assert "the kernel has no such scheduler" in ipvs.agents["node1"].stderr


def test_arp_is_strict_on_devices_with_addresses_only(ipvs: Cluster) -> None:
    """Each device that has an address answers for that one; the others, and the settings for all, are as they were."""
    found = ipvs.lab["node1"].run("sh", "-c", "grep . /proc/sys/net/ipv4/conf/*/arp_ignore")

    values = {line.split("/")[6]: line[-1] for line in found.splitlines()}
    assert {"1"} == {values["eth0"], values["cni0"]}
    assert {"0"} == {values[name] for name in ("all", "default", "lo", "kube-ipvs0", "veth-pod1-1")}


def test_timeouts(ipvs: Cluster) -> None:
    """The flags say how long the kernel keeps connections."""
    ipvs.restart(CLUSTER_CIDR_FLAG, "--ipvs-tcp-timeout=10m", "--ipvs-tcpfin-timeout=30s", "--ipvs-udp-timeout=50s")

    assert "tcp tcpfin udp): 600 30 50" in ipvs.lab["node1"].run("ipvsadm", "-L", "--timeout")
    ipvs.restart(CLUSTER_CIDR_FLAG)


def test_switch_loses_no_connection(ipvs: Cluster) -> None:
    """To the iptables mode and back: open connections stay, none of many new ones fails, and what is old goes."""
    client, node = ipvs.lab.client_pod, ipvs.lab["node1"]
    virtual = f"TCP {IP}:80"
    with client.connect(tcp(IP, 80)) as connection, client.load(tcp(IP, 80), per_second=50) as load:
        server = connection.greeting.server
        ipvs.stop()
        ipvs.mode = LEGACY
        ipvs.start(CLUSTER_CIDR_FLAG)
        wait_until(lambda: set(weights(node, virtual).values()) == {0}, "IPVS drains")
        assert server == connection.ask().server
        assert "KUBE-IPVS-FILTER" not in ipvs.run(node, "iptables-legacy-save")
        ipvs.stop()
        ipvs.mode = IPVS
        ipvs.start(CLUSTER_CIDR_FLAG)
        assert server == connection.ask().server
        report = load.report()

    assert not report.failures
    assert {1} == set(weights(node, virtual).values())


def test_cleanup_removes_all(ipvs: Cluster) -> None:
    """After it there is nothing of ours: no virtual server, set, address, device or rule; a second one finds nothing."""
    node = ipvs.lab["node1"]
    ipvs.stop()

    first = ipvs.run(node, *CLEANUP)
    second = ipvs.run(node, *CLEANUP)

    assert "virtual servers" in first
    assert "" == second
    assert {} == virtual_servers(node)
    assert "" == node.run("ipset", "list", "-n")
    assert "kube-ipvs0" not in node.run("ip", "link")
    lines = ipvs.run(node, "iptables-legacy-save").splitlines()
    # The iptables mode shares that one with the kubelet.
    assert [] == [line for line in lines if "KUBE" in line and "KUBE-FIREWALL" not in line]
    ipvs.start(CLUSTER_CIDR_FLAG)


@rows("client-pod  web:80/tcp  pod1-1 pod2-1  itself", [WEB], versions=[4])
def test_what_others_removed_comes_back(ipvs: Cluster, row: Row) -> None:
    """Without the device, or the rules, packets soon meet what they should again."""
    ipvs.lab["node1"].run("ip", "link", "delete", "kube-ipvs0")
    ipvs.run(ipvs.lab["node1"], "iptables-legacy", "-t", "nat", "-F", "KUBE-SERVICES")

    # The agent looks the more rarely the longer a sync takes, and here each takes long.
    wait_until(lambda: ipvs.expected(row) == ipvs.meet(row), "repaired", seconds=150)


def test_dump_rules_live_tells_connections(ipvs: Cluster) -> None:
    """The live listing has each real server with its weight and its connections, under the Service's name."""
    with ipvs.lab.client_pod.connect(tcp(IP, 80)):
        listing = ipvs.run(
            ipvs.lab["node1"], PYPROXY, "dump-rules", "--live", "--service=default/web", *ipvs.mode.flags[:2]
        )

    assert f"-A -t {IP}:80 -s rr" in listing
    assert " 1 active" in listing


def test_others_in_the_same_kernel_hide_nothing(ipvs: Cluster) -> None:
    """The kernel's list, read a page at a time, leaves servers out where other network namespaces have some, too."""
    nodes = [ipvs.lab["node1"], ipvs.lab["node2"]]
    expected = {
        RealServer(VirtualServer(parse_ip("198.51.100.8"), 6, number), Endpoint(parse_ip("10.244.1.11"), 80))
        for number in MANY
    }
    for node in nodes:
        lines = (f"-A -t 198.51.100.8:{number}\n-a -t 198.51.100.8:{number} -r 10.244.1.11:80 -m\n" for number in MANY)
        node.run("ipvsadm", "--restore", stdin="".join(lines))
    try:
        with inside(nodes[0].namespace.path), closing(IpvsConnection()) as servers:
            found = dict(servers.all_reals(dict(servers.services(Family.IPV4)), Family.IPV4))
    finally:
        for node in nodes:
            lines = (f"-D -t 198.51.100.8:{number}\n" for number in MANY)
            node.run("ipvsadm", "--restore", stdin="".join(lines))

    assert expected <= found.keys()
