"""The pages of the metrics server, on kube-proxy's paths (``cmd/kube-proxy/app/server.go``, serveMetrics)."""

from collections.abc import Callable, Iterable, Mapping
from html import escape
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

# Maximum number of fields of a query; a longer query counts as empty.
_MOST_FIELDS = 10


class HttpPage(NamedTuple):
    """The body of an answer and its type."""

    body: str
    content_type: str = "text/plain; charset=utf-8"


class PageRequest(NamedTuple):
    """The parts of a request that a page can depend on."""

    accept: str
    """The header; empty if there is none."""
    query: Mapping[str, str]
    """The last value of each field."""

    @property
    def wants_html(self) -> bool:
        """Return whether the client is a browser. Clients such as curl accept everything, and get plain text."""
        return "text/html" in self.accept


PageMaker = Callable[[PageRequest], HttpPage]


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
            try:
                query = dict(parse_qsl(environ["QUERY_STRING"], max_num_fields=_MOST_FIELDS))
            except ValueError:
                query = {}
            status, page = HTTPStatus.OK, pages[path](PageRequest(environ.get("HTTP_ACCEPT", ""), query))
        else:
            status, page = HTTPStatus.NOT_FOUND, HttpPage("404 page not found\n")
        headers = [
            ("Content-Type", page.content_type),
            ("X-Content-Type-Options", "nosniff"),
            # No content but the page's own is loaded, whatever the names of objects contain.
            (
                "Content-Security-Policy",
                "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
            ),
            ("Cache-Control", "no-store"),
        ]
        start_response(f"{status.value} {status.phrase}", headers)
        return [page.body.encode(errors="replace")]

    return answer


def fixed(body: str) -> PageMaker:
    """Return a function that returns a constant page of plain text."""
    page = HttpPage(body)
    return lambda _: page


def index(title: str, paths: Mapping[str, str], style: str = "") -> PageMaker:
    """Return a function that returns a list of paths with a description each."""
    width = max(map(len, paths))
    text = "\n".join([title, "", *(f"{path:{width}}  {about}" for path, about in paths.items()), ""])
    rows = "\n".join(f"<tr><td><a href='{path}'>{path}</a><td>{escape(about)}" for path, about in paths.items())
    html = (
        "<!DOCTYPE html>\n<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{style}</style><h1>{escape(title)}</h1><table>{rows}</table></html>\n"
    )
    return lambda request: HttpPage(html, "text/html; charset=utf-8") if request.wants_html else HttpPage(text)
