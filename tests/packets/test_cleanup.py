"""``pyproxy cleanup`` as a user runs it: it removes exactly pyproxy's rules."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy.backends.iptables.kernel import IptablesKernel
from pyproxy.backends.iptables.mode import ownership
from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.linux.iptables_programs import Variant, program
from pyproxy.linux.ruleset_counter import NftGeneration
from pyproxy.model.address import Family, Network, parse_ip, parse_network
from pyproxy.model.endpoint import EndpointSlice, SliceEndpoint, SlicePort
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.model.node import Node
from pyproxy.model.service import Service, ServicePort
from pyproxy.plan.service_plan import plan_service
from tests.lab.waiting import wait_until

from .each import families, variants
from .own_namespace import dump, hide_python_iptables, listed_tables, load, own_namespace, run

pytestmark = pytest.mark.usefixtures("own_tables")

PYPROXY = str(Path(sys.executable).with_name("pyproxy"))
CANARY = "PYPROXY-CANARY"
FIREWALL_KEPT = "; KUBE-FIREWALL and the jumps to it are kept: the kubelet uses them as well"
BACK = "kube-proxy has synced since pyproxy last did"
KUBE_PROXY_TABLE = "table {} kube-proxy {{ chain services {{ }}; }}"
NODE = Node(name="node1")
# Rules of the kubelet, Docker and an administrator, with packet counters, in the chains that have pyproxy's hooks.
FOREIGN = """\
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:DOCKER-USER - [0:0]
:KUBE-SERVICES-CUSTOM - [0:0]
-A INPUT -j KUBE-FIREWALL
[7:420] -A INPUT -p tcp -m comment --comment "kubernetes service portals" -m tcp --dport 22 -j ACCEPT
-A FORWARD -m conntrack --ctstate NEW -j DOCKER-USER
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-SERVICES-CUSTOM
-A OUTPUT -j KUBE-FIREWALL
-A DOCKER-USER -m comment --comment "a rule of the administrator" -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
[9000000000:1234567890123] -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j MASQUERADE
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
"""
LOCALNET_GUARD = """\
*filter
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" \
-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
COMMIT
"""
KUBE_PROXY_CANARIES = "".join(
    f"*{table}\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n" for table in ("mangle", "nat", "filter")
)
# Minimal: loading it recreates the chains, and adds the hooks. The hooks of the second part are also in pyproxy's
# rules.
KUBE_PROXYS_IPVS_MODE = """\
*filter
:KUBE-FORWARD - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
-A INPUT -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
COMMIT
*nat
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
COMMIT
"""
KUBE_PROXYS_HOOKS = """\
*filter
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
COMMIT
*nat
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
COMMIT
"""


def load_foreign(family: Family, variant: Variant) -> str:
    """Add the foreign rules of a node, and return all tables."""
    run(program(family, variant, "restore"), "--noflush", "--counters", stdin=FOREIGN)
    if family is Family.IPV4:
        load(family, variant, LOCALNET_GUARD)
    return dump(family, variant)


def load_ours(family: Family, variant: Variant) -> None:
    """Add the rules of some Services as the agent does."""
    rules = IptablesProgram(IptablesSettings(family=family))
    for service in services(family):
        for name, plan in plan_service(service, [slice_of(service, family)], NODE, family).items():
            rules.put(name, plan)
    asyncio.run(apply(family, variant, rules))


async def apply(family: Family, variant: Variant, rules: IptablesProgram) -> None:
    """Sync the kernel to a program."""
    generation = NftGeneration()
    kernel = IptablesKernel(family, variant, generation.counter(), ownership(family))
    present = await kernel.read()
    await kernel.apply({key: (present.get(key), rules.value(key)) for key in {*rules.keys(), *present}})
    generation.close()


def services(family: Family) -> list[Service]:
    """Return Services that together have every kind of chain."""
    ip, more = ("10.96.0.{}", "203.0.113.{}") if family is Family.IPV4 else ("fd00:96::{}", "2001:db8::{}")
    ranges: tuple[Network, ...] = (parse_network("10.0.0.0/8" if family is Family.IPV4 else "fd00::/16"),)
    ports = (ServicePort("", Protocol.TCP, 80, 30080),)
    plain = Service(
        name=NamespacedName("default", "plain"),
        families=(family,),
        cluster_ips=(parse_ip(ip.format(1)),),
        ports=ports,
        load_balancer_ips=(parse_ip(more.format(1)),),
        load_balancer_source_ranges=ranges,
        external_policy_local=True,
    )
    sticky = Service(
        name=NamespacedName("default", "sticky"),
        families=(family,),
        cluster_ips=(parse_ip(ip.format(2)),),
        ports=(ServicePort("", Protocol.UDP, 53, 0),),
        affinity_seconds=60,
    )
    return [plain, sticky]


def slice_of(service: Service, family: Family) -> EndpointSlice:
    """Return a slice with two endpoints, one of them on this node."""
    text = "10.244.0.{}" if family is Family.IPV4 else "fd00:244::{}"
    return EndpointSlice(
        service.name,
        service.name,
        family,
        tuple(SlicePort(port.name, port.protocol, 8080) for port in service.ports),
        (SliceEndpoint(parse_ip(text.format(1)), NODE.name), SliceEndpoint(parse_ip(text.format(2)))),
    )


def remove_markers(family: Family, variant: Variant) -> None:
    """Remove pyproxy's marker chains, so that the rules look like those of kube-proxy."""
    text = "".join(f"*{table}\n:{CANARY} - [0:0]\n-X {CANARY}\nCOMMIT\n" for table in ("filter", "nat"))
    load(family, variant, text)


def clean(*flags: str) -> list[str]:
    """Run `pyproxy cleanup` and return the lines of its output."""
    return run(PYPROXY, "cleanup", *flags).splitlines()


def removed(family: Family, variant: Variant) -> str:
    """Return a pattern for the report of a removal."""
    return rf"{family}, iptables-{variant.value}: removed \d+ chains and 12 hook rules{FIREWALL_KEPT}"


def assert_cleaned(before: str, family: Family, variant: Variant, *flags: str) -> None:
    """Clean up; the tables are restored byte for byte, the removal is reported, and a second run has nothing to do."""
    first, second = clean(*flags), clean(*flags)

    assert before == dump(family, variant)
    assert ([], 1) == (second, len(first))
    assert re.fullmatch(removed(family, variant), first[0])


@families
@variants
def test_exactly_ours_goes(variant: Variant, family: Family) -> None:
    """The cleanup restores the tables, byte for byte, to the state before pyproxy; a second run has nothing to do."""
    before = load_foreign(family, variant)
    load_ours(family, variant)
    assert before != dump(family, variant)

    assert_cleaned(before, family, variant)


def test_both_variants_and_families_are_cleaned() -> None:
    """One cleanup covers all variants and families in which pyproxy has run."""
    grounds = [(family, variant) for variant in Variant for family in Family]
    before = [load_foreign(*ground) for ground in grounds]
    for ground in grounds:
        load_ours(*ground)

    lines = clean()

    assert before == [dump(*ground) for ground in grounds]
    assert all(map(re.fullmatch, (removed(*ground) for ground in grounds), lines))
    assert len(grounds) == len(lines)


def test_dry_run_changes_nothing() -> None:
    """With ``--dry-run`` the cleanup prints what it would remove in each mode, and the rules stay as they are."""
    grounds = [(family, variant) for variant in Variant for family in Family]
    for ground in grounds:
        load_foreign(*ground)
        load_ours(*ground)
    run("nft", "-f", "-", stdin="table ip pyproxy { chain services { counter accept; }; }")
    before = [*(dump(*ground) for ground in grounds), run("nft", "list", "table", "ip", "pyproxy")]

    planned = clean("--dry-run")

    assert before == [*(dump(*ground) for ground in grounds), run("nft", "list", "table", "ip", "pyproxy")]
    assert clean() == [line.replace("would remove", "removed") for line in planned]
    assert len(grounds) + 1 == len(planned)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[list[str]]:
    """Run an agent without Services, and provide the cleanup's command line that finds it by its control socket."""
    control = f"--control-socket={tmp_path}/control.sock"
    flags = [control, "--proxy-mode=nftables", "--hostname-override=node1", "--takeover=never", "-v=2"]
    flags += ["--metrics-bind-address=127.0.0.1:10249", "--healthz-bind-address=", f"--manifests={tmp_path}"]
    run("ip", "link", "set", "lo", "up")
    with subprocess.Popen([PYPROXY, "run", *flags], stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: "table ip pyproxy" in run("nft", "list", "tables"), "the agent has synced")
            yield [PYPROXY, "cleanup", control]
        finally:
            process.terminate()


@pytest.mark.parametrize("control", [True, False], ids=["control socket", "metrics server"])
def test_cleanup_refuses_while_an_agent_runs(agent: list[str], *, control: bool) -> None:
    """The cleanup exits with 1 and removes nothing while an agent runs; ``--force`` removes its rules."""
    words = agent if control else [*agent[:-1], "--control-socket="]

    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    table = run("nft", "list", "tables")
    planned = run(*words, "--dry-run")
    forced = run(*words, "--force")

    assert (1, "") == (refused.returncode, refused.stdout)
    assert re.fullmatch(r"Error: an agent of pyproxy is running, .*give --force\n", refused.stderr)
    assert "table ip pyproxy" in table
    assert "IPv4, nftables: would remove table ip pyproxy\n" in planned
    assert "IPv4, nftables: removed table ip pyproxy\n" in forced


def test_an_agent_in_another_network_namespace_does_not_prevent_cleanup(agent: list[str]) -> None:
    """The control socket of an agent in another network namespace is not a reason to refuse."""
    with own_namespace():
        run("nft", "-f", "-", stdin="table ip pyproxy { chain services { counter accept; }; }")

        assert "IPv4, nftables: removed table ip pyproxy\n" == run(*agent)


@variants
def test_a_variant_that_is_named_is_the_only_one(variant: Variant) -> None:
    """With ``--iptables-variant`` the rules in the other variant stay."""
    [other] = set(Variant) - {variant}
    for each in Variant:
        load_ours(Family.IPV4, each)
    before = dump(Family.IPV4, other)

    lines = clean(f"--iptables-variant={variant.value}")

    assert before == dump(Family.IPV4, other)
    assert [True] == [bool(re.fullmatch(removed(Family.IPV4, variant), line)) for line in lines]


@families
@variants
def test_rules_of_kube_proxy_stay(variant: Variant, family: Family) -> None:
    """Without pyproxy's marker the chains belong to kube-proxy: nothing is removed, and the output has the reason."""
    load_foreign(family, variant)
    load_ours(family, variant)
    remove_markers(family, variant)
    before = dump(family, variant)

    lines = clean()

    assert before == dump(family, variant)
    where = f"{family}, iptables-{variant.value}"
    reason = f"kept kube-proxy's chains, because the marker chain {CANARY} is missing"
    assert [f"{where}: {reason}; `cleanup --kube-proxy` removes them"] == lines


@families
@variants
def test_rules_of_kube_proxy_go_if_asked(variant: Variant, family: Family) -> None:
    """With ``--kube-proxy`` its chains, hooks and canaries are removed without a marker, but not those of the kubelet."""
    before = load_foreign(family, variant)
    load(family, variant, KUBE_PROXY_CANARIES)
    load_ours(family, variant)
    remove_markers(family, variant)

    assert_cleaned(before, family, variant, "--kube-proxy")


@variants
def test_chains_stay_with_a_kube_proxy_that_is_back(variant: Variant) -> None:
    """Canaries of kube-proxy beside the marker show that kube-proxy has started since: only the marker is removed."""
    load_foreign(Family.IPV4, variant)
    load_ours(Family.IPV4, variant)
    load(Family.IPV4, variant, KUBE_PROXY_CANARIES)
    before = dump(Family.IPV4, variant)

    first, second = clean(), clean()

    assert "".join(line for line in before.splitlines(keepends=True) if CANARY not in line) == dump(
        Family.IPV4, variant
    )
    where = f"{Family.IPV4}, iptables-{variant.value}"
    text = f"removed 2 chains and 0 hook rules; kept kube-proxy's chains, because {BACK}{FIREWALL_KEPT}"
    assert [f"{where}: {text}"] == first
    assert [True] == ["kept kube-proxy's chains" in line for line in second]


@variants
def test_hooks_that_kube_proxys_ipvs_mode_has_not(variant: Variant) -> None:
    """After kube-proxy has started in its IPVS mode, only its chains and hooks stay."""
    load_foreign(Family.IPV4, variant)
    load(Family.IPV4, variant, KUBE_PROXYS_IPVS_MODE + KUBE_PROXYS_HOOKS)
    before = without_counters(Family.IPV4, variant)
    load(Family.IPV4, variant, "".join(f"*{table}\n-F\n-X\nCOMMIT\n" for table in ("mangle", "nat", "filter")))
    load_foreign(Family.IPV4, variant)
    load_ours(Family.IPV4, variant)
    load(Family.IPV4, variant, KUBE_PROXYS_IPVS_MODE)

    clean()

    assert before == without_counters(Family.IPV4, variant)


def without_counters(family: Family, variant: Variant) -> list[str]:
    """Return the sorted lines of all tables: the order of hooks depends on which proxy added them first."""
    return sorted(re.sub(r"\[\d+:\d+\] ?", "", dump(family, variant)).splitlines())


@variants
def test_adoption_takes_canaries_of_kube_proxy(variant: Variant) -> None:
    """The first sync removes kube-proxy's canaries, and the chains belong to pyproxy again."""
    before = load_foreign(Family.IPV4, variant)
    load(Family.IPV4, variant, KUBE_PROXY_CANARIES)
    load_ours(Family.IPV4, variant)

    clean()

    assert before == dump(Family.IPV4, variant)


@pytest.mark.parametrize(
    ("rules", "hooks"),
    [
        ("*filter\n:PYPROXY-PROBE - [0:0]\n-A PYPROXY-PROBE -j RETURN\n", 12),
        ('*nat\n-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES\n', 13),
    ],
    ids=["the scratch chain of a killed probe", "a duplicate hook, which two concurrent agents can create"],
)
@variants
def test_what_accidents_leave_goes(variant: Variant, rules: str, hooks: int) -> None:
    """Unexpected rules of pyproxy are removed as well, and do not prevent the removal of chains."""
    before = load_foreign(Family.IPV4, variant)
    load_ours(Family.IPV4, variant)
    load(Family.IPV4, variant, f"{rules}COMMIT\n")

    [line] = clean()

    assert before == dump(Family.IPV4, variant)
    assert f"{hooks} hook rules" in line


@variants
def test_a_foreign_jump_to_our_chain_is_an_error(variant: Variant) -> None:
    """If a foreign rule jumps to a chain of pyproxy, the cleanup exits with 1, and the table does not change."""
    load_ours(Family.IPV4, variant)
    load(Family.IPV4, variant, "*nat\n-A OUTPUT -p tcp -j KUBE-SERVICES\nCOMMIT\n")
    before = nat_table(variant)

    with pytest.raises(AssertionError, match=r"cleanup.*: 1: .*Error: "):
        clean()

    assert before == nat_table(variant)


def nat_table(variant: Variant) -> list[str]:
    """Return the IPv4 nat table."""
    lines = run(program(Family.IPV4, variant, "save"), "-t", "nat").splitlines()
    return [line for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("flags", [(), ("--kube-proxy",)], ids=["plain", "kube-proxy"])
def test_an_untouched_node_stays_untouched(flags: tuple[str, ...]) -> None:
    """Without rules of pyproxy the cleanup prints nothing, and creates no table."""
    before = listed_tables()

    lines = clean(*flags)

    assert ([], before) == (lines, listed_tables())


@families
def test_without_python_iptables(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If python-iptables cannot be imported, iptables' own programs clean the legacy tables."""
    hide_python_iptables(tmp_path, monkeypatch)
    before = load_foreign(family, Variant.LEGACY)
    load_ours(family, Variant.LEGACY)

    assert_cleaned(before, family, Variant.LEGACY)


nft_families = pytest.mark.parametrize(("family", "word"), [(Family.IPV4, "ip"), (Family.IPV6, "ip6")], ids=str)


@nft_families
def test_the_table_of_nftables_mode(family: Family, word: str) -> None:
    """Tables of pyproxy's nftables mode are removed; foreign tables, including kube-proxy's, stay."""
    for table in ("pods", "kube-proxy"):
        run("nft", "-f", "-", stdin=f"table {word} {table} {{ chain forward {{ counter accept; }}; }}")
    before = run("nft", "list", "ruleset")
    run("nft", "-f", "-", stdin=f"table {word} pyproxy {{ chain services {{ counter accept; }}; }}")

    first, second = clean(), clean()

    assert ([f"{family}, nftables: removed table {word} pyproxy"], []) == (first, second)
    assert before == run("nft", "list", "ruleset")


@nft_families
def test_the_table_of_kube_proxys_nftables_mode(family: Family, word: str) -> None:
    """kube-proxy's nftables tables are removed only with ``--kube-proxy``; other foreign tables never are."""
    run("nft", "-f", "-", stdin=f"table {word} pods {{ chain forward {{ counter accept; }}; }}")
    before = run("nft", "list", "ruleset")
    run("nft", "-f", "-", stdin=KUBE_PROXY_TABLE.format(word))

    plain, first, second = clean(), clean("--kube-proxy"), clean("--kube-proxy")

    assert ([], [f"{family}, nftables: removed table {word} kube-proxy"], []) == (plain, first, second)
    assert before == run("nft", "list", "ruleset")
