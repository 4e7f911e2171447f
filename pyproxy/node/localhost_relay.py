"""Serves TCP and UDP node ports on 127.0.0.1 and ::1: a relay in user space, as kube-proxy 1.37's `localnodeportproxy`.

It runs in one thread with an event loop of its own, so that syncs and traffic do not delay each other. The numbers of
connections and flows are bounded.
"""

import asyncio
import concurrent.futures
import resource
import threading
from collections.abc import Mapping

from pyproxy.model.address import Family
from pyproxy.model.names import Protocol
from pyproxy.node.localhost_port import RelayCounts, Site
from pyproxy.node.localhost_tcp import TcpPort
from pyproxy.node.localhost_udp import IDLE_SECONDS, UdpFlows, UdpPort
from pyproxy.plan.localhost import LocalPort, RelayTarget

_RETRY_SECONDS = 5.0
# Over all ports; one more is reset at once.
_MOST_CONNECTIONS = 2048
# Over all ports; one more ends the flow that was idle for the longest time.
_MOST_FLOWS = 2048
# Two sockets, and both ends of two pipes. A flow has one socket.
_DESCRIPTORS_OF_CONNECTION = 6


class Relay:
    """The relay of one agent: both families in one thread, which starts with the first change.

    Args:
        counts: counts listeners.
        retry_seconds: time between two attempts to listen on a port that another program has.
        most_connections: maximum number of TCP connections; lower if the process may open few files.
        most_flows: maximum number of UDP flows; lower in the same case.
        idle_seconds: time without a datagram after which a UDP flow ends.
    """

    def __init__(
        self,
        counts: RelayCounts,
        retry_seconds: float = _RETRY_SECONDS,
        most_connections: int = _MOST_CONNECTIONS,
        most_flows: int = _MOST_FLOWS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._counts = counts
        self._retry_seconds = retry_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ports: dict[tuple[Family, LocalPort], TcpPort | UdpPort] = {}
        # Half of the files that the process may open are left for its own work, such as the pipes of iptables-restore.
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most_connections = min(most_connections, max(1, soft * 3 // 8 // _DESCRIPTORS_OF_CONNECTION))
        self.most_flows = min(most_flows, max(1, soft // 8))
        self._room = asyncio.BoundedSemaphore(self.most_connections)
        self._flows = UdpFlows(self.most_flows, idle_seconds)

    def change(
        self, family: Family, targets: Mapping[LocalPort, RelayTarget | None]
    ) -> "concurrent.futures.Future[None]":
        """Serve node ports with these targets, in addition to those of earlier calls; None ends a node port.

        Returns a future, which is done when each new port listens or its first attempt to listen has failed.

        Open TCP connections keep their endpoint until they end or their port is no longer served. UDP flows end when their
        endpoint no longer serves.
        """
        if not targets:
            nothing: concurrent.futures.Future[None] = concurrent.futures.Future()
            nothing.set_result(None)
            return nothing
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            # A daemon: a crash of the agent must not leave a process that still relays.
            self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._change(family, dict(targets)), self._loop)

    def close(self) -> None:
        """End all connections and stop. Call it in the thread that called `change`."""
        if self._loop is None or self._thread is None:
            return

        async def end_all() -> None:
            tasks = [task for port in self._ports.values() for task in port.end()]
            self._ports.clear()
            await asyncio.gather(*tasks, return_exceptions=True)

        # Cancelled tasks close their sockets only when the loop runs them, so the loop stops after them.
        asyncio.run_coroutine_threadsafe(end_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = None

    async def _change(self, family: Family, targets: Mapping[LocalPort, RelayTarget | None]) -> None:
        for port, target in targets.items():
            key = (family, port)
            if target is None:
                known = self._ports.pop(key, None)
                if known is not None:
                    known.end()
            elif key in self._ports:
                # The listener stays: closing it would refuse connections for a moment.
                self._ports[key].retarget(target)
            else:
                site = Site(family, *port, self._retry_seconds, self._counts)
                is_tcp = site.protocol is Protocol.TCP
                self._ports[key] = TcpPort(site, target, self._room) if is_tcp else UdpPort(site, target, self._flows)
        # New ports' tasks are in the loop's queue, which is first in, first out: after this each has tried to listen.
        await asyncio.sleep(0)
