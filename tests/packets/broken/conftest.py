"""The selection of faults by mode."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect faults that a mode cannot have; a fault is long except in its first mode."""
    wanted = []
    for item in items:
        values = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        modes, mode = getattr(values.get("fault"), "modes", None), str(values.get("mode"))
        if modes is None or mode in modes:
            wanted.append(item)
            if modes and mode != modes[0]:
                item.add_marker(pytest.mark.long)
    if len(wanted) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(wanted)])
        items[:] = wanted
