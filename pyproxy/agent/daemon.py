"""Starts the agent, and ends it on a signal, on a changed configuration file or on an error."""

import asyncio
import logging
import resource
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from pyproxy.agent.agent import Agent
from pyproxy.agent.config_watch import changed_file, texts_of
from pyproxy.agent.health import AgentHealth
from pyproxy.agent.observer import Observer
from pyproxy.agent.prepare import apply_limits
from pyproxy.agent.shutdown import Shutdown, ShutdownRequestedError
from pyproxy.agent.sources import EventQueue, follow_source, require_api_access
from pyproxy.agent.startup_summary import startup_summary
from pyproxy.backends.interface import Backend
from pyproxy.backends.registry import backend_class, open_backend
from pyproxy.config.config import Config, ProxyMode
from pyproxy.config.settings import ResolvedSettings
from pyproxy.errors import ApplyError
from pyproxy.linux.systemd_notify import notify
from pyproxy.model.tracker import Tracker
from pyproxy.node.node_name import own_node_name
from pyproxy.serve.control import ControlServer
from pyproxy.serve.listeners import Listeners
from pyproxy.takeover.running_proxy import wait_for_running_proxy
from pyproxy.takeover.stale_rules import remove_stale

logger = logging.getLogger(__name__)


def run(settings: ResolvedSettings) -> int:
    """Run the agent until a signal ends it; return the exit status. Rules are left in place.

    Raises:
        ConfigError: this node does not support the configuration, or it leads to no API server.
    """
    config = settings.config
    if not config.manifests:
        require_api_access(config)  # before anything is changed
    # Early: if the kernel ends the agent for lack of memory, the rules stay, but changes do not arrive any more.
    try:
        Path("/proc/self/oom_score_adj").write_text(str(config.oom_score_adj))
    except OSError as error:
        # Only a process with CAP_SYS_RESOURCE may lower its score. Without it the default is not worth a warning.
        level = logging.INFO if config.oom_score_adj == Config().oom_score_adj else logging.WARNING
        logger.log(level, "--oom-score-adj: %d cannot be set: %s", config.oom_score_adj, error.strerror)
    # Raise the limit of descriptors as Go's runtime does: each health check node port needs sockets.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # the limit stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    apply_limits(config)
    try:
        return asyncio.run(_run(settings))
    except ExceptionGroup as group:
        raise _first_error(group) from group


async def _run(settings: ResolvedSettings) -> int:
    """Start the agent in phases and run it; the first error, or a request to shut down, ends all tasks of the group."""
    config, shutdown = settings.config, Shutdown()
    try:
        async with asyncio.TaskGroup() as tasks:
            # Phase 1: from here on signals and configuration files can end the agent, also while it waits for a proxy.
            # No rule has changed yet, so an end in this phase leaves the rules of the other proxy as they are.
            tasks.create_task(shutdown.wait())
            tasks.create_task(_watch_configuration(settings, shutdown))
            await wait_for_running_proxy(config)

            # Phase 2: serve health. The first probe of the kubelet may arrive half a second after the start, and a refused
            # connection would delay a rollout by the period of the probe and leave a warning Event.
            listeners, observer = Listeners(), Observer()
            health = AgentHealth(config, listeners)
            failed = shutdown.fail if config.bind_address_hard_fail else None

            def answered(path: str, code: int) -> None:
                observer.answered(path, code)  # the one of phase 4; answers until then are in no metric

            health.serve(answered, failed)
            listeners.start()

            # Phase 3: list objects and test the kernel at the same time. What is listed waits in the queue.
            node_name = own_node_name(config)
            events, tracker = EventQueue(), Tracker()
            opening = tasks.create_task(open_backend(config))
            service_cidrs = tasks.create_task(_follows_service_cidrs(config, opening))
            tasks.create_task(follow_source(settings, node_name, events, tracker, service_cidrs))
            backend = await opening
            summary = startup_summary(settings, node_name, backend.mode, backend.families)
            logger.info("%s", summary, extra={"mode": backend.mode.value})

            # Phase 4: serve metrics. Only now is the mode known, which names and labels of metrics depend on.
            observer = _observer(config, backend, node_name, listeners, failed)

            # Phase 5: empty the queue, and program the kernel once both lists are complete.
            # The control socket is last, because the answer to each of its requests needs an agent.
            agent = Agent(config, backend, node_name, tracker=tracker, observer=observer, health=health)
            if config.control_socket:
                tasks.create_task(ControlServer(config.control_socket, partial(_answer, agent)).run())
            await agent.run(events, partial(remove_stale, config, backend))
    except* ShutdownRequestedError:
        pass
    finally:
        # From here on systemd counts TimeoutStopSec, also if the agent ends by itself (sd_notify(3)).
        notify("STOPPING=1")
    return shutdown.status


async def _watch_configuration(settings: ResolvedSettings, shutdown: Shutdown) -> None:
    """End the agent when a file that it was configured by has changed."""
    texts = settings.texts | texts_of(settings.config.kubeconfig)
    shutdown.restart(f"{await changed_file(texts)} has changed")


async def _follows_service_cidrs(config: Config, opening: Awaitable[Backend]) -> bool:
    """Return whether the mode needs ServiceCIDRs. That is known at once, unless the kernel decides on the mode."""
    if config.proxy_mode is ProxyMode.AUTO:
        return (await opening).follows_service_cidrs
    return backend_class(config.proxy_mode).follows_service_cidrs


async def _answer(agent: Agent, request: Mapping[str, object]) -> bytes:
    """Answer a request of the control socket.

    Raises:
        ValueError: the request is not known.
    """
    # Unknown fields are from a newer command, which an answer that ignores them could mislead.
    match request:
        case {"command": "services", **rest} if not rest:
            return msgspec.json.encode(await agent.services())
        case {"command": "objects", **rest} if not rest:
            return await agent.objects()
        case {"command": "drift", **rest} if not rest:
            try:
                return msgspec.json.encode(await agent.drift())
            except ApplyError as error:
                message = f"the kernel cannot be read: {error}"
                raise ValueError(message) from error
    message = "unknown request; agent and command have different versions"
    raise ValueError(message)


def _observer(
    config: Config, backend: Backend, node_name: str, listeners: Listeners, failed: Callable[[str], None] | None
) -> Observer:
    """Return the observer of the agent; with metrics, after their server was added to the listeners."""
    if config.metrics_bind_address is None:
        return Observer()
    from pyproxy.agent.metrics_server import start_metrics  # noqa: PLC0415  # 5 MB

    return start_metrics(config, backend, node_name, listeners, failed)


def _first_error(error: BaseException) -> BaseException:
    """Return the error that ended a group of tasks; the other tasks were cancelled."""
    return _first_error(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
