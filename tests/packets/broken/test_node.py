"""Set-ups that are broken by the node: the command names the cause, and packets meet what an operator sees.

The agents run in the namespaces of a lab; each fault breaks the one of node1, and is undone after the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab import Host, Ports, tcp
from tests.packets.cluster import CLUSTER_CIDR_FLAG, PYPROXY, Cluster, running_cluster
from tests.packets.modes import LEGACY, NFTABLES, Mode
from tests.packets.objects import ADDRESSES, PORT, JsonObject, ingress, node, service, slices
from tests.packets.table import Row, rows
from tests.packets.test_external_addresses import ports

SERVED_FLAG = "--metrics-bind-address=127.0.0.1:10249"
NEAR = service("near", 231, *ports(30231), type="NodePort")
FAR = service("far", 232, *ports(30232), type="NodePort")
LOCAL = service(
    "local",
    233,
    *ports(30233),
    type="LoadBalancer",
    ingress=ingress(33),
    externalTrafficPolicy="Local",
    healthCheckNodePort=32233,
)
PINNED = service("pinned", 234, *ports(30234), sessionAffinity="ClientIP")
OBJECTS: list[JsonObject] = [
    *(NEAR, *slices(NEAR, "pod1-1")),
    *(FAR, *slices(FAR, "pod2-1")),
    *(LOCAL, *slices(LOCAL, "pod1-1", "pod2-1")),
    *(PINNED, *slices(PINNED, "pod1-2", "pod2-2")),
]
DEAD = ("10.244.1.98", "10.244.1.99")
"""Addresses of pods that are gone, one for each fault: the kernel remembers for a while that a neighbour did not answer."""


class Site(NamedTuple):
    """Where a fault is."""

    cluster: Cluster

    @property
    def node(self) -> Host:
        """The node that is broken."""
        return self.cluster.lab["node1"]

    @property
    def mode(self) -> Mode:
        """The proxy mode of the agents."""
        return self.cluster.mode

    @property
    def iptables(self) -> str:
        """The program of the variant that the agents use, or else of nft."""
        return "iptables-legacy" if self.mode.name == LEGACY.name else "iptables-nft"

    def sh(self, script: str, *, stdin: str = "") -> str:
        """Run a script on the node."""
        return self.cluster.run(self.node, "sh", "-ec", script, stdin=stdin)

    def ask(self, *words: str) -> str:
        """Return the output of a command on the node; `doctor` gets the flags of the agent."""
        flags = [f"--control-socket={self.cluster.control_socket(self.node)}"]
        if words[0] == "doctor":
            flags += ["--hostname-override=node1", *self.cluster.flags]
        return self.sh('"$0" "$@" 2>&1 || true'.replace('"$0"', " ".join((PYPROXY, *words, *flags))))

    @contextmanager
    def done(self, do: str, undo: str) -> Iterator[None]:
        """Run a script, and on exit another one."""
        self.sh(do)
        try:
            yield
        finally:
            self.sh(undo)

    @contextmanager
    def setting(self, name: str, value: int) -> Iterator[None]:
        """Change a setting of the kernel."""
        path = f"/proc/sys/net/{name}"
        before = self.sh(f"cat {path}").strip()
        with self.done(f"echo {value} >{path}", f"echo {before} >{path}"):
            yield

    @contextmanager
    def rule(self, words: str, program: str = "iptables-nft") -> Iterator[None]:
        """Have a rule; `words` begin with table, chain and position."""
        table, chain, rule = words.split(maxsplit=2)
        with self.done(f"{program} -w -t {table} -I {chain} {rule}", f"{program} -w -t {table} -D {chain} {rule}"):
            yield

    @contextmanager
    def nft(self, table: str, body: str) -> Iterator[None]:
        """Have a table of nftables."""
        self.cluster.run(self.node, "nft", "-f", "-", stdin=f"table {table} {{ {body}\n}}")
        try:
            yield
        finally:
            self.sh(f"nft delete table {table}")

    @contextmanager
    def flags(self, *flags: str) -> Iterator[None]:
        """Run the agent of the node with other flags."""
        before = self.cluster.flags
        self._restart(SERVED_FLAG, *flags)
        try:
            yield
        finally:
            self._restart(*before)

    @contextmanager
    def stopped_agent(self) -> Iterator[None]:
        """Have no agent on the node; on exit it starts again, and repairs the rules."""
        self.cluster.agents.pop("node1").stop()
        try:
            yield
        finally:
            self._restart(*self.cluster.flags)

    def _restart(self, *flags: str) -> None:
        """Restart the agent of the node; commands get the same flags."""
        if agent := self.cluster.agents.pop("node1", None):
            agent.stop()
        self.cluster.flags = flags
        agent = self.node.start(*self.cluster.command(self.node, *flags), env=self.cluster.env(self.node))
        self.cluster.agents["node1"] = agent
        agent.wait_until_ready()


class Fault(NamedTuple):
    """A way to break a node."""

    break_node: Callable[[Site], AbstractContextManager[None]]
    sees: str
    """What an operator sees."""
    cause: str
    """The true cause."""
    packets: str
    names: tuple[str, ...]
    """What the output says about the cause."""
    command: str
    modes: tuple[str, ...]
    """The modes that can have the fault; the first one is tested in CI, all of them with `--long`."""


FAULTS: list[Fault] = []
EVERY_MODE = ("nftables", "iptables-nft", "iptables-legacy")
LONG_ONLY = ("", "nftables")
IPTABLES = ("iptables-nft", "iptables-legacy")


def fault(  # noqa: PLR0913  # a row of a table
    sees: str,
    *,
    cause: str,
    packets: str,
    names: tuple[str, ...],
    command: str = "doctor",
    modes: tuple[str, ...] = EVERY_MODE,
) -> Callable[[Callable[[Site], Iterator[None]]], Callable[[Site], AbstractContextManager[None]]]:
    """Add a function that breaks a node to the faults."""

    def add(function: Callable[[Site], Iterator[None]]) -> Callable[[Site], AbstractContextManager[None]]:
        made = contextmanager(function)
        FAULTS.append(Fault(made, sees, cause, packets, names, command, modes))
        return made

    return add


# -- settings of the kernel


@fault(
    "Pods reach Services with endpoints on no node.",
    cause="IP forwarding is off.",
    packets="client-pod  far:80/tcp  dropped\nclient-pod  near:80/tcp  dropped",
    names=("FAIL  net.ipv4.ip_forward is 0",),
)
def _forwarding_off(site: Site) -> Iterator[None]:
    with site.setting("ipv4/ip_forward", 0):
        yield


@fault(
    "Pods of the node reach no other node, through Services or directly.",
    cause="Forwarding is off for the interface of the pods only.",
    packets="client-pod  far:80/tcp  dropped",
    names=("FAIL  net.ipv4.conf.cni0.forwarding is 0",),
)
def _forwarding_off_for_pods(site: Site) -> Iterator[None]:
    with site.setting("ipv4/conf/cni0/forwarding", 0):
        yield


@fault(
    "Over IPv6 pods reach no Service.",
    cause="IPv6 forwarding is off.",
    packets="client-pod  far:80/tcp  dropped",
    names=("FAIL  net.ipv6.conf.all.forwarding is 0",),
)
def _ipv6_forwarding_off(site: Site) -> Iterator[None]:
    with site.setting("ipv6/conf/all/forwarding", 0):
        yield


@fault(
    "A pod does not reach a pod of its own node through a Service, all other connections work.",
    cause="Bridge netfilter is off: the reply takes the bridge, and its source is not translated back.",
    packets="client-pod  near:80/tcp  dropped\nclient-pod  far:80/tcp  pod2-1  itself",
    names=("WARN  net.bridge.bridge-nf-call-iptables is 0: on cni0 a pod cannot reach a pod of the same node",),
)
def _bridge_netfilter_off(site: Site) -> Iterator[None]:
    with site.setting("bridge/bridge-nf-call-iptables", 0), _pods_in_one_network(site):
        yield


@fault(
    "A pod does not reach itself through its Service, other pods of the node do.",
    cause="The bridge port of the pod is not in hairpin mode.",
    packets="pod1-1  near:80/tcp  dropped\nclient-pod  near:80/tcp  pod1-1  itself",
    names=("WARN  hairpin mode is off on 1 of 4 ports of bridge cni0 (veth-pod1-1)",),
)
def _hairpin_mode_off(site: Site) -> Iterator[None]:
    port = "bridge link set dev veth-pod1-1 hairpin"
    with _pods_in_one_network(site), site.done(f"{port} off", f"{port} on"):
        yield


@contextmanager
def _pods_in_one_network(site: Site) -> Iterator[None]:
    """Have the pods of node1 reach each other over the bridge, as the plugin `bridge` sets them up."""
    pods = [site.cluster.lab[name] for name in ("pod1-1", "client-pod")]
    for pod in pods:
        pod.run("ip", "route", "add", "10.244.1.0/24", "dev", "eth0")
    try:
        yield
    finally:
        for pod in pods:
            pod.run("ip", "route", "del", "10.244.1.0/24", "dev", "eth0")


@fault(
    "Small requests of pods to other nodes are answered, large ones hang.",
    cause="The MTU of pods is larger than that of the way to other nodes, and ICMP is filtered there.",
    packets="",
    names=("INFO  the MTU of cni0 is 1500, that of eth0 is 1400: large packets of pods to other nodes are lost",),
)
def _smaller_mtu(site: Site) -> Iterator[None]:
    with site.done("ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500"):
        yield


@fault(
    "Node ports do not answer on 127.0.0.1.",
    cause="Another program has set route_localnet to 0.",
    packets="node1  127.0.0.1:30231/tcp  dropped",
    names=("WARN  net.ipv4.conf.all.route_localnet is 0: node ports do not answer on 127.0.0.1",),
    modes=IPTABLES,
)
def _route_localnet_off(site: Site) -> Iterator[None]:
    with site.setting("ipv4/conf/all/route_localnet", 0):
        yield


@fault(
    "Packets that arrive by another interface than the route back are dropped.",
    cause="The reverse path filter is strict.",
    packets="",
    names=("WARN  rp_filter is strict on eth0",),
)
def _strict_reverse_path_filter(site: Site) -> Iterator[None]:
    with site.setting("ipv4/conf/eth0/rp_filter", 1):
        yield


@fault(
    "Some outgoing connections of the node fail.",
    cause="A connection of the node can get a node port as its source port.",
    packets="",
    names=("WARN  local ports 1024-60999 overlap with node ports",),
)
def _local_ports(site: Site) -> Iterator[None]:
    path = "/proc/sys/net/ipv4/ip_local_port_range"
    before = site.sh(f"cat {path}").strip()
    with site.done(f"echo 1024 60999 >{path}", f"echo {before} >{path}"):
        yield


# -- firewalls


@fault(
    "Pods reach no pod through a Service.",
    cause="The policy of FORWARD is DROP, as Docker sets it.",
    packets="client-pod  far:80/tcp  dropped",
    names=("FAIL  FORWARD policy is DROP and nothing accepts 10.244.1.0/24, 10.244.0.0/16",),
)
def _forward_policy_drop(site: Site) -> Iterator[None]:
    with site.done(f"{site.iptables} -w -P FORWARD DROP", f"{site.iptables} -w -P FORWARD ACCEPT"):
        yield


@fault(
    "Pods reach no pod through a Service.",
    cause="The forward chain of a firewall drops by default, as firewalld's and ufw's do.",
    packets="client-pod  far:80/tcp  dropped",
    names=("policy of nftables chain inet host forward is drop and no rule of it accepts 10.244.1.0/24, ",),
)
def _native_forward_policy_drop(site: Site) -> Iterator[None]:
    chain = "type filter hook forward priority 0; policy drop; ct state established accept;"
    with site.nft("inet host", f"chain forward {{ {chain}\n}}"):
        yield


@fault(
    "Pods get an ICMP error from every Service.",
    cause="The last rule of a firewall's forward chain rejects what no rule accepts, as firewalld's does.",
    packets="client-pod  far:80/tcp  refused",
    names=("FAIL  a rule of another program rejects traffic of default/far", "/TCP): reject "),
)
def _native_forward_reject(site: Site) -> Iterator[None]:
    rules = "ct state established accept; reject;"
    with site.nft("inet host", f"chain forward {{ type filter hook forward priority 10; {rules}\n}}"):
        yield


@fault(
    "One Service gets no answer.",
    cause="A rule of a firewall drops packets to the port of its pods.",
    packets="client-pod  far:80/tcp  dropped",
    names=(
        "WARN  a rule of another program drops traffic of default/far",
        "(10.244.2.11:8080/TCP): tcp dport 8080 drop",
    ),
)
def _native_drop(site: Site) -> Iterator[None]:
    rule = "chain forward { type filter hook forward priority -1; tcp dport 8080 drop;\n}"
    with site.nft("inet host", rule):
        yield


@fault(
    "One Service gets no answer.",
    cause="A rule of iptables drops packets to its pods.",
    packets="client-pod  far:80/tcp  dropped",
    names=(
        "WARN  a rule of another program drops traffic of default/far",
        "(10.244.2.11:8080/TCP): -A FORWARD -d 10.244.2.0/24 -p tcp -m tcp --dport 8080 -j DROP",
    ),
)
def _iptables_drop(site: Site) -> Iterator[None]:
    with site.rule("filter FORWARD -d 10.244.2.0/24 -p tcp -m tcp --dport 8080 -j DROP", site.iptables):
        yield


@fault(
    "One Service gets no answer.",
    cause="A rule in the raw table, before the translation, drops packets to its cluster IP.",
    packets="client-pod  far:80/tcp  dropped",
    names=(
        "WARN  a rule of another program drops traffic of default/far (10.96.0.232:80/TCP): -A PREROUTING -d 10.96.0.232/32 -j DROP",
    ),
)
def _raw_drop(site: Site) -> Iterator[None]:
    with site.rule("raw PREROUTING -d 10.96.0.232/32 -j DROP"):
        yield


@fault(
    "Services do not work at all; pods are reached by their own addresses.",
    cause="A rule turns connection tracking off, and without it nothing is translated.",
    packets="client-pod  far:80/tcp  untouched",
    names=("FAIL  a rule of another program turns off connection tracking", "-A PREROUTING -p tcp -j CT --notrack"),
)
def _notrack(site: Site) -> Iterator[None]:
    with site.rule("raw PREROUTING -p tcp -j CT --notrack"):
        yield


@fault(
    "A load balancer considers the node dead, although its endpoint is ready.",
    cause="A firewall of the node drops connections to the health check node port.",
    packets="outside1  node1:32233/tcp  dropped",
    names=("a rule of another program drops traffic of default/local (health check)", "policy drop"),
    modes=EVERY_MODE,
)
def _health_check_port_closed(site: Site) -> Iterator[None]:
    rules = "ct state established accept; iif lo accept; tcp dport 22 accept;"
    with site.nft("inet host", f"chain input {{ type filter hook input priority 10; policy drop; {rules}\n}}"):
        yield


# -- rules of other programs that change packets


@fault(
    "Pods see an address of the node instead of the client's.",
    cause="A rule of another program sets the mark by which masquerading is selected.",
    packets="client-pod  far:80/tcp  pod2-1  node1",
    names=(
        "WARN  a rule of another program sets the mark 0x4000, which selects masquerading",
        "-j MARK --set-xmark 0x4000/0x4000",
    ),
)
def _mark_collision(site: Site) -> Iterator[None]:
    with site.rule("mangle PREROUTING -s 10.244.0.0/16 -j MARK --set-xmark 0x4000/0x4000"):
        yield


@fault(
    "A node port is answered by another pod.",
    cause="A pod has a hostPort of the same number, and its rule comes first.",
    packets="outside1  node1:30231/tcp  pod1-2  itself",
    names=("WARN  IPv4: hostPort of a pod hides node port 30231/TCP",),
)
def _host_port(site: Site) -> Iterator[None]:
    text = (
        "*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n-I PREROUTING 1 -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n"
        f"-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 30231 -j DNAT --to-destination {ADDRESSES['pod1-2'][0]}:8080\nCOMMIT\n"
    )
    site.cluster.run(site.node, f"{site.iptables}-restore", "--noflush", stdin=text)
    jump = f"{site.iptables} -w -t nat -D PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT"
    with site.done(
        "", f"{jump}; {site.iptables} -w -t nat -F CNI-HOSTPORT-DNAT; {site.iptables} -w -t nat -X CNI-HOSTPORT-DNAT"
    ):
        yield


@fault(
    "Connections to a Service go to a pod that is gone.",
    cause="Rules of an earlier kube-proxy in iptables mode (legacy) are still there, and come first.",
    packets="client-pod  near:80/tcp  untouched",
    names=("rules of kube-proxy in iptables mode (iptables-legacy) are left",),
    modes=("nftables", "iptables-nft"),
)
def _leftovers_of_kube_proxy(site: Site) -> Iterator[None]:
    text = (
        "*nat\n:KUBE-PROXY-CANARY - [0:0]\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n"
        f"-A KUBE-SERVICES -d 10.96.0.231/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination {DEAD[0]}:8080\nCOMMIT\n"
    )
    site.cluster.run(site.node, "iptables-legacy-restore", "--noflush", stdin=text)
    tool = "iptables-legacy -w -t nat"
    undo = f"{tool} -F; {tool} -X"
    with site.done("", undo):
        yield


@fault(
    "Connections to a Service go to a pod that is gone.",
    cause="The table of an earlier kube-proxy in nftables mode is still there, and comes first.",
    packets="client-pod  near:80/tcp  untouched",
    names=("rules of kube-proxy in nftables mode are left",),
    modes=("iptables-nft", "nftables", "iptables-legacy"),
)
def _leftover_table_of_kube_proxy(site: Site) -> Iterator[None]:
    chain = f"type nat hook prerouting priority -110; ip daddr 10.96.0.231 tcp dport 80 dnat to {DEAD[1]}:8080;"
    with site.nft("ip kube-proxy", f"chain nat-prerouting {{ {chain}\n}}"):
        yield


@fault(
    "Connections to a Service go to another host.",
    cause="A rule of another program translates them first.",
    packets="client-pod  near:80/tcp  pod1-2  itself",
    names=(
        "WARN  a rule of another program translates traffic of default/near (10.96.0.231:80/TCP)",
        "10.244.1.12:8080",
    ),
)
def _foreign_dnat(site: Site) -> Iterator[None]:
    rule = "nat PREROUTING -d 10.96.0.231/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.1.12:8080"
    if site.mode.name == NFTABLES.name:
        chain = "type nat hook prerouting priority -110; ip daddr 10.96.0.231 tcp dport 80 dnat to 10.244.1.12:8080;"
        with site.nft("ip other", f"chain first {{ {chain}\n}}"):
            yield
        return
    with site.rule(rule, site.iptables):
        yield


@fault(
    "Pods see an address of the node instead of the client's.",
    cause="A rule for masquerading, meant for traffic that leaves the cluster, does not exclude pods.",
    packets="client-pod  far:80/tcp  pod2-1  node1",
    names=(
        "WARN  a rule of another program hides the client address of traffic of default/far",
        "-s 10.244.1.0/24 -j MASQUERADE",
    ),
)
def _masquerade(site: Site) -> Iterator[None]:
    with site.rule("nat POSTROUTING -s 10.244.1.0/24 -j MASQUERADE"):
        yield


# -- rules and agent


@fault(
    "A new Service does not work on this node.",
    cause="The agent does not run.",
    packets="client-pod  new:80/tcp  untouched",
    names=("FAIL  pyproxy's rules are in the kernel, but no pyproxy answers",),
)
def _agent_stopped(site: Site) -> Iterator[None]:
    with site.stopped_agent():
        site.cluster.put(NEW, *slices(NEW, "pod1-1"))
        yield
        site.cluster.remove(NEW, *slices(NEW, "pod1-1"))


NEW = service("new", 239, *ports(30239), type="NodePort")


@fault(
    "No Service works on this node.",
    cause="The jumps to our chains were removed by hand while the agent was stopped.",
    packets="client-pod  near:80/tcp  untouched",
    names=("FAIL  IPv4: nothing leads to KUBE-SERVICES in nat PREROUTING",),
    modes=IPTABLES,
)
def _jump_removed(site: Site) -> Iterator[None]:
    with site.stopped_agent():
        saved = site.sh(f"{site.iptables} -w -t nat -S PREROUTING")
        for line in saved.splitlines():
            if "KUBE-SERVICES" in line:
                site.sh(f"{site.iptables} -w -t nat {line.replace('-A', '-D', 1)}")
        yield


@fault(
    "No Service works on this node.",
    cause="A restart of nftables.service flushed all rules while the agent was stopped.",
    packets="client-pod  near:80/tcp  untouched",
    names=("no pyproxy answers on http://127.0.0.1:10249, and the kernel has no rules of pyproxy",),
    modes=("nftables", "iptables-nft"),
)
def _rules_flushed(site: Site) -> Iterator[None]:
    with site.stopped_agent():
        site.sh("nft flush ruleset")
        yield


@fault(
    "Nothing changes any more on this node.",
    cause="The agent hangs.",
    packets="",
    names=("no pyproxy answers on http://127.0.0.1:10249",),
    modes=LONG_ONLY,
)
def _agent_hangs(site: Site) -> Iterator[None]:
    agent = site.cluster.agents["node1"]
    agent.signal(19)
    try:
        yield
    finally:
        agent.signal(18)


@fault(
    "Rules change back and forth.",
    cause="kube-proxy runs beside pyproxy.",
    packets="",
    names=("FAIL  another proxy is running on this node: process",),
)
def _kube_proxy_runs(site: Site) -> Iterator[None]:
    program = site.cluster.manifests.with_name("kube-proxy")
    program.symlink_to("/bin/sleep")
    process = site.node.start(str(program), "60")
    try:
        while Path(f"/proc/{process.pid}/comm").read_text() != "kube-proxy\n":
            pass
        yield
    finally:
        process.stop()
        program.unlink()


@fault(
    "One client always gets a reset from a Service, other clients seldom or never.",
    cause="Session affinity keeps the client at an endpoint that no longer listens, although it is ready.",
    packets="client-pod  pinned:80/tcp  reset",
    names=("100.0 %", "affinity: ", "10.244.1.14"),
    command="explain 10.244.1.14 default/pinned:80/TCP",
)
def _affinity_to_dead_endpoint(site: Site) -> Iterator[None]:
    [outcome] = site.cluster.lab["client-pod"].probe(tcp(PINNED["spec"]["clusterIP"], 80))
    pod = site.cluster.lab[str(outcome.server)]
    pod.stop_serving(Ports(tcp=(PORT,)))
    try:
        yield
    finally:
        pod.serve(tcp=[PORT])


# -- configuration of the agent and the Node


@fault(
    "externalTrafficPolicy: Local drops everything, although a pod runs on the node.",
    cause="The agent has another name for the node than the Node object.",
    packets="outside1  public33:80/tcp  dropped",
    names=("FAIL  there is no Node node1.example.com",),
)
def _wrong_host_name(site: Site) -> Iterator[None]:
    with site.flags("--hostname-override=node1.example.com", CLUSTER_CIDR_FLAG):
        yield


@fault(
    "Node ports do not answer.",
    cause="The Node object has an address that the machine does not have.",
    packets="outside1  node1:30231/tcp  reset",
    names=("WARN  node address 172.18.0.99 is on no interface of this machine",),
    # In iptables mode node ports answer on every address.
    modes=("nftables",),
)
def _wrong_node_address(site: Site) -> Iterator[None]:
    item = node("node1")
    item["status"]["addresses"][0]["address"] = "172.18.0.99"
    site.cluster.put(item)
    try:
        yield
    finally:
        site.cluster.put(node("node1"))


@fault(
    "Pods see the address of a node instead of that of the client pod.",
    cause="--cluster-cidr is wrong, so traffic of pods counts as traffic from outside.",
    packets="client-pod  far:80/tcp  pod2-1  node1",
    names=("WARN  --cluster-cidr 10.200.0.0/16 does not contain the pods 10.244.1.0/24 of this node",),
)
def _wrong_cluster_cidr(site: Site) -> Iterator[None]:
    with site.flags("--cluster-cidr=10.200.0.0/16"):
        yield


@fault(
    "Clients outside the cluster get no answer from cluster IPs.",
    cause="--cluster-cidr contains their network, so that their traffic is not masqueraded.",
    packets="outside1  far:80/tcp  dropped",
    names=("WARN  --cluster-cidr 0.0.0.0/0 contains the address 172.18.0.11 of this node",),
)
def _too_wide_cluster_cidr(site: Site) -> Iterator[None]:
    with site.flags("--cluster-cidr=0.0.0.0/0"):
        yield


# -- routes


@fault(
    "Connections to endpoints on another node get no answer.",
    cause="A route that a network plugin left discards packets to the pods of that node.",
    packets="client-pod  far:80/tcp  dropped\nclient-pod  near:80/tcp  pod1-1  itself",
    names=(
        "FAIL  no route to endpoint 10.244.2.11 of default/",
        ": a blackhole route",
    ),
)
def _no_route_to_pods(site: Site) -> Iterator[None]:
    [address] = [str(ip) for ip in site.cluster.lab["node2"].addresses if ip.version == 4]
    with site.done(
        "ip route replace blackhole 10.244.2.0/24",
        f"ip route del blackhole 10.244.2.0/24; ip route replace 10.244.2.0/24 via {address}",
    ):
        yield


@fault(
    "Connections to endpoints on this node get no answer.",
    cause="The bridge of the pods is down, so that packets to them leave by the default route.",
    packets="outside1  near:80/tcp  dropped",
    names=("FAIL  no route to endpoint 10.244.1.11 of default/", "only the default route leads to it"),
)
def _bridge_down(site: Site) -> Iterator[None]:
    with site.done("ip link set cni0 down", "ip link set cni0 up"):
        yield


@fault(
    "Programs of the node reach no Service, pods do.",
    cause="The node has no route for cluster IPs: it is looked up before the translation.",
    packets="node1  near:80/tcp  untouched\nclient-pod  near:80/tcp  pod1-1  itself",
    names=(
        "WARN  no route to cluster IP 10.96.0.",
        "Network is unreachable; programs of this node cannot connect to Services",
    ),
)
def _no_default_route(site: Site) -> Iterator[None]:
    before = site.sh("ip route show default").strip()
    with site.done("ip route del default", f"ip route add {before}"):
        yield


# -- tests


@pytest.fixture(scope="module")
def cluster(mode: Mode, tmp_path_factory: pytest.TempPathFactory, needs_root: None) -> Iterator[Cluster]:  # noqa: ARG001 - skips without root
    """Provide a cluster of this module's own: not every fault can be undone, for example when IPv6 forwarding was off."""
    with running_cluster(mode, Path(tmp_path_factory.mktemp(f"broken-{mode.name}"))) as running:
        yield running


@pytest.fixture(scope="module")
def site(cluster: Cluster) -> Iterator[Site]:
    """Provide a node with Services that work."""
    made = Site(cluster)
    with cluster.keeping_flags(), cluster.having(*OBJECTS):
        cluster.restart(SERVED_FLAG, CLUSTER_CIDR_FLAG)
        bridges = "".join(f"echo 1 >/proc/sys/net/bridge/bridge-nf-call-{name};" for name in ("iptables", "ip6tables"))
        with made.done(bridges, bridges.replace("echo 1", "echo 0")):
            yield made


def test_a_node_that_is_fine(site: Site) -> None:
    """Without a fault, `doctor` has no warning and no failure."""
    assert [] == [line for line in site.ask("doctor").splitlines() if line.startswith(("WARN", "FAIL"))]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.break_node.__name__.strip("_"))
def test_the_cause_is_named(site: Site, fault: Fault) -> None:
    """The command names the cause, and packets meet what the operator sees."""
    version = 6 if "ipv6" in fault.break_node.__name__ else 4
    parsed: list[Row] = [param.values[0] for param in rows(fault.packets, [*OBJECTS, NEW], versions=[version]).args[1]]
    with fault.break_node(site):
        found = site.ask(*fault.command.split())
        met = {row.text: site.cluster.observe(row) for row in parsed}

    assert "Traceback" not in found
    for text in fault.names:
        assert text in found, found
    assert {row.text: site.cluster.expected(row) for row in parsed} == met
