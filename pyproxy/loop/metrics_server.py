"""What the metrics server serves, put together: values from the loop, pages from `serve`.

It is imported only where metrics are wanted: the library behind them takes 5 MB.
"""

from time import time
from wsgiref.types import WSGIApplication

from pyproxy.config import Config
from pyproxy.loop.backend import Backend
from pyproxy.loop.metrics_observer import MetricsObserver
from pyproxy.serve.exporter import Exporter
from pyproxy.serve.exposition import metrics_application
from pyproxy.serve.metrics import Metrics
from pyproxy.serve.pages import application, fixed
from pyproxy.serve.statusz import Board, status_page

_SLIS = frozenset({"process_start_time_seconds"})
"""What Kubernetes calls service level indicators; kube-proxy has no other."""


def start_metrics(config: Config, backend: Backend, node_name: str) -> MetricsObserver:
    """Start to serve metrics, and return who is to be told of the agent's work."""
    metrics = Metrics(backend.mode.value, backend.families)
    board = Board(backend.mode.value, node_name, time())
    if config.metrics_bind_address is not None:
        Exporter(config.metrics_bind_address, metrics_server(metrics, board)).start()
    return MetricsObserver(metrics, board, backend.mode, backend.families)


def metrics_server(metrics: Metrics, board: Board) -> WSGIApplication:
    """Return what answers on the metrics port."""
    pages = {
        "/healthz": fixed("ok"),
        "/proxyMode": fixed(board.mode),
        "/statusz": lambda: status_page(board, time),
    }
    everything = metrics_application(metrics.registry)
    return application(pages, {"/metrics": everything, "/metrics/slis": metrics_application(metrics.registry, _SLIS)})
