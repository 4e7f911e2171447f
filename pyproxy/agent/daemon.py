"""Starts the agent and ends it: signals, process settings, and which source it listens to."""

import asyncio
import logging
import resource
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pyproxy import __version__
from pyproxy.agent.agent import Agent
from pyproxy.agent.config_watch import changed_file, texts_of
from pyproxy.agent.health import AgentHealth
from pyproxy.agent.observer import Observer
from pyproxy.agent.shutdown import Shutdown
from pyproxy.agent.startup_summary import startup_summary
from pyproxy.backends.interface import Backend
from pyproxy.backends.registry import backend_class, open_backend
from pyproxy.config.config import Config, ProxyMode
from pyproxy.config.settings import ResolvedSettings
from pyproxy.linux.sysctl import ConntrackLimits, apply_conntrack_limits
from pyproxy.linux.systemd_notify import notify
from pyproxy.model.change import Kind, Object, ObjectChange, Put, Removed, Replaced
from pyproxy.model.event import event_extra
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.request_record import RequestRecord
from pyproxy.node.node_name import own_node_name
from pyproxy.serve.listeners import Listeners
from pyproxy.takeover.running_proxy import wait_for_running_proxy
from pyproxy.takeover.stale_rules import remove_stale

if TYPE_CHECKING:
    from pyproxy.kubeapi.access import AccessSettings

logger = logging.getLogger(__name__)

_NO_MODE = (
    "no proxy mode is set: using iptables. From Kubernetes 1.40 on the default is nftables;"
    " to keep iptables set --proxy-mode=iptables, or mode: iptables in the configuration file"
)


def run(settings: ResolvedSettings) -> int:
    """Run the agent until a signal ends it; return the exit status. Rules are left in place.

    Raises:
        ConfigError: the configuration asks for what is not to be had here, or leads to no API server.
    """
    config = settings.config
    if config.init_only:
        return asyncio.run(_prepare(config))
    if not config.manifests:
        _require_access(config)
    _set_oom_score(config.oom_score_adj)
    _raise_descriptor_limit()
    apply_conntrack_limits(_conntrack_limits(config))
    try:
        return asyncio.run(_run(settings))
    except ExceptionGroup as group:
        raise _first_error(group) from group


def _require_access(config: Config) -> None:
    """Let a configuration pass that says where the API server is, before anything is changed for its sake.

    Raises:
        ConfigError: it does not.
    """
    from pyproxy.kubeapi.kubeconfig import read_settings  # noqa: PLC0415  # files have no use for it

    read_settings(_access_settings(config))


def _access_settings(config: Config) -> "AccessSettings":
    from pyproxy.kubeapi import access  # noqa: PLC0415  # see above

    return access.AccessSettings(kubeconfig=config.kubeconfig, master=config.master, api_servers=config.api_servers)


def _first_error(error: BaseException) -> BaseException:
    """Return what ended the agent: where one of several tasks fails the others are cancelled."""
    return _first_error(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


async def _prepare(config: Config) -> int:
    """Do what an agent without full privileges could not: it finds these settings as it wants them, and leaves them."""
    apply_conntrack_limits(_conntrack_limits(config))
    backend = await open_backend(config)
    backend.prepare()
    logger.info("kernel settings are done; --init-only asks for no more")
    return 0


async def _run(settings: ResolvedSettings) -> int:
    config, shutdown = settings.config, Shutdown()
    watching = asyncio.create_task(_watch_configuration(settings, shutdown))
    stopping = asyncio.create_task(shutdown.reached())
    if not await _comes_before(stopping, wait_for_running_proxy(config)):
        return stopping.result()
    node_name = own_node_name(config)
    listeners = Listeners()
    health = AgentHealth(config, listeners)
    early = _EarlyChanges(config.proxy_mode, health)
    follow = _follow_files if config.manifests else _follow_api
    following = asyncio.create_task(follow(settings, node_name, early))
    backend = await open_backend(config)
    logger.info("%s", startup_summary(settings, node_name, backend.mode, backend.families))
    failed = shutdown.fail if config.bind_address_hard_fail else None
    observer = _observer(config, backend, node_name, listeners, failed)
    agent = Agent(config, backend, node_name, observer, health)
    early.open(agent, observer, backend.mode)
    listeners.start()
    health.serve(observer.answered, failed)
    running = asyncio.create_task(agent.run(following, partial(remove_stale, config, backend)))
    await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
    notify("STOPPING=1")
    watching.cancel()
    if running.done():
        stopping.cancel()
        running.result()
        return 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return await stopping


async def _comes_before(end: asyncio.Task[int], event: Coroutine[None, None, None]) -> bool:
    """Wait for an event; say whether it came before the end."""
    waiting = asyncio.create_task(event)
    await asyncio.wait((waiting, end), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return not end.done()


async def _watch_configuration(settings: ResolvedSettings, shutdown: Shutdown) -> None:
    """End the agent when a file that says how it is to work says something else."""
    texts = settings.texts | texts_of(settings.config.kubeconfig)
    shutdown.restart(f"{await changed_file(texts)} has changed")


def _observer(
    config: Config, backend: Backend, node_name: str, listeners: Listeners, failed: Callable[[str], None] | None
) -> Observer:
    """Return who is told of the agent's work, with its metrics server started."""
    if config.metrics_bind_address is None:
        return Observer()
    from pyproxy.agent.metrics_server import start_metrics  # noqa: PLC0415  # 5 MB

    return start_metrics(config, backend, node_name, listeners, failed)


class _EarlyChanges:
    """Takes what a source tells, also before there is an agent: to try the kernel takes as long as the first lists."""

    def __init__(self, mode: ProxyMode, health: AgentHealth) -> None:
        self._agent: Agent | None = None
        self._health = health
        self._observer = Observer()
        self._early: list[ObjectChange] = []
        self._notes: list[Callable[[Observer], None]] = []
        """What an observer is to be told, before there is one."""
        self.wants_service_cidrs: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Whether the mode makes use of ServiceCIDRs; known at once, unless the kernel decides on the mode."""
        if mode is not ProxyMode.AUTO:
            self._choose(mode)

    def _choose(self, mode: ProxyMode) -> None:
        if not self.wants_service_cidrs.done():
            self.wants_service_cidrs.set_result(backend_class(mode).follows_service_cidrs)

    def open(self, agent: Agent, observer: Observer, mode: ProxyMode) -> None:
        """Hand over what came so far, and from now on at once."""
        self._choose(mode)
        self._agent, self._observer = agent, observer
        while self._notes:
            self._notes.pop(0)(observer)
        while self._early:
            agent.deliver(self._early.pop(0))

    def deliver(self, change: ObjectChange) -> None:
        """Take a change."""
        if self._agent is None:
            self._early.append(change)
        else:
            self._agent.deliver(change)

    def requested(self, exchange: RequestRecord) -> None:
        """Take note of a request to the API server."""
        self._note(lambda observer: observer.requested(exchange))

    def watched(self, kind: Kind, reason: str) -> None:
        """Take note of why objects of a kind do not arrive, or that they do."""
        self._health.watched(kind, reason)
        self._note(lambda observer: observer.watched(kind, reason))

    def _note(self, tell: Callable[[Observer], None]) -> None:
        if self._agent is None:
            self._notes.append(tell)
        else:
            tell(self._observer)

    def last_good(self, kind: Kind, name: NamespacedName) -> Object | None:
        """Return what is known of an object; see `Agent`."""
        return self._agent.last_good(kind, name) if self._agent else None


def log_start(settings: ResolvedSettings, node_name: str) -> None:
    """Log the start, and warn where the mode comes from a default that will change; both become Events of the Node."""
    node = NamespacedName("", node_name)
    logger.info(
        "pyproxy %s starts on node %s", __version__, node, extra=event_extra("Node", node, "Starting", "StartPyproxy")
    )
    if "proxy_mode" not in settings.origins:
        # Reason and moment are kube-proxy 1.37's (``cmd/kube-proxy/app/server_linux.go``, createProxier).
        event = event_extra("Node", node, "KubeProxyDefaultMode", "StartPyproxy")
        logger.warning(_NO_MODE, extra=event)


async def _follow_files(settings: ResolvedSettings, node_name: str, early: _EarlyChanges) -> None:
    """Tell the agent what files say, for as long as both live."""
    from pyproxy.manifests.files import FileSource  # noqa: PLC0415  # YAML and no HTTP, or the other way round

    config = settings.config
    log_start(settings, node_name)
    async for change in FileSource(config.manifests, proxy_name=config.service_proxy_name).changes():
        own = _without_other_nodes(change, node_name)
        if own is not None:
            early.deliver(own)


def _without_other_nodes(change: ObjectChange, node_name: str) -> ObjectChange | None:
    """Return what a change means to this node: files hold every Node, where the API server is asked for one."""
    match change:
        case Put(object=Node() as node):
            return change if node.name == node_name else None
        case Removed(kind=Kind.NODE, name=name):
            return change if name.name == node_name else None
        case Replaced(kind=Kind.NODE, objects=nodes):
            return Replaced(Kind.NODE, tuple(node for node in nodes if node.name == node_name))
    return change


async def _follow_api(settings: ResolvedSettings, node_name: str, early: _EarlyChanges) -> None:
    """Tell the agent what the API server says, for as long as both live."""
    from pyproxy.kubeapi import access  # noqa: PLC0415  # YAML and no HTTP, or the other way round
    from pyproxy.kubeapi.load_access import load_access  # noqa: PLC0415  # see above

    config = settings.config
    access_settings = _access_settings(config)
    # An exec plugin works while this process imports the rest, and that while the kernel is being tried.
    first = [asyncio.create_task(load_access(access_settings))]
    first[0].add_done_callback(lambda found: found.cancelled() or found.exception())  # which may never be asked for
    api = await asyncio.to_thread(import_module, "pyproxy.kubeapi.api")

    async def find_access() -> access.Access:
        return await (first.pop() if first else load_access(access_settings))

    handler = api.EventHandler(asyncio.get_running_loop())
    logging.getLogger("pyproxy").addHandler(handler)
    log_start(settings, node_name)
    store = api.Store(
        deliver=early.deliver,
        last_good=early.last_good,
        watched=early.watched,
        requested=early.requested,
        events=api.EventSender(handler, node_name),
    )
    watched = api.Watched(
        node_name=node_name, service_cidrs=early.wants_service_cidrs, proxy_name=config.service_proxy_name
    )
    await api.ApiSource(find_access, watched, store).run()


def _conntrack_limits(config: Config) -> ConntrackLimits:
    return ConntrackLimits(
        max_per_core=config.conntrack_max_per_core,
        min=config.conntrack_min,
        tcp_timeout_established_seconds=config.conntrack_tcp_timeout_established_seconds,
        tcp_timeout_close_wait_seconds=config.conntrack_tcp_timeout_close_wait_seconds,
        tcp_be_liberal=config.conntrack_tcp_be_liberal,
        udp_timeout_seconds=config.conntrack_udp_timeout_seconds,
        udp_timeout_stream_seconds=config.conntrack_udp_timeout_stream_seconds,
    )


def _raise_descriptor_limit() -> None:
    """Take all descriptors that we may have, as Go's run time does: whoever makes Services decides how many sockets we need."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # what there is must do
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _set_oom_score(score: int) -> None:
    try:
        Path("/proc/self/oom_score_adj").write_text(str(score))
    except OSError as error:
        logger.warning("--oom-score-adj: %d cannot be set: %s", score, error.strerror)
