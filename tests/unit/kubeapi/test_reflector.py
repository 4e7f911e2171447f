"""List and watch as a state machine: the next request and its delay. Without server, clock and random numbers."""

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
    """The delay doubles from 0.2 s to 30 s, up to half of it is random, and no number of failures overflows."""
    assert expected == pytest.approx(delay_seconds(failures, random))


@pytest.mark.parametrize(("random", "expected"), [(0.0, 300), (0.5, 450), (0.999, 599)])
def test_watch_seconds(random: float, expected: int) -> None:
    """A watch lasts five to ten minutes, at random."""
    assert expected == watch_seconds(random)


def test_first_request() -> None:
    """The first request is a stream of all objects."""
    assert Stream() == Reflector().request


def test_stream_becomes_watch() -> None:
    """A complete stream continues as a watch at the version of its last bookmark."""
    assert Watch("7") == watching("7").request


def test_stream_unsupported() -> None:
    """From a server that cannot stream, pages are requested, also after a 410."""
    reflector = listing()
    requests = [reflector.request]
    reflector.page_listed("3", "")
    reflector.expired(NOW, NO_JITTER)
    requests.append(reflector.request)

    assert [ListPage(), ListPage()] == requests


def test_stream_that_was_cut_is_listed_in_pages() -> None:
    """A stream that broke before its end is not repeated: pages are requested, which are easier to transfer."""
    reflector = Reflector()
    reflector.watch_opened(NOW)
    reflector.watch_ended(NOW + 60, NO_JITTER)

    assert ListPage() == reflector.request


def test_stream_that_got_no_answer_is_repeated() -> None:
    """A server that cannot be reached may still be able to stream."""
    reflector = Reflector()
    reflector.failed(NOW, NO_JITTER)

    assert Stream() == reflector.request


def test_pages() -> None:
    """Each page is requested with the token of the one before; the version of the last one starts the watch."""
    reflector = listing()
    complete = [reflector.page_listed("5", "next")]
    second = reflector.request
    complete.append(reflector.page_listed("5", ""))

    assert [False, True] == complete
    assert (ListPage("next"), Watch("5")) == (second, reflector.request)


def test_failed_page_is_repeated() -> None:
    """A page that failed is requested again, not the whole list."""
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
    """A watch continues at the last event or bookmark; one without a version changes nothing."""
    reflector = watching("7")
    reflector.observed("9")
    reflector.observed("")

    assert Watch("9") == reflector.request


def test_ended_watch_goes_on_at_once() -> None:
    """A watch that the server ends after its time limit is resumed without a delay."""
    reflector = watching("7")

    assert 0.0 == reflector.watch_ended(NOW + 300, NO_JITTER)
    assert Watch("7") == reflector.request


def test_short_watch_with_an_event_goes_on_at_once() -> None:
    """A watch that delivered an event was working, however short it was."""
    reflector = watching()
    reflector.observed("8")

    assert 0.0 == reflector.watch_ended(NOW, NO_JITTER)


def test_hasty_watch_backs_off() -> None:
    """A server that ends each watch at once, without events, does not cause a busy loop."""
    reflector = watching()
    delays = []
    for _ in range(3):
        delays.append(reflector.watch_ended(NOW + HASTY_SECONDS / 2, NO_JITTER))
        reflector.watch_opened(NOW)

    assert [0.2, 0.4, 0.8] == pytest.approx(delays)


def test_failures_back_off() -> None:
    """Consecutive failures are delayed longer each time, up to the longest delay."""
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
    """A watch that was open for long was working, even without events."""
    reflector = watching()
    reflector.failed(NOW, NO_JITTER)
    reflector.failed(NOW, NO_JITTER)
    reflector.watch_opened(NOW)

    assert pytest.approx(0.2) == reflector.failed(NOW + STEADY_SECONDS, NO_JITTER)


def test_list_does_not_end_the_series() -> None:
    """A server that lists but refuses each watch is listed with growing delays."""
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
    """Retry-After is used if it is longer than our own delay, up to a limit."""
    assert pytest.approx(expected) == watching().failed(NOW, NO_JITTER, retry_after)


def test_expired_watch() -> None:
    """A watch whose version the server has forgotten is followed by a request for all objects."""
    reflector = watching("7")
    delay = reflector.expired(NOW, NO_JITTER)

    assert Stream() == reflector.request
    assert pytest.approx(0.2) == delay


def test_outage_keeps_the_version() -> None:
    """However long the server is unavailable, the next watch continues where the last one ended."""
    reflector = watching("7")
    for _ in range(20):
        reflector.failed(NOW, NO_JITTER)

    assert Watch("7") == reflector.request


def test_refused_watch_is_listed() -> None:
    """A watch that is refused for another reason than its age is followed by a list."""
    reflector = watching("7")
    reflector.refused(NOW, NO_JITTER)

    assert ListPage() == reflector.request


def test_repr() -> None:
    """The state shows in one line."""
    reflector = watching("7")
    reflector.failed(NOW, NO_JITTER)

    assert "<Reflector Watch(resource_version='7') after 1 failures>" == repr(reflector)
