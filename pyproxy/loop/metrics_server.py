"""What the metrics server serves, put together: values from the loop, pages from `serve`.

It is imported only where metrics are wanted: the library behind them takes 5 MB.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from time import time
from wsgiref.types import WSGIApplication

from pyproxy.config import OPTIONS, Config
from pyproxy.loop.backend import Backend
from pyproxy.loop.metrics_observer import MetricsObserver
from pyproxy.serve.exporter import Exporter
from pyproxy.serve.exposition import metrics_application
from pyproxy.serve.metrics import Metrics
from pyproxy.serve.pages import Page, application, fixed
from pyproxy.serve.statusz import Board, status_page

_SLIS = frozenset({"process_start_time_seconds"})
"""What Kubernetes calls service level indicators; kube-proxy has no other."""


def start_metrics(config: Config, backend: Backend, node_name: str, failed: Callable[[str], None]) -> MetricsObserver:
    """Start to serve metrics, and return who is to be told of the agent's work.

    Args:
        config: of the agent.
        backend: its mode.
        node_name: where it is.
        failed: told, in another thread, if the address cannot be had.
    """
    metrics = Metrics(backend.mode.value, backend.families)
    board = Board(backend.mode.value, node_name, time())
    if config.metrics_bind_address is not None:
        told = replace(config, proxy_mode=backend.mode)
        Exporter(config.metrics_bind_address, metrics_server(metrics, board, told), failed=failed).start()
    return MetricsObserver(metrics, board, backend.mode, backend.families)


def metrics_server(metrics: Metrics, board: Board, config: Config) -> WSGIApplication:
    """Return what answers on the metrics port."""
    pages = {
        "/configz": lambda: _configuration_page(config),
        "/healthz": fixed("ok"),
        "/proxyMode": fixed(board.mode),
        "/statusz": lambda: status_page(board, time),
    }
    everything = metrics_application(metrics.registry)
    return application(pages, {"/metrics": everything, "/metrics/slis": metrics_application(metrics.registry, _SLIS)})


def _configuration_page(config: Config) -> Page:
    """Write the effective configuration as kube-proxy does, and beside it what is pyproxy's own, by flag."""
    from pyproxy.source.effective_config import effective_configuration  # noqa: PLC0415  # only where somebody asks

    own = {
        about.flag: about.grammar.write(getattr(config, name))
        for name, about in OPTIONS.items()
        if about.own and getattr(config, name) is not None
    }
    tree = {"kubeproxy.config.k8s.io": effective_configuration(config), "pyproxy.io": own}
    return Page(json.dumps(tree, separators=(",", ":")), "application/json")
