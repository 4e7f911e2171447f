"""URLs in logs and on pages."""

import re

_CREDENTIALS = re.compile(r"//[^/@\s]*@")


def without_credentials(text: object) -> str:
    """Return text in which URLs are without user and password, for logs and pages, which many people read."""
    return _CREDENTIALS.sub("//", str(text))
