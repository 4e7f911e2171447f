"""Virtual servers: ownership, foreign virtual servers, schedulers, restarts and cleanup."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from pyproxy.backends.ipvs.entries import RealServer, VirtualServer
from pyproxy.backends.ipvs.virtual_servers import IpvsConnection
from pyproxy.model.address import Family, parse_ip
from pyproxy.model.endpoint import Endpoint
from tests.guest.ipvs import IPVS, connections, virtual_servers, weights
from tests.lab import tcp
from tests.lab.waiting import wait_until
from tests.packets.cluster import CLUSTER_CIDR_FLAG, PYPROXY, Cluster
from tests.packets.modes import LEGACY
from tests.packets.objects import JsonObject, ingress, port, service, slices
from tests.packets.own_namespace import inside
from tests.packets.table import Row, rows

pytestmark = pytest.mark.needs_ipvs

WEB = service("web", 160, port(80), port(81, name="admin"))
IP = WEB["spec"]["clusterIPs"][0]
HASHED = service("hashed", 161, port(80))
UNKNOWN = service("unknown", 162, port(80))
BALANCED = service("balanced", 163, port(80), type="LoadBalancer", ingress=ingress(163))
WEB_TCP = f"TCP {IP}:80"
CLEANUP = (PYPROXY, "cleanup", "--iptables-variant=legacy")
FOREIGN = "198.51.100.7:80"
MANY = range(2000, 2200)
"""Ports of so many virtual servers that the kernel's list of them spans several pages."""


def scheduled(item: JsonObject, scheduler: str) -> JsonObject:
    """Return a Service with a scheduler annotation."""
    metadata = {**item["metadata"], "annotations": {"pyproxy.io/ipvs-scheduler": scheduler}}
    return {**item, "metadata": metadata}


@pytest.fixture(autouse=True)
def objects(ipvs: Cluster) -> Iterator[None]:
    """Add Services with endpoints, one of them with an external address."""
    with ipvs.having(WEB, *slices(WEB, "pod1-1", "pod2-1"), BALANCED, *slices(BALANCED, "pod1-1")):
        yield


def schedulers(ipvs: Cluster) -> dict[str, str]:
    """Return the scheduler of each TCP virtual server of the first node."""
    lines = ipvs.lab["node1"].run("ipvsadm", "-Sn").splitlines()
    return {words[2]: words[4] for words in map(str.split, lines) if words[:2] == ["-A", "-t"]}


def counted(ipvs: Cluster) -> int:
    """Send packets to the Service, and return the connection count, which the kernel updates every two seconds."""
    node = ipvs.lab["node1"]
    before = connections(node).get(WEB_TCP, 0)
    ipvs.lab.client_pod.probe(*[tcp(IP, 80)] * 4)
    wait_until(lambda: connections(node)[WEB_TCP] >= before + 4, "connections are counted")
    return connections(node)[WEB_TCP]


def counted_rules(ipvs: Cluster) -> list[str]:
    """Return the rules of our chains in the nat table, each with its packet and byte counters."""
    lines = ipvs.run(ipvs.lab["node1"], "iptables-legacy-save", "-c", "-t", "nat").splitlines()
    return [line for line in lines if "-A KUBE-" in line]


def test_restart_leaves_counters_alone(ipvs: Cluster) -> None:
    """A restart rewrites nothing: virtual servers and rules keep their counters."""
    node = ipvs.lab["node1"]
    before = counted(ipvs)
    rules = [rule for rule in counted_rules(ipvs) if not rule.startswith("[0:0]")]

    ipvs.restart()

    assert before <= connections(node)[WEB_TCP]
    assert rules
    used = {rule.partition("] ")[2] for rule in rules}
    assert [] == [rule for rule in counted_rules(ipvs) if rule.startswith("[0:0]") and rule.partition("] ")[2] in used]


def test_foreign_virtual_servers_stay(ipvs: Cluster) -> None:
    """A foreign virtual server and its real servers survive every sync, and a restart."""
    node = ipvs.lab["node1"]
    node.run("ipvsadm", "-A", "-t", FOREIGN, "-s", "wlc")
    node.run("ipvsadm", "-a", "-t", FOREIGN, "-r", "10.244.1.11:8080", "-m", "-w", "7")

    ipvs.restart()

    assert {"10.244.1.11:8080": 7} == weights(node, f"TCP {FOREIGN}")
    node.run("ipvsadm", "-D", "-t", FOREIGN)


def test_foreign_virtual_server_in_a_services_place_is_taken_over(ipvs: Cluster) -> None:
    """A foreign virtual server at the address of a Service is taken over in place, with its counters."""
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
    """Virtual servers in --ipvs-exclude-cidrs stay, even if pyproxy created them."""
    node = ipvs.lab["node1"]
    virtual = f"TCP {BALANCED['spec']['clusterIPs'][0]}:80"
    ipvs.restart(CLUSTER_CIDR_FLAG, f"--ipvs-exclude-cidrs={BALANCED['spec']['clusterIPs'][0]}/32")

    ipvs.remove(BALANCED)
    ipvs.restart(CLUSTER_CIDR_FLAG)

    assert virtual in virtual_servers(node)
    node.run("ipvsadm", "-D", "-t", virtual.removeprefix("TCP "))


def test_schedulers(ipvs: Cluster) -> None:
    """The flag sets the scheduler of all Services, the annotation that of one; connections survive a change."""
    with ipvs.having(scheduled(HASHED, "sh"), *slices(HASHED, "pod1-1")):
        assert ["rr", "sh"] == [schedulers(ipvs)[f"{ip}:80"] for ip in (IP, HASHED["spec"]["clusterIPs"][0])]

        ipvs.restart(CLUSTER_CIDR_FLAG, "--ipvs-scheduler=lc")

        assert ["lc", "sh"] == [schedulers(ipvs)[f"{ip}:80"] for ip in (IP, HASHED["spec"]["clusterIPs"][0])]
    ipvs.restart(CLUSTER_CIDR_FLAG)


def test_unknown_scheduler_affects_only_its_service(ipvs: Cluster) -> None:
    """A Service with an unknown scheduler is logged, and all other Services are programmed."""
    with ipvs.having(scheduled(UNKNOWN, "nonsense"), HASHED, *slices(HASHED, "pod1-1")):
        [outcome] = ipvs.lab.client_pod.probe(tcp(HASHED["spec"]["clusterIPs"][0], 80))

        assert "pod1-1" == outcome.server
        assert "the kernel has no such scheduler" in ipvs.agents["node1"].stderr


def test_arp_is_strict_on_devices_with_addresses_only(ipvs: Cluster) -> None:
    """Strict ARP is set only on devices with addresses; other devices and the global settings do not change."""
    found = ipvs.lab["node1"].run("sh", "-c", "grep . /proc/sys/net/ipv4/conf/*/arp_ignore")

    values = {line.split("/")[6]: line[-1] for line in found.splitlines()}
    assert {"1"} == {values["eth0"], values["cni0"]}
    assert {"0"} == {values[name] for name in ("all", "default", "lo", "kube-ipvs0", "veth-pod1-1")}


def test_timeouts(ipvs: Cluster) -> None:
    """The flags set the connection time-outs of the kernel."""
    ipvs.restart(CLUSTER_CIDR_FLAG, "--ipvs-tcp-timeout=10m", "--ipvs-tcpfin-timeout=30s", "--ipvs-udp-timeout=50s")

    assert "tcp tcpfin udp): 600 30 50" in ipvs.lab["node1"].run("ipvsadm", "-L", "--timeout")
    ipvs.restart(CLUSTER_CIDR_FLAG)


def test_switch_loses_no_connection(ipvs: Cluster) -> None:
    """Switching to the iptables mode and back keeps open connections, fails no new ones, and removes the old entries."""
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
    """A cleanup removes all virtual servers, sets, addresses, devices and rules of pyproxy; a second one finds nothing."""
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
    # The kubelet and the iptables mode share this rule.
    assert [] == [line for line in lines if "KUBE" in line and "KUBE-FIREWALL" not in line]
    ipvs.start(CLUSTER_CIDR_FLAG)


@rows("client-pod  web:80/tcp  pod1-1 pod2-1  itself", [WEB], versions=[4])
def test_external_deletions_are_repaired(ipvs: Cluster, row: Row) -> None:
    """After the device or the rules are deleted, packets soon reach the Service again."""
    ipvs.lab["node1"].run("ip", "link", "delete", "kube-ipvs0")
    ipvs.run(ipvs.lab["node1"], "iptables-legacy", "-t", "nat", "-F", "KUBE-SERVICES")

    # The longer a sync takes, the less often the agent checks, and in the guest syncs are slow.
    wait_until(lambda: ipvs.expected(row) == ipvs.observe(row), "repaired", 150)


def test_dump_rules_live_shows_connections(ipvs: Cluster) -> None:
    """The live listing has each real server with its weight and connections, by Service."""
    with ipvs.lab.client_pod.connect(tcp(IP, 80)):
        listing = ipvs.run(
            ipvs.lab["node1"], PYPROXY, "dump-rules", "--live", "--service=default/web", *ipvs.mode.flags[:2]
        )

    assert f"-A -t {IP}:80 -s rr" in listing
    assert " 1 active" in listing


def test_virtual_servers_of_other_namespaces_hide_nothing(ipvs: Cluster) -> None:
    """All servers are read, although the kernel's paged list omits some if other network namespaces also have servers."""
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
