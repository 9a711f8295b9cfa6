"""Errors on their way over a link: raised again on the other side as what they were."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import msgspec

from cluster.errors import ClusterError, ValidationFailed, Violation


class Fault(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A ClusterError on its way."""

    kind: str
    message: str
    status: int
    retryable: bool
    violations: tuple[tuple[str, str, str | None], ...] = ()
    details: dict[str, str | int] = {}


class _Kinds(NamedTuple):
    """Classes of errors by name, looked up when one is needed: modules bring their own."""

    known: dict[str, type[ClusterError]]

    def of(self, name: str) -> type[ClusterError]:
        if name not in self.known:
            self._gather(ClusterError)
        return self.known.get(name, ClusterError)

    def _gather(self, kind: type[ClusterError]) -> None:
        self.known[kind.__name__] = kind
        for narrower in kind.__subclasses__():
            self._gather(narrower)


_kinds = _Kinds({})


def fault_of(error: ClusterError) -> Fault:
    violations = error.violations if isinstance(error, ValidationFailed) else ()
    return Fault(
        type(error).__name__,
        error.message,
        error.status,
        error.retryable,
        tuple((one.path, one.message, one.invalid_value) for one in violations),
        {
            name: value
            for name, value in vars(error).items()
            if name != "message" and isinstance(value, str | int)
        },
    )


def error_of(fault: Fault) -> ClusterError:
    """The error as it was raised there, without running its constructor again."""
    kind = _kinds.of(fault.kind)
    error = kind.__new__(kind)
    ClusterError.__init__(error, fault.message)
    vars(error).update(cast(Mapping[str, Any], fault.details))
    if isinstance(error, ValidationFailed):
        error.violations = tuple(Violation(*one) for one in fault.violations)
    if (kind.status, kind.retryable) != (fault.status, fault.retryable):
        error.status, error.retryable = fault.status, fault.retryable
    return error
