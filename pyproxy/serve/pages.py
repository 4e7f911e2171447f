"""The pages of the metrics server, on kube-proxy's paths (``cmd/kube-proxy/app/server.go``, serveMetrics)."""

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import NamedTuple
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


class HttpPage(NamedTuple):
    """The body of an answer and its type."""

    body: str
    content_type: str = "text/plain; charset=utf-8"


PageMaker = Callable[[], HttpPage]


def application(pages: Mapping[str, PageMaker], metrics: Mapping[str, WSGIApplication]) -> WSGIApplication:
    """Return the application that serves pages.

    Args:
        pages: by path, functions that create a page; called for each request, in its thread.
        metrics: by path, applications that answer themselves.
    """

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path in metrics:
            return metrics[path](environ, start_response)
        if path in pages:
            status, page = HTTPStatus.OK, pages[path]()
        else:
            status, page = HTTPStatus.NOT_FOUND, HttpPage("404 page not found\n")
        headers = [
            ("Content-Type", page.content_type),
            ("X-Content-Type-Options", "nosniff"),
            # No content but the page's own is loaded, whatever the names of objects contain.
            ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
            ("Cache-Control", "no-store"),
        ]
        start_response(f"{status.value} {status.phrase}", headers)
        return [page.body.encode()]

    return answer


def fixed(body: str) -> PageMaker:
    """Return a function that returns a constant page of plain text."""
    page = HttpPage(body)
    return lambda: page
