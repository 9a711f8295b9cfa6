"""A slow walk over the open workflows: without a live cause one would stand still for ever.

Nothing here should ever be found. What is found is a defect, or the trace of one: it is repaired
and counted, so that somebody can look for the reason while the workflows go on.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.clock import Clock
from cluster.engine.causes import causes_of
from cluster.engine.model import Execution
from cluster.engine.recovery import is_unfinished, word_to_child
from cluster.errors import ClusterError, Fenced, NotFound, NotOwner
from cluster.ids import ShardId, WorkflowId
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.sharding.commit_log import CommitLog
from cluster.sharding.decisions import Sent
from cluster.sharding.dispatch import Dispatcher
from cluster.sharding.recovery import Recovery
from cluster.sharding.requeue import Requeue
from cluster.sharding.residents import Residents
from cluster.sharding.shard import Shards
from cluster.sharding.timers import Timers
from cluster.store.ports import OpenEntry, OpenSet
from cluster.store.queue_ports import TaskQueues

log = get_log(__name__)

_PAGE = 100
_SUSPECTS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Suspect:
    """An open workflow that seems to stand still, and the last log entry that changed it."""

    workflow_id: WorkflowId
    kind: str
    """What it lacks: metrics.AUDIT_KINDS."""
    last_entry: int


@dataclass(frozen=True, slots=True)
class Parts:
    """What the audit looks at: where a cause may live."""

    shards: Shards
    residents: Residents
    open_set: OpenSet
    queues: TaskQueues
    timers: Timers
    dispatcher: Dispatcher
    recovery: Recovery
    requeue: Requeue
    commit_log: CommitLog[Sent]


class Audit:
    """Looks twice before it believes: what is on its way at the first look is there at the second.

    Between the two lie the grace, and the commit and the effects of all that was decided before.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        clock: Clock,
        metrics: Metrics,
        interval_ms: int,
        workflows_per_s: int,
        grace_ms: int,
        on_page: Callable[[], None],
    ) -> None:
        """`on_page` is called now and then: memory that is not needed any more may be freed."""
        self.parts = parts
        self._clock = clock
        self._repairs = metrics.audit_repairs
        self._stuck = metrics.stuck_workflows.of()
        self._running = metrics.workflow_running
        self._interval_ms = interval_ms
        self._per_s = workflows_per_s
        self._grace_ms = grace_ms
        self._on_page = on_page

    async def run(self) -> None:
        """Walk, rest, and walk again until cancelled or the log is lost."""
        while True:
            await asyncio.sleep(self._interval_ms / 1000)
            try:
                await self.walk()
            except Fenced:
                return
            except ClusterError as failure:
                log.warning("an audit was cut short", error=failure.message)

    async def walk(self) -> int:
        """Look at every open workflow once; returns how many stood still, which go on now."""
        suspects = await self._suspects()
        stuck = 0
        if suspects:
            await asyncio.sleep(self._grace_ms / 1000)
            await self.parts.commit_log.drain()
            await self.parts.dispatcher.all_out()
            for suspect in suspects:
                if await self.look(suspect.workflow_id) == suspect:
                    stuck += 1
                    await self._repair(suspect)
        self._stuck.set(stuck)
        return stuck

    async def _suspects(self) -> list[Suspect]:
        suspects: list[Suspect] = []
        running: Counter[tuple[str, ...]] = Counter()
        for shard in tuple(self.parts.shards.epochs):
            after: WorkflowId | None = None
            while page := await self._page(shard, after):
                for entry in page:
                    suspect = await self.look(entry.workflow_id)
                    self._count(running, entry.workflow_id)
                    if suspect is not None and len(suspects) < _SUSPECTS_MAX:
                        suspects.append(suspect)
                    await asyncio.sleep(1 / self._per_s)
                after = page[-1].workflow_id
                self._on_page()
        self._running.replace(running)
        return suspects

    async def _page(self, shard: ShardId, after: WorkflowId | None) -> Sequence[OpenEntry]:
        """The next open workflows of a shard; none before its recovery, before its due times were
        read, or once it was given up."""
        parts = self.parts
        if shard not in parts.shards.epochs or shard in parts.recovery.pending:
            return ()
        if not parts.timers.has_read(shard):
            return ()
        return await parts.open_set.scan(shard, after=after, limit=_PAGE)

    def _count(self, running: Counter[tuple[str, ...]], workflow_id: WorkflowId) -> None:
        execution = self.parts.residents.executions.get(workflow_id)
        if execution is not None and not execution.is_terminal:
            running[execution.header.name, ""] += 1

    async def look(self, workflow_id: WorkflowId) -> Suspect | None:
        """What a workflow lacks now; None: nothing, or it is not there or quarantined."""
        parts = self.parts
        try:
            execution = await parts.residents.get(workflow_id)
        except (NotFound, NotOwner):
            return None
        if workflow_id in parts.shards.quarantined or not is_unfinished(execution):
            return None
        last_entry = execution.last_entry
        kind = self._lacks(execution) or await self._lacks_elsewhere(execution)
        return None if kind is None else Suspect(workflow_id, kind, last_entry)

    def _lacks(self, execution: Execution) -> str | None:
        """What it lacks, as far as this process knows without waiting."""
        parts, workflow_id = self.parts, execution.id
        causes = causes_of(execution)
        if causes.stands:
            return "walk"
        if causes.effect and not parts.dispatcher.is_under_way(workflow_id):
            return "effect"
        if causes.due_ms and not parts.timers.is_armed(workflow_id, causes.due_ms):
            return "timer"
        return None

    async def _lacks_elsewhere(self, execution: Execution) -> str | None:
        parts = self.parts
        queued = causes_of(execution).queued
        if queued:
            tasks = {
                queue: [execution.task_id(number) for number in numbers]
                for queue, numbers in queued.items()
            }
            # What was lost with all else in the queues is about to be told to them again.
            if await parts.queues.unknown(tasks) and await parts.requeue.is_full():
                return "queue"
        parent = parts.recovery.parent_of(execution)
        if word_to_child(execution, parent, self._clock.now_ms()) is not None:
            return "child"
        if await parts.recovery.ended_children(execution.id):
            return "child"
        return None

    async def _repair(self, suspect: Suspect) -> None:
        self._repairs.of(suspect.kind).inc()
        log.error(
            "a workflow stood still and is set going again",
            workflow_id=suspect.workflow_id,
            lacked=suspect.kind,
        )
        await self.parts.recovery.recover(suspect.workflow_id)
