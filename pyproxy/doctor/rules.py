"""Checks of rules in the kernel: of other proxies, of other variants of iptables, and of other programs."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from itertools import product

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.capabilities import chain_rules
from pyproxy.backends.iptables.legacy_entries import legacy_tables
from pyproxy.backends.iptables.reader import chains_and_jumps
from pyproxy.backends.iptables.ruleset import FILTER, IPVS_TABLES, NAT, ChainKey
from pyproxy.config.config import ProxyMode
from pyproxy.doctor.finding import Finding, fail, info, warn
from pyproxy.doctor.inputs import KUBE_PROXY, PYPROXY, Inputs
from pyproxy.doctor.kernel import NODE_PORTS
from pyproxy.errors import ApplyError
from pyproxy.linux.command import run
from pyproxy.linux.iptables_programs import Variant, is_available, program
from pyproxy.linux.routes import routes
from pyproxy.model.address import Family, Network, parse_network
from pyproxy.plan.service_table import FrontendType

# The chain of the CNI plugin portmap.
HOST_PORTS = "CNI-HOSTPORT-DNAT"
_HOST_PORT = re.compile(r"-p (\w+) .*--dports? ([\d,]+)")
_NODE_PORT = re.compile(r"-p (\w+) .*--dport (\d+)")
_JUMPS = (("PREROUTING", names.SERVICES), ("OUTPUT", names.SERVICES), ("POSTROUTING", names.POSTROUTING))
_NFT_FAMILIES = {"ip": (Family.IPV4,), "ip6": (Family.IPV6,), "inet": tuple(Family)}
# Words of a rule that accepts traffic of pods: nothing but addresses, interfaces and a comment is compared. Conntrack states
# would exclude first packets. A mark is how Calico accepts what its policies allow.
_COMPARED = {"-s": "source", "-d": "destination", "-i": "input", "-o": "output"}


async def check_variant(inputs: Inputs) -> list[Finding]:
    """Rules of both variants apply to every packet, but a program that uses one variant does not see those of the other."""
    require_rules(inputs)
    # The kubelet's chains show which variant the node was set up for.
    with_services, kubelet = inputs.rules.service_variants, inputs.rules.kubelet_variants
    if len(with_services) > 1:
        return [
            fail(
                "iptables-nft and iptables-legacy both have rules of Services, and both apply",
                "iptables-nft-save; iptables-legacy-save",
                f"remove those of the variant that the kubelet does not use: pyproxy cleanup --iptables-variant="
                f"{next((each.value for each in with_services if each not in kubelet), 'VARIANT')}",
            )
        ]
    if with_services and kubelet and with_services[0] not in kubelet:
        ours, its = with_services[0].value, kubelet[0].value
        return [
            warn(
                f"rules of Services are in iptables-{ours}, the kubelet uses iptables-{its}",
                f"iptables-{its} -t mangle -S",
                f"--iptables-variant={its}",
            )
        ]
    return []


async def check_stale_rules(inputs: Inputs) -> list[Finding]:
    """Rules that no running proxy keeps up to date send connections to endpoints that are gone."""
    require_rules(inputs)
    found = inputs.rules.found
    if inputs.config.service_proxy_name or not found:
        return []
    # Without a running proxy pyproxy counts as the owner if it has any rules: this is its own command.
    owner = inputs.agent.proxy or (PYPROXY if any(each.owner == PYPROXY for each in found) else KUBE_PROXY)
    of_owner = [each for each in found if each.owner == owner]
    mode = inputs.agent.mode or (of_owner[0].mode if of_owner else "")
    stale = [each for each in found if (each.owner, each.mode) != (owner, mode)]
    return [
        warn(
            f"rules of {each} are left, beside those of {owner} in {mode} mode",
            "nft list tables" if each.mode == ProxyMode.NFTABLES.value else f"iptables-{each.variant}-save -t nat",
            "restart pyproxy, which removes them"
            if owner == PYPROXY
            else f"pyproxy cleanup{' --kube-proxy' if each.owner == KUBE_PROXY else ''}",
        )
        for each in stale
    ]


async def check_forward_policy(inputs: Inputs) -> list[Finding]:
    """A policy of DROP is fine if a rule accepts traffic of pods; Docker and some distributions set it without one."""
    found = []
    for variant, family in iptables_tables(inputs, FILTER):
        # Both variants, because both apply: a DROP in legacy tables is invisible to iptables-nft, and drops all the same.
        saved = await saved_table(family, variant, FILTER)
        if ":FORWARD DROP" not in saved and "-P FORWARD DROP" not in saved:
            continue
        pods = [network for network in inputs.pod_networks if network.family is family]
        devices = {route.device for route in routes(family) if any(route.network.ip in network for network in pods)} - {
            "lo"
        }
        if not any(_accepts_pods(line, pods, devices) for line in _reachable(saved, "FORWARD")):
            listed = ", ".join(map(str, pods)) or f"{family} traffic of pods"
            tool = program(family, variant)
            fix = " ".join(
                f"{tool} -A FORWARD {flag} {network} -j ACCEPT;" for network in pods for flag in ("-s", "-d")
            )
            found.append(
                fail(
                    f"FORWARD policy is DROP and nothing accepts {listed}",
                    f"{tool} -S FORWARD",
                    fix.rstrip(";") or f"{tool} -P FORWARD ACCEPT",
                )
            )
    return found + await _native_forward_policies(inputs)


async def _native_forward_policies(inputs: Inputs) -> list[Finding]:
    # Base chains of several tables can be at one hook, and each has a verdict of its own: a packet must be accepted in all of
    # them. iptables-nft's tables, named like those of legacy iptables, were checked before.
    if not shutil.which("nft"):
        return []
    found = []
    result = await run(["nft", "--json", "list", "chains"])
    listed = json.loads(result.stdout)["nftables"] if result.status == 0 else []
    for chain in (each["chain"] for each in listed if "chain" in each):
        family, table, name = chain["family"], chain["table"], chain["name"]
        is_of_iptables = family != "inet" and table in IPVS_TABLES
        if (
            (chain.get("hook"), chain.get("policy")) != ("forward", "drop")
            or is_of_iptables
            or family not in _NFT_FAMILIES
        ):
            continue
        words = f"{family} {table} {name}"
        rules = (await run(["nft", "list", "chain", family, table, name])).stdout.splitlines()
        pods = [network for network in inputs.pod_networks if network.family in _NFT_FAMILIES[family]]
        if not any(_native_accepts_pods(rule, pods) for rule in rules):
            found.append(
                warn(
                    f"policy of nftables chain {words} is drop and no rule of it accepts"
                    f" {', '.join(map(str, pods)) or 'traffic of pods'}",
                    f"nft list chain {words}",
                    " ".join(
                        f"nft add rule {words} {'ip' if network.family is Family.IPV4 else 'ip6'} {word} {network} accept;"
                        for network in pods
                        for word in ("saddr", "daddr")
                    ).rstrip(";")
                    or "accept traffic of pods in this chain",
                )
            )
    return found


def _native_accepts_pods(rule: str, pods: Iterable[Network]) -> bool:
    # Jumps count as if they accepted, because their chains are not read.
    words = rule.split()
    if not words or words[-1] != "accept":
        return "jump" in words or "goto" in words
    if "ct" in words and "new" not in rule:
        return False
    addresses = [word for word in words if re.fullmatch(r"[\da-f.:]+/\d+", word)]
    return not addresses or any(_overlap(parse_network(word), pod) for word in addresses for pod in pods)


async def check_jumps(inputs: Inputs) -> list[Finding]:
    """Without the jumps of the built-in chains no packet reaches the chains of Services."""
    require_rules(inputs)
    if inputs.config.service_proxy_name:
        return []
    found = []
    for variant, family in iptables_tables(inputs, NAT):
        for chain, target in _JUMPS:
            chains, jumps = chains_and_jumps(family, variant, NAT, chain)
            if names.CANARY in chains and target not in jumps:
                found.append(
                    fail(
                        f"{family}: nothing leads to {target} in nat {chain}: Services do not work",
                        f"{program(family, variant)} -t nat -S {chain}",
                        "start or restart pyproxy, which adds the rule again",
                    )
                )
    return found


async def check_foreign_jumps(inputs: Inputs) -> list[Finding]:
    """A host port of a pod hides the node port with the same number, if its chain comes first."""
    found = []
    for variant, family in iptables_tables(inputs, NAT):
        # Rules of one chain apply in order, and the first that translates the destination wins. The whole table, which is large on a node with many Services, is printed only if it matters.
        lines = (await chain_rules(family, variant, ChainKey(NAT, "PREROUTING"))).splitlines()
        ours = next((at for at, line in enumerate(lines) if f"-j {names.SERVICES}" in line), None)
        first = list(dict.fromkeys(filter(None, map(_target, lines[:ours]))))
        if not first:
            continue
        tool = program(family, variant)
        hidden: list[tuple[str, int]] = []
        if HOST_PORTS in first:
            saved = await saved_table(family, variant, NAT)
            host_ports = {
                (match[1], int(port))
                for line in saved.splitlines()
                if line.startswith(f"-A {HOST_PORTS} ") and (match := _HOST_PORT.search(line))
                for port in match[2].split(",")
            }
            hidden = sorted(host_ports & _node_ports(inputs, saved))
        if hidden:
            listed = ", ".join(f"{port}/{protocol.upper()}" for protocol, port in hidden)
            place = f"{HOST_PORTS} comes before {names.SERVICES}" if ours is not None else "only one of them can work"
            found.append(
                warn(
                    f"{family}: hostPort of a pod hides node port {listed}: {place}",
                    f"{tool} -t nat -S {HOST_PORTS}",
                    "change the hostPort of the pod or the nodePort of the Service",
                )
            )
        elif ours is not None:
            text = (
                f"{family}: rules of other programs come before those of Services in nat PREROUTING: {', '.join(first)}"
            )
            found.append(info(text, f"{tool} -t nat -S PREROUTING"))
    return found


def require_rules(inputs: Inputs) -> None:
    """Check that the rule sets could be read.

    Raises:
        ApplyError: they could not.
    """
    if inputs.rules.error:
        raise ApplyError(inputs.rules.error, retryable=True)


def iptables_tables(inputs: Inputs, table: str) -> Iterator[tuple[Variant, Family]]:
    """Yield the variants and families in which a table exists."""
    # Only tables that exist: the programs of the legacy variant would create them.
    for variant, family in product(Variant, inputs.families):
        if is_available(family, variant) and (variant is Variant.NFT or table in legacy_tables(family)):
            yield variant, family


async def saved_table(family: Family, variant: Variant, table: str) -> str:
    """Return the output of iptables-save for a table.

    Raises:
        ApplyError: it cannot be printed.
    """
    # iptables-nft exits with 0 for a table that has rules of nft itself, and prints only a remark.
    argv = [program(family, variant, "save"), "-t", table]
    result = await run(argv)
    if result.status or "is incompatible" in result.stdout:
        reason = result.stderr.strip() or "the table has rules that only nft can print"
        message = f"{' '.join(argv)}: {reason.splitlines()[0]}"
        raise ApplyError(message, retryable=True)
    return result.stdout


def _reachable(saved: str, start: str) -> Iterator[str]:
    # KUBE-FORWARD accepts only marked packets and replies, which does not help the first packet of a connection.
    by_chain: dict[str, list[str]] = {}
    for line in saved.splitlines():
        if line.startswith("-A "):
            by_chain.setdefault(line.split()[1], []).append(line)
    chains, seen = [start], set()
    while chains:
        chain = chains.pop()
        if chain in seen or chain.startswith(("KUBE-", "PYPROXY-")):
            continue
        seen.add(chain)
        for line in by_chain.get(chain, ()):
            yield line
            chains.append(_target(line))


def _accepts_pods(line: str, pods: Iterable[Network], devices: Iterable[str]) -> bool:
    words = re.sub(r'-m comment --comment (?:"[^"]*"|\S+) ?', "", line).split()[2:]
    if words[-2:] != ["-j", "ACCEPT"] or "!" in words:
        return False
    compared = dict(zip(words[:-2:2], words[1:-2:2], strict=False))
    if "--mark" in compared:
        return True
    if not compared.keys() <= _COMPARED.keys():
        return False
    networks = [
        parse_network(text if "/" in text else f"{text}/{32 if '.' in text else 128}")
        for flag, text in compared.items()
        if flag in ("-s", "-d")
    ]
    interfaces = [text for flag, text in compared.items() if flag in ("-i", "-o")]
    # Without a known network of pods, a rule for any network or interface may be the one that is needed.
    return (
        not pods
        or (
            all(any(_overlap(network, each) for each in pods) for network in networks)
            # "+" at the end of an interface is the wildcard of iptables.
            and all(
                any(device.startswith(text[:-1]) if text.endswith("+") else device == text for device in devices)
                for text in interfaces
            )
        )
    )


def _overlap(one: Network, other: Network) -> bool:
    return one.ip in other or other.ip in one


def _target(line: str) -> str:
    words = line.split()
    return next((words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-j", "-g")), "")


def _node_ports(inputs: Inputs, saved: str) -> set[tuple[str, int]]:
    # Of the known Services, or of the rules, or else all ports that could be node ports.
    if inputs.objects is not None:
        frontends = (service.frontend for service in inputs.objects.services)
        return {
            (each.protocol.lower(), each.port) for each in frontends if each and each.type is FrontendType.NODE_PORT
        }
    if inputs.mode == ProxyMode.IPTABLES.value:
        lines = (line for line in saved.splitlines() if line.startswith(f"-A {names.NODE_PORTS} "))
        return {(match[1], int(match[2])) for line in lines if (match := _NODE_PORT.search(line))}
    return set(product(("tcp", "udp", "sctp"), NODE_PORTS))
