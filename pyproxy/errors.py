"""The exceptions of pyproxy. The type states the cause: user, permissions, object, source or kernel. Imports no other module."""


class PyproxyError(Exception):
    """Base class of all exceptions that pyproxy raises deliberately."""


class ConfigError(PyproxyError):
    """The configuration is not possible; the message names the flag, field or file."""


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
    """Objects are currently not available from the API server or from files."""


class MissingInputError(ConfigError, SourceError):
    """A path that the user gave cannot be read; the message names it."""


class ApplyError(PyproxyError):
    """The kernel, or the program that writes to it, rejected a change.

    Args:
        message: the command, its exit status and output, and the lines around the rejected one.
        retryable: true if the same change may succeed later (a lock was busy, memory was low); false if the content itself
            was rejected.
    """

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable
