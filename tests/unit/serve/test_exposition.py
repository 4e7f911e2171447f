"""Numbers and labels as Go writes them; the expected texts were printed by Go."""

import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram

from pyproxy.serve.exposition import exposition, go_number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.0, "1"),
        (0.25, "0.25"),
        (100000, "100000"),
        (999999, "999999"),
        (1e6, "1e+06"),
        (976267, "976267"),
        (1795284991.467042, "1.795284991467042e+09"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (1.532e-06, "1.532e-06"),
        (-2.5, "-2.5"),
        (-1e-9, "-1e-09"),
        (2.0**64, "1.8446744073709552e+19"),
        (1e21, "1e+21"),
        (123.456, "123.456"),
        (float("inf"), "+Inf"),
        (float("-inf"), "-Inf"),
        (float("nan"), "NaN"),
    ],
)
def test_number(value: float, text: str) -> None:
    """A number is written as strconv.FormatFloat(value, 'g', -1, 64) writes it."""
    assert text == go_number(value)


def test_values_are_escaped() -> None:
    """A label may have any value and a help any text: neither breaks out of its line."""
    registry = CollectorRegistry()
    Gauge("one_total", "a\nb\\c", ("zone", "kind"), registry=registry).labels('q"\n', "\\").set(7)

    assert (
        '# HELP one_total a\\nb\\\\c\n# TYPE one_total gauge\none_total{kind="\\\\",zone="q\\"\\n"} 7\n'
    ) == exposition(registry)


def test_bounds_of_buckets() -> None:
    """A bound is also written as Go does, and follows the other labels."""
    registry = CollectorRegistry()
    Histogram("x", "y", ("a", "z"), buckets=[1, 2.5], registry=registry).labels("b", "c").observe(2)

    lines = exposition(registry).splitlines()
    assert ['x_bucket{a="b",z="c",le="1"} 0', 'x_bucket{a="b",z="c",le="2.5"} 1'] == lines[2:4]


def test_metrics_without_values_are_left_out() -> None:
    """A metric without any label values is left out, as in Go."""
    registry = CollectorRegistry()
    Gauge("x", "y", ("a",), registry=registry)

    assert "" == exposition(registry)
