"""The reasons for which the agent ends: a signal, a changed configuration file, or a failure. The first reason counts."""

import asyncio
import logging
import signal

logger = logging.getLogger(__name__)


class ShutdownRequestedError(Exception):
    """Ends the task group of the agent."""


class Shutdown:
    """The end of the agent. Create it in the agent's loop: it handles SIGTERM and SIGINT from then on."""

    def __init__(self) -> None:
        self.status = 0
        """Exit status; valid after `wait`."""
        self._loop = asyncio.get_running_loop()
        self._reason: asyncio.Future[tuple[int, str]] = self._loop.create_future()
        # SIGINT for a terminal, SIGTERM from systemd and the kubelet.
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._end, 0, "stopping on a signal; rules stay in place")

    def restart(self, reason: str) -> None:
        """End the agent so that its supervisor starts it again; may be called in any thread."""
        self._loop.call_soon_threadsafe(self._end, 1, f"{reason}: ending for a restart; rules stay in place")

    def fail(self, reason: str) -> None:
        """End the agent because of a failure; may be called in any thread."""
        self._loop.call_soon_threadsafe(self._end, 1, f"{reason}; ending, rules stay in place")

    async def wait(self) -> None:
        """Wait for the first reason, log it and set `status`.

        Raises:
            ShutdownRequestedError: always, so that the task group ends.
        """
        # The error ends the group, which cancels all other tasks; none of them has to ask whether the agent is to end.
        self.status, reason = await self._reason
        logger.log(logging.ERROR if self.status else logging.INFO, "%s", reason)
        raise ShutdownRequestedError

    def _end(self, status: int, reason: str) -> None:
        # A second signal must not raise InvalidStateError in the loop.
        if not self._reason.done():
            self._reason.set_result((status, reason))
