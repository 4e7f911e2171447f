"""Puts the metrics server together: values from the agent's loop, pages from `serve`.

It is imported only if metrics are enabled, because prometheus_client takes 5 MB.
"""

import asyncio
import json
from collections.abc import Callable, Collection
from dataclasses import replace
from time import time
from wsgiref.types import WSGIApplication

from pyproxy.agent.listen_selectors import follow_selector
from pyproxy.agent.metrics_observer import MetricsObserver
from pyproxy.backends.interface import Backend
from pyproxy.config.config import OPTIONS, Config
from pyproxy.config.grammar import ListenSelector
from pyproxy.model.address import ListenAddress
from pyproxy.serve.exposition import metrics_application
from pyproxy.serve.listeners import HttpService, Listeners
from pyproxy.serve.metrics import Metrics
from pyproxy.serve.pages import HttpPage, application, fixed
from pyproxy.serve.proc_metrics import PacketCounter
from pyproxy.serve.statusz import StatusBoard, status_page

_SLIS = frozenset({"process_start_time_seconds"})
"""Metrics on ``/metrics/slis`` (service level indicators); kube-proxy has only this one."""
_following: set[asyncio.Task[None]] = set()
"""References to tasks: the loop itself has only weak ones."""


def start_metrics(
    config: Config, backend: Backend, node_name: str, listeners: Listeners, failed: Callable[[str], None] | None
) -> MetricsObserver:
    """Start to serve metrics, and return the observer that updates them. Call it in the agent's loop.

    Args:
        config: configuration of the agent.
        backend: proxy mode of the agent.
        node_name: name of the node, for the status page.
        listeners: serve the metrics.
        failed: called in another thread, instead of a log line, if the address cannot be used.
    """
    metrics = Metrics(backend.mode.value, backend.metrics, backend.families)
    for count in backend.packet_counts():
        metrics.registry.register(PacketCounter(count.metric, count.help, count.readers, count.labels))
    board = StatusBoard(backend.mode.value, node_name, time())
    app = metrics_server(metrics, board, replace(config, proxy_mode=backend.mode))

    def listen(addresses: Collection[ListenAddress]) -> None:
        listeners.serve("metrics", HttpService(app, addresses, failed=failed))

    match config.metrics_bind_address:
        case ListenAddress() as address:
            listen([address])
        case ListenSelector() as place:
            following = asyncio.create_task(follow_selector(place, listen))
            _following.add(following)
            following.add_done_callback(_following.discard)
    return MetricsObserver(metrics, board, backend.families)


def metrics_server(metrics: Metrics, board: StatusBoard, config: Config) -> WSGIApplication:
    """Return the application of the metrics port."""
    # All flags with the values in effect, whether they come from flags or files.
    values = ((about.flag, about.grammar, about.value(config)) for about in OPTIONS.values())
    flags = sorted(
        f"{flag} {'' if value is None else grammar.write(value)}".rstrip() for flag, grammar, value in values
    )
    pages = {
        "/configz": lambda: _configuration_page(config),
        "/flagz": fixed("\n".join(["pyproxy flags in effect, for people", "", *flags, ""])),
        "/healthz": fixed("ok"),
        "/proxyMode": fixed(board.mode),
        "/statusz": lambda: status_page(board, time),
    }
    everything = metrics_application(metrics.registry)
    return application(pages, {"/metrics": everything, "/metrics/slis": metrics_application(metrics.registry, _SLIS)})


def _configuration_page(config: Config) -> HttpPage:
    """Return the effective configuration as kube-proxy does, and the options that only pyproxy has, by flag."""
    from pyproxy.config.effective_config import effective_configuration  # noqa: PLC0415  # only for a request

    own = {
        about.flag: about.grammar.write(about.value(config))
        for about in OPTIONS.values()
        if about.own and about.value(config) is not None
    }
    tree = {"kubeproxy.config.k8s.io": effective_configuration(config), "pyproxy.io": own}
    return HttpPage(json.dumps(tree, separators=(",", ":")), "application/json")
