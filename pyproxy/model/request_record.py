"""A request to the API server, and what came of it."""

from typing import NamedTuple

NO_ANSWER = "<error>"
"""In place of a code; the word of Kubernetes' own client."""


class RequestRecord(NamedTuple):
    """One request that was answered, or that nobody answered."""

    method: str
    """Of HTTP."""
    host: str
    """The API server's, with its port if the URL has one."""
    code: str
    """Of HTTP, in digits, or `NO_ANSWER`."""
    seconds: float | None = None
    """From the request to the end of the answer; None for a watch, which ends for other reasons."""
    sent_bytes: int | None = None
    """Length of the request's body; None for a watch."""
    received_bytes: int | None = None
    """Length of the answer, decompressed; None for a watch, and where there was none."""
