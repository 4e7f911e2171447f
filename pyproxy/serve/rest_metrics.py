"""Metrics of requests to the API server, with the names of Kubernetes' client-go.

Names, labels and buckets are those of ``k8s.io/component-base/metrics/prometheus/restclient``. As in ``client-go/rest``, a
watch counts as a request and has no duration.
"""

from prometheus_client import CollectorRegistry, Counter, Histogram

from pyproxy.model.request_record import RequestRecord

_BY_VERB = ("verb", "host")
# Buckets of component-base, so that one dashboard can compare all clients of the API server.
_SECONDS = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0]
_BYTES = [64, 256, 512, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216]


class RestMetrics:
    """Counts requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "rest_client_requests",
            "Requests to the API server; code <error> means that there was no answer",
            ("code", "method", "host"),
            registry=registry,
        )
        self._seconds = Histogram(
            "rest_client_request_duration_seconds",
            "Duration of requests to the API server other than watches",
            _BY_VERB,
            buckets=_SECONDS,
            registry=registry,
        )
        self._sent = Histogram(
            "rest_client_request_size_bytes", "Size of request bodies", _BY_VERB, buckets=_BYTES, registry=registry
        )
        self._received = Histogram(
            "rest_client_response_size_bytes", "Size of response bodies", _BY_VERB, buckets=_BYTES, registry=registry
        )

    def add(self, exchange: RequestRecord) -> None:
        """Count a request."""
        self._requests.labels(exchange.code, exchange.method, exchange.host).inc()
        for histogram, value in (
            (self._seconds, exchange.seconds),
            (self._sent, exchange.sent_bytes),
            (self._received, exchange.received_bytes),
        ):
            if value is not None:
                histogram.labels(exchange.method, exchange.host).observe(value)
