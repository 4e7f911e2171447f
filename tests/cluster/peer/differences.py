"""What may become of packets with pyproxy other than with kube-proxy.

One entry stands for each row of docs/differences.md that the packets of the peer tests can show.

Law: an entry allows exactly what its row says, and a test that the row names fails when it is no longer so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network

from tests.cluster.controlplane import SERVICE_CIDRS
from tests.lab import IPAddress

from .fate import Fate
from .modes import NFTABLES, Mode

_SERVICE_NETWORKS = tuple(map(ip_network, SERVICE_CIDRS))


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference that is known and wanted, or at least known."""

    row: str
    """The first words of the row."""
    modes: tuple[Mode, ...]
    is_met: Callable[[Fate], bool]


def _goes_on_to_the_router(fate: Fate) -> bool:
    """Say whether kube-proxy dropped what pyproxy let pass, to the router that has no such network."""
    is_of_services = _is_of_services(fate.packet.destination.to.ip)
    return is_of_services and fate.kube_proxy == {"timeout"} and fate.pyproxy == {"unreachable (ENETUNREACH)"}


def _is_of_services(ip: IPAddress) -> bool:
    return any(ip in network for network in _SERVICE_NETWORKS)


ALLOWED = (Difference("Addresses of the Service ranges that no Service has", (NFTABLES,), _goes_on_to_the_router),)


def is_allowed(mode: Mode, fate: Fate) -> bool:
    """Say whether a difference is one of those in docs/differences.md."""
    return any(mode in known.modes and known.is_met(fate) for known in ALLOWED)
