"""`pyproxy services` as users call it, with Services that are broken in different ways."""

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from pyproxy.plan.service_table import State
from pyproxy.plan.service_values import ServiceList

from .test_cli import pyproxy

INPUTS = Path(__file__).parents[1] / "inputs"
FLAGS = (f"--manifests={INPUTS / 'broken-services.yaml'}", "--node=node2")
PROBLEMS = ["default/audit", "default/mismatch", "shop/squatter", "shop/starting", "shop/typo"]
HEADING = "SERVICE FRONTEND TYPE POLICY ENDPOINTS (local) AFFINITY STATE"


def shown_services(text: str) -> list[str]:
    """Return the first column, each Service once."""
    heading, *lines = text.splitlines()
    assert heading.split() == HEADING.split()
    return list(dict.fromkeys(line.split()[0] for line in lines))


def test_all_services_are_shown() -> None:
    """Every Service of the files has a row, those without rules included."""
    done = pyproxy("services", *FLAGS)

    assert 0 == done.returncode
    assert [
        *("default/audit", "default/mismatch", "default/web"),
        *("shop/alias", "shop/owner", "shop/peers", "shop/squatter", "shop/starting", "shop/typo"),
    ] == shown_services(done.stdout)
    assert [] == [line for line in done.stdout.splitlines() if line.endswith(" ") or "\x1b" in line]


def test_problems_alone_are_shown_and_exit_1() -> None:
    """With --problems only what does not work is shown, and the exit code is 1."""
    done = pyproxy("services", *FLAGS, "--problems")

    assert 1 == done.returncode
    assert PROBLEMS == shown_services(done.stdout)


def test_no_problem_exits_0() -> None:
    """With --problems and nothing to show the exit code is 0."""
    done = pyproxy("services", *FLAGS, "--problems", "default/web")

    assert (0, []) == (done.returncode, shown_services(done.stdout))


@pytest.mark.parametrize(
    ("words", "expected"), [(["-n", "shop", "--problems"], PROBLEMS[2:]), (["shop/owner"], ["shop/owner"])]
)
def test_selection(words: list[str], expected: list[str]) -> None:
    """A namespace or a name selects Services."""
    assert expected == shown_services(pyproxy("services", *FLAGS, *words).stdout)


def test_wide_output() -> None:
    """Wide output adds the name of the port, the usable endpoints, and what to do about a problem."""
    heading, line = pyproxy("services", *FLAGS, "-o", "wide", "default/web").stdout.splitlines()
    problem = pyproxy("services", *FLAGS, "-o", "wide", "default/mismatch").stdout

    assert ["PORT", "USABLE", "ENDPOINTS", "STATE", "FIX"] == heading.split()[-5:]
    assert ["-", "10.244.1.10:8080,10.244.2.10:8080", "ok", "-"] == line.split()[-4:]
    assert "give the port of the slice and that of the Service the same name" in problem


def test_states_have_colours_on_a_terminal() -> None:
    """A terminal shows a state that is ok in green and any other one in red or yellow, in the same columns."""
    done = pyproxy("services", *FLAGS, FORCE_COLOR="1", TERM="xterm-256color")

    assert "\x1b[32mok\x1b[0m" in done.stdout
    assert "\x1b[31mDROP: " in done.stdout
    assert pyproxy("services", *FLAGS).stdout == re.sub(r"\x1b\[\d+m", "", done.stdout)


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_documents_follow_the_schema(output: str) -> None:
    """JSON and YAML have the fields and types of docs/schemas/service-list.json, and the states of the table."""
    done = pyproxy("services", *FLAGS, "-o", output)
    document = msgspec.convert(yaml.safe_load(done.stdout), ServiceList)

    assert ("ServiceList", "node2") == (document.kind, document.node)
    states = {f"{item.namespace}/{item.name}": item.state for item in document.items}
    assert {
        "default/audit": State.DROP,
        "default/mismatch": State.REJECT,
        "default/web": State.OK,
        "shop/squatter": State.NO_RULES,
        "shop/typo": State.INVALID,
    }.items() <= states.items()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--control-socket=/nonexistent", "--problems"],
            "no agent answers on /nonexistent, and the rules in the kernel",
        ),
        ([FLAGS[0], "default/none"], "the files have no Service default/none"),
        ([FLAGS[0], "default"], "'default' is not NAMESPACE/NAME"),
        (["--manifests=/nonexistent"], "/nonexistent: No such file or directory"),
    ],
)
def test_wrong_input(words: list[str], message: str) -> None:
    """Missing input, an unknown Service and a name without a namespace end with a message, not with an empty table."""
    done = pyproxy("services", *words)

    assert "" == done.stdout
    assert message in done.stderr
    assert done.returncode in {1, 2}
