"""How messages are divided into transactions. `tests.packets` tests the answers of the kernel."""

import pytest

from pyproxy.linux.nf_tables_socket import _LARGEST_BATCH_BYTES, parts


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([100, 200, 300], [3]),
        ([_LARGEST_BATCH_BYTES // 2] * 5, [2, 2, 1]),
        ([_LARGEST_BATCH_BYTES + 1, 1], [1, 1]),
        ([1, _LARGEST_BATCH_BYTES], [1, 1]),
    ],
)
def test_changes_are_as_few_transactions_as_fit(sizes: list[int], expected: list[int]) -> None:
    """One transaction takes all messages unless it would be too long; no message is lost, and the order stays."""
    messages = [bytes(size) for size in sizes]
    found = list(parts(messages))

    assert expected == [len(part) for part in found]
    assert messages == [message for part in found for message in part]
