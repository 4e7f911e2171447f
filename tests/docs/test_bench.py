"""The benchmark as far as it runs no program: percentiles, budgets, tables and plots of given records."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.bench.budgets import BUDGETS, Check, check
from tests.bench.cluster import Shape
from tests.bench.report import BEGIN, END, markdown, plots, write, write_docs
from tests.bench.results import METRICS, Program, Record, Results, growth, load, percentile, ratio, summarize

CASE = ("10000x3", "nftables")


def record(program: Program, not_done: str = "", **values: list[float]) -> Record:
    """Return a run."""
    named = {name.replace("_", " "): found for name, found in values.items()}
    return Record(*CASE, program, named, not_done, 200.0, 0.5)


def results(*records: Record) -> Results:
    """Return results."""
    return Results({"Machine": "of the test"}, list(records))


def checked(found: Results, title: str) -> Check:
    """Return the check of a budget in nftables mode with 10,000 Services."""
    [one] = [each for each in check(found) if (each.shape, each.mode, each.title) == (*CASE, title)]
    return one


@pytest.mark.parametrize(("percent", "expected"), [(50, 5), (90, 9), (99, 10)])
def test_percentile(percent: int, expected: float) -> None:
    """A percentile is an observation, by nearest rank."""
    assert expected == percentile([float(value) for value in range(10, 0, -1)], percent)


def test_summary() -> None:
    """A percentile is that of all runs; its spread is that of the single runs."""
    found = summarize([record("pyproxy", change=[0.001, 0.002]), record("pyproxy", change=[0.003, 0.004])], METRICS[2])

    assert (2.0, 1.0, 3.0, 2, 4) == found


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (1.0, 30.0, "met"),
        (1.0, 10.0, "missed"),
        (1.2, 30.0, "missed"),
        (1.2, None, "missed"),
        (1.0, None, "not measured"),
    ],
)
def test_budget(ours: float, theirs: float | None, verdict: str) -> None:
    """A budget is met if both its limits are: of the value, and of the ratio."""
    others = [] if theirs is None else [record("kube-proxy", start=[theirs])]

    assert verdict == checked(results(record("pyproxy", start=[ours]), *others), METRICS[0].title).verdict


def test_kube_proxy_that_is_not_done() -> None:
    """If kube-proxy did not start within the limit, the ratio is below that of the limit."""
    found = results(record("pyproxy", start=[1.0]), record("kube-proxy", "start"))

    assert (0.005, True) == ratio(found, *CASE, METRICS[0])
    assert "met" == checked(found, METRICS[0].title).verdict
    assert "kube-proxy did not finish the phase “start” within 200 s." in markdown(found)


def test_new_connections() -> None:
    """Each round with many Services is compared with the one with few Services that ran beside it."""
    found = results(
        *(
            Record(shape, "nftables", "pyproxy", {"pod p50": times, "pod p99": times})
            for factor in (1.0, 10.0)
            for shape, times in (("10x3", [factor, 2 * factor]), ("30000x3", [2 * factor, 6 * factor]))
        )
    )

    assert (2.5, 2.0, 3.0, 4, 4) == growth(found, "30000x3", "nftables", "pyproxy", "pod p50")


def test_budgets_exist() -> None:
    """Every budget is of a metric and a shape that the benchmark knows."""
    assert [] == [each for each in BUDGETS if each.metric not in METRICS or str(Shape.parse(each.shape)) != each.shape]


def test_files(tmp_path: Path) -> None:
    """Plots are XML; results that are written and merged are the same; the page keeps what is outside the markers."""
    found = results(record("pyproxy", start=[1.0, 2.0]), record("kube-proxy", start=[20.0]))
    (tmp_path / "images").mkdir()
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write(found, tmp_path)
    write_docs(found, tmp_path)

    assert {"bench-start-light.svg", "bench-start-dark.svg"} == set(plots(found))
    assert all(ET.fromstring(text).tag.endswith("svg") for text in plots(found).values())  # noqa: S314  # made here
    assert found.records * 2 == load([tmp_path / "results.json"] * 2).records
    assert page.read_text().startswith(f"before\n{BEGIN}\n\n- Machine: of the test")
    assert page.read_text().endswith(f"{END}\nafter\n")
    assert "\nold\n" not in page.read_text()
