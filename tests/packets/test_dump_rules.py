"""``pyproxy dump-rules``: the planned rules equal the rules in the kernel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.cluster.namespace import command_inside, fresh_namespace
from tests.lab import LabError, tcp

from . import test_cluster_ips, test_external_addresses, test_service_cidrs
from .cluster import CLUSTER_CIDR_FLAG, PYPROXY, Cluster
from .modes import needs
from .objects import JsonObject, port, service, slices

WEB = service("dumped", 150, port(80, name="t"), port(81, "UDP", name="u"))
OBJECTS: list[JsonObject] = [
    *(*test_cluster_ips.OBJECTS, *test_external_addresses.OBJECTS),
    *(WEB, *slices(WEB, "pod1-1"), test_service_cidrs.DEFAULT),
]

LINGERING_SECONDS = 10.0
"""Many times longer than any command takes."""
HOOKS = tuple(f"-A {chain} " for chain in ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"))


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Add all objects of the packet suites."""
    with cluster.having(*OBJECTS):
        yield


def planned(cluster: Cluster, node: str, *flags: str) -> str:
    """Return the planned rules of a node, as printed by the command."""
    command = [PYPROXY, "dump-rules", f"--manifests={cluster.manifests}", f"--node={node}", CLUSTER_CIDR_FLAG]
    return cluster.run(cluster.lab[node], *command, *cluster.mode.flags, *flags)


def live(cluster: Cluster, node: str, *flags: str) -> str:
    """Return the rules in the kernel of a node, as printed by the command."""
    return cluster.run(cluster.lab[node], PYPROXY, "dump-rules", "--live", *cluster.mode.flags, *flags)


def in_order(rules: str) -> list[str]:
    """Return the lines with hooks sorted: a hook that was deleted and restored comes before the other hooks."""
    lines = rules.splitlines()
    hooks = [number for number, line in enumerate(lines) if line.startswith(HOOKS)]
    for number, hook in zip(hooks, sorted(lines[number] for number in hooks), strict=True):
        lines[number] = hook
    return lines


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("node", ["node1", "node2"])
def test_planned_and_live_rules_are_equal(cluster: Cluster, node: str, family: str) -> None:
    """After a sync, planned and live rules differ only by the counters, and have the same order."""
    # The kernel's text of chains and rules differs from nft's input; the listing has a digest of the input.
    flags = ("-o", "restore", f"--family={family}") if cluster.mode.is_iptables else (f"--family={family}",)
    expected = in_order(planned(cluster, node, *flags))

    def found() -> list[str]:
        return in_order(re.sub(r"^\[\d+:\d+\] ", "", live(cluster, node, *flags), flags=re.MULTILINE))

    # In nftables mode, elements of earlier tests are deleted with a delay.
    deadline = time.monotonic() + LINGERING_SECONDS
    while (seen := found()) != expected and time.monotonic() < deadline:
        continue
    assert expected == seen


def test_the_mode_is_found_in_the_kernel(cluster: Cluster) -> None:
    """Without a mode, and with auto, the rules are those of the mode that has some in the kernel."""
    found = live(cluster, "node1", "--service=default/dumped", "-o", "json")
    command = [PYPROXY, "dump-rules", "--live", "--service=default/dumped", "-o", "json"]
    variant = [flag for flag in cluster.mode.flags if "variant" in flag]

    def rules(text: str) -> list[str]:
        return [rule["rule"] for family in json.loads(text)["families"] for rule in family["services"][0]["rules"]]

    for flags in ([], ["--proxy-mode=auto"]):
        assert rules(found) == rules(cluster.run(cluster.lab["node1"], *command, *flags, *variant))


@pytest.mark.parametrize("wanted", ["", "auto", "iptables", "nftables"])
def test_a_kernel_without_rules_is_a_failure(cluster: Cluster, wanted: str) -> None:
    """Where no agent ran, live rules are a message and exit status 1, never empty output and success."""
    command = [PYPROXY, "dump-rules", "--live", *([f"--proxy-mode={wanted}"] if wanted else [])]
    with pytest.raises(
        LabError, match=r"exit 1 .*Error: (?:no mode of pyproxy has|\w+ mode has no) rules in the kernel"
    ):
        cluster.run(cluster.lab["outside1"], *command)


def added(text: str) -> set[str]:
    """Return the rules in input for iptables-restore."""
    return {line for line in text.splitlines() if line.startswith("-A")}


@needs("is_iptables")
def test_planned_rules_can_be_loaded(cluster: Cluster) -> None:
    """The rules of each family load with the program that the output names, into tables without any; both at once are refused."""
    command = [PYPROXY, "dump-rules", f"--manifests={cluster.manifests}", "--node=node1", "-o", "restore"]
    with fresh_namespace() as namespace:

        def run(*words: str, stdin: str = "") -> str:
            return subprocess.run(
                command_inside(namespace, words), input=stdin, capture_output=True, text=True, check=True, env=env
            ).stdout

        env = os.environ | cluster.env(cluster.lab["node1"])
        for program, family in zip(cluster.mode.iptables, ("ipv4", "ipv6"), strict=True):
            rules = run(*command, *cluster.mode.flags, f"--family={family}")
            assert f"input for {'ip6' if family == 'ipv6' else 'ip'}tables-restore --noflush" in rules.splitlines()[0]
            run(f"{program}-restore", "--noflush", stdin=rules)
            assert added(rules) == added(run(f"{program}-save"))
    with pytest.raises(LabError, match="give --family=ipv4 or --family=ipv6"):
        planned(cluster, "node1", "-o", "restore")


@needs("is_iptables")
def test_live_rules_of_a_service_have_counters(cluster: Cluster) -> None:
    """The live rules of one Service have packet counters."""
    cluster.lab.client_pod.probe(*[tcp(WEB["spec"]["clusterIPs"][0], 80)] * 7)

    text = live(cluster, "node1", "--service=default/dumped", "-o", "restore", "--family=ipv4")

    packets = re.findall(r"^\[(\d+):\d+\] -A KUBE-SERVICES -d 10.96.0.150/32 -p tcp", text, re.MULTILINE)
    assert ["7"] == packets
    assert "default/web" not in text
