"""Write-behind: rows of committed entries go to the executions table, then the log is truncated."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import msgspec
from msgspec.structs import replace

from cluster.clock import Clock, stopwatch_s
from cluster.engine.rows import INPUT_ROW
from cluster.errors import Fenced
from cluster.ids import WorkflowId, slot_of
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.sharding.commit_log import Transition
from cluster.sharding.insist import insist
from cluster.store.documents import inputs_of
from cluster.store.ports import (
    HEADER,
    LogId,
    OpenEntry,
    Revised,
    Stores,
    Summary,
    revision_of,
    segment_of,
)

log = get_log(__name__)

_BATCH_ROWS = 2_000
_BATCH_BYTES = 1 << 20
_SLICE_MS = 2
"""How long a checkpoint works before the event loop gets its turn."""


class Described(msgspec.Struct, frozen=True, gc=False):
    """What a header says to the stores that are asked about many workflows.

    `open` None: the workflow ended. `was_open` False: no earlier checkpoint saw it open, so an
    ended one leaves no trace in the open set; when in doubt it is True. `summary` None: it is
    not searched for. `bundle`: the store may keep its rows of this checkpoint as one, under this
    number (ExecutionStore.write).
    """

    open: OpenEntry | None
    summary: Summary | None
    was_open: bool = True
    bundle: int | None = None


Describe: TypeAlias = Callable[[WorkflowId, bytes], Described]


class MergedRows:
    """The rows of some entries: of each (workflow, number) the last one, with its revision."""

    __slots__ = ("size", "workflows")

    def __init__(self) -> None:
        self.workflows: dict[WorkflowId, dict[int, Revised]] = {}
        self.size = 0

    def add(self, position: int, transitions: Sequence[Transition], size: int) -> None:
        """Merge one entry; entries come in the order of their positions."""
        workflows = self.workflows
        self.size += size
        for _, epoch, rows in transitions:
            revision = revision_of(epoch, position)
            for row in rows:
                held = workflows.get(row.workflow_id)
                if held is None:
                    workflows[row.workflow_id] = {row.number: (row, revision)}
                else:
                    held[row.number] = (row, revision)

    def take(self, is_wanted: Callable[[WorkflowId], bool]) -> "MergedRows":
        """Part with the rows of some workflows. What entries took is still counted here."""
        taken = MergedRows()
        for workflow_id in [one for one in self.workflows if is_wanted(one)]:
            taken.workflows[workflow_id] = self.workflows.pop(workflow_id)
        return taken


@dataclass(slots=True)
class _Batch:
    """What goes to the stores together: whole workflows, each with what its header says."""

    workflow_ids: list[WorkflowId] = field(default_factory=list)
    rows: list[Revised] = field(default_factory=list)
    bundles: dict[WorkflowId, int] = field(default_factory=dict)
    removed: list[tuple[WorkflowId, int]] = field(default_factory=list)
    opened: list[tuple[OpenEntry, int]] = field(default_factory=list)
    ended: list[tuple[WorkflowId, int]] = field(default_factory=list)
    summaries: list[tuple[Summary, int]] = field(default_factory=list)
    size: int = 0

    def add(self, workflow_id: WorkflowId, rows: dict[int, Revised], describe: Describe) -> None:
        self.workflow_ids.append(workflow_id)
        header, revision = rows.get(HEADER, (None, 0))
        if header is not None and not header.data:
            self.removed.append((workflow_id, revision))
            return
        self.rows += rows.values()
        self.size += sum(len(row.data) for row, _ in rows.values())
        if header is None:
            return
        described = describe(workflow_id, header.data)
        if described.bundle is not None:
            self.bundles[workflow_id] = described.bundle
        if described.open is not None:
            self.opened.append((described.open, revision))
        elif described.was_open:
            self.ended.append((workflow_id, revision))
        summary = described.summary
        if summary is not None:
            if INPUT_ROW in rows:
                # It came with the start, and is looked into this once.
                summary = replace(summary, inputs=inputs_of(rows[INPUT_ROW][0].data))
            self.summaries.append((summary, revision))

    @property
    def is_full(self) -> bool:
        return len(self.rows) >= _BATCH_ROWS or self.size >= _BATCH_BYTES

    async def write(self, stores: Stores, clock: Clock, deadline_ms: int | None) -> None:
        """Write all of it. Each part may be repeated, and none depends on another's order."""
        gone = [*self.ended, *self.removed]
        calls: list[Callable[[], Awaitable[None]]] = []
        if self.rows:
            calls.append(partial(stores.executions.write, self.rows, self.bundles))
        if self.removed:
            calls.append(partial(stores.executions.remove, self.removed))
            calls.append(partial(stores.search.remove, self.removed))
        if self.opened:
            calls.append(partial(stores.open_set.put, self.opened))
        if gone:
            calls.append(partial(stores.open_set.remove, gone))
        if self.summaries:
            calls.append(partial(stores.search.write, self.summaries))
        # Together, so that a store with transactions puts them into one.
        await asyncio.gather(
            *(insist(call, clock=clock, deadline_ms=deadline_ms) for call in calls)
        )


async def write_merged(
    merged: MergedRows,
    stores: Stores,
    describe: Describe,
    *,
    clock: Clock,
    deadline_ms: int | None,
    on_batch: Callable[[Sequence[WorkflowId]], None] = lambda _: None,
    by_slot: bool = False,
) -> None:
    """Write merged rows with what their headers say to the executions, the open set and search.

    Durable when it returns; may be repeated, by any node. `on_batch` gets the workflows of each
    batch once they are durable. Gives the event loop its turn every few milliseconds. `by_slot`:
    for stores that write what lies on one shard in one request; others do better without.
    StoreFault: not done within `deadline_ms` per batch.
    """
    workflow_ids: Iterable[WorkflowId] = merged.workflows
    if by_slot:
        workflow_ids = sorted(merged.workflows, key=slot_of)
    batch = _Batch()
    began_ms = clock.monotonic_ms()
    for workflow_id in workflow_ids:
        batch.add(workflow_id, merged.workflows[workflow_id], describe)
        if batch.is_full:
            await batch.write(stores, clock, deadline_ms)
            on_batch(batch.workflow_ids)
            batch = _Batch()
            began_ms = clock.monotonic_ms()
        elif clock.monotonic_ms() - began_ms >= _SLICE_MS:
            await asyncio.sleep(0)
            began_ms = clock.monotonic_ms()
    if batch.workflow_ids:
        await batch.write(stores, clock, deadline_ms)
        on_batch(batch.workflow_ids)


class Checkpoint:
    """Takes what the commit log committed and writes it behind; `run` does so at intervals.

    `on_written(workflow_ids, position)`: all rows of these workflows up to `position` are in the
    stores. `on_lost`: the log turned out to be sealed; nothing more is written. `before_write` is
    awaited when it is settled what the next write holds, and before any of it is described.
    `by_slot` is that of `write_merged`.
    """

    def __init__(
        self,
        stores: Stores,
        log: LogId,
        describe: Describe,
        *,
        clock: Clock,
        metrics: Metrics,
        on_written: Callable[[Sequence[WorkflowId], int], None],
        on_lost: Callable[[Fenced], None],
        before_write: Callable[[], Awaitable[None]] | None = None,
        interval_ms: int = 1_000,
        bytes_max: int = 8 << 20,
        by_slot: bool = False,
    ) -> None:
        self._stores = stores
        self._log = log
        self._describe = describe
        self._clock = clock
        self._on_written = on_written
        self._on_lost = on_lost
        self._before_write = before_write
        self._interval_ms = interval_ms
        self._bytes_max = bytes_max
        self._by_slot = by_slot
        self._metrics = metrics
        self._merged = MergedRows()
        self._added = 0
        self._writing_bytes = 0
        self._first_segment = 0
        self._is_full = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self.written = 0

    @property
    def pending_bytes(self) -> int:
        """Log bytes committed and not yet in the executions table: what a takeover replays."""
        return self._merged.size + self._writing_bytes

    def add(self, position: int, transitions: Sequence[Transition], size: int) -> None:
        """Take one committed entry; entries come in order. This is CommitLog's `on_committed`."""
        self._merged.add(position, transitions, size)
        self._added = position
        if self._merged.size >= self._bytes_max:
            self._is_full.set()

    async def run(self) -> None:
        """Checkpoint every interval, or as soon as `bytes_max` wait; until the log is lost."""
        try:
            while True:
                try:
                    async with asyncio.timeout(self._interval_ms / 1_000):
                        await self._is_full.wait()
                except TimeoutError:
                    pass
                await self.flush()
        except Fenced as lost:
            self._on_lost(lost)

    async def flush(self) -> None:
        """Write everything added so far. It waits for the stores as long as they take.

        Fenced: the log is sealed; what was added is written, but nothing was truncated.
        """
        async with self._one_at_a_time:
            await self._flush()

    async def hand_off(
        self, is_wanted: Callable[[WorkflowId], bool], stop: Callable[[], Awaitable[None]]
    ) -> None:
        """Write down all of some workflows, for whoever owns them next. `stop` sees to it that
        nothing is added of them any more: between its call and the return of this lies as little
        as can be, what came of them alone during the flush before it. Fenced as above."""
        async with self._one_at_a_time:
            # Both while they are served; the second has only what came during the first.
            await self._flush()
            await self._flush()
            await stop()
            upto, taken = self._added, self._merged.take(is_wanted)
            # Nothing is truncated: of the others there is more.
            await self._write(taken, upto)

    async def _flush(self) -> None:
        merged, self._merged = self._merged, MergedRows()
        upto = self._added
        self._is_full.clear()
        count = len(merged.workflows)
        began_s = stopwatch_s()
        if count:
            log.debug("checkpoint begins", upto=upto, workflows=count)
        await self._write(merged, upto)
        self.written = upto
        await self._truncate(segment_of(upto + 1))
        if count:
            log.debug("checkpoint ended", upto=upto)
            self._count(merged, stopwatch_s() - began_s)

    async def _write(self, merged: MergedRows, upto: int) -> None:
        self._writing_bytes = merged.size
        try:
            if merged.workflows and self._before_write is not None:
                await self._before_write()
            await write_merged(
                merged,
                self._stores,
                self._describe,
                clock=self._clock,
                deadline_ms=None,
                on_batch=lambda workflow_ids: self._on_written(workflow_ids, upto),
                by_slot=self._by_slot,
            )
        except BaseException:
            # Cancelled half-way: a later flush must not truncate what was not written.
            self._merged = _joined(merged, self._merged)
            raise
        finally:
            self._writing_bytes = 0

    def _count(self, merged: MergedRows, took_s: float) -> None:
        self._metrics.checkpoint_duration.of().observe(took_s)
        self._metrics.checkpoint_rows.of().inc(sum(map(len, merged.workflows.values())))
        self._metrics.checkpoint_bytes.of().inc(merged.size)

    async def _truncate(self, segment: int) -> None:
        if segment <= self._first_segment:
            return
        await insist(
            lambda: self._stores.logs.advance_first_segment(self._log, segment),
            clock=self._clock,
            deadline_ms=None,
        )
        self._first_segment = segment


def _joined(earlier: MergedRows, later: MergedRows) -> MergedRows:
    for workflow_id, rows in later.workflows.items():
        earlier.workflows.setdefault(workflow_id, {}).update(rows)
    earlier.size += later.size
    return earlier
