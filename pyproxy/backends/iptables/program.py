"""A Service port's plan as iptables rules, and all rules of one family together.

Every chain of a Service port is its own. Five chains are shared by all ports: each port adds a piece to
them. The pieces stand in the order of the names, which carries no meaning, because `claims` has made
sure that no two ports match the same packet.

As few rules as the semantics allow: DNAT stands in the Service's own chain unless affinity needs a
chain for each endpoint, and the name of a port stands in one comment (the kernel keeps 256 bytes for each).
"""

from collections.abc import Iterable, Iterator, Mapping

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
    """What the iptables mode wants in the kernel for one family: all chains, from all plans. Pure."""

    def __init__(self, settings: IptablesSettings) -> None:
        self._settings = settings
        self._static = static_rules(settings)
        self._tail = node_port_jumps(settings)
        self._own: dict[ChainKey, str] = {}
        self._own_keys: dict[ServicePortName, tuple[ChainKey, ...]] = {}
        self._pieces: dict[ChainKey, dict[ServicePortName, str]] = {key: {} for key in SHARED_CHAINS}

    def put(self, name: ServicePortName, plan: ServicePlan | None) -> set[RulesetKey]:
        """Take in the plan of a port (None: it is gone) and return the chains whose rules changed."""
        compiled = port_rules(plan, self._settings) if plan is not None else {}
        return self._put_own(name, compiled) | self._put_pieces(name, compiled)

    def value(self, key: RulesetKey) -> str | None:
        """Return the rules of a chain, or None if it should not be there."""
        if isinstance(key, ChainKey) and key in self._pieces:
            pieces = self._pieces[key]
            text = "".join(pieces[name] for name in sorted(pieces))
            return text + self._tail if key == _DISPATCH else text
        if key in self._static:
            return self._static[key]
        return self._own.get(key) if isinstance(key, ChainKey) else None

    def keys(self) -> Iterator[RulesetKey]:
        """Yield every chain and hook that should be there."""
        yield from self._static
        yield from self._pieces
        yield from self._own

    def _put_own(self, name: ServicePortName, compiled: Mapping[ChainKey, str]) -> set[RulesetKey]:
        changed: set[RulesetKey] = set()
        for key in self._own_keys.pop(name, ()):
            if key not in compiled:
                del self._own[key]
                changed.add(key)
        keys = tuple(key for key in compiled if key not in self._pieces)
        for key in keys:
            if self._own.get(key) != compiled[key]:
                self._own[key] = compiled[key]
                changed.add(key)
        if keys:
            self._own_keys[name] = keys
        return changed

    def _put_pieces(self, name: ServicePortName, compiled: Mapping[ChainKey, str]) -> set[RulesetKey]:
        changed: set[RulesetKey] = set()
        for key, pieces in self._pieces.items():
            piece = compiled.get(key)
            if pieces.get(name) == piece:
                continue
            changed.add(key)
            if piece is None:
                del pieces[name]
            else:
                pieces[name] = piece
        return changed


def port_rules(plan: ServicePlan, settings: IptablesSettings) -> dict[ChainKey, str]:
    """Compile one plan: its own chains whole, and its pieces of the shared chains."""
    return _PortRules(plan, settings).compile()


class _PortRules:
    """The rules of one Service port, while they are being written down."""

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
            self._cluster_ip_rules(plan.cluster_ip)
        if plan.externally_accessible:
            self._external_rules()
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

    def _cluster_ip_rules(self, ip: bytes) -> None:
        plan = self._plan
        if plan.internal_verdict is Verdict.FORWARD:
            chain = self._local_chain if plan.internal_local else self._cluster_chain
            self._add(_DISPATCH, f"{self._match(ip, plan.port, f'{plan.name} cluster IP')} -j {chain}")
        else:
            self._add(_CLUSTER_IP_REFUSALS, self._refusal(plan.internal_verdict, ip))

    def _external_rules(self) -> None:
        plan = self._plan
        if plan.any_usable:
            self._external_dispatch()
            self._add(ChainKey(NAT, self._external_chain), *self._external_bodies())
        if plan.external_verdict is Verdict.FORWARD:
            return
        for ip in dict.fromkeys((*plan.external_ips, *plan.load_balancer_ips)):
            self._add(_EXTERNAL_REFUSALS, self._refusal(plan.external_verdict, ip))
        if plan.node_port:
            self._add(_EXTERNAL_REFUSALS, self._node_port_refusal(plan.external_verdict))

    def _external_dispatch(self) -> None:
        plan = self._plan
        # The name stands at the cluster IP. A Service from a file may have none, and needs it here.
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
            self._firewall_rules()

    def _firewall_rules(self) -> None:
        plan = self._plan
        allowed = [f"{source(block)}-j {self._external_chain}" for block in plan.source_ranges]
        if plan.allow_load_balancer_ips_as_source:
            # A node that sends to the address may have it as source, where the address is bound to the node.
            allowed += [f"{host_source(ip)} -j {self._external_chain}" for ip in plan.load_balancer_ips]
        self._add(ChainKey(NAT, self._firewall_chain), *allowed)
        # What the ranges did not let through kept its destination, and is dropped where new connections are filtered.
        text = f"{plan.name} traffic not accepted by {self._firewall_chain}"
        for ip in plan.load_balancer_ips:
            self._add(_FIREWALL, f"{self._match(ip, plan.port, text)} -j DROP")

    def _external_bodies(self) -> Iterator[str]:
        plan, mark = self._plan, f"-j {names.MARK_MASQUERADE}"
        if not plan.external_local:
            yield mark
            yield f"-j {self._cluster_chain}"
            return
        # Pods and the node itself are not "external": they may use every endpoint of the cluster.
        if plan.cluster_endpoints:
            if self._settings.local_traffic is not None:
                yield f"{if_local(self._settings.local_traffic)} -j {self._cluster_chain}"
            yield f"-m addrtype --src-type LOCAL {mark}"
            yield f"-m addrtype --src-type LOCAL -j {self._cluster_chain}"
        if plan.local_endpoints:
            yield f"-j {self._local_chain}"

    def _refusal(self, verdict: Verdict, ip: bytes) -> str:
        return f"{self._match(ip, self._plan.port, self._refusal_text(verdict))} {self._refuse(verdict)}"

    def _node_port_refusal(self, verdict: Verdict) -> str:
        port = destination_port(self._plan.protocol, self._plan.node_port)
        text = comment(self._refusal_text(verdict))
        return f"{self._protocol} {text} -m addrtype --dst-type LOCAL {port} {self._refuse(verdict)}"

    def _refusal_text(self, verdict: Verdict) -> str:
        return f"{self._plan.name} has no {'' if verdict is Verdict.REJECT else 'local '}endpoints"

    def _refuse(self, verdict: Verdict) -> str:
        if verdict is Verdict.DROP:
            return "-j DROP"
        icmp = "icmp" if self._plan.family is Family.IPV4 else "icmp6"
        return f"-j REJECT --reject-with {icmp}-port-unreachable"

    def _balance(self, chain: str, endpoints: tuple[Endpoint, ...], *, is_internal: bool) -> None:
        bodies = list(self._cluster_ip_masquerade()) if is_internal else []
        if self._plan.affinity_seconds is None and self._settings.hairpin_by_packet:
            bodies += equal_shares([(f"{self._protocol} ", _dnat_target(endpoint)) for endpoint in endpoints])
        else:
            bodies += self._endpoint_jumps(endpoints)
        self._rules[ChainKey(NAT, chain)] = rules(chain, *bodies)

    def _cluster_ip_masquerade(self) -> Iterator[str]:
        """Yield the rule that masquerades traffic to the cluster IP that does not come from a pod."""
        plan, settings = self._plan, self._settings
        if plan.cluster_ip is None:
            return
        match = destination(plan.cluster_ip)
        if settings.masquerade_all:
            yield f"{match} -j {names.MARK_MASQUERADE}"
        elif settings.local_traffic is not None:
            test = if_not_local(settings.local_traffic)
            # iptables-save prints the source before the destination, and the interface after it.
            both = f"{test} {match}" if settings.local_traffic.cidr is not None else f"{match} {test}"
            yield f"{both} -j {names.MARK_MASQUERADE}"

    def _endpoint_jumps(self, endpoints: Iterable[Endpoint]) -> list[str]:
        plan = self._plan
        chains = [(names.endpoint_chain(plan.name, endpoint), endpoint) for endpoint in endpoints]
        for chain, endpoint in chains:
            self._rules[ChainKey(NAT, chain)] = rules(chain, *self._endpoint_bodies(chain, endpoint))
        pinned: list[str] = []
        if plan.affinity_seconds is not None:
            option = f"--rcheck --seconds {plan.affinity_seconds} --reap"
            pinned = [f"{recent(option, chain, plan.family)} -j {chain}" for chain, _ in chains]
        return pinned + equal_shares([("", f"-j {chain}") for chain, _ in chains])

    def _endpoint_bodies(self, chain: str, endpoint: Endpoint) -> Iterator[str]:
        if not self._settings.hairpin_by_packet:
            yield f"{host_source(endpoint.ip)} -j {names.MARK_MASQUERADE}"
        pin = f"{recent('--set', chain, self._plan.family)} " if self._plan.affinity_seconds is not None else ""
        yield dnat(self._plan.protocol, endpoint, before=pin)


def _dnat_target(endpoint: Endpoint) -> str:
    return f"-j DNAT --to-destination {endpoint}"
