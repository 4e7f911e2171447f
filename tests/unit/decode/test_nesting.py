"""JSON that is nested too deeply: what no field of ours has is left out, and the rest is decoded."""

import msgspec
import pytest

from pyproxy.decode import wire
from pyproxy.decode.nesting import decode_json, shallow

SERVICE = msgspec.json.Decoder(wire.Service)


def nested(levels: int) -> bytes:
    """Return objects and arrays inside each other, with brackets in strings that do not count."""
    return b'{"]": [' * (levels // 2) + b'"[\\"]{"' + b"]}" * (levels // 2)


@pytest.mark.parametrize("levels", [10, 990, 1100, 10_000, 200_000])
def test_a_deep_value_counts_as_null(levels: int) -> None:
    """A field that is not read may have any depth; fields before and after it are decoded."""
    data = b'{"metadata": {"name": "a", "managedFields": %s, "namespace": "b"}, "spec": {"type": "c"}}' % nested(levels)

    service = decode_json(SERVICE, data)

    assert ("a", "b", "c") == (service.metadata.name, service.metadata.namespace, service.spec.type)  # type: ignore[union-attr]


@pytest.mark.parametrize("data", [b"[" * 5000, b'{"a": ' * 5000 + b'"', b"[" * 5000 + b"]" * 4999])
def test_a_deep_value_that_does_not_end(data: bytes) -> None:
    """Text that ends within a deep value is not JSON."""
    with pytest.raises(msgspec.DecodeError):
        decode_json(SERVICE, data)


def test_what_is_not_deep_stays() -> None:
    """A value of 100 levels is unchanged, and two deep values are replaced one by one."""
    usual = nested(100)

    assert usual == shallow(usual)
    assert b"[" * 100 + b"null, 1, null" + b"]" * 100 == shallow(b"[" * 100 + b"[[]], 1, {}" + b"]" * 100)
