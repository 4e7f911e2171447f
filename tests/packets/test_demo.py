"""The demo as a user runs it: its output, its exit status, and that it leaves nothing behind."""

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
"""An environment variable that all processes of a run inherit."""
SECONDS = 300 if IS_GUEST else 60
COULD_NOT_RUN = 2
RUNNABLE = [mode for mode in MODES if (mode == IPVS.name) == (IPVS in MODES_HERE)]
"""IPVS mode on a kernel with IPVS, the other modes elsewhere."""

needs_root = pytest.mark.usefixtures("needs_root")


class Demo:
    """One run of the demo."""

    def __init__(self, *options: str) -> None:
        """Start the demo."""
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        self.process = subprocess.Popen(
            # A process that a shell starts in the background inherits an ignored SIGINT.
            ["env", "--default-signal=INT", *DEMO, *options],
            cwd=ROOT,
            env={**os.environ, name: value},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, typed: str = "") -> tuple[int, str]:
        """Wait until it exits, and return its exit status and its output since the last call."""
        output, _ = self.process.communicate(typed, timeout=SECONDS)
        return self.process.returncode, output

    def remaining(self) -> list[str]:
        """Return its remaining namespaces, temporary directories and processes."""
        folders = (Path("/run/netns"), Path(tempfile.gettempdir()))
        paths = [str(path) for folder in folders for path in folder.glob(f"pyp-{self.process.pid}-*")]
        return paths + [process.name for process in Path("/proc").glob("[0-9]*") if self._started(process)]

    def _started(self, process: Path) -> bool:
        with suppress(OSError):  # it has just exited
            return self._mark.encode() in (process / "environ").read_bytes()
        return False


@needs_root
@pytest.mark.parametrize("mode", RUNNABLE)
def test_everything_passes(mode: str) -> None:
    """The demo exits with 0, reports at the end that nothing failed, leaves nothing behind, and prints no wide lines."""
    demo = Demo("--mode", mode)
    status, output = demo.finish()

    lines = output.splitlines()
    assert 0 == status, output
    assert re.fullmatch(r"[1-9]\d passed, 0 failed in \S+ s", lines[-1])
    assert 100 >= max(map(len, lines))
    assert "\x1b" not in output
    assert [] == demo.remaining()


def test_every_example_is_tried() -> None:
    """Each Service in `examples/` has a section in the demo."""
    sections = (*scenes.SECTIONS, rollout.SECTION)

    assert {path.name for path in EXAMPLES.iterdir()} == {"nodes.yaml", *(section.example for section in sections)}


@needs_root
def test_prompt_is_in_the_client_pod() -> None:
    """`--shell` keeps the lab running: from its prompt a user can reach Services and hosts, and dump a node's rules."""
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
    assert [] == demo.remaining()


@needs_root
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 128 + signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
@pytest.mark.parametrize("after", ["is not changed", "examples/clusterip.yaml"])
def test_cleanup_after_an_interrupt(after: str, number: signal.Signals, status: int) -> None:
    """A demo that is interrupted while it builds the lab, or between requests, cleans up."""
    demo = Demo()
    assert demo.process.stdout
    next(line for line in demo.process.stdout if after in line)
    demo.process.send_signal(number)

    assert status == demo.finish()[0]
    assert [] == demo.remaining()


def test_without_root() -> None:
    """Without root, the error names what the demo needs."""
    # In a user namespace without a mapping the uid is not 0, and the files can still be read.
    demo = subprocess.run(["unshare", "--user", *DEMO], cwd=ROOT, capture_output=True, text=True, check=False)

    assert COULD_NOT_RUN == demo.returncode
    assert "needs root privileges" in demo.stderr
    assert "" == demo.stdout


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_examples_have_no_problem(node: str) -> None:
    """`dump-rules` finds no mistake in the examples."""
    pyproxy = Path(sys.executable).with_name("pyproxy")
    dump = subprocess.run(
        [pyproxy, "dump-rules", "--manifests", EXAMPLES, "--node", node], capture_output=True, text=True, check=False
    )

    assert (0, "") == (dump.returncode, dump.stderr)
    assert "default/web" in dump.stdout
