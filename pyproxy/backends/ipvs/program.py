"""A Service port's plan as virtual and real servers, members of sets and, where its external policy is Local, rules.

Each address and port of a Service is one virtual server, so it can have one list of endpoints only. Under an external
policy Local two are needed: local endpoints for the world, all for pods and the node. The second list is that of the cluster
IP, and a rule sends pods and the node there (DNAT before IPVS). Where the cluster IP has another list, or there is
none, a stand-in has it: an address that nobody uses, made from the name of the port. (A virtual server by firewall mark would do
without, but IPVS compares the whole mark, and the other bits are not ours.)
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
_STAND_IN = {
    # Reserved for future use (RFC 1112), and for discarding (RFC 6666): nobody's addresses. Linux takes both as they are.
    Family.IPV4: Network(bytes((240, 0, 0, 0)), 4),
    Family.IPV6: Network(bytes((1, 0)) + bytes(14), 64),
}


class IpvsProgram:
    """What the IPVS mode wants in the kernel for one family, from all plans. Pure."""

    def __init__(self, settings: IpvsSettings) -> None:
        self._settings = settings
        self._static: dict[IpvsKey, IpvsValue] = dict(static_sets().items())
        self._static.update(static_rules(settings).items())
        self._entries: dict[IpvsKey, IpvsValue] = {}
        self._owned: dict[ServicePortName, dict[IpvsKey, IpvsValue]] = {}
        self._shared: Counter[IpvsKey] = Counter()
        """How many more ports want an entry than the first one: the ports of a Service share its addresses."""
        self._node_ports = _NodePorts(settings.local_ips)
        self._pieces: dict[IpvsKey, dict[ServicePortName, str]] = {}
        self._pieces.update((key, {}) for key in SHARED_CHAINS)

    def put(self, name: ServicePortName, plan: ServicePlan | None) -> set[IpvsKey]:
        """Take in the plan of a port (None: it is gone) and return the keys whose value may have changed."""
        freed = self._node_ports.note(name, plan)
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
                _put_piece(pieces, name, piece)
        return changed | self._put_entries(name, compiled)

    def value(self, key: IpvsKey) -> IpvsValue | None:
        """Return what should be at a key; None is nothing."""
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

    def _put_entries(self, name: ServicePortName, compiled: dict[IpvsKey, IpvsValue]) -> set[IpvsKey]:
        before = self._owned.pop(name, {})
        changed: set[IpvsKey] = set()
        for key in before:
            if key not in compiled and self._drop(key):
                changed.add(key)
        for key, value in compiled.items():
            if key not in before:
                self._add(key)
            if self._entries.get(key) != value:
                self._entries[key] = value
                changed.add(key)
        if compiled:
            self._owned[name] = compiled
        return changed

    def _add(self, key: IpvsKey) -> None:
        if key in self._entries:
            self._shared[key] += 1

    def _drop(self, key: IpvsKey) -> bool:
        """Note that one port wants an entry no more; say whether nobody does."""
        if self._shared[key]:
            self._shared[key] -= 1
            return False
        del self._shared[key]
        del self._entries[key]
        return True


def _put_piece(pieces: dict[ServicePortName, str], name: ServicePortName, piece: IpvsValue | None) -> None:
    if isinstance(piece, str):
        pieces[name] = piece
    else:
        del pieces[name]


class _NodePorts:
    """Who has a node port, and on which addresses of the node that port is another Service's.

    An external IP can be the node's own address, and its port somebody's node port: there the external IP has it, as in the
    iptables mode, where rules for single addresses come first.
    """

    def __init__(self, local_ips: Collection[bytes]) -> None:
        self._local_ips = local_ips
        self.taken: set[VirtualServer] = set()
        self._takes: dict[ServicePortName, set[VirtualServer]] = {}
        self._plans: dict[ServicePortName, ServicePlan] = {}
        self._owners: dict[tuple[int, int], ServicePortName] = {}

    def note(self, name: ServicePortName, plan: ServicePlan | None) -> dict[ServicePortName, ServicePlan]:
        """Take in the plan of a port; return the other ports whose node port gains or loses an address by it."""
        takes = set(self._virtuals_on_node(plan)) if plan is not None else set()
        moved = self._takes.pop(name, set()) ^ takes
        self.taken ^= moved
        if takes:
            self._takes[name] = takes
        before = self._plans.pop(name, None)
        if before is not None:
            number = before.protocol.number, before.node_port
            # Another Service may have it by now: two of them exchange node ports one after the other.
            if self._owners.get(number) == name:
                del self._owners[number]
        if plan is not None and plan.node_port:
            self._plans[name] = plan
            self._owners[plan.protocol.number, plan.node_port] = name
        owners = (self._owners.get((virtual.protocol, virtual.port)) for virtual in moved)
        return {owner: self._plans[owner] for owner in owners if owner is not None and owner != name}

    def _virtuals_on_node(self, plan: ServicePlan) -> Iterator[VirtualServer]:
        for ip in (*plan.external_ips, *plan.load_balancer_ips):
            if ip in self._local_ips:
                yield VirtualServer(ip, plan.protocol.number, plan.port)


def port_entries(
    plan: ServicePlan, settings: IpvsSettings, taken: Collection[VirtualServer] = ()
) -> dict[IpvsKey, IpvsValue]:
    """Compile one plan: its entries, and its pieces of the shared chains; node ports not where they are taken."""
    return _PortEntries(plan, settings, taken).compile()


class _PortEntries:
    """The entries of one Service port, while they are being written down."""

    def __init__(self, plan: ServicePlan, settings: IpvsSettings, taken: Collection[VirtualServer]) -> None:
        self._plan = plan
        self._taken = taken
        self._settings = settings
        self._scheduling = _scheduling(plan, settings)
        self._elsewhere = [
            ip for ip in plan.external_ips if ip not in settings.local_ips and ip not in plan.load_balancer_ips
        ]
        """External IPs that the node does not answer for."""
        self._external_chain = ChainKey(NAT, f"KUBE-EXT-{names.service_suffix(plan.name)}")
        self._entries: dict[IpvsKey, IpvsValue] = {}
        self._rules: dict[ChainKey, str] = {}

    def compile(self) -> dict[IpvsKey, IpvsValue]:
        plan = self._plan
        if plan.cluster_ip is not None:
            self._cluster_ip(plan.cluster_ip)
        for virtual in self._external_virtuals():
            self._external(virtual)
        if self._elsewhere:
            self._external_ips()
        if plan.any_usable and plan.has_firewall:
            self._firewall()
        if plan.external_local and plan.externally_accessible and plan.cluster_endpoints:
            self._short_cut()
        if plan.health_check_node_port:
            text = comment(f"{plan.name} health check node port")
            self._rule(_HEALTH_CHECK_PORTS, f"-p tcp {text} -m tcp --dport {plan.health_check_node_port} -j ACCEPT")
        self._entries.update(self._rules.items())
        return self._entries

    def _cluster_ip(self, ip: bytes) -> None:
        plan = self._plan
        virtual = VirtualServer(ip, plan.protocol.number, plan.port)
        self._serve(virtual, plan.internal_endpoints, static.CLUSTER_IP)
        self._answer_for(ip)
        if plan.internal_verdict is Verdict.DROP:
            self._member(static.NO_LOCAL, virtual)

    def _external_virtuals(self) -> Iterator[VirtualServer]:
        plan = self._plan
        number = plan.protocol.number
        for ip in dict.fromkeys((*plan.external_ips, *plan.load_balancer_ips)):
            if ip not in self._elsewhere:
                yield VirtualServer(ip, number, plan.port)
        if plan.node_port:
            virtuals = (VirtualServer(ip, number, plan.node_port) for ip in self._settings.node_port_ips)
            yield from (virtual for virtual in virtuals if virtual not in self._taken)

    def _external(self, virtual: VirtualServer) -> None:
        plan = self._plan
        served = static.EXTERNAL_LOCAL if plan.external_local else static.EXTERNAL
        self._serve(virtual, plan.external_endpoints, served)
        if virtual.ip not in self._settings.local_ips:
            self._answer_for(virtual.ip)
        if plan.external_verdict is Verdict.DROP:
            self._member(static.NO_LOCAL_EXTERNAL, virtual)

    def _external_ips(self) -> None:
        """Send what is for an external IP to the virtual server of another address, and leave its other ports alone.

        The address may be another node's. If this node answered for it, the two could not speak to each other.
        """
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
            self._rule(_REMOTE_EXTERNAL_DISPATCH, f"{packets} -j DNAT --to-destination {target}")

    def _firewall(self) -> None:
        plan = self._plan
        if any(not block.prefix for block in plan.source_ranges):
            return
        for ip in plan.load_balancer_ips:
            if ip in plan.external_ips:
                continue  # open to all as that
            virtual = VirtualServer(ip, plan.protocol.number, plan.port)
            self._member(static.FIREWALL, virtual)
            own = [Network(ip, len(ip) * 8)] if plan.allow_load_balancer_ips_as_source else []
            for block in (*plan.source_ranges, *own):
                self._entries[Member(static.ALLOWED, *virtual, block)] = ""

    def _short_cut(self) -> None:
        """Send pods and the node to all endpoints of the cluster, past those of the policy Local."""
        plan, settings = self._plan, self._settings
        protocol = f"-p {plan.protocol.value}"
        target = f"-j DNAT --to-destination {self._all_endpoints()}"
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
        """Return address and port of the virtual server that has all endpoints of the cluster."""
        plan = self._plan
        if plan.cluster_ip is not None and not plan.internal_local:
            return Endpoint(plan.cluster_ip, plan.port)
        return self._placeholder_address("", plan.cluster_endpoints)

    def _placeholder_address(self, use: str, endpoints: Iterable[Endpoint]) -> Endpoint:
        """Serve endpoints at an address that nobody uses."""
        plan = self._plan
        placeholder = _placeholder_address(plan.name, use, plan.family)
        self._serve(VirtualServer(placeholder.ip, plan.protocol.number, placeholder.port), endpoints, static.CLUSTER_IP)
        self._answer_for(placeholder.ip)
        return placeholder

    def _serve(self, virtual: VirtualServer, endpoints: Iterable[Endpoint], served: str) -> None:
        self._entries[virtual] = self._scheduling
        for endpoint in self._draining():
            self._entries[RealServer(virtual, endpoint)] = 0
        for endpoint in endpoints:
            self._entries[RealServer(virtual, endpoint)] = 1
        self._member(served, virtual)

    def _draining(self) -> Iterable[Endpoint]:
        plan = self._plan
        if plan.protocol is not Protocol.UDP:
            return plan.draining_endpoints
        # A UDP flow has no end that could be waited for: it stays as long as the endpoint says that it serves.
        return [endpoint for endpoint in plan.draining_endpoints if endpoint in plan.serving_endpoints]

    def _answer_for(self, ip: bytes) -> None:
        self._entries[Vip(ip)] = self._settings.source_ip
        self._entries[Member(static.VIP, ip)] = ""

    def _member(self, name: str, virtual: VirtualServer) -> None:
        self._entries[Member(name, *virtual)] = str(self._plan.name)

    def _rule(self, key: ChainKey, *bodies: str) -> None:
        self._rules[key] = self._rules.get(key, "") + rules(key.chain, *bodies)


def _scheduling(plan: ServicePlan, settings: IpvsSettings) -> Scheduling:
    scheduler = plan.scheduler or settings.scheduler
    flags = HASH_PORT if scheduler == "mh" else 0
    if plan.affinity_seconds is None:
        return Scheduling(scheduler, flags)
    return Scheduling(scheduler, flags | PERSISTENT, plan.affinity_seconds)


def _placeholder_address(name: ServicePortName, use: str, family: Family) -> Endpoint:
    """Return an address and port from the name of a Service port; two names give the same once in 10^13 cases."""
    digest = int.from_bytes(sha256(f"{name}/{name.protocol.value}{use}".encode()).digest())
    block = _STAND_IN[family]
    host_bits = len(block.ip) * 8 - block.prefix
    # Not the first and the last address, which mean a network and a broadcast to some.
    host = digest % ((1 << host_bits) - 2) + 1
    ip = int.from_bytes(block.ip) + host
    return Endpoint(ip.to_bytes(len(block.ip)), _FIRST_PORT + (digest >> 128) % _PORTS)
