"""What a running agent carries: modules are what its memory and its start are made of, so both have a budget here.

Counted in a process of its own, as the modules of a test run are not those of an agent.
"""

import json
import subprocess
import sys

import pytest

AGENT = ("pyproxy.cli", "pyproxy.cli.run", "pyproxy.backends.iptables.mode")
API = ("pyproxy.kubeapi.api", "pyproxy.kubeapi.load_access")
FILES = ("pyproxy.manifests.files",)
METRICS = ("pyproxy.agent.metrics_server",)
NEVER = {"kubernetes", "iptc", "pyroute2", "rich", "pydantic", "requests", "urllib3", "setuptools", "prometheus_client"}
"""Each is at most the business of another process, another command, or of a flag that is not set."""
MODULES_MEGABYTES = 48
"""Most of the 60 that an agent may take with 1,000 Services (`tests.cluster.test_agent`)."""

MOST_MODULES = 565
"""Of an agent with an API server and metrics: 5 % above the present number, because the standard library differs by version."""

_PROGRAM = """
import importlib, json, pathlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps([sorted({name.partition(".")[0] for name in sys.modules}),
    int(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1000]))
"""


def imported(*names: str) -> tuple[set[str], float]:
    """Return the packages that these modules bring, and the megabytes that a process takes with them."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *names], capture_output=True, text=True, check=True)
    packages, megabytes = json.loads(done.stdout)
    return set(packages), megabytes


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        (AGENT, NEVER | {"aiohttp", "yaml"}),
        ((*AGENT, *API), NEVER | {"yaml"}),
        ((*AGENT, *API, *METRICS), NEVER - {"prometheus_client"} | {"yaml"}),
        ((*AGENT, *FILES), NEVER | {"aiohttp"}),
    ],
    ids=["agent", "API", "API with metrics", "files"],
)
def test_modules_of_an_agent(modules: tuple[str, ...], without: set[str]) -> None:
    """A source and a mode bring what they need, and nothing that another one needs."""
    packages, megabytes = imported(*modules)

    assert set() == packages & without
    assert megabytes < MODULES_MEGABYTES


@pytest.mark.parametrize("mode", ["iptables", "nftables", "ipvs"])
def test_number_of_modules(mode: str) -> None:
    """Each module costs time at the start, so their number has a budget."""
    command = "import sys, " + ", ".join((*AGENT[:2], f"pyproxy.backends.{mode}.mode", *API, *METRICS))
    done = subprocess.run(
        [sys.executable, "-c", f"{command}; print(len(sys.modules))"], capture_output=True, text=True, check=True
    )

    assert int(done.stdout) <= MOST_MODULES


def test_command_line_alone() -> None:
    """Asking for help or the version pays for neither loop nor API."""
    packages, _ = imported("pyproxy.cli")

    assert set() == packages & (NEVER | {"aiohttp", "asyncio", "yaml", "msgspec"})
