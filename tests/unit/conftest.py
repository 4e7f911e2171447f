"""What tests of several layers run on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyproxy.serve.listeners import Listeners


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    """Give running listeners that soon try again."""
    made = Listeners(retry_seconds=0.01)
    made.start()
    yield made
    made.close()
