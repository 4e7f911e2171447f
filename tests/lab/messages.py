"""What the lab may ask of the resident of a namespace.

Law: each request names the type of its answer. Requests travel as pickles, each with a number; answers may come in any
order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from .values import LoadReport, Outcome, Ports, Probe

AnswerT_co = TypeVar("AnswerT_co", covariant=True)


class Request(Generic[AnswerT_co]):
    """A request that is answered by an `AnswerT_co`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Serve(Request[None]):
    """Answer on these ports too; answered once all are open."""

    ports: Ports


@dataclass(frozen=True, slots=True)
class StopServing(Request[None]):
    """Close these ports."""

    ports: Ports | None
    """None means all."""
    keep_connections: bool


@dataclass(frozen=True, slots=True)
class Send(Request[tuple[Outcome, ...]]):
    """Send all the probes at once."""

    probes: tuple[Probe, ...]


@dataclass(frozen=True, slots=True)
class Open(Request[tuple[int, Outcome]]):
    """Send a probe and keep its socket; answered by the socket's number."""

    probe: Probe


@dataclass(frozen=True, slots=True)
class Ask(Request[Outcome]):
    """Ask again through a kept socket."""

    channel: int


@dataclass(frozen=True, slots=True)
class Close(Request[None]):
    """Close a kept socket."""

    channel: int


@dataclass(frozen=True, slots=True)
class StartLoad(Request[int]):
    """Send a probe again and again; answered by the number of the load."""

    probe: Probe
    per_second: float


@dataclass(frozen=True, slots=True)
class ReportLoad(Request[LoadReport]):
    """Tell what the load met so far."""

    load: int


@dataclass(frozen=True, slots=True)
class StopLoad(Request[LoadReport]):
    """Send no more, wait for what is in flight, and tell all."""

    load: int


@dataclass(frozen=True, slots=True)
class Birth:
    """Ask the zygote for a resident."""

    name: str
    namespace_path: str
    sysctls: dict[str, str]


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed by a fault of the lab or of its user."""

    reason: str
