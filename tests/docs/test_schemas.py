"""The schemas in docs/schemas are those of the program's output types.

That real output has these types is tested beside each command.
"""

import pytest

from .schemas import FOLDER, TYPES, schema_text


def test_each_schema_has_a_type() -> None:
    """The folder has a file for each type, and no other file."""
    assert sorted(TYPES) == sorted(path.name for path in FOLDER.iterdir())


@pytest.mark.parametrize("name", TYPES)
def test_schema(name: str) -> None:
    """A schema is up to date; if it is not, run `python -m tests.docs.schemas`."""
    assert schema_text(TYPES[name]) == (FOLDER / name).read_text()
