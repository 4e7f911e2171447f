"""Options and markers of the whole test suite, and the hypothesis profiles: repeatable in CI, random with ``--long``."""

import logging
import os
import secrets
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.packets.modes import HAS_IPVS

_SLOW_IS_FINE = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
"""An example is a whole cluster, which is large; its cost shows in the run time of the suite."""
_SEED_BITS = 32

# No database of earlier failures, so that a run depends only on its seed.
settings.register_profile("ci", deadline=None, print_blob=True, database=None, suppress_health_check=_SLOW_IS_FINE)
settings.register_profile("long", settings.get_profile("ci"), max_examples=3000)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this suite."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files instead of comparing")
    parser.addoption("--long", action="store_true", help="many more generated examples, from a random seed")
    parser.addoption(
        "--soak-seconds", type=float, help="how long tests/packets/test_soak.py makes changes in each mode"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and choose the hypothesis profile and a seed for the header, before hypothesis reads it."""
    config.addinivalue_line("markers", "needs_ipvs: run only on a kernel with IPVS, as in python -m tests.guest")
    config.addinivalue_line("markers", "needs_no_ipvs: run only on a kernel without IPVS")
    config.addinivalue_line("markers", "long: run only with --long")
    is_long = config.getoption("--long")
    settings.load_profile("long" if is_long else "ci")
    if is_long and config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(secrets.randbits(_SEED_BITS))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that are for another kind of kernel, with IPVS or without, and long ones without ``--long``."""
    unwanted = ["needs_no_ipvs" if HAS_IPVS else "needs_ipvs", *([] if config.getoption("--long") else ["long"])]
    deselected = [item for item in items if any(map(item.get_closest_marker, unwanted))]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if not any(map(item.get_closest_marker, unwanted))]


def pytest_report_header(config: pytest.Config) -> str:
    """Return a header line with the seed that repeats the examples."""
    seed = config.option.hypothesis_seed
    return f"hypothesis: {settings().max_examples} examples, " + (
        f"--hypothesis-seed={seed}" if seed is not None else "random seed"
    )


@pytest.fixture(scope="session")
def needs_root() -> None:
    """Skip the test without root; fail it in CI, where a skipped test would prove nothing."""
    if os.geteuid():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("network namespaces need root")


_make_record = logging.getLogRecordFactory()
_OF_PYTHON = (object.__str__, bytes.__str__, Enum.__str__)
"""What types without a text of their own inherit, collections among them."""


def _checked_record(*args: Any, **kwargs: Any) -> logging.LogRecord:  # noqa: ANN401  # logging's
    """Return a log record, if all its arguments are written as text that does not look like Python."""
    record = _make_record(*args, **kwargs)
    if str(record.name).startswith("pyproxy"):
        for value in record.args if isinstance(record.args, tuple) else ():
            if type(value).__str__ in _OF_PYTHON and not isinstance(value, int | float):
                message = f"{record.pathname}:{record.lineno}: {value!r} would be written as Python writes it"
                raise AssertionError(message)
    return record


@pytest.fixture(scope="session", autouse=True)
def _plain_log_lines() -> Iterator[None]:
    """Fail tests in whose process pyproxy logs a collection, an object or a member of an Enum without a text of its own."""
    logging.setLogRecordFactory(_checked_record)
    yield
    logging.setLogRecordFactory(_make_record)
