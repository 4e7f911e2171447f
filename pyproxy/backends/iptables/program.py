"""Turns the plan of a Service port into iptables rules, and holds all rules of one family.

Each Service port has chains of its own. Besides, there are a few shared chains, to which every port adds some rules. Their
order is that of the names, which has no meaning: the planner has settled claims, so no two ports match the same packet.

| table and chain | rules of each port |
|---|---|
| nat KUBE-SERVICES | one for each address and port, with a jump to a chain of the port |
| nat KUBE-NODEPORTS | one for the node port, with a jump to KUBE-EXT-… |
| nat KUBE-SVC-…, KUBE-SVL-… | balances over all, or over local endpoints: one DNAT rule for each |
| nat KUBE-EXT-… | external traffic: masquerade, and which of the two chains above |
| nat KUBE-FW-… | load balancer source ranges |
| nat KUBE-SEP-… | one endpoint; only with session affinity, or without xt_bpf |
| filter KUBE-SERVICES, KUBE-EXTERNAL-SERVICES | reject or drop where no endpoint may be used |
| filter KUBE-PROXY-FIREWALL | drop what the source ranges do not allow |
| filter KUBE-NODEPORTS | accept health checks |

There are as few rules as the semantics allow, because in legacy tables every change copies all of them: the DNAT is in the
chain of the Service port where possible, and the name of a port is in one comment (each takes 256 bytes in the kernel).
"""

from collections.abc import Iterable, Iterator

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.rules import (
    comment,
    destination,
    destination_port,
    dnat,
    equal_shares,
    host_source,
    if_local,
    if_not_local,
    recent,
    rules,
    source,
)
from pyproxy.backends.iptables.ruleset import FILTER, NAT, ChainKey, RulesetKey
from pyproxy.backends.iptables.static_rules import IptablesSettings, node_port_jumps, static_rules
from pyproxy.model.address import Family
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import ServicePortName
from pyproxy.plan.service_plan import ServicePlan, Verdict

_DISPATCH = ChainKey(NAT, names.SERVICES)
_NODE_PORT_DISPATCH = ChainKey(NAT, names.NODE_PORTS)
_CLUSTER_IP_REFUSALS = ChainKey(FILTER, names.SERVICES)
_EXTERNAL_REFUSALS = ChainKey(FILTER, names.EXTERNAL_SERVICES)
_FIREWALL = ChainKey(FILTER, names.PROXY_FIREWALL)
_HEALTH_CHECK_PORTS = ChainKey(FILTER, names.NODE_PORTS)
SHARED_CHAINS = (
    _DISPATCH,
    _NODE_PORT_DISPATCH,
    _CLUSTER_IP_REFUSALS,
    _EXTERNAL_REFUSALS,
    _FIREWALL,
    _HEALTH_CHECK_PORTS,
)


class IptablesProgram:
    """All chains and hooks of one family, from all plans. Pure."""

    def __init__(self, settings: IptablesSettings) -> None:
        self._settings = settings
        self._static = static_rules(settings)
        self._tail = node_port_jumps(settings)
        self._own: dict[ChainKey, str] = {}  # chains of single ports
        self._own_keys: dict[ServicePortName, tuple[ChainKey, ...]] = {}
        # shared chains: the rules of each port
        self._pieces: dict[ChainKey, dict[ServicePortName, str]] = {key: {} for key in SHARED_CHAINS}

    def put(self, name: ServicePortName, plan: ServicePlan | None) -> set[RulesetKey]:
        """Record the plan of a port (None: it was removed) and return the chains whose rules changed."""
        compiled = port_rules(plan, self._settings) if plan is not None else {}
        changed: set[RulesetKey] = set()
        for key in self._own_keys.pop(name, ()):
            if key not in compiled:
                del self._own[key]
                changed.add(key)
        own_keys = tuple(key for key in compiled if key not in self._pieces)
        for key in own_keys:
            if self._own.get(key) != compiled[key]:
                self._own[key] = compiled[key]
                changed.add(key)
        if own_keys:
            self._own_keys[name] = own_keys
        for key, pieces in self._pieces.items():
            piece = compiled.get(key)
            if pieces.get(name) != piece:
                changed.add(key)
                if piece is None:
                    del pieces[name]
                else:
                    pieces[name] = piece
        return changed

    def value(self, key: RulesetKey) -> str | None:
        """Return the rules of a chain; None: the chain should not exist."""
        if isinstance(key, ChainKey) and key in self._pieces:
            pieces = self._pieces[key]
            text = "".join(pieces[name] for name in sorted(pieces))
            return text + self._tail if key == _DISPATCH else text
        if key in self._static:
            return self._static[key]
        return self._own.get(key) if isinstance(key, ChainKey) else None

    def keys(self) -> Iterator[RulesetKey]:
        """Yield every chain and hook that should exist."""
        yield from self._static
        yield from self._pieces
        yield from self._own


def port_rules(plan: ServicePlan, settings: IptablesSettings) -> dict[ChainKey, str]:
    """Return the rules of one plan: complete chains of its own, and its rules in shared chains."""
    return _PortRules(plan, settings).compile()


class _PortRules:
    def __init__(self, plan: ServicePlan, settings: IptablesSettings) -> None:
        self._plan = plan
        self._settings = settings
        self._protocol = f"-p {plan.protocol.value}"
        suffix = names.service_suffix(plan.name)
        self._cluster_chain = f"KUBE-SVC-{suffix}"
        self._local_chain = f"KUBE-SVL-{suffix}"
        self._external_chain = f"KUBE-EXT-{suffix}"
        self._firewall_chain = f"KUBE-FW-{suffix}"
        self._rules: dict[ChainKey, str] = {}

    def compile(self) -> dict[ChainKey, str]:
        plan = self._plan
        if plan.cluster_ip is not None:
            if plan.internal_verdict is Verdict.FORWARD:
                chain = self._local_chain if plan.internal_local else self._cluster_chain
                match = self._match(plan.cluster_ip, plan.port, f"{plan.name} cluster IP")
                self._add(_DISPATCH, f"{match} -j {chain}")
            else:
                self._add(_CLUSTER_IP_REFUSALS, self._refusal(plan.internal_verdict, plan.cluster_ip))
        if plan.externally_accessible:
            if plan.any_usable:
                self._external_dispatch()
                self._add(ChainKey(NAT, self._external_chain), *self._external_bodies())
            if plan.external_verdict is not Verdict.FORWARD:
                self._external_refusals()
        if plan.health_check_node_port:
            text = comment(f"{plan.name} health check node port")
            self._add(_HEALTH_CHECK_PORTS, f"-p tcp {text} -m tcp --dport {plan.health_check_node_port} -j ACCEPT")
        if plan.cluster_endpoints and plan.uses_cluster_endpoints:
            self._balance(self._cluster_chain, plan.cluster_endpoints, is_internal=not plan.internal_local)
        if plan.local_endpoints and plan.uses_local_endpoints:
            self._balance(self._local_chain, plan.local_endpoints, is_internal=plan.internal_local)
        return self._rules

    def _add(self, key: ChainKey, *bodies: str) -> None:
        self._rules[key] = self._rules.get(key, "") + rules(key.chain, *bodies)

    def _match(self, ip: bytes, port: int, remark: str = "") -> str:
        text = f"{comment(remark)} " if remark else ""
        return f"{destination(ip)} {self._protocol} {text}{destination_port(self._plan.protocol, port)}"

    def _external_dispatch(self) -> None:
        plan = self._plan
        # The name of the port is at the cluster IP. A Service from a file may have no cluster IP, so its name is here.
        text = "" if plan.cluster_ip is not None else f"{plan.name} external address"
        for ip in plan.external_ips:
            self._add(_DISPATCH, f"{self._match(ip, plan.port, text)} -j {self._external_chain}")
        entry = self._firewall_chain if plan.has_firewall else self._external_chain
        for ip in plan.load_balancer_ips:
            self._add(_DISPATCH, f"{self._match(ip, plan.port, text)} -j {entry}")
        if plan.node_port:
            remark = f"{comment(text)} " if text else ""
            port = destination_port(plan.protocol, plan.node_port)
            self._add(_NODE_PORT_DISPATCH, f"{self._protocol} {remark}{port} -j {self._external_chain}")
        if plan.has_firewall:
            allowed = [f"{source(block)}-j {self._external_chain}" for block in plan.source_ranges]
            if plan.allow_load_balancer_ips_as_source:
                # If the address is bound to the node, the node's own packets to it may have it as their source.
                allowed += [f"{host_source(ip)} -j {self._external_chain}" for ip in plan.load_balancer_ips]
            self._add(ChainKey(NAT, self._firewall_chain), *allowed)
            # The nat table cannot drop. A packet that the ranges did not allow keeps its destination, so the filter table
            # recognises it by that.
            text = f"{plan.name} traffic not accepted by {self._firewall_chain}"
            for ip in plan.load_balancer_ips:
                self._add(_FIREWALL, f"{self._match(ip, plan.port, text)} -j DROP")

    def _external_bodies(self) -> Iterator[str]:
        plan, mark = self._plan, f"-j {names.MARK_MASQUERADE}"
        if not plan.external_local:
            # The endpoint may be on another node, whose reply must come back through this one.
            yield mark
            yield f"-j {self._cluster_chain}"
            return
        # Policy Local keeps the client's address, so nothing is masqueraded. But traffic from pods and from the node is not
        # external: it may use all endpoints of the cluster.
        if plan.cluster_endpoints:
            if self._settings.local_traffic is not None:
                yield f"{if_local(self._settings.local_traffic)} -j {self._cluster_chain}"
            yield f"-m addrtype --src-type LOCAL {mark}"
            yield f"-m addrtype --src-type LOCAL -j {self._cluster_chain}"
        if plan.local_endpoints:
            yield f"-j {self._local_chain}"

    def _external_refusals(self) -> None:
        plan = self._plan
        for ip in dict.fromkeys((*plan.external_ips, *plan.load_balancer_ips)):
            self._add(_EXTERNAL_REFUSALS, self._refusal(plan.external_verdict, ip))
        if plan.node_port:
            match = f"-m addrtype --dst-type LOCAL {destination_port(plan.protocol, plan.node_port)}"
            text, target = self._refusal_parts(plan.external_verdict)
            self._add(_EXTERNAL_REFUSALS, f"{self._protocol} {comment(text)} {match} {target}")

    def _refusal(self, verdict: Verdict, ip: bytes) -> str:
        text, target = self._refusal_parts(verdict)
        return f"{self._match(ip, self._plan.port, text)} {target}"

    def _refusal_parts(self, verdict: Verdict) -> tuple[str, str]:
        # Without endpoints a client gets an error at once. Without *local* endpoints its packets are dropped, because
        # other nodes serve the same address, and an error would end connections that they could take.
        if verdict is Verdict.DROP:
            return f"{self._plan.name} has no local endpoints", "-j DROP"
        icmp = "icmp" if self._plan.family is Family.IPV4 else "icmp6"
        return f"{self._plan.name} has no endpoints", f"-j REJECT --reject-with {icmp}-port-unreachable"

    def _balance(self, chain: str, endpoints: tuple[Endpoint, ...], *, is_internal: bool) -> None:
        # Traffic to the cluster IP comes to one of the two chains (`is_internal`), which masquerades it where
        # necessary.
        plan, settings = self._plan, self._settings
        bodies: list[str] = []
        if is_internal and plan.cluster_ip is not None:
            match = destination(plan.cluster_ip)
            if settings.masquerade_all:
                bodies.append(f"{match} -j {names.MARK_MASQUERADE}")
            elif settings.local_traffic is not None:
                # Traffic from outside the cluster: the reply of a pod on another node would not come back through this one.
                test = if_not_local(settings.local_traffic)
                # iptables-save prints the source before the destination, and the interface after it.
                both = f"{test} {match}" if settings.local_traffic.cidr is not None else f"{match} {test}"
                bodies.append(f"{both} -j {names.MARK_MASQUERADE}")
        if plan.affinity_seconds is None and settings.hairpin_by_packet:
            targets = (f"-j DNAT --to-destination {endpoint}" for endpoint in endpoints)
            bodies += equal_shares([(f"{self._protocol} ", target) for target in targets])
        else:
            bodies += self._endpoint_jumps(endpoints)
        self._rules[ChainKey(NAT, chain)] = rules(chain, *bodies)

    def _endpoint_jumps(self, endpoints: Iterable[Endpoint]) -> list[str]:
        plan = self._plan
        chains = [(names.endpoint_chain(plan.name, endpoint), endpoint) for endpoint in endpoints]
        for chain, endpoint in chains:
            bodies: list[str] = []
            if not self._settings.hairpin_by_packet:
                bodies.append(f"{host_source(endpoint.ip)} -j {names.MARK_MASQUERADE}")
            # The DNAT rule records the client in the endpoint's list (xt_recent).
            pin = f"{recent('--set', chain, plan.family)} " if plan.affinity_seconds is not None else ""
            bodies.append(dnat(plan.protocol, endpoint, before=pin))
            self._rules[ChainKey(NAT, chain)] = rules(chain, *bodies)
        pinned: list[str] = []
        if plan.affinity_seconds is not None:
            # A client that is in a list goes to that endpoint again. --reap removes older clients from the list.
            option = f"--rcheck --seconds {plan.affinity_seconds} --reap"
            pinned = [f"{recent(option, chain, plan.family)} -j {chain}" for chain, _ in chains]
        return pinned + equal_shares([("", f"-j {chain}") for chain, _ in chains])
