"""Where the agent gets its objects from: the API server, or files. Both put what they receive into the agent's queue.

A source starts before the agent, because the first lists take as long as the tests of the kernel.
"""

import asyncio
import logging
from collections.abc import Awaitable
from importlib import import_module
from typing import TYPE_CHECKING

from pyproxy import __version__
from pyproxy.config.config import Config
from pyproxy.config.settings import ResolvedSettings
from pyproxy.linux.file_notifications import FileNotifications
from pyproxy.model.change import Kind, Put, Removed, Replaced, SourceEvent, WatchState
from pyproxy.model.event import event_extra
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.tracker import Tracker

if TYPE_CHECKING:
    from pyproxy.kubeapi.access import Access, AccessSettings

logger = logging.getLogger(__name__)

EventQueue = asyncio.Queue[SourceEvent]
"""What a source received, in order. The agent empties it."""

_NO_MODE = (
    "no proxy mode is set: using iptables. From Kubernetes 1.40 on the default is nftables;"
    " to keep iptables set --proxy-mode=iptables, or mode: iptables in the configuration file"
)


def require_api_access(config: Config) -> None:
    """Check that the configuration names an API server and how to reach it.

    Raises:
        ConfigError: it does not.
    """
    from pyproxy.kubeapi.kubeconfig import read_settings  # noqa: PLC0415  # not needed with files

    read_settings(_access_settings(config))


async def follow_source(
    settings: ResolvedSettings, node_name: str, events: EventQueue, tracker: Tracker, service_cidrs: Awaitable[bool]
) -> None:
    """Log the start, then put everything that the configured source receives into a queue, until cancelled.

    Args:
        settings: configure the API server or the files.
        node_name: of this node's Node object.
        events: takes what is received.
        tracker: has the last known version of an object, for one whose newest version cannot be decoded.
        service_cidrs: returns whether the proxy mode needs ServiceCIDRs; may wait for tests of the kernel.

    Raises:
        ConfigError: the configuration does not lead to an API server.
    """
    config = settings.config
    if not config.manifests:
        await _follow_api(settings, node_name, events, tracker, service_cidrs)
        return
    from pyproxy.manifests.files import FileSource  # noqa: PLC0415  # YAML, which the API does not need

    log_start(settings, node_name)
    with FileNotifications() as notifications:
        source = FileSource(
            config.manifests,
            proxy_name=config.service_proxy_name,
            problems_changed=events.put_nowait,
            notifications=notifications,
        )
        async for change in source.changes():
            # Files have all Nodes, while the API server sends one; the tracker keeps one.
            match change:
                case Put(object=Node(name=name)) | Removed(kind=Kind.NODE, name=NamespacedName(name=name)):
                    if name == node_name:
                        events.put_nowait(change)
                case Replaced(kind=Kind.NODE, objects=nodes):
                    events.put_nowait(Replaced(Kind.NODE, tuple(node for node in nodes if node.name == node_name)))
                case _:
                    events.put_nowait(change)


async def _follow_api(
    settings: ResolvedSettings, node_name: str, events: EventQueue, tracker: Tracker, service_cidrs: Awaitable[bool]
) -> None:
    from pyproxy.kubeapi.load_access import load_access  # noqa: PLC0415  # HTTP, which files do not need

    config = settings.config
    access_settings = _access_settings(config)
    # An exec plugin runs while this process imports the HTTP client, and that happens while the kernel is tested.
    first = [asyncio.create_task(load_access(access_settings))]
    first[0].add_done_callback(lambda done: done.cancelled() or done.exception())  # the result may never be used
    api = await asyncio.to_thread(import_module, "pyproxy.kubeapi.api")

    async def find_access() -> "Access":
        return await (first.pop() if first else load_access(access_settings))

    # From here on log lines with an Event become Events, also the line of the start.
    handler = api.EventHandler(asyncio.get_running_loop())
    logging.getLogger("pyproxy").addHandler(handler)
    log_start(settings, node_name)
    store = api.Store(
        deliver=events.put_nowait,
        last_good=tracker.known,
        watched=lambda kind, reason: events.put_nowait(WatchState(kind, reason)),
        problems_changed=events.put_nowait,
        requested=events.put_nowait,
        events=api.EventSender(handler, node_name),
    )
    watched = api.Watched(node_name=node_name, service_cidrs=service_cidrs, proxy_name=config.service_proxy_name)
    await api.ApiSource(find_access, watched, store).run()


def _access_settings(config: Config) -> "AccessSettings":
    from pyproxy.kubeapi import access  # noqa: PLC0415  # not needed with files

    return access.AccessSettings(kubeconfig=config.kubeconfig, master=config.master, api_servers=config.api_servers)


def log_start(settings: ResolvedSettings, node_name: str) -> None:
    """Log the start, and warn if the mode is a default that will change. Both become Events of the Node."""
    node = NamespacedName("", node_name)
    logger.info(
        "pyproxy %s starts on node %s", __version__, node, extra=event_extra("Node", node, "Starting", "StartPyproxy")
    )
    if "proxy_mode" not in settings.origins:
        # Reason and condition are kube-proxy 1.37's (``cmd/kube-proxy/app/server_linux.go``, createProxier).
        event = event_extra("Node", node, "KubeProxyDefaultMode", "StartPyproxy")
        logger.warning(_NO_MODE, extra=event)
