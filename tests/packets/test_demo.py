"""The demo as its user runs it: what it says, how it ends, and that nothing of it stays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

import pytest

from tests.demo import rollout, scenes
from tests.demo.__main__ import MODES
from tests.packets.modes import IPVS, IS_GUEST
from tests.packets.modes import MODES as MODES_HERE

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DEMO = (sys.executable, "-m", "tests.demo")
MARK = "PYPROXY_DEMO_OF"
"""A variable that all processes of a run inherit."""
SECONDS = 300 if IS_GUEST else 60
COULD_NOT_RUN = 2
RUNNABLE = [mode for mode in MODES if (mode == IPVS.name) == (IPVS in MODES_HERE)]
"""The IPVS mode under a kernel that has it, and the others under those that have them."""

needs_root = pytest.mark.usefixtures("needs_root")


class Demo:
    """One run of the demo."""

    def __init__(self, *options: str) -> None:
        """Start it."""
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        self.process = subprocess.Popen(
            # What a shell starts in the background ignores SIGINT, and so would the demo.
            ["env", "--default-signal=INT", *DEMO, *options],
            cwd=ROOT,
            env={**os.environ, name: value},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, typed: str = "") -> tuple[int, str]:
        """Wait for its end, and return its exit status and what it printed since the last look."""
        output, _ = self.process.communicate(typed, timeout=SECONDS)
        return self.process.returncode, output

    def leftovers(self) -> list[str]:
        """Return what there still is of its namespaces, temporary directories and processes."""
        folders = (Path("/run/netns"), Path(tempfile.gettempdir()))
        paths = [str(path) for folder in folders for path in folder.glob(f"pyp-{self.process.pid}-*")]
        return paths + [process.name for process in Path("/proc").glob("[0-9]*") if self._started(process)]

    def _started(self, process: Path) -> bool:
        with suppress(OSError):  # it has just ended
            return self._mark.encode() in (process / "environ").read_bytes()
        return False


@needs_root
@pytest.mark.parametrize("mode", RUNNABLE)
def test_everything_passes(mode: str) -> None:
    """The demo exits with 0, says last that nothing failed, and leaves nothing; a log of it has no wide line."""
    demo = Demo("--mode", mode)
    status, output = demo.finish()

    lines = output.splitlines()
    assert 0 == status, output
    assert re.fullmatch(r"[1-9]\d passed, 0 failed in \S+ s", lines[-1])
    assert 100 >= max(map(len, lines))
    assert "\x1b" not in output
    assert [] == demo.leftovers()


def test_every_example_is_tried() -> None:
    """Each Service of `examples/` has a section in the demo."""
    sections = (*scenes.SECTIONS, rollout.SECTION)

    assert {path.name for path in EXAMPLES.iterdir()} == {"nodes.yaml", *(section.example for section in sections)}


@needs_root
def test_prompt_is_in_the_client_pod() -> None:
    """`--shell` leaves the lab up: its prompt reaches Services and other hosts, and dumps a node's rules."""
    commands = """
        ask 10.96.0.15 80
        on outside2 ask 10.96.0.100 80
        on node1 pyproxy dump-rules --live --service default/queue
    """
    demo = Demo("--shell")
    status, output = demo.finish(commands)

    assert 0 == status, output
    _, _, at_prompt = output.partition("client-pod# ")
    assert re.search(r"pod1-1 10\.244\.1\.11:8080 10\.244\.1\.13:\d+", at_prompt)
    assert "Connection refused" in at_prompt
    assert "--to-destination 10.244.1.11:8080" in at_prompt
    assert [] == demo.leftovers()


@needs_root
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 128 + signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
@pytest.mark.parametrize("after", ["stays as it is", "examples/clusterip.yaml"])
def test_stopped_halfway_it_cleans_up(after: str, number: signal.Signals, status: int) -> None:
    """Stopped while the lab is being built, or among the requests, it removes what there is."""
    demo = Demo()
    assert demo.process.stdout
    next(line for line in demo.process.stdout if after in line)
    demo.process.send_signal(number)

    assert status == demo.finish()[0]
    assert [] == demo.leftovers()


def test_without_root_it_says_so() -> None:
    """A user other than root is told what the demo needs."""
    # In a user namespace without a mapping every user is nobody, and may still read the files.
    demo = subprocess.run(["unshare", "--user", *DEMO], cwd=ROOT, capture_output=True, text=True, check=False)

    assert COULD_NOT_RUN == demo.returncode
    assert "takes root" in demo.stderr
    assert "" == demo.stdout


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_examples_have_no_problem(node: str) -> None:
    """The examples are as an API server would take them: `dump-rules` has nothing to say about them."""
    pyproxy = Path(sys.executable).with_name("pyproxy")
    dump = subprocess.run(
        [pyproxy, "dump-rules", "--manifests", EXAMPLES, "--node", node], capture_output=True, text=True, check=False
    )

    assert (0, "") == (dump.returncode, dump.stderr)
    assert "default/web" in dump.stdout
