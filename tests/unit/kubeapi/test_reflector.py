"""List and watch as a state machine: what is asked for next, and how long to wait. No server, no time, no chance."""

import pytest

from pyproxy.kubeapi.reflector import (
    HASTY_SECONDS,
    LONGEST_DELAY_SECONDS,
    LONGEST_RETRY_AFTER_SECONDS,
    STEADY_SECONDS,
    ListPage,
    Reflector,
    Stream,
    Watch,
    delay_seconds,
    watch_seconds,
)

NOW = 1000.0
NO_JITTER = 0.0


def listing() -> Reflector:
    """Return a reflector whose server cannot stream lists."""
    reflector = Reflector()
    reflector.stream_unsupported()
    return reflector


def watching(resource_version: str = "7") -> Reflector:
    """Return a reflector with a complete list."""
    reflector = Reflector()
    reflector.watch_opened(NOW)
    reflector.stream_completed(resource_version)
    return reflector


@pytest.mark.parametrize(
    ("failures", "random", "expected"),
    [(1, 0.0, 0.2), (1, 1.0, 0.4), (2, 0.0, 0.4), (3, 0.5, 1.2), (8, 1.0, 30.0), (9, 0.0, 15.0), (5000, 1.0, 30.0)],
)
def test_delay(failures: int, random: float, expected: float) -> None:
    """The delay doubles from 0.2 s to 30 s, up to half of it is chance, and no number of failures overflows."""
    assert expected == pytest.approx(delay_seconds(failures, random))


@pytest.mark.parametrize(("random", "expected"), [(0.0, 300), (0.5, 450), (0.999, 599)])
def test_watch_seconds(random: float, expected: int) -> None:
    """A watch lasts five to ten minutes, as chance has it."""
    assert expected == watch_seconds(random)


def test_first_request() -> None:
    """At first everything is asked for as a stream."""
    assert Stream() == Reflector().request


def test_stream_becomes_watch() -> None:
    """A complete stream goes on as a watch at the version of its last bookmark."""
    assert Watch("7") == watching("7").request


def test_stream_unsupported() -> None:
    """A server that cannot stream is asked for pages, after a 410 too."""
    reflector = listing()
    requests = [reflector.request]
    reflector.page_listed("3", "")
    reflector.expired(NOW, NO_JITTER)
    requests.append(reflector.request)

    assert [ListPage(), ListPage()] == requests


def test_stream_that_was_cut_is_listed_in_pages() -> None:
    """A stream that began and did not come to its end is not begun again: a page is easier to get through."""
    reflector = Reflector()
    reflector.watch_opened(NOW)
    reflector.watch_ended(NOW + 60, NO_JITTER)

    assert ListPage() == reflector.request


def test_stream_that_got_no_answer_is_repeated() -> None:
    """A server that cannot be reached says nothing about streams."""
    reflector = Reflector()
    reflector.failed(NOW, NO_JITTER)

    assert Stream() == reflector.request


def test_pages() -> None:
    """Page after page is asked for with the token of the one before; the last one's version starts the watch."""
    reflector = listing()
    complete = [reflector.page_listed("5", "next")]
    second = reflector.request
    complete.append(reflector.page_listed("5", ""))

    assert [False, True] == complete
    assert (ListPage("next"), Watch("5")) == (second, reflector.request)


def test_failed_page_is_repeated() -> None:
    """A page that did not arrive is asked for again, not the whole list."""
    reflector = listing()
    reflector.page_listed("5", "next")
    reflector.failed(NOW, NO_JITTER)

    assert ListPage("next") == reflector.request


def test_expired_page() -> None:
    """A continue token that has expired leads to the whole list in one page."""
    reflector = listing()
    reflector.page_listed("5", "next")
    reflector.expired(NOW, NO_JITTER)

    assert ListPage(limit=0) == reflector.request


def test_events_move_the_version() -> None:
    """A watch goes on where the last event or bookmark was; one without a version moves nothing."""
    reflector = watching("7")
    reflector.observed("9")
    reflector.observed("")

    assert Watch("9") == reflector.request


def test_ended_watch_goes_on_at_once() -> None:
    """A watch that the server ends after its time is resumed without a pause."""
    reflector = watching("7")

    assert 0.0 == reflector.watch_ended(NOW + 300, NO_JITTER)
    assert Watch("7") == reflector.request


def test_short_watch_with_an_event_goes_on_at_once() -> None:
    """A watch that brought something was good, however short it was."""
    reflector = watching()
    reflector.observed("8")

    assert 0.0 == reflector.watch_ended(NOW, NO_JITTER)


def test_hasty_watch_backs_off() -> None:
    """A server that ends each watch at once, with nothing in it, is not asked in a loop."""
    reflector = watching()
    delays = []
    for _ in range(3):
        delays.append(reflector.watch_ended(NOW + HASTY_SECONDS / 2, NO_JITTER))
        reflector.watch_opened(NOW)

    assert [0.2, 0.4, 0.8] == pytest.approx(delays)


def test_failures_back_off() -> None:
    """Failures in a row wait longer each time, up to the longest delay."""
    reflector = watching()
    delays = [reflector.failed(NOW, random=1.0) for _ in range(9)]

    assert [0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0] == pytest.approx(delays)
    assert LONGEST_DELAY_SECONDS == max(delays)


def test_event_ends_the_series() -> None:
    """After an event the next failure is the first one again."""
    reflector = watching()
    reflector.failed(NOW, NO_JITTER)
    reflector.failed(NOW, NO_JITTER)
    reflector.watch_opened(NOW)
    reflector.observed("8")

    assert pytest.approx(0.2) == reflector.failed(NOW, NO_JITTER)


def test_quiet_watch_ends_the_series() -> None:
    """A watch that was open for long was good, even with nothing in it."""
    reflector = watching()
    reflector.failed(NOW, NO_JITTER)
    reflector.failed(NOW, NO_JITTER)
    reflector.watch_opened(NOW)

    assert pytest.approx(0.2) == reflector.failed(NOW + STEADY_SECONDS, NO_JITTER)


def test_list_does_not_end_the_series() -> None:
    """A server that lists but refuses each watch is listed ever more rarely."""
    reflector = listing()
    delays = []
    for _ in range(3):
        reflector.page_listed("5", "")
        delays.append(reflector.refused(NOW, NO_JITTER))

    assert [0.2, 0.4, 0.8] == pytest.approx(delays)
    assert ListPage() == reflector.request


@pytest.mark.parametrize(
    ("retry_after", "expected"), [(0.0, 0.2), (0.1, 0.2), (5.0, 5.0), (86400.0, LONGEST_RETRY_AFTER_SECONDS)]
)
def test_retry_after(retry_after: float, expected: float) -> None:
    """The server's wish for peace is honoured if it is longer than our own delay, within reason."""
    assert pytest.approx(expected) == watching().failed(NOW, NO_JITTER, retry_after)


def test_expired_watch() -> None:
    """A watch whose version the server has forgotten starts over with everything."""
    reflector = watching("7")
    delay = reflector.expired(NOW, NO_JITTER)

    assert Stream() == reflector.request
    assert pytest.approx(0.2) == delay


def test_outage_keeps_the_version() -> None:
    """However long the server is away, the watch is first tried where it was."""
    reflector = watching("7")
    for _ in range(20):
        reflector.failed(NOW, NO_JITTER)

    assert Watch("7") == reflector.request


def test_refused_watch_is_listed() -> None:
    """A watch refused for another reason than its age starts over with a list."""
    reflector = watching("7")
    reflector.refused(NOW, NO_JITTER)

    assert ListPage() == reflector.request


def test_repr() -> None:
    """The state shows in one line."""
    reflector = watching("7")
    reflector.failed(NOW, NO_JITTER)

    assert "<Reflector Watch(resource_version='7') after 1 failures>" == repr(reflector)
