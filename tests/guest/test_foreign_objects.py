"""The IPVS mode next to rules, ipsets and virtual servers of other tools: start, change, restart, shutdown and cleanup."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import Host, tcp, udp
from tests.packets.cluster import PYPROXY, Cluster, running_cluster
from tests.packets.foreign import EVERYDAY, NATIVE, hide_extension, hooks_of, uncounted
from tests.packets.modes import IPVS, IPVS_NFT, Mode
from tests.packets.objects import port, service, slices

pytestmark = pytest.mark.needs_ipvs

FAMILIES = ("ip", "ip6")
FOREIGN_SETS = """\
create ports bitmap:port range 0-1024 timeout 0
create addresses bitmap:ip range 192.0.2.0/24 counters comment
create blocks hash:net family inet6 hashsize 64 maxelem 65536 timeout 3600
create hosts hash:ip family inet hashsize 64 maxelem 65536 skbinfo
create services hash:net,port family inet hashsize 64 maxelem 65536 counters
create all list:set size 8
create KUBE-CUSTOM hash:net family inet hashsize 64 maxelem 65536
create felix-all-hosts hash:ip family inet6 hashsize 64 maxelem 65536
add ports 22
add addresses 192.0.2.9 comment "with spaces and \\\\ in it"
add blocks 2001:db8:9::/48
add hosts 192.0.2.10 skbmark 0x1/0x1
add services 192.0.2.0/28,tcp:80
add all hosts
add all ports
add KUBE-CUSTOM 192.0.2.0/24
"""
"""Sets of every kind that the kernel has, with extensions that pyproxy does not use."""
FOREIGN_SERVERS = """\
-A -t 192.0.2.50:80 -s wlc -p 300
-a -t 192.0.2.50:80 -r 192.0.2.51:8080 -m -w 5
-A -f 77 -s sh
-a -f 77 -r 192.0.2.51:0 -g -w 1
"""
"""Virtual servers of a load balancer that runs on the node as well."""
WITH_U32 = """\
*filter
-I INPUT -m u32 --u32 "0x0=0x1" -j ACCEPT
-I FORWARD -m u32 --u32 "0x0=0x1" -j ACCEPT
-I OUTPUT -m u32 --u32 "0x0=0x1" -j ACCEPT
COMMIT
*nat
-I OUTPUT -m u32 --u32 "0x0=0x1" -j ACCEPT
-I PREROUTING -m u32 --u32 "0x0=0x1" -j ACCEPT
-I POSTROUTING -m u32 --u32 "0x0=0x1" -j ACCEPT
COMMIT
"""
"""Rules with an extension that pyproxy's programs of iptables lack in these tests."""
SERVICE = service("web", 170, port(80, "TCP", name="t"), port(80, "UDP", name="u"))
OTHER = service("other", 171, port(80, "TCP", name="t"), port(80, "UDP", name="u"))


@pytest.fixture(params=[IPVS, IPVS_NFT], ids=str)
def beside(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Provide a cluster without agents, on whose first node other tools have rules, sets and servers."""
    mode: Mode = request.param
    with running_cluster(mode, tmp_path) as cluster:
        cluster.stop()
        node = cluster.lab["node1"]
        cluster.run(node, PYPROXY, "cleanup")
        cluster.run(node, "ipset", "restore", stdin=FOREIGN_SETS)
        cluster.run(node, "ipvsadm", "--restore", stdin=FOREIGN_SERVERS)
        for program, family in zip(mode.iptables, FAMILIES, strict=True):
            cluster.run(node, f"{program}-restore", "--noflush", stdin=WITH_U32)
            if mode is IPVS_NFT:
                native = [rule for rules in NATIVE.values() for rule in rules]
                text = "".join(f"{rule}\n" for rule in (*native, *EVERYDAY)).replace("{f}", family)
                cluster.run(node, "nft", "-f", "-", stdin=text)
        # Only programs started by pyproxy lack the extension.
        directory = tmp_path / "xtables"
        directory.mkdir()
        with monkeypatch.context() as hidden:
            hide_extension(directory, hidden, "u32")
        yield cluster


def listings(cluster: Cluster, node: Host) -> list[str]:
    """Return all rules of each family, without counters."""
    if cluster.mode is IPVS_NFT:
        commands = [["nft", "list", "ruleset", family] for family in FAMILIES]
    else:
        commands = [[f"{program}-save"] for program in cluster.mode.iptables]
    return [uncounted(cluster.run(node, *command)) for command in commands]


def foreign_rules(cluster: Cluster, node: Host) -> str:
    """Return all rules, without those that jump to chains of pyproxy and kube-proxy, and without these chains."""
    text = "".join(listings(cluster, node))
    text = re.sub(r"(?ms)^\tchain (?:KUBE|PYPROXY)-.*?^\t\}\n", "", text)
    lines = [line for line in text.splitlines() if line and not re.search(r"\b(?:KUBE|PYPROXY)-", line)]
    return "\n".join(lines)


def foreign_objects(cluster: Cluster, node: Host) -> tuple[list[str], str]:
    """Return the foreign sets, sorted, and the foreign virtual servers."""
    sets = cluster.run(node, "ipset", "-sorted", "save").splitlines()
    names = {line.split()[1] for line in FOREIGN_SETS.splitlines()}
    servers = cluster.run(node, "ipvsadm", "-Sn").splitlines()
    foreign_servers = "\n".join(line for line in servers if "192.0.2.50" in line or "-f 77" in line)
    return sorted(re.sub(r" timeout \d+", "", line) for line in sets if line.split()[1] in names), foreign_servers


@contextmanager
def agents(cluster: Cluster, directory: Path) -> Iterator[None]:
    """Run agents that lack an extension of iptables."""
    cluster.start(env={"XTABLES_LIBDIR": str(directory)})
    yield
    cluster.stop()


def test_everything_foreign_stays(beside: Cluster, tmp_path: Path) -> None:
    """Packets arrive, each hook exists once, a restart adds none, and a cleanup removes only pyproxy's objects."""
    node, extensions = beside.lab["node1"], tmp_path / "xtables"
    probes = [each(SERVICE["spec"]["clusterIP"], 80) for each in (tcp, udp)]
    foreign, rules = foreign_objects(beside, node), foreign_rules(beside, node)
    hooks = []
    with beside.having(SERVICE, *slices(SERVICE, "pod1-1")):
        for _ in range(2):
            with agents(beside, extensions):
                assert ["pod1-1"] * 2 == [outcome.server for outcome in node.probe(*probes)]
                with beside.having(OTHER, *slices(OTHER, "pod2-1")):
                    answers = node.probe(*(each(OTHER["spec"]["clusterIP"], 80) for each in (tcp, udp)))
                    assert ["pod2-1"] * 2 == [outcome.server for outcome in answers]
                hooks.append([hooks_of(text) for text in listings(beside, node)])
                assert (foreign, rules) == (foreign_objects(beside, node), foreign_rules(beside, node))
    env = beside.env(node, {"XTABLES_LIBDIR": str(extensions)})
    node.run(PYPROXY, "cleanup", env=env)

    assert [{1}, {1}] == [set(found.values()) for found in hooks[0]]
    assert hooks[0] == hooks[1]
    assert (foreign, rules) == (foreign_objects(beside, node), foreign_rules(beside, node))
    assert not any(map(hooks_of, listings(beside, node)))
