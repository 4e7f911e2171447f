"""Writes metrics as text, byte for byte as Go's client library, which kube-proxy uses.

The writer of prometheus_client is not used for two reasons. It prints 1 as ``1.0``, also in the bounds of buckets, which are
labels, so a query for ``le="1"`` would find nothing. And it answers in the OpenMetrics format if a client prefers that,
where the name of a gauge may not end in ``_total``; kube-proxy has such gauges, and never uses that format
(``component-base/metrics/legacyregistry``).
"""

import gzip
import math
from collections.abc import Collection, Iterable
from decimal import Decimal
from functools import lru_cache
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Decimal exponents that `strconv.FormatFloat(…, 'g', -1, 64)` writes without an `e`.
_PLAIN_EXPONENTS = range(-4, 6)
_SPECIAL = {math.inf: "+Inf", -math.inf: "-Inf"}


@lru_cache(maxsize=4096)
def go_number(value: float) -> str:
    """Format a number as Go's ``strconv.FormatFloat(value, 'g', -1, 64)`` does: 1, 0.25, 1e+06, 1.7952849916e+09."""
    if not math.isfinite(value):
        return _SPECIAL.get(value, "NaN")
    # `repr` gives the shortest decimal that is the same float, as Go's -1 does; only the notation differs.
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
    # Prometheus does not need an order; Go's registry sorts, and a sorted page can be compared with that of kube-proxy.
    # The library leaves ``_total`` out of the name of a counter.
    families = sorted(
        (f"{metric.name}_total" if metric.type == "counter" else metric.name, metric)
        for metric in registry.collect()
        if metric.samples
    )
    lines: list[str] = []
    for name, metric in families:
        if only and name not in only:
            continue
        # Escapes of the text format: in a help \\ and \n, in the value of a label also the quote.
        help_text = metric.documentation.replace("\\", r"\\").replace("\n", r"\n")
        lines.append(f"# HELP {name} {help_text}\n# TYPE {name} {metric.type}\n")
        for sample in metric.samples:
            labels: list[str] = []
            for key, value in sorted(sample.labels.items()):
                if key != "le":
                    text = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
                    labels.append(f'{key}="{text}"')
            # Go appends the bound of a bucket after the sorted labels; it is a number in Go's format.
            if (bound := sample.labels.get("le")) is not None:
                labels.append(f'le="{go_number(float(bound))}"')
            # A sample has a name of its own, because a histogram consists of several series. Braces without labels are valid
            # for Prometheus, but Go's library leaves them out.
            listed = "{" + ",".join(labels) + "}" if labels else ""
            lines.append(f"{sample.name}{listed} {go_number(sample.value)}\n")
    return "".join(lines)


def metrics_application(registry: CollectorRegistry, only: Collection[str] = ()) -> WSGIApplication:
    """Return the application of a metrics page; it compresses the answer if the client accepts gzip."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = exposition(registry, only).encode()
        headers = [("Content-Type", CONTENT_TYPE)]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            headers.append(("Content-Encoding", "gzip"))
            # Level 1 removes most of the size, and costs the least CPU time.
            body = gzip.compress(body, compresslevel=1)
        start_response("200 OK", headers)
        return [body]

    return answer
