"""How many inputs a fuzzing test tries: a fixed number from a fixed seed, or with ``--long`` as many as fit into its time.

A test draws each input from a `Random` of its own, whose seed is in the report of a failure. ``FUZZ_INPUT=SEED`` repeats that
input alone. Inputs are not drawn by hypothesis, because a draw of hypothesis takes longer than the code under test.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

import pytest

LONG_SECONDS = float(os.environ.get("FUZZ_SECONDS", "600"))
"""Time for all fuzzing tests together with ``--long``."""
_SEED = pytest.StashKey[str]()
TRIED = pytest.StashKey[Counter[str]]()
"""Number of inputs by test."""

Sources = Callable[[int], Iterator[Random]]
"""Yields a source of randomness for each input; takes the number of inputs without ``--long``."""


@pytest.fixture
def sources(request: pytest.FixtureRequest) -> Iterator[Sources]:
    """Provide the sources of randomness of one test."""
    node, config = request.node, request.config
    tried = config.stash.setdefault(TRIED, Counter())
    share = LONG_SECONDS / sum("sources" in getattr(item, "fixturenames", ()) for item in request.session.items)

    def draw(count: int) -> Iterator[Random]:
        if repeated := os.environ.get("FUZZ_INPUT"):
            yield Random(repeated)  # noqa: S311  # a seed that repeats
            return
        end, number = time.monotonic() + share, 0
        while time.monotonic() < end if config.getoption("--long") else number < count:
            node.stash[_SEED] = f"{config.option.hypothesis_seed}/{node.name}/{number}"
            yield Random(node.stash[_SEED])  # noqa: S311
            number += 1
            tried[node.name] += 1

    yield draw
    # The report of a failed test has this output.
    print(f"FUZZ_INPUT='{node.stash.get(_SEED, '')}' repeats the last input")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the number of inputs that each test tried."""
    for name, count in sorted(config.stash.get(TRIED, Counter[str]()).items()):
        terminalreporter.write_line(f"fuzzing: {name}: {count:,} inputs")
