"""The hint for a misspelt word."""

from collections.abc import Iterable
from difflib import get_close_matches

# Similarity from which a word is suggested, from 0 to 1. "ipfs" has it to "ipvs", "later" to no name of a field.
_CUTOFF = 0.75


def suggestion(text: str, known: Iterable[str], prefix: str = "") -> str:
    """Return `` (did you mean X?)`` with the known word that is most similar, or an empty text.

    Args:
        text: the misspelt word; case does not count.
        known: words to choose from.
        prefix: precedes the suggested word in the hint.
    """
    word = nearest(text, known)
    return f" (did you mean {prefix}{word}?)" if word else ""


def nearest(text: str, known: Iterable[str]) -> str:
    """Return the known word that is most similar, or an empty text; case does not count."""
    by_lower = {word.lower(): word for word in known}
    found = get_close_matches(text.lower(), by_lower, n=1, cutoff=_CUTOFF)
    return by_lower[found[0]] if found else ""
