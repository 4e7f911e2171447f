"""Sample outputs in docs are the outputs of the commands above them.

A sample is a code block whose first line begins with `$ pyproxy`. It reads the file that `FILES` has for its name.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from pyproxy.cli.program import pyproxy

ROOT = Path(__file__).parents[2]
FILES = {
    "cluster.yaml": "tests/inputs/broken-services.yaml",
    "before.yaml": "tests/inputs/plan-before.yaml",
    "after.yaml": "tests/inputs/plan-after.yaml",
}
"""The file of this repository for each file name in the docs."""
_SAMPLE = re.compile(r"^ {4}\$ pyproxy (.*)\n((?: {4}.*\n|\n(?= {4}))+)", re.MULTILINE)


class Sample(NamedTuple):
    """A command in docs and its output."""

    command: str
    output: str

    def __str__(self) -> str:
        """Return the command, for test ids."""
        return self.command


def samples(text: str) -> Iterator[Sample]:
    """Yield the samples of a page."""
    for command, output in _SAMPLE.findall(text):
        yield Sample(command, re.sub("^ {4}", "", output, flags=re.MULTILINE))


PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
SAMPLES = [sample for page in PAGES for sample in samples(page.read_text())]


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_sample(sample: Sample) -> None:
    """The command prints what the page shows."""
    words = [
        re.sub(r"[\w-]+\.yaml", lambda name: str(ROOT / FILES[name[0]]), word) for word in shlex.split(sample.command)
    ]

    assert sample.output == CliRunner().invoke(pyproxy, words).stdout


def test_there_are_samples() -> None:
    """The pattern finds a sample with all of its lines, and docs have some."""
    page = "Text.\n\n    $ pyproxy version\n    one\n\n    two\n\nText.\n"

    assert [Sample("version", "one\n\ntwo\n")] == list(samples(page))
    assert SAMPLES
