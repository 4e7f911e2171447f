"""Steady streams of requests, for tests of events that clients must not notice: rollouts, restarts, takeovers.

New connections start at fixed intervals and do not wait for the one before. So a stall shows as the failures that it
causes. A held connection sends its next request after the answer to the one before.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from . import client
from .values import LoadFailure, LoadReport, Probe, Verdict


class Load:
    """One stream of requests; runs until it is stopped."""

    def __init__(self, probe: Probe, per_second: float) -> None:
        """Start in the running event loop."""
        self._probe = probe
        self._interval = 1 / per_second
        self._clock = asyncio.get_running_loop().time
        self._start = self._clock()
        self._requests = 0
        self._replies: Counter[str] = Counter()
        self._failures: list[LoadFailure] = []
        self._in_flight: set[asyncio.Task[None]] = set()
        self._pace = asyncio.create_task(self._run())

    def report(self) -> LoadReport:
        """Return the results so far."""
        return LoadReport(self._requests, dict(self._replies), tuple(self._failures))

    async def stop(self) -> LoadReport:
        """Stop, wait for the requests in flight, and return the results."""
        self._pace.cancel()
        await asyncio.gather(self._pace, *self._in_flight, return_exceptions=True)
        return self.report()

    async def _run(self) -> None:
        due = self._start
        while True:
            task = asyncio.create_task(self._request())
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)
            due += self._interval
            await asyncio.sleep(due - self._clock())

    async def _request(self) -> None:
        at_seconds = self._clock() - self._start
        outcome = await client.send(self._probe)
        self._requests += 1
        if outcome.verdict is Verdict.REPLY and outcome.server:
            self._replies[outcome.server] += 1
        else:
            self._failures.append(LoadFailure(at_seconds, outcome))


class Hold:
    """One open connection with a stream of requests, until it is stopped or the connection fails."""

    def __init__(self, probe: Probe, per_second: float) -> None:
        """Start in the running event loop."""
        self._channel = client.open_channel(probe)
        self._interval = 1 / per_second
        self._clock = asyncio.get_running_loop().time
        self._start = self._clock()
        self._requests = 0
        self._replies: Counter[str] = Counter()
        self._failures: tuple[LoadFailure, ...] = ()
        self._running = asyncio.create_task(self._run())

    def report(self) -> LoadReport:
        """Return the results so far."""
        return LoadReport(self._requests, dict(self._replies), self._failures)

    async def stop(self) -> LoadReport:
        """Close the connection, and return the results."""
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        self._channel.close()
        return self.report()

    async def _run(self) -> None:
        first = outcome = await self._channel.first()
        while outcome.verdict is Verdict.REPLY and outcome.identity == first.identity:
            self._requests += 1
            self._replies[outcome.server or ""] += 1
            await asyncio.sleep(self._interval)
            outcome = await self._channel.again()
        # Answers of another server, or with another translation, are failures, too.
        self._failures = (LoadFailure(self._clock() - self._start, outcome),)
