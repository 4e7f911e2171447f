"""Puts the metrics server together: values from the agent's loop, pages from `serve`.

It is imported only if metrics are enabled, because prometheus_client takes 5 MB.
"""

import asyncio
import json
from collections.abc import Callable, Collection
from dataclasses import replace
from time import time
from wsgiref.types import WSGIApplication

import msgspec

from pyproxy.agent.listen_selectors import follow_selector
from pyproxy.agent.metrics_observer import MetricsObserver
from pyproxy.agent.status import StatusReporter
from pyproxy.agent.status_board import StatusBoard
from pyproxy.agent.status_doctor import DoctorRuns, doctor_command
from pyproxy.backends.interface import Backend
from pyproxy.config.config import OPTIONS, Config
from pyproxy.config.grammar import ListenSelector
from pyproxy.model.address import ListenAddress
from pyproxy.serve.agent_status import AgentStatus
from pyproxy.serve.exposition import metrics_application
from pyproxy.serve.listeners import HttpService, Listeners
from pyproxy.serve.metrics import KUBERNETES_MINOR, Metrics, build_labels
from pyproxy.serve.pages import HttpPage, PageRequest, application, fixed, index
from pyproxy.serve.proc_metrics import PacketCounter
from pyproxy.serve.status_text import status_text, time_text
from pyproxy.serve.statusz import STYLE, status_page

# Metrics on ``/metrics/slis`` (service level indicators); kube-proxy has only this one.
_SLIS = frozenset({"process_start_time_seconds"})
_PATHS = {
    "/statusz": "status of this node: rules, Services, API server, checks, last changes",
    "/metrics": "metrics for Prometheus",
    "/metrics/slis": "the start time of the process",
    "/configz": "the effective configuration, as JSON",
    "/flagz": "all flags with their effective values",
    "/proxyMode": "the proxy mode",
    "/healthz": "ok, as long as this server answers",
}
# Maximum length of a query for Services.
_MOST_QUERY = 256
_MOST_DIGITS = 6
_STATUSZ = {"as": "Statusz", "g": "config.k8s.io"}
_STATUSZ_VERSIONS = ("v1beta1", "v1alpha1")
StatusMaker = Callable[[str, int], AgentStatus]
"""Returns the status with a page of the Services that match a query."""
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
    variant = backend.iptables_variant
    board = StatusBoard(backend.mode.value, node_name, time(), variant.value if variant else "")
    config = replace(config, proxy_mode=backend.mode)
    doctor = DoctorRuns(doctor_command(config, backend.mode, node_name), time)
    reporter = StatusReporter(board, config, doctor, asyncio.get_running_loop(), time)
    app = metrics_server(metrics, reporter.status, config, board.started_at)

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


def metrics_server(metrics: Metrics, status: StatusMaker, config: Config, started_at: float) -> WSGIApplication:
    """Return the application of the metrics port.

    Args:
        metrics: has the metrics.
        status: returns the status with a page of the Services that match a query; called in threads of requests.
        config: has the mode in use.
        started_at: start of the agent, in seconds since 1970.
    """
    # All flags with the values in effect, whether they come from flags or files.
    values = ((about.flag, about.grammar, about.value(config)) for about in OPTIONS.values())
    flags = sorted(
        f"{flag} {'' if value is None else grammar.write(value)}".rstrip() for flag, grammar, value in values
    )
    pages = {
        "/": index("pyproxy", _PATHS, STYLE),
        "/configz": lambda _: _configuration_page(config),
        "/flagz": fixed("\n".join(["pyproxy flags in effect, for people", "", *flags, ""])),
        "/healthz": fixed("ok"),
        "/proxyMode": fixed(config.proxy_mode.value),
        "/statusz": lambda request: _status_page(request, status, started_at),
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


def _status_page(request: PageRequest, status: StatusMaker, started_at: float) -> HttpPage:
    """Return the status in the form that the client accepts, or kube-proxy's document if the client names that."""
    if not request.wants_html and (version := _statusz_version(request.accept)):
        build = build_labels()
        # The fields of apiserver's ``pkg/server/statusz/api/v1beta1/types.go``, which v1alpha1 has as well.
        tree = {
            "kind": "Statusz",
            "apiVersion": f"{_STATUSZ['g']}/{version}",
            "metadata": {"name": "kube-proxy"},
            "startTime": time_text(started_at),
            "uptimeSeconds": max(0, int(time() - started_at)),
            "goVersion": build["go_version"],
            "binaryVersion": build["git_version"],
            "emulationVersion": f"1.{KUBERNETES_MINOR}",
            "paths": sorted({f"/{path.split('/')[1]}" for path in _PATHS}),
        }
        return HttpPage(json.dumps(tree, separators=(",", ":")), "application/json")
    page = request.query.get("page", "")
    number = int(page) if page.isascii() and page.isdecimal() and len(page) <= _MOST_DIGITS else 1
    found = status(request.query.get("service", "")[:_MOST_QUERY], number)
    if request.wants_html:
        return HttpPage(status_page(found), "text/html; charset=utf-8")
    if "application/json" in request.accept:
        return HttpPage(msgspec.json.encode(found).decode(), "application/json")
    return HttpPage(status_text(found))


def _statusz_version(accept: str) -> str:
    """Return the version of kube-proxy's Statusz document that a client names; empty if it names none."""
    for clause in accept.split(","):
        media_type, *parameters = (part.strip() for part in clause.split(";"))
        values = dict(each.partition("=")[::2] for each in parameters)
        version = values.pop("v", "")
        if media_type == "application/json" and version in _STATUSZ_VERSIONS and values.items() >= _STATUSZ.items():
            return version
    return ""
