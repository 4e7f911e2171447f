"""Turns the plan of a Service port into virtual and real servers, VIPs, members of sets and rules.

A frontend is one virtual server, so it can have one list of endpoints only. With the external policy Local it needs two: local
endpoints for clients outside the cluster, all endpoints for pods and the node. The virtual server has the local ones. The list
of all endpoints is that of the cluster IP, and a rule sends pods and the node there, by a DNAT before IPVS. If the cluster IP has
another list, or there is no cluster IP, a placeholder has it: a virtual server on an address that no host uses, derived from the
name of the port. (A virtual server by firewall mark would not need an address, but IPVS compares the whole mark, and the other
bits of it belong to other agents.)
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from hashlib import sha256

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.rules import comment, destination, destination_port, if_local, rules
from pyproxy.backends.iptables.ruleset import FILTER, NAT, ChainKey
from pyproxy.backends.ipvs import static_rules as static
from pyproxy.backends.ipvs.entries import (
    HASH_PORT,
    PERSISTENT,
    IpvsKey,
    IpvsValue,
    Member,
    RealServer,
    Scheduling,
    Vip,
    VirtualServer,
)
from pyproxy.backends.ipvs.static_rules import IpvsSettings, static_rules, static_sets
from pyproxy.model.address import Family, Network
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import Protocol, ServicePortName
from pyproxy.plan.service_plan import ServicePlan, Verdict

_LOCAL_DISPATCH = ChainKey(NAT, static.LOCAL_DISPATCH)
_REMOTE_EXTERNAL_DISPATCH = ChainKey(NAT, static.REMOTE_EXTERNAL_DISPATCH)
_NODE_PORT_DISPATCH = ChainKey(NAT, names.NODE_PORTS)
_HEALTH_CHECK_PORTS = ChainKey(FILTER, names.NODE_PORTS)
SHARED_CHAINS = (_LOCAL_DISPATCH, _REMOTE_EXTERNAL_DISPATCH, _NODE_PORT_DISPATCH, _HEALTH_CHECK_PORTS)
_TAILS: dict[IpvsKey, str] = {_LOCAL_DISPATCH: rules(static.LOCAL_DISPATCH, f"-j {names.NODE_PORTS}")}
_FIRST_PORT, _PORTS = 1, 65535
_PLACEHOLDER_NETWORKS = {
    # Reserved for future use (RFC 1112) and for discarding (RFC 6666), so no host has these addresses. Linux treats both like
    # other unicast addresses.
    Family.IPV4: Network(bytes((240, 0, 0, 0)), 4),
    Family.IPV6: Network(bytes((1, 0)) + bytes(14), 64),
}


class IpvsProgram:
    """All entries of one family, from all plans. Pure."""

    def __init__(self, settings: IpvsSettings) -> None:
        self._settings = settings
        self._static: dict[IpvsKey, IpvsValue] = dict(static_sets().items())
        self._static.update(static_rules(settings).items())
        self._entries: dict[IpvsKey, IpvsValue] = {}
        self._owned: dict[ServicePortName, dict[IpvsKey, IpvsValue]] = {}
        # Counts the users of an entry besides the first one: the ports of a Service share its VIPs.
        self._shared: Counter[IpvsKey] = Counter()
        self._node_ports = _NodePorts(settings.local_ips)
        self._pieces: dict[IpvsKey, dict[ServicePortName, str]] = {}
        self._pieces.update((key, {}) for key in SHARED_CHAINS)

    def put(self, name: ServicePortName, plan: ServicePlan | None) -> set[IpvsKey]:
        """Record the plan of a port (None: it was removed) and return the keys whose value may have changed."""
        freed = self._node_ports.record(name, plan)
        changed = self._put(name, plan)
        for owner, owners_plan in freed.items():
            changed |= self._put(owner, owners_plan)
        return changed

    def _put(self, name: ServicePortName, plan: ServicePlan | None) -> set[IpvsKey]:
        compiled = port_entries(plan, self._settings, self._node_ports.taken) if plan is not None else {}
        changed: set[IpvsKey] = set()
        for key, pieces in self._pieces.items():
            piece = compiled.pop(key, None)
            if pieces.get(name) != piece:
                changed.add(key)
                if isinstance(piece, str):
                    pieces[name] = piece
                else:
                    del pieces[name]
        before = self._owned.pop(name, {})
        # A port that no longer needs an entry does not remove it while another port of the Service does.
        for key in before.keys() - compiled.keys():
            if self._shared[key]:
                self._shared[key] -= 1
            else:
                del self._shared[key]
                del self._entries[key]
                changed.add(key)
        for key, value in compiled.items():
            if key not in before and key in self._entries:
                self._shared[key] += 1
            if self._entries.get(key) != value:
                self._entries[key] = value
                changed.add(key)
        if compiled:
            self._owned[name] = compiled
        return changed

    def value(self, key: IpvsKey) -> IpvsValue | None:
        """Return the value that a key should have; None: the entry should not exist."""
        if key in self._pieces:
            pieces = self._pieces[key]
            text = "".join(pieces[name] for name in sorted(pieces))
            return text + _TAILS.get(key, "")
        found = self._entries.get(key)
        return found if found is not None else self._static.get(key)

    def keys(self) -> Iterator[IpvsKey]:
        """Yield every key that should have a value."""
        yield from self._static
        yield from self._pieces
        yield from self._entries


class _NodePorts:
    # An external IP may be an address of the node, and its port the node port of another Service. There the external IP
    # takes precedence, as in the iptables mode, in which rules for single addresses come first.
    def __init__(self, local_ips: Collection[bytes]) -> None:
        self._local_ips = local_ips
        # frontends on addresses of the node where node ports do not apply
        self.taken: set[VirtualServer] = set()
        self._takes: dict[ServicePortName, set[VirtualServer]] = {}
        self._plans: dict[ServicePortName, ServicePlan] = {}
        self._owners: dict[tuple[int, int], ServicePortName] = {}

    def record(self, name: ServicePortName, plan: ServicePlan | None) -> dict[ServicePortName, ServicePlan]:
        # Returns the plans of other ports whose node port gains or loses an address by this one.
        takes: set[VirtualServer] = set()
        if plan is not None:
            ips = (ip for ip in (*plan.external_ips, *plan.load_balancer_ips) if ip in self._local_ips)
            takes = {VirtualServer(ip, plan.protocol.number, plan.port) for ip in ips}
        moved = self._takes.pop(name, set()) ^ takes
        self.taken ^= moved
        if takes:
            self._takes[name] = takes
        before = self._plans.pop(name, None)
        if before is not None:
            number = before.protocol.number, before.node_port
            # Another Service may have the port already: two Services exchange node ports one after the other.
            if self._owners.get(number) == name:
                del self._owners[number]
        if plan is not None and plan.node_port:
            self._plans[name] = plan
            self._owners[plan.protocol.number, plan.node_port] = name
        owners = (self._owners.get((virtual.protocol, virtual.port)) for virtual in moved)
        return {owner: self._plans[owner] for owner in owners if owner is not None and owner != name}


def port_entries(
    plan: ServicePlan, settings: IpvsSettings, taken: Collection[VirtualServer] = ()
) -> dict[IpvsKey, IpvsValue]:
    """Return the entries of one plan, and its rules in shared chains.

    Args:
        plan: the plan.
        settings: the settings of the family.
        taken: frontends on addresses of the node where the plan's node port does not apply.
    """
    return _PortEntries(plan, settings, taken).compile()


class _PortEntries:
    def __init__(self, plan: ServicePlan, settings: IpvsSettings, taken: Collection[VirtualServer]) -> None:
        self._plan = plan
        self._taken = taken
        self._settings = settings
        scheduler = plan.scheduler or settings.scheduler
        # mh hashes the address of the client only, unless this flag is set. Then connections of one client are distributed.
        flags = HASH_PORT if scheduler == "mh" else 0
        if plan.affinity_seconds is None:
            self._scheduling = Scheduling(scheduler, flags)
        else:
            self._scheduling = Scheduling(scheduler, flags | PERSISTENT, plan.affinity_seconds)
        # external IPs that the node does not own
        self._elsewhere = [
            ip for ip in plan.external_ips if ip not in settings.local_ips and ip not in plan.load_balancer_ips
        ]
        self._external_chain = ChainKey(NAT, f"KUBE-EXT-{names.service_suffix(plan.name)}")
        self._entries: dict[IpvsKey, IpvsValue] = {}
        self._rules: dict[ChainKey, str] = {}

    def compile(self) -> dict[IpvsKey, IpvsValue]:
        plan = self._plan
        if plan.cluster_ip is not None:
            virtual = VirtualServer(plan.cluster_ip, plan.protocol.number, plan.port)
            self._serve(virtual, plan.internal_endpoints, static.CLUSTER_IP)
            self._own(plan.cluster_ip)
            if plan.internal_verdict is Verdict.DROP:
                self._member(static.NO_LOCAL, virtual)
        self._external_virtuals()
        if self._elsewhere:
            self._remote_external_ips()
        if plan.any_usable and plan.has_firewall:
            self._firewall()
        if plan.external_local and plan.externally_accessible and plan.cluster_endpoints:
            self._local_dispatch()
        if plan.health_check_node_port:
            text = comment(f"{plan.name} health check node port")
            self._rule(_HEALTH_CHECK_PORTS, f"-p tcp {text} -m tcp --dport {plan.health_check_node_port} -j ACCEPT")
        self._entries.update(self._rules.items())
        return self._entries

    def _external_virtuals(self) -> None:
        # Of external frontends these are addresses that this node owns, and node ports.
        plan, number = self._plan, self._plan.protocol.number
        ips = dict.fromkeys((*plan.external_ips, *plan.load_balancer_ips))
        virtuals = [VirtualServer(ip, number, plan.port) for ip in ips if ip not in self._elsewhere]
        if plan.node_port:
            node_ports = (VirtualServer(ip, number, plan.node_port) for ip in self._settings.node_port_ips)
            virtuals += [virtual for virtual in node_ports if virtual not in self._taken]
        served = static.EXTERNAL_LOCAL if plan.external_local else static.EXTERNAL
        for virtual in virtuals:
            self._serve(virtual, plan.external_endpoints, served)
            if virtual.ip not in self._settings.local_ips:
                self._own(virtual.ip)
            if plan.external_verdict is Verdict.DROP:
                self._member(static.NO_LOCAL_EXTERNAL, virtual)

    def _remote_external_ips(self) -> None:
        # The external IP may be an address of another node. If this node owned it, the two could not reach each other.
        # So packets to its port are translated to another virtual server, and packets to other ports are not touched.
        plan = self._plan
        text = comment(f"{plan.name} external IP")
        port = destination_port(plan.protocol, plan.port)
        target = (
            self._placeholder_address("outside", plan.external_endpoints)
            if plan.external_local
            else self._all_endpoints()
        )
        for ip in self._elsewhere:
            virtual = VirtualServer(ip, plan.protocol.number, plan.port)
            self._member(static.REMOTE_EXTERNAL_IPS, virtual)
            if plan.external_verdict is Verdict.DROP:
                self._member(static.NO_LOCAL_EXTERNAL, virtual)
            packets = f"{destination(ip)} -p {plan.protocol.value} {text} {port}"
            before = self._external_chain.chain if plan.external_local else names.MARK_MASQUERADE
            if not plan.external_local or plan.cluster_endpoints:
                self._rule(_REMOTE_EXTERNAL_DISPATCH, f"{packets} -j {before}")
            # IPVS sees the packet after this DNAT, with the address of a virtual server that the node owns.
            self._rule(_REMOTE_EXTERNAL_DISPATCH, f"{packets} -j DNAT --to-destination {target}")

    def _firewall(self) -> None:
        plan = self._plan
        # A range of all addresses allows every client, and the kernel's sets do not accept a prefix of length 0.
        if any(not block.prefix for block in plan.source_ranges):
            return
        for ip in plan.load_balancer_ips:
            if ip in plan.external_ips:
                continue  # source ranges do not apply to external IPs
            virtual = VirtualServer(ip, plan.protocol.number, plan.port)
            self._member(static.FIREWALL, virtual)
            # If the address is bound to the node, the node's own packets to it may have it as their source.
            own = [Network(ip, len(ip) * 8)] if plan.allow_load_balancer_ips_as_source else []
            for block in (*plan.source_ranges, *own):
                self._entries[Member(static.ALLOWED, *virtual, block)] = ""

    def _local_dispatch(self) -> None:
        plan, settings = self._plan, self._settings
        protocol = f"-p {plan.protocol.value}"
        target = f"-j DNAT --to-destination {self._all_endpoints()}"
        # Only connections from the node itself are masqueraded: they may use endpoints on other nodes, and the source may be an
        # address that these cannot reply to.
        pods = if_local(settings.local_traffic) if settings.local_traffic is not None else None
        if pods is not None:
            self._rule(self._external_chain, f"{pods} {protocol} {target}")
        self._rule(
            self._external_chain,
            f"-m addrtype --src-type LOCAL -j {names.MARK_MASQUERADE}",
            f"{protocol} -m addrtype --src-type LOCAL {target}",
        )
        jump = f"-j {self._external_chain.chain}"
        text = comment(f"{plan.name} external address")
        port = destination_port(plan.protocol, plan.port)
        for ip in dict.fromkeys((*plan.external_ips, *plan.load_balancer_ips)):
            if ip not in self._elsewhere:
                self._rule(_LOCAL_DISPATCH, f"{destination(ip)} {protocol} {text} {port} {jump}")
        if plan.node_port:
            port = destination_port(plan.protocol, plan.node_port)
            self._rule(_NODE_PORT_DISPATCH, f"{protocol} {text} {port} {jump}")

    def _all_endpoints(self) -> Endpoint:
        plan = self._plan
        # With the internal policy Local, the cluster IP has the local endpoints only.
        if plan.cluster_ip is not None and not plan.internal_local:
            return Endpoint(plan.cluster_ip, plan.port)
        return self._placeholder_address("", plan.cluster_endpoints)

    def _placeholder_address(self, use: str, endpoints: Iterable[Endpoint]) -> Endpoint:
        """Add a virtual server with these endpoints on a placeholder address, and return its address and port."""
        plan = self._plan
        placeholder = _placeholder_address(plan.name, use, plan.family)
        self._serve(VirtualServer(placeholder.ip, plan.protocol.number, placeholder.port), endpoints, static.CLUSTER_IP)
        self._own(placeholder.ip)
        return placeholder

    def _serve(self, virtual: VirtualServer, endpoints: Iterable[Endpoint], served: str) -> None:
        plan = self._plan
        self._entries[virtual] = self._scheduling
        for endpoint in plan.draining_endpoints:
            # A UDP flow has no end to wait for: it stays as long as the endpoint is serving.
            if plan.protocol is not Protocol.UDP or endpoint in plan.serving_endpoints:
                self._entries[RealServer(virtual, endpoint)] = 0
        for endpoint in endpoints:
            self._entries[RealServer(virtual, endpoint)] = 1
        # The member shows that the virtual server is ours, and to which Service port it belongs.
        self._member(served, virtual)

    def _own(self, ip: bytes) -> None:
        self._entries[Vip(ip)] = self._settings.source_ip
        self._entries[Member(static.VIP, ip)] = ""

    def _member(self, name: str, virtual: VirtualServer) -> None:
        self._entries[Member(name, *virtual)] = str(self._plan.name)

    def _rule(self, key: ChainKey, *bodies: str) -> None:
        self._rules[key] = self._rules.get(key, "") + rules(key.chain, *bodies)


def _placeholder_address(name: ServicePortName, use: str, family: Family) -> Endpoint:
    """Return an address and port derived from the name of a Service port; two names collide once in 10^13 cases."""
    # A hash needs no memory of what was given out before: every start, and every node, gets the same address.
    digest = int.from_bytes(sha256(f"{name}/{name.protocol.value}{use}".encode()).digest())
    block = _PLACEHOLDER_NETWORKS[family]
    host_bits = len(block.ip) * 8 - block.prefix
    # Not the first and the last address, which some programs take for network and broadcast addresses.
    host = digest % ((1 << host_bits) - 2) + 1
    ip = int.from_bytes(block.ip) + host
    return Endpoint(ip.to_bytes(len(block.ip)), _FIRST_PORT + (digest >> 128) % _PORTS)
