"""The hooks of the kernel through which a packet passes, for the interpreters of rules.

Tables of iptables, tables of nf_tables and IPVS register base chains with these hooks, and a packet passes all of them in
the order of their priorities, whatever program created them. Pure.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from fractions import Fraction
from functools import partial
from typing import NamedTuple

from pyproxy.backends.explanation import NOT_EVALUATED, Fate, Host, Packet, Path, Step, merged
from pyproxy.model.address import LOOPBACK_IPS, family_of
from pyproxy.model.endpoint import Endpoint

LOOPBACK_INTERFACE = "lo"
UNKNOWN_INTERFACE = "?"
"""An interface whose name is not known. It is not the loopback interface."""
_REROUTE = 0
"""Chains of the hook ``output`` with a lower priority than this one may change the route."""
_LAST = 1 << 31
"""Higher than any priority."""


@dataclass(frozen=True, slots=True)
class State:
    """A packet on its way through the hooks."""

    packet: Packet
    host: Host
    destination: bytes
    port: int
    share: Fraction = Fraction(1)
    """Probability of this way so far."""
    mark: int = 0
    priority: int = 0
    """The field ``skb->priority``, in which rules of the nftables mode pass numbers on."""
    is_translated: bool = False
    is_dnat: bool = False
    """A rule has changed the destination; IPVS leaves this flag of the connection unset."""
    is_masqueraded: bool = False
    is_ipvs: bool = False
    """IPVS has sent it to a real server."""
    is_untracked: bool = False
    """Connection tracking is off for it, and so is nat."""
    nat_is_done: bool = False
    """Whether the nat chains for the destination have seen it: they see each connection once."""
    source_nat_is_done: bool = False
    in_interface: str = ""
    out_interface: str = ""
    pins: Mapping[str, float] = field(default_factory=dict)
    """The ``recent`` lists of iptables that contain the source, with the seconds since it was last seen."""
    affinity_seconds: int | None = None
    affinity_entry: str = ""
    steps: tuple[Step, ...] = ()
    is_certain: bool = True

    def after(self, step: Step, **changes: object) -> "State":
        """Return the state after a step."""
        return replace(self, steps=(*self.steps, step), **changes)  # type: ignore[arg-type]  # fields of this class

    def redirected(self, port: int) -> "State":
        """Return the state after the node's own address has become the destination."""
        # `nf_nat_redirect_ipv4`: the loopback address for a packet of the node, otherwise an address of the interface by
        # which it came. Which addresses that interface has is not known here, so this takes one of the node.
        own = [ip for ip in self.host.ips if len(ip) == len(self.destination)]
        ip = LOOPBACK_IPS[family_of(self.destination)] if not self.in_interface or not own else min(own)
        return replace(self, destination=ip, port=port, is_translated=True, is_dnat=True)

    def passed_over(self, step: Step) -> "State":
        """Return the state after a rule that could not be evaluated."""
        return self.after(step._replace(rule=NOT_EVALUATED + step.rule), is_certain=False)


class Verdict(Enum):
    """How a packet leaves a chain."""

    ACCEPT = "ACCEPT"
    DROP = "DROP"
    REJECT = "REJECT"
    FALL_THROUGH = ""
    """No rule decided; the rule after the jump is next."""
    SENT = "IPVS"
    """IPVS has sent it to a host: it passes the hook ``output`` next, as if this node had created it."""


Way = tuple[Verdict, State]
_ENDS = frozenset({Verdict.DROP, Verdict.REJECT, Verdict.SENT})


class BaseChain(NamedTuple):
    """What is registered with a hook."""

    hook: str
    """``prerouting``, ``input``, ``forward``, ``output`` or ``postrouting``."""
    priority: int
    is_nat: bool
    follow: Callable[[State], Iterator[Way]]
    """Yields every way in which a packet can leave the chain."""


def paths(chains: Iterable[BaseChain], packet: Packet, host: Host, pins: Mapping[str, float]) -> tuple[Path, ...]:
    """Return every way that a packet can take, the most probable first.

    Args:
        chains: of the packet's family.
        packet: the packet.
        host: the node.
        pins: see `State.pins`.
    """
    state = State(packet, host, packet.destination, packet.port, in_interface=packet.in_interface, pins=pins)
    return merged(_path(verdict, end) for verdict, end in _Walk(chains).all_hooks(state))


def _path(verdict: Verdict, end: State) -> Path:
    fates = {Verdict.DROP: Fate.DROPPED, Verdict.REJECT: Fate.REJECTED}
    if fate := fates.get(verdict):
        return Path(end.share, fate, end.steps, is_certain=end.is_certain)
    return Path(
        end.share,
        Fate.FORWARDED if end.is_translated else Fate.UNCHANGED,
        end.steps,
        Endpoint(end.destination, end.port) if end.is_translated else None,
        is_masqueraded=end.is_masqueraded,
        affinity_seconds=end.affinity_seconds,
        affinity_entry=end.affinity_entry,
        is_certain=end.is_certain,
    )


class _Walk:
    def __init__(self, chains: Iterable[BaseChain]) -> None:
        self._chains = sorted(chains, key=lambda chain: chain.priority)

    def all_hooks(self, state: State) -> Iterator[Way]:
        # The node routes its own packets before ``output``, and again after chains that change mark or destination
        # (`ip_route_me_harder`). Therefore ``output`` is followed in two parts, with the final route between them.
        first = "prerouting" if state.packet.in_interface else "output"
        ways = self._then(self._hook(state, first, before=_REROUTE if first == "output" else _LAST), self._route)
        for verdict, end in ways:
            if verdict is Verdict.SENT:
                # `ip_vs_nat_send_or_cont` gives the packet to ``output``, whose chains have not seen it with this
                # destination; it is never routed to ``forward``. The nat chains for the destination have seen the connection
                # before IPVS, in ``prerouting`` or ``output``.
                sent = replace(end, in_interface="", out_interface=UNKNOWN_INTERFACE, nat_is_done=True)
                yield from self._then(self._hook(sent, "output"), self._leave)
            else:
                yield verdict, end

    def _route(self, state: State) -> Iterator[Way]:
        is_local = state.host.is_local(state.destination)
        # The routing decision: what the node itself has as an address never reaches ``forward``, and the rest never ``input``.
        if state.packet.in_interface and is_local:
            return self._hook(state, "input")
        state = replace(state, out_interface=LOOPBACK_INTERFACE if is_local else UNKNOWN_INTERFACE)
        hook, after = ("forward", -_LAST) if state.packet.in_interface else ("output", _REROUTE - 1)
        return self._then(self._hook(state, hook, after=after), self._leave)

    def _leave(self, state: State) -> Iterator[Way]:
        for verdict, end in self._hook(state, "postrouting"):
            if verdict in _ENDS or end.out_interface != LOOPBACK_INTERFACE:
                yield verdict, end
            else:
                # A packet to the node itself enters by lo, where it is still the first packet of its connection. Its nat is
                # done, so that of these hooks only the other chains still decide something.
                entering = replace(end, in_interface=LOOPBACK_INTERFACE, out_interface="")
                yield from self._then(self._hook(entering, "prerouting"), lambda one: self._hook(one, "input"))

    @staticmethod
    def _then(ways: Iterator[Way], following: Callable[[State], Iterator[Way]]) -> Iterator[Way]:
        for verdict, end in ways:
            if verdict in _ENDS:
                yield verdict, end
            else:
                yield from following(end)

    def _hook(self, state: State, hook: str, *, after: int = -_LAST, before: int = _LAST) -> Iterator[Way]:
        """Follow a packet through the chains of a hook with priorities between two bounds."""
        ways: Iterator[Way] = iter([(Verdict.ACCEPT, state)])
        for chain in self._chains:
            # An accept ends one base chain only: those with higher priorities, of any table and program, still see the
            # packet and may drop it.
            if chain.hook == hook and after < chain.priority < before:
                ways = self._then(ways, partial(self._chain, chain))
        for verdict, end in ways:
            if verdict in _ENDS:
                yield verdict, end
            else:
                # Nat is decided once for each connection and side. If no rule translated the packet, the kernel records
                # that its addresses stay (`nf_nat_alloc_null_binding`), so no later chain can translate it.
                is_done = end.nat_is_done or hook in {"prerouting", "output"}
                is_source_done = end.source_nat_is_done or hook in {"input", "postrouting"}
                yield Verdict.ACCEPT, replace(end, nat_is_done=is_done, source_nat_is_done=is_source_done)

    @staticmethod
    def _chain(chain: BaseChain, state: State) -> Iterator[Way]:
        is_source = chain.hook in {"input", "postrouting"}
        is_done = state.source_nat_is_done if is_source else state.nat_is_done
        # The nat chains of a hook end with the first one that translates (`nf_nat_inet_fn`).
        if chain.is_nat and (is_done or state.is_untracked or (state.is_masqueraded if is_source else state.is_dnat)):
            return iter([(Verdict.ACCEPT, state)])
        return chain.follow(state)
