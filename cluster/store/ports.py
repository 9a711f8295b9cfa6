"""The ports of the durable stores: what every store promises, whatever stands behind it.

All methods may raise StoreFault: the store did not answer in time or refused. The outcome of a
write is then unknown, and every write here may be repeated with the same arguments. No driver
exception crosses a port. The port of the task queues is in queue_ports.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NewType, Protocol, TypeAlias

import msgspec

from cluster.ids import ShardId, TaskId, WorkflowId
from cluster.store.queries import HITS_MAX, ROWS_MAX, Query

LogId = NewType("LogId", str)
"""Names the commit log of one node process: `node id / something unique`. Never used twice."""

HEADER = 0
"""The number of the row that every workflow has; empty data in it: the workflow was removed."""

HEAD_ROWS = 16
"""Rows below this number are there once per workflow; those of its tasks follow."""

SEGMENT_POSITIONS = 256
"""A segment is this many positions of a log, the unit in which a log is dropped."""

_POSITION_BITS = 40


def segment_of(position: int) -> int:
    """The segment that holds a position."""
    return position // SEGMENT_POSITIONS


def first_position(segment: int) -> int:
    """The first position of a segment; positions count from 1."""
    return max(1, segment * SEGMENT_POSITIONS)


def revision_of(epoch: int, position: int) -> int:
    """The write timestamp of a row that was logged in `epoch` of its shard at `position`.

    It is no clock: a late write of an earlier owner has a lower epoch and so always loses.
    """
    return epoch << _POSITION_BITS | position


def epoch_of(revision: int) -> int:
    """The epoch in which a row with this revision was logged."""
    return revision >> _POSITION_BITS


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One row of a workflow: 0 = header, then input, variables, output and tasks.

    `data` is opaque to stores. Empty `data` says that the row is deleted.
    """

    workflow_id: WorkflowId
    number: int
    data: bytes


Revised: TypeAlias = tuple[Row, int]
"""A row with its revision. Equal revisions of a row, an entry or a summary have equal contents."""

NO_BUNDLES: Mapping[WorkflowId, int] = {}


class Fence(msgspec.Struct, frozen=True):
    """What decides whether a log may be appended to, and what of it counts.

    `valid_to` is the last position that counts: None while the log is open, and while a seal is
    unfinished. Positions before `first_position(first_segment)` are in the executions table.
    """

    open: bool
    first_segment: int
    valid_to: int | None


class LogStore(Protocol):
    """Commit logs: one per node process, appended to by that process alone, sealed by anybody.

    A log that is absent counts as sealed and empty.
    """

    async def create(self, log: LogId) -> None:
        """Open a new, empty log. Repeating it while the log is open changes nothing."""

    async def append(self, log: LogId, position: int, entry: bytes) -> None:
        """Durable, and known to precede any seal, when it returns.

        Fenced: the log is sealed or absent, or the position already holds other bytes; the entry
        will never count. Repeating an append with the same bytes is success.
        """

    async def fence(self, log: LogId) -> Fence | None:
        """The fence row as it stands; None for an absent log."""

    async def seal(self, log: LogId) -> Fence:
        """Close the log for ever and record its contiguous end in `valid_to`, once.

        Finishes a seal that stopped half-way; repeated, or losing a race, it returns what is
        recorded. Every append that returned before is at or before `valid_to`. An absent log
        stays absent; its `valid_to` is 0.
        """

    async def read(
        self, log: LogId, *, after: int, upto: int, bytes_max: int
    ) -> Sequence[tuple[int, bytes]]:
        """Entries with positions above `after`, up to and with `upto`, in order.

        Stops after the entry that reaches `bytes_max` bytes, so it returns at least one entry if
        there is one. Says nothing about validity: ask `seal` for `upto`.
        """

    async def advance_first_segment(self, log: LogId, segment: int) -> None:
        """Raise `first_segment`, then drop the segments before it. Never lowers it.

        Fenced: the log is sealed or absent; nothing was dropped.
        """

    async def delete(self, log: LogId) -> None:
        """Remove a sealed log. The caller has seen that no shard row names it.

        An open log stays, and so does one whose seal is unfinished: its end is still looked for.
        An absent one is no error.
        """

    async def logs(self) -> Sequence[LogId]:
        """Every log there is, open or sealed, in no order."""


class ShardRow(msgspec.Struct, frozen=True):
    """Who owns a shard: the log it writes to (None: released), and how many owners it has had."""

    shard: ShardId
    owner: LogId | None
    epoch: int


class ShardTable(Protocol):
    """The routing table. A row changes only by compare-and-set on (owner, epoch)."""

    async def create(self, shard_count: int) -> None:
        """Create the cluster's shards, unowned in epoch 0, unless they exist.

        Conflict: the cluster was created with another shard count; the message names both.
        """

    async def rows(self) -> Sequence[ShardRow]:
        """All shards in order of their number; empty before `create`."""

    async def claim(self, rows: Sequence[ShardRow], own: LogId) -> Sequence[ShardRow]:
        """Each row that still stands as given becomes (own, epoch + 1); an owner that gives a
        shard up does this for the log that gets it.

        Returns the rows as they stand now; each is its own compare-and-set, so some may be won
        and others lost. A row that stands at (own, epoch + 1) was won, now or by the attempt
        before: log ids are unique, so repeating after a StoreFault resolves an unknown outcome.
        """

    async def release(self, rows: Sequence[ShardRow]) -> None:
        """Each row that still stands as given becomes (None, same epoch); others stay."""


class ExecutionStore(Protocol):
    """The rows of all workflows. A row is replaced only by one with a higher revision."""

    async def write(
        self, rows: Sequence[Revised], bundles: Mapping[WorkflowId, int] = NO_BUNDLES
    ) -> None:
        """Keep each row whose revision is above the stored one's. Durable when it returns.

        Each (workflow, number) at most once per call; atomic per row, not for the batch. A
        workflow's rows come one after the other. `bundles`: a store may keep the rows that this
        call has of such a workflow as one, number n of its bundles. Only the caller ever writes
        bundle n of that workflow, and again only with at least the same rows.
        """

    async def read(self, workflow_id: WorkflowId) -> Sequence[Row]:
        """All rows by number, without deleted ones; empty if the workflow was removed or never
        there. Rows without a header are a record of their own (an idempotency key)."""

    async def headers(self, workflow_ids: Sequence[WorkflowId]) -> Mapping[WorkflowId, bytes]:
        """The data of the header rows of those workflows that are there."""

    async def heads(self, workflow_ids: Sequence[WorkflowId]) -> Mapping[WorkflowId, Sequence[Row]]:
        """The rows below HEAD_ROWS of those workflows that are there, by number."""

    async def remove(self, removed: Sequence[tuple[WorkflowId, int]]) -> None:
        """Drop all rows of each workflow up to the given revision; later ones stay.

        A header of that or a lower revision that is written again afterwards stays unseen.
        """


class OpenEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An open workflow: when it is due next (None: nothing is timed), and what is unfinished."""

    workflow_id: WorkflowId
    next_due_ms: int | None
    has_unfinished_effects: bool


class OpenSet(Protocol):
    """Which workflows are open, by shard. A hint: the reader checks it against the header.

    A workflow that is open as of the last checkpoint is always there; one that ended may be.
    """

    async def put(self, entries: Sequence[tuple[OpenEntry, int]]) -> None:
        """Insert or replace each entry whose revision is above the standing one's."""

    async def remove(self, removed: Sequence[tuple[WorkflowId, int]]) -> None:
        """Take out each entry whose revision is at most the one given."""

    async def scan(
        self, shard: ShardId, *, after: WorkflowId | None, limit: int
    ) -> Sequence[OpenEntry]:
        """Up to `limit` entries of a shard by workflow id, the ones above `after` only."""

    async def due(self, shard: ShardId, *, before_ms: int, limit: int) -> Sequence[OpenEntry]:
        """Up to `limit` entries of a shard that are due before `before_ms`, earliest first."""


class Summary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a search can find or show of a workflow. Times are Unix ms; `status` is Conductor's."""

    workflow_id: WorkflowId
    name: str
    version: int
    status: str
    start_ms: int
    update_ms: int
    end_ms: int = 0
    correlation_id: str | None = None
    parent_workflow_id: WorkflowId | None = None
    priority: int = 0
    reason: str | None = None
    event: str | None = None
    created_by: str | None = None
    idempotency_key: str | None = None
    failed_reference_task_names: tuple[str, ...] = ()
    failed_task_names: tuple[str, ...] = ()
    inputs: dict[str, str] | None = None
    """What of its input can be searched by; None in a write: as it stands in the index."""

    @property
    def is_running(self) -> bool:
        """What Conductor lists as running; PAUSED is open, but not running."""
        return self.status == "RUNNING"


class Found(msgspec.Struct, frozen=True):
    """One page of what a search found."""

    summaries: Sequence[Summary]
    total: int
    """Of all pages; HITS_MAX: as many or more."""
    is_partial: bool = False
    """The search ended at its bound: there may be more, further back."""


class SearchIndex(Protocol):
    """Summaries of all workflows, as of the last checkpoint."""

    async def write(self, summaries: Sequence[tuple[Summary, int]]) -> None:
        """Insert or replace each summary whose revision is above the stored one's."""

    async def remove(self, removed: Sequence[tuple[WorkflowId, int]]) -> None:
        """Take out each summary whose revision is at most the one given."""

    async def find(
        self,
        query: Query,
        *,
        start: int,
        size: int,
        hits_max: int = HITS_MAX,
        rows_max: int = ROWS_MAX,
    ) -> Found:
        """Summaries that fulfil a query, in its order, from the `start`th on.

        Where no index helps, `rows_max` summaries are looked at, in that order, or newest first;
        if that does not do, the answer is partial.
        """

    async def running(
        self, name: str, *, version: int | None, start_ms: int, end_ms: int, limit: int
    ) -> Sequence[WorkflowId]:
        """RUNNING workflows of a definition that started in [start_ms, end_ms), by start."""

    async def correlated(
        self, name: str, correlation_id: str, *, include_closed: bool, limit: int
    ) -> Sequence[WorkflowId]:
        """Workflows of a definition with that correlation id, by id; RUNNING ones unless closed
        ones are asked for."""

    async def by_definition(
        self,
        name: str,
        *,
        version: int | None,
        statuses: Sequence[str],
        start_ms: int,
        end_ms: int,
        after: WorkflowId | None,
        limit: int,
    ) -> Sequence[Summary]:
        """A page of summaries by workflow id, the ones above `after` only.

        Those that started in [start_ms, end_ms) and are in one of `statuses` (empty: any).
        """


class Definition(msgspec.Struct, frozen=True):
    """A stored definition. `kind` is "workflow" or "task"; a task definition has version 0.

    `body` is its JSON as it is served. `revision` counts writes since it was created, from 1.
    """

    kind: str
    name: str
    version: int
    body: bytes
    revision: int
    create_ms: int
    update_ms: int


class DefinitionKey(msgspec.Struct, frozen=True):
    """A definition without its body."""

    kind: str
    name: str
    version: int
    revision: int
    create_ms: int
    update_ms: int


class MetadataStore(Protocol):
    """Workflow and task definitions by name, and the snapshots that executions run on."""

    async def put(
        self,
        kind: str,
        name: str,
        version: int,
        body: bytes,
        *,
        at_ms: int,
        expected_revision: int | None,
    ) -> Definition:
        """Write a definition; returns it with its new revision and times. Durable, and read by
        every `get` that begins after it returned.

        `expected_revision`: 0 = it must not exist, n = it must stand at n, None = whatever.
        Conflict: it stands otherwise; nothing was changed. After a StoreFault the caller reads.
        """

    async def get(self, kind: str, name: str, version: int | None) -> Definition | None:
        """One definition; version None: the highest one there is."""

    async def definitions(self, kind: str, name: str | None) -> Sequence[Definition]:
        """Definitions with bodies by (name, version); of all names if None."""

    async def keys(self, kind: str, name: str | None) -> Sequence[DefinitionKey]:
        """The same without the bodies."""

    async def remove(self, kind: str, name: str, version: int) -> bool:
        """Remove one definition; False if it was not there."""

    async def put_snapshot(self, content_hash: bytes, body: bytes) -> None:
        """Store a frozen definition under the hash of its content. Durable when it returns."""

    async def snapshot(self, content_hash: bytes) -> bytes | None:
        """The frozen definition with that hash."""


class TaskLog(msgspec.Struct, frozen=True):
    """One line that a worker logged for a task."""

    task_id: TaskId
    created_ms: int
    line: str


class PollData(msgspec.Struct, frozen=True):
    """The last poll for a task type in a domain ("" = none)."""

    task_type: str
    domain: str
    worker_id: str
    last_poll_ms: int


TASK_LOG_LINES_MAX = 1_000
"""Kept per task; the oldest lines go first."""


class RecordStore(Protocol):
    """Small records that are no part of an execution: task logs, poll data, and keyed values."""

    async def append_task_logs(self, lines: Sequence[TaskLog]) -> None:
        """Add lines in the order given; a task keeps its last TASK_LOG_LINES_MAX."""

    async def task_logs(self, task_id: TaskId) -> Sequence[TaskLog]:
        """The lines of a task, oldest first."""

    async def remove_task_logs(self, workflow_id: WorkflowId) -> None:
        """Drop the lines of all tasks of a workflow."""

    async def put_poll_data(self, polls: Sequence[PollData]) -> None:
        """Insert or replace by (task type, domain); an older poll does not replace a newer."""

    async def poll_data(self, task_type: str | None) -> Sequence[PollData]:
        """By task type and domain; of all types if None."""

    async def polls_with_domain(self) -> Sequence[PollData]:
        """Those of all types that have a domain, in no order: what nodes ask all the time."""

    async def put(self, kind: str, values: Mapping[str, bytes | None]) -> None:
        """Write the values of some keys of a kind; None removes a key. Durable on return."""

    async def get(self, kind: str, key: str) -> bytes | None:
        """The value of a key."""

    async def page(
        self, kind: str, *, prefix: str, after: str | None, limit: int
    ) -> Sequence[tuple[str, bytes]]:
        """Up to `limit` keys that begin with `prefix`, by key, the ones above `after` only."""


@dataclass(frozen=True, slots=True)
class Stores:
    """The durable stores of one cluster, opened together."""

    logs: LogStore
    shards: ShardTable
    executions: ExecutionStore
    open_set: OpenSet
    search: SearchIndex
    metadata: MetadataStore
    records: RecordStore
