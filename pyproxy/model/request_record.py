"""A request to the API server and its result."""

from typing import NamedTuple

NO_ANSWER = "<error>"
"""Replaces the status code if there was no answer; the same text as in Kubernetes' client-go."""


class RequestRecord(NamedTuple):
    """One finished request."""

    method: str
    """HTTP method."""
    host: str
    """Host of the API server, with the port if the URL has one."""
    code: str
    """HTTP status code in digits, or `NO_ANSWER`."""
    seconds: float | None = None
    """Time from the request to the end of the answer; None for a watch, which does not end with an answer."""
    sent_bytes: int | None = None
    """Length of the request body; None for a watch."""
    received_bytes: int | None = None
    """Decompressed length of the answer; None for a watch and without an answer."""
