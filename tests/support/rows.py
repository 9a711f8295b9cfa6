"""Ids, rows and log entries for tests of the stores and of what writes to them."""

from collections.abc import Iterator
from itertools import count

from cluster.clock import SystemRandom
from cluster.ids import WorkflowId, new_workflow_id
from cluster.store.ports import LogId, Revised, Row, revision_of

_RANDOM = SystemRandom()
_NUMBERS: Iterator[int] = count(1)


def workflow_id(*, slot: int = 0, at_ms: int | None = None) -> WorkflowId:
    """A new id; without a time, each is later than the one before."""
    at_ms = 1_700_000_000_000 + next(_NUMBERS) if at_ms is None else at_ms
    return new_workflow_id(at_ms=at_ms, slot=slot, random=_RANDOM)


def log_id(name: str = "node") -> LogId:
    """The id of a log that is not there yet."""
    return LogId(f"{name}/{_RANDOM.bits(64):016x}")


def revised(row: Row, *, epoch: int = 1, position: int = 1) -> Revised:
    """A row with the revision of that place."""
    return row, revision_of(epoch, position)
