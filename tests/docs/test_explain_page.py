"""docs/explain.md shows what the program prints."""

from .explain_page import PAGE, page


def test_sample_outputs() -> None:
    """Each sample is the output of a real run; if it is not, run `python -m tests.docs.explain_page`."""
    assert page() == PAGE.read_text()
