"""Why the agent ends: a signal, a configuration file that changed, or what it was told to end for. The first counts."""

import asyncio
import logging
import signal

logger = logging.getLogger(__name__)


class Shutdown:
    """The end of the agent, before it has come; to be made in its loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reason: asyncio.Future[tuple[int, str]] = self._loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._end, 0, "stopping on a signal; rules stay in place")

    def restart(self, reason: str) -> None:
        """End, so that a supervisor starts us anew; may be called from any thread."""
        self._loop.call_soon_threadsafe(self._end, 1, f"{reason}: ending for a restart; rules stay in place")

    def fail(self, reason: str) -> None:
        """End because of what cannot be done; may be called from any thread."""
        self._loop.call_soon_threadsafe(self._end, 1, f"{reason}; ending, rules stay in place")

    async def reached(self) -> int:
        """Wait until the agent is to end; say why, and return its exit status."""
        status, reason = await self._reason
        logger.log(logging.ERROR if status else logging.INFO, "%s", reason)
        return status

    def _end(self, status: int, reason: str) -> None:
        if not self._reason.done():
            self._reason.set_result((status, reason))
