"""Command lines in the syntax of pflag, and values in the notation of Go.

The expected values are what ``strconv``, ``time.ParseDuration`` and ``pflag.FlagSet.Parse`` of Go give or refuse.
The meaning of the flags is tested elsewhere.
"""

import re
from collections.abc import Callable

import pytest

from pyproxy.config.config import ProxyMode
from pyproxy.config.grammar import (
    URL,
    URLS,
    CommandLine,
    FlagError,
    Grammar,
    ListenSelector,
    Syntax,
    listen_address,
    listen_selector,
    one_of,
    parse_address,
    parse_bool,
    parse_duration,
    parse_float,
    parse_gates,
    parse_int32,
    parse_networks,
    parse_strings,
    parse_uint32,
    split_command_line,
    write_duration,
    write_gates,
)
from pyproxy.model.address import ListenAddress, parse_ip, parse_network

SYNTAX = Syntax(
    switches={"masquerade-all": True, "proxy-mode": False, "oom-score-adj": False, "v": False, "quiet": True},
    shorthands={"v": "v", "q": "quiet"},
)


@pytest.mark.parametrize(
    ("words", "flags", "arguments"),
    [
        (["--proxy-mode=iptables"], [("proxy-mode", "iptables")], []),
        (["--proxy-mode", "iptables"], [("proxy-mode", "iptables")], []),
        (["--proxy-mode="], [("proxy-mode", "")], []),
        (["--proxy-mode", ""], [("proxy-mode", "")], []),
        (["--proxy-mode=a=b"], [("proxy-mode", "a=b")], []),
        (["--proxy_mode=iptables"], [("proxy-mode", "iptables")], []),
        (["--proxy-mode=a", "--proxy-mode=b"], [("proxy-mode", "a"), ("proxy-mode", "b")], []),
        (["--oom-score-adj", "-999"], [("oom-score-adj", "-999")], []),
        (["--proxy-mode", "--v"], [("proxy-mode", "--v")], []),
        (["--masquerade-all"], [("masquerade-all", "true")], []),
        (["--masquerade-all=false"], [("masquerade-all", "false")], []),
        (["--masquerade-all", "false"], [("masquerade-all", "true")], ["false"]),
        (["--v=4"], [("v", "4")], []),
        (["--v", "4"], [("v", "4")], []),
        (["-v", "4"], [("v", "4")], []),
        (["-v=4"], [("v", "4")], []),
        (["-v4"], [("v", "4")], []),
        (["-v="], [("v", "=")], []),
        (["-qv4"], [("quiet", "true"), ("v", "4")], []),
        (["-q=false"], [("quiet", "false")], []),
        (["one", "--v=4", "two"], [("v", "4")], ["one", "two"]),
        (["--v=4", "--", "--v=5"], [("v", "4")], ["--v=5"]),
        (["-"], [], ["-"]),
        ([], [], []),
    ],
)
def test_a_command_line_is_split_as_pflag_splits_it(
    words: list[str], flags: list[tuple[str, str]], arguments: list[str]
) -> None:
    """Every way to write a flag gives its name and value, and a switch never takes the next word."""
    assert CommandLine(tuple(flags), tuple(arguments)) == split_command_line(words, SYNTAX)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--proxy-mod=iptables"], "unknown flag: --proxy-mod (did you mean --proxy-mode?)"),
        (["--zzzz"], "unknown flag: --zzzz"),
        (["-x"], "unknown shorthand flag: 'x' in -x"),
        (["-qx"], "unknown shorthand flag: 'x' in -x"),
        (["--proxy-mode"], "flag needs an argument: --proxy-mode"),
        (["-v"], "flag needs an argument: -v"),
        (["---v"], "bad flag syntax: ---v"),
        (["--=x"], "bad flag syntax: --=x"),
    ],
)
def test_what_pflag_refuses_is_refused_with_the_flag_named(words: list[str], message: str) -> None:
    """A wrong command line gives an error that names the wrong word."""
    with pytest.raises(FlagError) as refusal:
        split_command_line(words, SYNTAX)

    assert message == str(refusal.value)


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_go_spellings_of_true(text: str) -> None:
    """The six spellings that strconv.ParseBool reads as true are true."""
    assert parse_bool(text) is True


@pytest.mark.parametrize("text", ["0", "f", "F", "false", "FALSE", "False"])
def test_go_spellings_of_false(text: str) -> None:
    """The six spellings that strconv.ParseBool reads as false are false."""
    assert parse_bool(text) is False


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("-0", 0.0),
        ("0s", 0.0),
        ("30s", 30.0),
        ("1h30m", 5400.0),
        ("2h22m", 8520.0),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("500ms", 0.5),
        ("2us", 2e-6),
        ("2\u00b5s", 2e-6),
        ("2\u03bcs", 2e-6),
        ("7ns", 7e-9),
        ("0.5ns", 0.0),
        ("1m1m", 120.0),
        ("1s1h", 3601.0),
        ("+5s", 5.0),
        ("-5s", -5.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """A duration in Go's notation is read as seconds."""
    assert seconds == parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (86400.0, "24h"), (900.0, "15m"), (90.0, "90s"), (0.5, "500ms"), (2e-6, "2us"), (-5.0, "-5s")],
)
def test_durations_are_written_so_that_they_can_be_read(seconds: float, text: str) -> None:
    """A duration is written in one unit, and reading it gives the same duration."""
    assert text == write_duration(seconds)
    assert seconds == parse_duration(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("14", 14),
        ("-999", -999),
        ("+7", 7),
        ("0", 0),
        ("0x10", 16),
        ("010", 8),
        ("0o10", 8),
        ("0b11", 3),
        ("1_000", 1000),
        ("2147483647", 2**31 - 1),
        ("-2147483648", -(2**31)),
    ],
)
def test_whole_numbers(text: str, number: int) -> None:
    """A whole number may have the prefixes and the underscores that strconv.ParseInt accepts with base 0."""
    assert number == parse_int32(text)


@pytest.mark.parametrize(
    ("text", "items"),
    [("", ()), ("a", ("a",)), ("a,b", ("a", "b")), ('"a,b",c', ("a,b", "c"))],
)
def test_lists(text: str, items: tuple[str, ...]) -> None:
    """The items of a list are separated by commas, and quotes protect a comma."""
    assert items == parse_strings(text)


def test_networks() -> None:
    """A list can have CIDR blocks of both families and white space around them; host bits are cleared."""
    expected = (parse_network("10.244.0.0/16"), parse_network("fd00::/64"))

    assert expected == parse_networks("10.244.3.0/16, fd00::1/64")


def test_urls_are_shown_without_their_passwords() -> None:
    """URLs are written without credentials, because settings are logged and shown by the metrics server."""
    urls = ("https://joe:secret@10.0.0.1:6443", "https://10.0.0.2:6443/a@b")

    assert "https://10.0.0.1:6443" == URL.write(urls[0])
    assert "https://10.0.0.1:6443,https://10.0.0.2:6443/a@b" == URLS.write(urls)


def test_gates() -> None:
    """Feature gates are pairs of a name and a boolean, and are written as they were read."""
    gates = parse_gates("A=true,B=F")

    assert (("A", True), ("B", False)) == gates
    assert "A=true,B=false" == write_gates(gates)


@pytest.mark.parametrize(
    ("text", "ip", "port"),
    [
        ("127.0.0.1:9090", "127.0.0.1", 9090),
        ("127.0.0.1", "127.0.0.1", 10249),
        ("[::1]:9090", "::1", 9090),
        ("::1", "::1", 10249),
    ],
)
def test_listen_addresses(text: str, ip: str, port: int) -> None:
    """A listen address is an IP with an optional port."""
    assert ListenAddress(parse_ip(ip), port) == listen_address(10249).parse(text)


@pytest.mark.parametrize(
    ("text", "where", "written"),
    [
        ("10.0.0.0/8", parse_network("10.0.0.0/8"), "10.0.0.0/8:10249"),
        ("10.0.0.1/8:9090", parse_network("10.0.0.0/8"), "10.0.0.0/8:9090"),
        ("[fd00::/64]:9090", parse_network("fd00::/64"), "[fd00::/64]:9090"),
        ("fd00::/64", parse_network("fd00::/64"), "[fd00::/64]:10249"),
        ("eth0", "eth0", "eth0:10249"),
        ("eth0.100:9090", "eth0.100", "eth0.100:9090"),
    ],
)
def test_listen_places(text: str, where: object, written: str) -> None:
    """A listen selector has a CIDR block or an interface, and writing and reading it gives the same."""
    grammar = listen_selector(10249)
    place = grammar.parse(text)

    assert isinstance(place, ListenSelector)
    assert (where, written) == (place.where, grammar.write(place))
    assert place == grammar.parse(written)


@pytest.mark.parametrize(("text", "written"), [("127.0.0.1", "127.0.0.1:10249"), ("::1", "[::1]:10249"), ("lo:0", "")])
def test_a_place_may_be_an_address(text: str, written: str) -> None:
    """An address is accepted instead of a selector, and port 0 disables the server."""
    assert written == listen_selector(10249).write(listen_selector(10249).parse(text))


@pytest.mark.parametrize("text", ["", "127.0.0.1:0"])
def test_a_server_can_be_switched_off(text: str) -> None:
    """An empty text and port 0 disable the server."""
    assert listen_address(10249).parse(text) is None


def test_an_empty_word_can_have_a_meaning() -> None:
    """An empty proxy mode is iptables, as in kube-proxy."""
    assert ProxyMode.IPTABLES is one_of(ProxyMode, empty=ProxyMode.IPTABLES).parse("")


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_bool, "yes", "'yes' is neither true nor false"),
        (parse_bool, "", "'' is neither true nor false"),
        (parse_bool, "tRUE", "'tRUE' is neither true nor false"),
        (parse_int32, "", "'' is not a whole number of 32 bits"),
        (parse_int32, "1.5", "'1.5' is not a whole number of 32 bits"),
        (parse_int32, " 1", "' 1' is not a whole number of 32 bits"),
        (parse_int32, "09", "'09' is not a whole number of 32 bits"),
        (parse_int32, "\u0661", "'\u0661' is not a whole number of 32 bits"),
        (parse_int32, "2147483648", "'2147483648' is not a whole number of 32 bits"),
        (parse_uint32, "-1", "'-1' is not a whole number from 0"),
        (parse_uint32, "4294967296", "'4294967296' is not a whole number from 0"),
        (parse_float, "five", "'five' is not a number"),
        (parse_float, "nan", "'nan' is not a number"),
        (parse_float, "-inf", "'-inf' is not a number"),
        (parse_duration, "30", "'30' is not a duration such as 30s, 1m30s or 500ms"),
        (parse_duration, "", "'' is not a duration such as 30s, 1m30s or 500ms"),
        (parse_duration, "-", "'-' is not a duration such as 30s, 1m30s or 500ms"),
        (parse_duration, ".s", "'.s' is not a duration such as 30s, 1m30s or 500ms"),
        (parse_duration, "1d", "'1d' is not a duration such as 30s, 1m30s or 500ms"),
        (parse_duration, "1h 30m", "'1h 30m' is not a duration such as 30s, 1m30s or 500ms"),
        (parse_duration, "1mss", "'1mss' is not a duration such as 30s, 1m30s or 500ms"),
        (parse_duration, "2562048h", "'2562048h' is longer than 292 years"),
        (parse_networks, "10.0.0.1", "'10.0.0.1' is not a CIDR block such as 10.244.0.0/16 or fd00:10:244::/56"),
        (parse_networks, "10.0.0.0/33", "'10.0.0.0/33' is not a CIDR block such as 10.244.0.0/16 or fd00:10:244::/56"),
        (parse_gates, "A", "'A' is not NAME=true or NAME=false"),
        (parse_gates, "A=on", "'on' is neither true nor false"),
        (parse_address, "node-1", "'node-1' is not an IP address"),
        (listen_address(10249).parse, "localhost:80", "'localhost' is not an IP address"),
        (listen_address(10249).parse, ":80", "'' is not an IP address"),
        (listen_address(10249).parse, "127.0.0.1:70000", "70000 is not a port"),
        (listen_selector(10249).parse, "127.0.0.300", "'127.0.0.300' is not an IP address"),
        (listen_selector(10249).parse, "localhost:80", "'localhost' is not an IP address"),
        (listen_selector(10249).parse, "an-interface-far-too-long", "is not an IP address"),
        (listen_selector(10249).parse, "eth0:70000", "70000 is not a port"),
        (listen_selector(10249).parse, "10.0.0.0/99:1", "'10.0.0.0/99' is not a CIDR block"),
        (one_of(ProxyMode).parse, "IPTables", "did you mean iptables?"),
        (one_of(ProxyMode).parse, "kernelspace", "is not one of auto, iptables, ipvs, nftables"),
        (one_of(ProxyMode).parse, "", "'' is not one of auto, iptables, ipvs, nftables"),
    ],
)
def test_what_go_refuses_is_refused_in_words(parse: Callable[[str], object], text: str, message: str) -> None:
    """A wrong value gives an error that quotes it and describes valid values."""
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(text)


def test_a_flag_without_a_metavar_is_a_switch() -> None:
    """A flag that may be given without a value shows no placeholder in help."""
    assert Grammar("", parse_bool).is_switch
    assert not Grammar("INT", parse_int32).is_switch
