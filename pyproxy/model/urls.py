"""URLs as text that may be shown."""

import re

_CREDENTIALS = re.compile(r"//[^/@\s]*@")


def without_credentials(text: object) -> str:
    """Write what may have URLs in it without their users and passwords: logs and pages are for many eyes."""
    return _CREDENTIALS.sub("//", str(text))
