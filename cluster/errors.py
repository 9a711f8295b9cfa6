"""Conditions a caller can act on, each with its HTTP status and whether a retry may help."""

from collections.abc import Sequence
from dataclasses import dataclass


class ClusterError(Exception):
    """Base of every condition that is answered to a caller instead of being a defect."""

    status: int = 500
    retryable: bool = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(ClusterError):
    """The request can never succeed as it is; nothing was changed."""

    status = 400


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule of a definition: `path` as Conductor words it, `invalid_value` as text."""

    path: str
    message: str
    invalid_value: str | None = None


class ValidationFailed(InvalidRequest):
    """A body broke rules of its model; every violation is listed."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("Validation failed, check below errors for detail.")
        self.violations = tuple(violations)


class NotFound(ClusterError):
    status = 404


class Conflict(ClusterError):
    """The request does not fit the present state of what it names."""

    status = 409


class TooLarge(ClusterError):
    status = 413


class Overloaded(ClusterError):
    """Refused before any work was done; try again after `retry_after_s`."""

    status = 429
    retryable = True

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotSupported(ClusterError):
    """A path of Conductor that this version does not serve yet."""

    status = 501


class Unavailable(ClusterError):
    """No owner, no store or no time left: the outcome may be unknown, a retry is safe."""

    status = 503
    retryable = True


class Unreached(Unavailable):
    """Another node could not be reached; nothing was done."""


class OutcomeUnknown(Unavailable):
    """Another node did not answer: what it was asked for may have been done."""


class StoreFault(Unavailable):
    """A store did not answer in time or refused; translated from the driver's error at its edge."""


class NotOwner(Unavailable):
    """The shard is not served here, or not any more; nothing was done for this request."""


class Fenced(ClusterError):
    """This process no longer owns the log or shard it wrote to; nothing was written."""

    status = 503
    retryable = True
