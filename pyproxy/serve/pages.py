"""What the metrics server answers: the paths of kube-proxy's own (``cmd/kube-proxy/app/server.go``, serveMetrics)."""

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import NamedTuple
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


class HttpPage(NamedTuple):
    """An answer."""

    body: str
    content_type: str = "text/plain; charset=utf-8"


PageMaker = Callable[[], HttpPage]


def application(pages: Mapping[str, PageMaker], metrics: Mapping[str, WSGIApplication]) -> WSGIApplication:
    """Return what answers requests.

    Args:
        pages: by path; a page is made anew for each request, in the thread of the request.
        metrics: by path, what answers for itself.
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
            # A page shows what it is made of and nothing else, whatever name an object has.
            ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
            ("Cache-Control", "no-store"),
        ]
        start_response(f"{status.value} {status.phrase}", headers)
        return [page.body.encode()]

    return answer


def fixed(body: str) -> PageMaker:
    """Return what makes a page of plain text that never changes."""
    page = HttpPage(body)
    return lambda: page
