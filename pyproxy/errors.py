"""The exception tree: whose fault it is, in the type. Imports nothing of ours, is imported by all."""


class PyproxyError(Exception):
    """Anything that pyproxy raises on purpose."""


class ConfigError(PyproxyError):
    """The user asked for something impossible; the message names the flag, field or file."""


class RightsError(PyproxyError):
    """This process lacks a capability; the message names it."""


class DecodeError(PyproxyError):
    """An API object, or one field of it, cannot be used.

    Args:
        subject: what the object is, for example ``Service default/web``.
        field: path of the field, for example ``spec.ports[0].port``; empty for the whole object.
        reason: what is wrong with it, in words.
    """

    def __init__(self, subject: str, field: str, reason: str) -> None:
        self.complaint = f"{field}: {reason}" if field else reason
        """The message without the subject."""
        super().__init__(f"{subject}: {self.complaint}")
        self.subject = subject
        self.field = field
        self.reason = reason


class SourceError(PyproxyError):
    """Objects cannot be had from the API server or from files right now."""


class ApplyError(PyproxyError):
    """The kernel, or the tool in front of it, did not take a change.

    Args:
        message: evidence: command, exit status, what it said, the lines around the refused one.
        retryable: true where the same change may go through later (a lock was busy, memory was short);
            false where the content itself was refused.
    """

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable
