"""Addresses and blocks as the API's consumers read and write them."""

import pytest

from pyproxy.model.address import Family, family_of, ip_text, parse_ip, parse_network, socket_text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("010.000.000.001", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("FD00:0:0::0001", "fd00::1"),
    ],
    ids=["plain", "leading zeros", "mapped", "IPv6"],
)
def test_address(text: str, canonical: str) -> None:
    """Addresses are read as sloppily as kube-proxy reads them, and written in one way."""
    assert canonical == ip_text(parse_ip(text))


@pytest.mark.parametrize(
    "text", ["", "web", "10.0.0", "10.0.0.256", "1.2.3.+4", "1.2.3.٤", "fe80::1%eth0", "10.0.0.1/32"]
)
def test_no_address(text: str) -> None:
    """Text that is not an address is an error."""
    with pytest.raises(ValueError, match=r"."):
        parse_ip(text)


@pytest.mark.parametrize(
    ("text", "canonical"), [("10.1.2.3/8", "10.0.0.0/8"), ("010.0.0.0/8", "10.0.0.0/8"), ("fd00::1/64", "fd00::/64")]
)
def test_network(text: str, canonical: str) -> None:
    """Bits beyond the prefix are cleared."""
    assert canonical == str(parse_network(text))


@pytest.mark.parametrize("text", ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/x", "/8"])
def test_no_network(text: str) -> None:
    """Text that is not a CIDR block is an error."""
    with pytest.raises(ValueError, match=r"."):
        parse_network(text)


@pytest.mark.parametrize(
    ("block", "address", "expected"),
    [
        ("10.0.0.0/8", "10.255.0.1", True),
        ("10.0.0.0/8", "11.0.0.0", False),
        ("0.0.0.0/0", "203.0.113.1", True),
        ("::/0", "203.0.113.1", False),
        ("fd00::/64", "fd00::ffff:0:0:1", True),
        ("203.0.113.1/32", "203.0.113.1", True),
    ],
)
def test_inside(block: str, address: str, expected: object) -> None:
    """A block holds addresses of its own family only."""
    assert expected is (parse_ip(address) in parse_network(block))


def test_socket() -> None:
    """An IPv6 address is in brackets before a port."""
    assert ("10.0.0.1:80", "[fd00::1]:80") == (
        socket_text(parse_ip("10.0.0.1"), 80),
        socket_text(parse_ip("fd00::1"), 80),
    )


def test_families() -> None:
    """The length of an address determines its family."""
    assert list(Family) == [family_of(parse_ip(text)) for text in ("10.0.0.1", "fd00::1")]
