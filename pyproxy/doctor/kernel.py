"""Checks of kernel settings: forwarding, reverse path filter, bridges, local ports, ARP, and features."""

import asyncio
from collections.abc import Collection
from pathlib import Path

from pyproxy.config.config import ProxyMode
from pyproxy.doctor.finding import Finding, fail, info, warn
from pyproxy.doctor.inputs import PYPROXY, Inputs
from pyproxy.errors import RightsError
from pyproxy.linux.addresses import IPVS_DEVICE, interface_addresses
from pyproxy.linux.capabilities import require_capabilities
from pyproxy.linux.devices import bridges
from pyproxy.linux.routes import Route, interface_mtu, routes
from pyproxy.linux.sysctl import read_sysctl
from pyproxy.linux.xt_extensions import missing_extensions
from pyproxy.model.address import Family, Network, ip_text
from pyproxy.node.local_traffic import serves_localhost

_SYS = Path("/proc/sys/net")
# Value of `rp_filter` (`Documentation/networking/ip-sysctl.rst`).
_STRICT = 1
_ARP_IGNORE, _ARP_ANNOUNCE = 1, 2
"""What kube-proxy's `strictARP` sets."""
NODE_PORTS = range(30000, 32768)
"""The default of the API server's `--service-node-port-range`; a node cannot know the real one."""
# Revisions that iptables 1.8.9 uses; older kernels than 4.18 lack the one of DNAT.
MATCHES = {"comment": 0, "conntrack": 3, "addrtype": 1, "statistic": 0, "recent": 1, "mark": 1}
TARGETS = {"DNAT": 2, "MASQUERADE": 0, "REJECT": 0, "MARK": 2}
OPTIONAL_MATCHES = {"bpf": 1, "nfacct": 0}
_IPVS_MATCHES = {"set": 4, "ipvs": 0, "bpf": 1}


async def check_forwarding(inputs: Inputs) -> list[Finding]:
    """Without forwarding the kernel drops packets to pods of this and of other nodes."""
    uses_ipv6 = any(network.family is Family.IPV6 for network in inputs.pod_networks) or inputs.node.ip(Family.IPV6)
    wanted = ["net/ipv4/ip_forward", *(["net/ipv6/conf/all/forwarding"] if uses_ipv6 else [])]
    # In IPv4 each interface of pods and of other nodes has a setting of its own, in IPv6 only the one for all counts
    # (`ip6_forward`).
    if read_sysctl("net/ipv4/ip_forward"):
        networks = [each for each in inputs.pod_networks if each.family is Family.IPV4]
        devices = {each.device for each in routes(Family.IPV4) if not each.is_direct or _is_of(each, networks)}
        wanted += (f"net/ipv4/conf/{device}/forwarding" for device in sorted(devices))
    return [
        fail(
            f"{_dotted(name)} is 0: packets to pods are dropped",
            f"/proc/sys/{name}",
            f"sysctl -w {_dotted(name)}=1, and a file in /etc/sysctl.d",
        )
        for name in wanted
        if read_sysctl(name) == 0
    ]


def _is_of(route: Route, networks: Collection[Network]) -> bool:
    return any(route.network.ip in network for network in networks)


async def check_reverse_path_filter(_: Inputs) -> list[Finding]:
    """In strict mode a packet is dropped if the route to its sender leads through another interface."""
    for_all = read_sysctl("net/ipv4/conf/all/rp_filter") or 0
    # Interfaces without a route have no address. Network plugins set strict mode on the interfaces of pods, which is safe.
    devices = dict.fromkeys(
        route.device for route in routes(Family.IPV4) if route.is_direct and route.network.prefix < Family.IPV4.bits
    )
    # The kernel uses the higher value of the two (ip-sysctl.rst).
    strict = [each for each in devices if max(for_all, read_sysctl(f"net/ipv4/conf/{each}/rp_filter") or 0) == _STRICT]
    if not strict:
        return []
    listed = ", ".join(strict)
    return [
        warn(
            f"rp_filter is strict on {listed}: packets are dropped if the route to their sender leads through another"
            " interface",
            "sysctl -a -r rp_filter",
            "sysctl -w net.ipv4.conf.all.rp_filter=2 (loose)",
        )
    ]


async def check_bridge_netfilter(inputs: Inputs) -> list[Finding]:
    """Without bridge netfilter the reply of a pod on the same bridge bypasses conntrack, and the client drops it."""
    # The request was translated on its way through the bridge's own address; the reply, from port to port of one bridge, is
    # switched and not routed. Only with bridge-nf-call-iptables does it pass the hooks that translate it back.
    with_pods = await _pod_bridges(inputs)
    found = []
    for family, name in ((Family.IPV4, "iptables"), (Family.IPV6, "ip6tables")):
        setting = f"net/bridge/bridge-nf-call-{name}"
        value = read_sysctl(setting)
        devices = [bridge for bridge, families in with_pods.items() if family in families]
        if devices and value != 1:
            state = "br_netfilter is not loaded" if value is None else f"{_dotted(setting)} is {value}"
            found.append(
                warn(
                    f"{state}: on {', '.join(devices)} a pod cannot reach a pod of the same node through a Service",
                    f"/proc/sys/{setting}",
                    f"modprobe br_netfilter; sysctl -w {_dotted(setting)}=1",
                )
            )
    return found


async def check_hairpin_mode(inputs: Inputs) -> list[Finding]:
    """With bridge netfilter, a pod reaches itself through a Service only if its bridge port is in hairpin mode."""
    if read_sysctl("net/bridge/bridge-nf-call-iptables") != 1:
        return []
    # A bridge does not send a frame back through the port on which it arrived, unless the port is in hairpin mode.
    with_pods = await _pod_bridges(inputs)
    found = []
    for bridge, ports in (await bridges()).items():
        off = [port.name for port in ports if not port.is_hairpin]
        if off and bridge in with_pods:
            found.append(
                warn(
                    f"hairpin mode is off on {len(off)} of {len(ports)} ports of bridge {bridge} ({_some(off)}): a pod"
                    " cannot reach itself through a Service",
                    f"bridge -d link show master {bridge}",
                    '"hairpinMode": true in the configuration of the CNI plugin bridge, or'
                    f" bridge link set dev {off[0]} hairpin on",
                )
            )
    return found


async def _pod_bridges(inputs: Inputs) -> dict[str, set[Family]]:
    # A bridge with a route to pods of this node, whatever its name.
    names = set(await bridges())
    found: dict[str, set[Family]] = {}
    for network in inputs.pod_networks:
        for route in routes(network.family):
            if route.device in names and route.network.ip in network:
                found.setdefault(route.device, set()).add(network.family)
    if not inputs.pod_networks:  # the names of bridges that network plugins create.
        for name in names & {"cni0", "cbr0", "kube-bridge"}:
            found[name] = {Family.IPV4}
    return found


async def check_mtu(inputs: Inputs) -> list[Finding]:
    """Where ICMP is filtered, a sender does not learn that a packet is too large for the way to another node."""
    found = []
    for bridge in await _pod_bridges(inputs):
        of_pods = interface_mtu(bridge)
        behind = {
            route.device
            for family in inputs.families
            for route in routes(family)
            if not route.is_direct and (not route.network.prefix or _is_of(route, inputs.pod_networks))
        }
        for device in sorted(behind - {bridge, "lo"}):
            if (mtu := interface_mtu(device)) < of_pods:
                text = (
                    f"the MTU of {bridge} is {of_pods}, that of {device} is {mtu}: large packets of pods to other nodes are"
                    " lost where ICMP is filtered"
                )
                found.append(
                    info(text, "ip link", f"set the MTU of pods to {mtu} in the configuration of the network plugin")
                )
    return found


async def check_local_ports(_: Inputs) -> list[Finding]:
    """A program that gets a node port as its local port cannot be reached on it, or loses its replies."""
    path = _SYS / "ipv4/ip_local_port_range"
    low, high = map(int, path.read_text().split())
    # A list such as 8080,30000-32767. The kernel does not use these ports for connections, but a program may bind them.
    pairs = (block.partition("-") for block in (_SYS / "ipv4/ip_local_reserved_ports").read_text().strip().split(","))
    reserved = [range(int(first), int(last or first) + 1) for first, _, last in pairs if first]
    shared = range(max(low, NODE_PORTS.start), min(high + 1, NODE_PORTS.stop))
    free = [port for port in shared if not any(port in block for block in reserved)]
    if not free:
        return []
    return [
        warn(
            f"local ports {low}-{high} overlap with node ports ({NODE_PORTS.start}-{NODE_PORTS.stop - 1}): a"
            " connection of this node can get the port of a Service as its source port",
            str(path),
            f"sysctl -w net.ipv4.ip_local_reserved_ports={NODE_PORTS.start}-{NODE_PORTS.stop - 1}",
        )
    ]


async def check_route_localnet(inputs: Inputs) -> list[Finding]:
    """Rules for node ports on 127.0.0.1 need it; pyproxy sets it when it starts."""
    is_needed = inputs.mode == ProxyMode.IPTABLES.value and serves_localhost(inputs.config, Family.IPV4)
    name = "net/ipv4/conf/all/route_localnet"
    if not is_needed or inputs.agent.proxy != PYPROXY or read_sysctl(name) != 0:
        return []
    text = f"{_dotted(name)} is 0: node ports do not answer on 127.0.0.1"
    return [warn(text, f"/proc/sys/{name}", f"sysctl -w {_dotted(name)}=1, and find the program that resets it")]


async def check_strict_arp(inputs: Inputs) -> list[Finding]:
    """In IPVS mode the kernel answers ARP requests for addresses of Services on every interface, unless strict ARP is on."""
    if inputs.mode != ProxyMode.IPVS.value:
        return []
    # Addresses on a dummy device are local, and Linux answers ARP requests for local addresses on any interface (arp_ignore 0).
    # It matters only for addresses in a directly connected network, where a neighbour asks.
    ignore, announce = (read_sysctl(f"net/ipv4/conf/all/arp_{name}") for name in ("ignore", "announce"))
    if ignore == _ARP_IGNORE and announce == _ARP_ANNOUNCE:
        return []
    on_link = [route.network for route in routes(Family.IPV4) if route.is_direct and route.device != IPVS_DEVICE]
    addresses = interface_addresses(IPVS_DEVICE)
    shared = [ip_text(ip) for ip in sorted(addresses) if any(ip in each for each in on_link)]
    if not shared:
        return []
    return [
        warn(
            f"strict ARP is off: this node answers ARP requests for {_some(shared)}, which may be announced by another"
            " node (MetalLB)",
            f"arp_ignore {ignore}, arp_announce {announce}; ip address show dev {IPVS_DEVICE}",
            "--ipvs-strict-arp",
        )
    ]


async def check_features(inputs: Inputs) -> list[Finding]:
    """Ask the kernel for the matches and targets of the rules, or for nftables try the layout of the table."""
    if inputs.mode == ProxyMode.NFTABLES.value:
        from pyproxy.backends.nftables.mode import why_unusable  # noqa: PLC0415  # not needed in other modes

        reasons = {family: await why_unusable(family) for family in inputs.families}
        return [
            fail(f"nftables mode does not work for {family}: {reason}", "nft --check", "use --proxy-mode=iptables")
            for family, reason in reasons.items()
            if reason
        ]
    is_ipvs = inputs.mode == ProxyMode.IPVS.value
    found = []
    for family in inputs.families:
        missing = missing_extensions(family, MATCHES | (_IPVS_MATCHES if is_ipvs else {}), TARGETS)
        if missing:
            found.append(
                fail(
                    f"{family}: the kernel does not have {', '.join(f'xt_{name}' for name in missing)}, which rules need",
                    "lsmod; dmesg",
                    "install the kernel's complete package of modules, or use --proxy-mode=nftables",
                )
            )
        optional = missing_extensions(family, {} if is_ipvs else OPTIONAL_MATCHES, {})
        if optional:
            found.append(
                info(
                    f"{family}: the kernel does not have {', '.join(f'xt_{name}' for name in optional)}: more rules for"
                    " hairpin traffic (bpf), no counters of dropped packets (nfacct)",
                    "lsmod",
                )
            )
    return found


async def check_capabilities(_: Inputs) -> list[Finding]:
    """Without CAP_NET_ADMIN some checks cannot run."""
    try:
        await asyncio.to_thread(require_capabilities, "doctor")
    except RightsError as error:
        return [warn(str(error), "/proc/self/status", "run pyproxy doctor as root")]
    return []


def _dotted(name: str) -> str:
    return name.replace("/", ".")


def _some(names: list[str], most: int = 3) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
