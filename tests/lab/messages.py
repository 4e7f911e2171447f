"""The requests that the lab sends to workers.

Each request class names the type of its answer. Requests are pickled and numbered; answers may arrive in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from .values import LoadReport, Outcome, Ports, Probe

AnswerT_co = TypeVar("AnswerT_co", covariant=True)


class Request(Generic[AnswerT_co]):
    """A request whose answer is an `AnswerT_co`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Serve(Request[None]):
    """Serve on these ports as well; answered once all are open."""

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
    """Send a probe and keep its socket open; answered with the number of the socket, and the outcome."""

    probe: Probe


@dataclass(frozen=True, slots=True)
class Ask(Request[Outcome]):
    """Send one more question through an open socket."""

    channel: int


@dataclass(frozen=True, slots=True)
class Close(Request[None]):
    """Close an open socket."""

    channel: int


@dataclass(frozen=True, slots=True)
class StartLoad(Request[int]):
    """Send a probe repeatedly; answered with the number of the load."""

    probe: Probe
    per_second: float
    is_held: bool
    """Whether all requests use one connection."""


@dataclass(frozen=True, slots=True)
class ReportLoad(Request[LoadReport]):
    """Return the results of a load so far."""

    load: int


@dataclass(frozen=True, slots=True)
class StopLoad(Request[LoadReport]):
    """Stop a load, wait for the requests in flight, and return the results."""

    load: int


@dataclass(frozen=True, slots=True)
class SpawnRequest:
    """Start a worker: sent to the fork server, together with the worker's control socket."""

    name: str
    namespace_path: str
    sysctls: dict[str, str]


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer to a request that raised an exception: a bug in the lab or in the test."""

    reason: str
