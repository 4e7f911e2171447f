"""Options of the whole test suite, and how hypothesis runs: repeatable in CI, wide and random with ``--long``."""

import os
import secrets

import pytest
from hypothesis import HealthCheck, settings

_SLOW_IS_FINE = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
"""A whole cluster is a big example; what it costs is watched as the run time of the suite."""
_SEED_BITS = 32

# Without a database of earlier failures: a run depends on its seed and on nothing else.
settings.register_profile("ci", deadline=None, print_blob=True, database=None, suppress_health_check=_SLOW_IS_FINE)
settings.register_profile("long", settings.get_profile("ci"), max_examples=3000)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that only this suite has."""
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew instead of comparing")
    parser.addoption("--long", action="store_true", help="many more generated examples, from a random seed")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the hypothesis profile, and a seed that the header can name, before hypothesis reads it."""
    is_long = config.getoption("--long")
    settings.load_profile("long" if is_long else "ci")
    if is_long and config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(secrets.randbits(_SEED_BITS))


def pytest_report_header(config: pytest.Config) -> str:
    """Say how to get the same examples again."""
    seed = config.option.hypothesis_seed
    return f"hypothesis: {settings().max_examples} examples, " + (
        f"--hypothesis-seed={seed}" if seed is not None else "random seed"
    )


@pytest.fixture(scope="session")
def needs_root() -> None:
    """Skip the test for a user who is not root; fail it in CI, where a test that did not run proves nothing."""
    if os.geteuid():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("network namespaces need root")
