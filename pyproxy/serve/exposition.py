"""Writes metrics as text, byte for byte as Go's client library, which kube-proxy uses.

The writer of prometheus_client is not used for two reasons. It prints 1 as ``1.0``, also in the bounds of buckets, which are
labels, so a query for ``le="1"`` would find nothing. And it answers in the OpenMetrics format if a client prefers that,
where the name of a gauge may not end in ``_total``; kube-proxy has such gauges, and never uses that format
(``component-base/metrics/legacyregistry``).
"""

import gzip
import math
from collections.abc import Collection, Iterable, Iterator
from decimal import Decimal
from functools import lru_cache
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PLAIN_EXPONENTS = range(-4, 6)
"""Decimal exponents that ``strconv.FormatFloat(…, 'g', -1, 64)`` writes without an ``e``."""
_SPECIAL = {math.inf: "+Inf", -math.inf: "-Inf"}


@lru_cache(maxsize=4096)
def go_number(value: float) -> str:
    """Format a number as Go's ``strconv.FormatFloat(value, 'g', -1, 64)`` does: 1, 0.25, 1e+06, 1.7952849916e+09."""
    if not math.isfinite(value):
        return _SPECIAL.get(value, "NaN")
    shortest = Decimal(repr(float(value)))
    sign, digits, _ = shortest.normalize().as_tuple()
    exponent = shortest.adjusted() if value else 0
    if exponent in _PLAIN_EXPONENTS:
        return f"{shortest.normalize():f}"
    first, *rest = map(str, digits)
    point = "." if rest else ""
    return f"{'-' * sign}{first}{point}{''.join(rest)}e{exponent:+03d}"


def exposition(registry: CollectorRegistry, only: Collection[str] = ()) -> str:
    """Return the metrics that have values, sorted by name: all, or those with the given names."""
    families = sorted((_name(metric), metric) for metric in registry.collect() if metric.samples)
    return "".join(line for name, metric in families if not only or name in only for line in _lines(name, metric))


def metrics_application(registry: CollectorRegistry, only: Collection[str] = ()) -> WSGIApplication:
    """Return the application of a metrics page; it compresses the answer if the client accepts gzip."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = exposition(registry, only).encode()
        headers = [("Content-Type", CONTENT_TYPE)]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            headers.append(("Content-Encoding", "gzip"))
            body = gzip.compress(body, compresslevel=1)
        start_response("200 OK", headers)
        return [body]

    return answer


def _name(metric: Metric) -> str:
    """Return the name of a metric with ``_total``, which the library leaves out of the name of a counter."""
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def _lines(name: str, metric: Metric) -> Iterator[str]:
    help_text = metric.documentation.replace("\\", r"\\").replace("\n", r"\n")
    yield f"# HELP {name} {help_text}\n# TYPE {name} {metric.type}\n"
    for sample in metric.samples:
        yield f"{sample.name}{_labels(sample)} {go_number(sample.value)}\n"


def _labels(sample: Sample) -> str:
    if not sample.labels:
        return ""
    # Go sorts labels by name, and appends "le" after the rest.
    pairs = sorted(sample.labels.items(), key=lambda pair: (pair[0] == "le", pair[0]))
    return "{" + ",".join(f'{key}="{_label_value(key, value)}"' for key, value in pairs) + "}"


def _label_value(key: str, value: str) -> str:
    if key == "le":
        return go_number(float(value))
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
