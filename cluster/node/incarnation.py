"""Everything of a node that writes under one log id: it lives and ends with its commit log."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from cluster.clock import Clock
from cluster.engine.model import Execution
from cluster.engine.step import Surroundings, TaskType
from cluster.engine.views import failed_names
from cluster.errors import Fenced, NotOwner
from cluster.ids import ShardId, WorkflowId, is_schedule, shard_of
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.node import wire
from cluster.node.audit import Audit, Parts
from cluster.node.limits import TaskLimits
from cluster.node.metadata import Metadata
from cluster.node.poll import PollDesk
from cluster.node.summaries import describe, describe_replayed
from cluster.settings import Settings
from cluster.sharding.checkpoint import Checkpoint, Described
from cluster.sharding.commit_log import CommitLog
from cluster.sharding.controller import Controller, GivenUp
from cluster.sharding.decisions import Decisions, Sent
from cluster.sharding.dispatch import Dispatcher, Outside
from cluster.sharding.idempotency import Keys
from cluster.sharding.leases import LeaseKeeper
from cluster.sharding.membership import Presence
from cluster.sharding.plans import Plans
from cluster.sharding.recovery import Recovery
from cluster.sharding.requeue import UNKNOWN, Requeue
from cluster.sharding.residents import Residents
from cluster.sharding.routes import Routes
from cluster.sharding.shard import Shards
from cluster.sharding.timers import Timers
from cluster.store.lease_ports import Leases
from cluster.store.ports import LogId, ShardRow, Stores
from cluster.store.queue_ports import QueueItem, Queues

log = get_log(__name__)

ACTIVE_WORKER_MS = 10_000
"""A domain counts as served for this long after a poll (rule 120)."""

_EFFECTS_OUT_S = 0.5
"""How long a checkpoint waits for a slow queue. After that it marks what it writes: the next owner
would have to issue those effects again."""

_DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What a node keeps whatever log it writes."""

    settings: Settings
    stores: Stores
    queues: Queues
    leases: Leases
    routes: Routes
    presence: Presence
    metadata: Metadata
    limits: TaskLimits
    plans: Plans
    outside: Outside
    task_types: Mapping[str, TaskType]
    tell_moved: Callable[[Sequence[ShardRow], LogId | None], None]
    """Has the node of a log, or all others, hear of shards that have another owner now."""
    desk: PollDesk
    scheduler_is_off: Callable[[], bool]
    items: wire.QueueItems
    clock: Clock
    metrics: Metrics


class Home:
    """The incarnation that a node is in at present, for the parts that outlive it."""

    def __init__(self) -> None:
        self.incarnation: Incarnation | None = None

    @property
    def shards(self) -> Shards:
        """The shards that are served here. NotOwner: there is no commit log just now."""
        return self._present().shards

    @property
    def keys(self) -> Keys:
        """The idempotency keys of these shards. NotOwner as well."""
        return self._present().keys

    def release_schedules(self) -> None:
        """The scheduler was resumed: what was due meanwhile is due now."""
        if self.incarnation is not None:
            self.incarnation.release_schedules()

    def has_room(self, share: int = 1) -> bool:
        """That of the incarnation; while there is none, requests wait at the router."""
        return self.incarnation is None or self.incarnation.has_room(share)

    def _present(self) -> "Incarnation":
        if self.incarnation is None:
            raise NotOwner("This node has no commit log at present")
        return self.incarnation


class Incarnation:
    """Serves shards under the log `own`, which is open. It is thrown away when that log is lost:
    nothing of what it holds in memory may be used any more."""

    def __init__(self, own: LogId, front: Front, *, on_lost: Callable[[Fenced], None]) -> None:
        """`on_lost` is called once, at the moment at which the log turns out to be lost."""
        self.own = own
        self.lost: Fenced | None = None
        self._has_recovered = asyncio.Event()
        self._front = front
        self._on_lost = on_lost
        self._ended_early = asyncio.Event()
        self._unrecovered: set[ShardId] = set()
        self._leaving: set[ShardId] = set()
        """Given up before they were recovered, and not written down yet."""
        self._have_unrecovered = asyncio.Event()
        self._are_effects_out = False
        settings, stores = front.settings, front.stores
        clock, metrics = front.clock, front.metrics
        self.keys = Keys(stores.executions, ttl_ms=settings.idempotency_ttl_days * _DAY_MS)
        self._timers = Timers(stores.open_set, clock, metrics)
        self._dispatcher = Dispatcher(
            queues=front.queues,
            outside=front.outside,
            timers=self._timers,
            clock=clock,
            ended=self._ended,
        )
        self.checkpoint = Checkpoint(
            stores,
            own,
            self._describe,
            clock=clock,
            metrics=metrics,
            before_write=self._see_effects_out,
            on_written=self._written,
            on_lost=self.lose,
            interval_ms=settings.checkpoint_interval_ms,
            bytes_max=settings.checkpoint_bytes,
            by_slot=not settings.is_alone,
        )
        self.commit_log: CommitLog[Sent] = CommitLog(
            stores.logs,
            own,
            clock=clock,
            metrics=metrics,
            send=self._dispatcher.send,
            on_committed=self.checkpoint.add,
            on_lost=self.lose,
            entry_bytes_max=settings.log_entry_bytes,
        )
        self.lease = LeaseKeeper(
            front.leases,
            stores.logs,
            own,
            self.commit_log,
            clock=clock,
            ttl_ms=settings.lease_ttl_ms,
            renew_ms=settings.lease_renew_ms,
            on_lost=self.lose,
        )
        epochs: dict[ShardId, int] = {}
        self.residents = Residents(
            stores.executions,
            front.plans,
            epochs=epochs,
            shard_count=settings.shard_count,
            bytes_max=settings.execution_cache_bytes,
            settle=lambda position: asyncio.ensure_future(self._settle(position)),
        )
        decisions = Decisions(
            epochs,
            shard_count=settings.shard_count,
            commit_log=self.commit_log,
            residents=self.residents,
            plans=front.plans,
            definitions=front.metadata,
            surroundings=self._surroundings(),
            metrics=metrics,
            send=self._dispatcher.send,
            queue_item=self._queue_item,
            run_json=wire.failed_run_json,
        )
        self.shards = Shards(
            epochs,
            decisions,
            shard_count=settings.shard_count,
            authority=self.lease,
            commit_log=self.commit_log,
            residents=self.residents,
            plans=front.plans,
            clock=clock,
            metrics=metrics,
            send=self._dispatcher.send,
            has_room=self.has_room,
        )
        self._dispatcher.shards = self.shards
        self._timers.fire = self.shards.deliver
        self._timers.holds = self._is_held
        self._recovery = Recovery(
            self.shards,
            residents=self.residents,
            open_set=stores.open_set,
            executions=stores.executions,
            settled=self.commit_log.drain,
            clock=clock,
            on_page=self._relieve,
        )
        self._requeue = Requeue(
            self.shards,
            queues=front.queues,
            open_set=stores.open_set,
            queue_item=self._queue_item,
            send=self._dispatcher.send,
            all_out=self._dispatcher.all_out,
            take_dropped=self._dispatcher.take_dropped,
            catch_up=self.finish,
            clock=clock,
            metrics=metrics,
            on_page=self._relieve,
        )
        self.audit = Audit(
            Parts(
                shards=self.shards,
                residents=self.residents,
                open_set=stores.open_set,
                queues=front.queues,
                timers=self._timers,
                dispatcher=self._dispatcher,
                recovery=self._recovery,
                requeue=self._requeue,
                commit_log=self.commit_log,
            ),
            clock=clock,
            metrics=metrics,
            interval_ms=settings.audit_interval_ms,
            workflows_per_s=settings.audit_workflows_per_s,
            grace_ms=settings.audit_grace_ms,
            on_page=self._relieve,
        )
        self.controller = Controller(
            self,
            stores,
            front.leases,
            front.presence,
            front.routes,
            node_id=settings.node_id,
            describe=describe_replayed,
            tell=front.tell_moved,
            clock=clock,
            metrics=metrics,
            ttl_ms=settings.lease_ttl_ms,
            heartbeat_ms=settings.heartbeat_ms,
            poll_ms=settings.shard_poll_ms,
            stable_ms=settings.stable_ms,
        )

    @property
    def is_recovered(self) -> bool:
        """Every open workflow of what was claimed at first has been looked at."""
        return self._has_recovered.is_set() and self.lost is None

    def has_room(self, share: int = 1) -> bool:
        """Whether less than `share` times what may wait for the stores does so."""
        settings, waiting = self._front.settings, self.commit_log
        return (
            waiting.pending_bytes < share * settings.log_backlog_bytes
            and waiting.pending_transitions < share * settings.log_backlog_transitions
            and waiting.pending_bytes + self.checkpoint.pending_bytes
            < share * settings.checkpoint_backlog_bytes
        )

    # -- life

    async def run(self) -> None:
        """Work until the log is lost or the caller cancels."""
        async with asyncio.TaskGroup() as group:
            loops = [
                group.create_task(loop)
                for loop in (
                    self.commit_log.run(),
                    self.checkpoint.run(),
                    self._dispatcher.run(),
                    self._timers.run(),
                    self.lease.run(),
                    self.controller.run(),
                    self._recover(),
                    self._requeue.run(),
                    self._audit(),
                )
            ]
            await self._ended_early.wait()
            for loop in loops:
                loop.cancel()

    def serve(self, rows: Sequence[ShardRow]) -> None:
        """Serve shards that were claimed for this log, and see that their workflows go on."""
        if self.lost is not None:
            return
        shards = [row.shard for row in rows]
        self._dispatcher.forget_unheard()
        self.shards.serve({row.shard: row.epoch for row in rows})
        self._timers.serve(shards)
        self.recover(shards)

    async def give_up(self, shards: Collection[ShardId]) -> GivenUp:
        """Stop serving shards; returns when all that was decided for them is in the stores, and
        another log may claim them. Fenced: the log is lost."""
        clock, count = self._front.clock, self._front.settings.shard_count
        stopped_ms = durable_ms = clock.monotonic_ms()

        async def stop() -> None:
            nonlocal stopped_ms, durable_ms
            stopped_ms = clock.monotonic_ms()
            self.shards.give_up(shards)
            self._timers.give_up(shards, self.shards.is_served)
            # Also what is written last says that it was not recovered, for the next owner to do it.
            self._leaving.update(
                {*shards} & (self._unrecovered | self._recovery.pending),
            )
            self._unrecovered.difference_update(shards)
            await self.commit_log.drain()
            durable_ms = clock.monotonic_ms()

        def is_among(workflow_id: WorkflowId) -> bool:
            return shard_of(workflow_id, shard_count=count) in shards

        await self.checkpoint.hand_off(is_among, stop)
        self._leaving.clear()
        self._dispatcher.forget_unheard()
        return GivenUp(stopped_ms, durable_ms, clock.monotonic_ms())

    async def forget(self, shards: Collection[ShardId]) -> None:
        """Drop what is in memory of shards that were given up; before they are served again."""
        await self.residents.forget(shards)
        self.keys.forget_unless(self.shards.is_served)

    async def until_empty(self) -> None:
        """Wait until a drain is through, or the log is lost."""
        waits = [
            asyncio.ensure_future(event.wait())
            for event in (self.controller.is_empty, self._ended_early)
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def release_schedules(self) -> None:
        """Have schedules go on that the switch of the scheduler has held."""
        self._timers.release()

    def recover(self, shards: Collection[ShardId]) -> None:
        """Have the open workflows of shards issue their effects again, in the background."""
        self._unrecovered.update(shards)
        self._have_unrecovered.set()

    async def finish(self) -> None:
        """Make all that was decided durable, and write it down. Fenced: the log is lost."""
        await self.commit_log.drain()
        await self.checkpoint.flush()

    def lose(self, lost: Fenced) -> None:
        """The log is lost: decide nothing more, answer nothing from memory, wake who waits."""
        if self.lost is not None:
            return
        self.lost = lost
        self._front.metrics.shard_moves.of("lost").inc(len(self.shards.epochs))
        self.shards.give_up(tuple(self.shards.epochs))
        self._on_lost(lost)
        self._ended_early.set()

    async def _recover(self) -> None:
        """Have every open workflow issue again what its last owner may not have done."""
        while True:
            await self._have_unrecovered.wait()
            self._have_unrecovered.clear()
            shards, self._unrecovered = self._unrecovered, set()
            self._recovery.pending.update(shards)
            generation = await self._requeue.generation()
            try:
                # What every queue was told of before, need not be told to it again.
                untold = await self._requeue.untold(generation, shards)
                await self._recovery.run(sorted(shards - untold), marked_only=True)
                await self._recovery.run(sorted(untold))
                await self.commit_log.drain()
            except Fenced:
                return  # Whoever waits for the end of this log has been told.
            await self._dispatcher.all_out()
            if self._dispatcher.has_dropped:
                generation = UNKNOWN
            await self._requeue.told(generation, shards)
            if not self._unrecovered:
                self._front.desk.holds_are_counted()
                self._has_recovered.set()

    async def _audit(self) -> None:
        """See to it, for good, that every open workflow goes on."""
        await self._has_recovered.wait()
        await self.audit.run()

    # -- callbacks of the parts

    async def _see_effects_out(self) -> None:
        """Learn whether all effects of what is about to be checkpointed have left."""
        out = self._dispatcher.all_out()
        await asyncio.wait([out], timeout=_EFFECTS_OUT_S)
        self._are_effects_out = (
            out.done() and not self._dispatcher.has_dropped and not self._requeue.is_behind
        )

    def _describe(self, workflow_id: WorkflowId, header: bytes) -> Described:
        execution = self.residents.executions.get(workflow_id)
        described = describe(
            workflow_id,
            header,
            may_lack_effects=not self._are_effects_out
            or self._dispatcher.is_under_way(workflow_id)
            or (execution is not None and bool(execution.scripts))
            or self._is_unrecovered(workflow_id),
            was_open=workflow_id not in self.residents.never_written,
            failed=((), ()) if execution is None else failed_names(execution),
            bundle=self.residents.next_bundle(workflow_id),
        )
        if described.open is not None:
            # From now on, also if the write is cut short, it may be in the open set.
            self.residents.never_written.discard(workflow_id)
        return described

    def _is_unrecovered(self, workflow_id: WorkflowId) -> bool:
        shard = shard_of(workflow_id, shard_count=self._front.settings.shard_count)
        parts = (self._unrecovered, self._recovery.pending, self._leaving)
        return any(shard in part for part in parts)

    def _written(self, workflow_ids: Sequence[WorkflowId], position: int) -> None:
        self.residents.written(workflow_ids, position)
        self.keys.written(workflow_ids, position)
        self._relieve()

    def _relieve(self) -> None:
        # The checkpoint under way has written a part only: what the last one wrote may go.
        self.residents.relieve(self.checkpoint.written)

    async def _settle(self, position: int) -> None:
        await self.commit_log.committed(position)
        if self.checkpoint.written < position:
            await self.checkpoint.flush()

    def _queue_item(self, execution: Execution, number: int) -> tuple[str, QueueItem]:
        task = execution.tasks[number]
        self._front.limits.note_copy(task.type, execution.node_of(task).definition)
        return self._front.items.item(execution, number)

    def _surroundings(self) -> Surroundings:
        settings = self._front.settings
        return Surroundings(
            environment=settings.environment,
            is_polled=self._is_polled,
            is_in_memory=self.residents.executions.__contains__,
            types=self._front.task_types,
            executor_lease_ms=settings.system_task_lease_ms,
            task_definitions=self._front.metadata.task_defs_at_hand,
            open_tasks_max=settings.open_tasks_max,
            payload_bytes_max=settings.workflow_payload_bytes_max,
            task_output_bytes_max=settings.task_output_bytes_max,
            schedule_grace_ms=settings.schedule_grace_ms,
            schedule_jitter_ms=settings.schedule_jitter_ms,
            messages_max=settings.workflow_messages_max,
        )

    def _is_held(self, workflow_id: WorkflowId) -> bool:
        return is_schedule(workflow_id) and self._front.scheduler_is_off()

    def _is_polled(self, task_type: str, domain: str, at_ms: int) -> bool:
        poll = self._front.desk.last_poll(task_type, domain)
        return poll is not None and poll.last_poll_ms >= at_ms - ACTIVE_WORKER_MS

    def _ended(self, workflow_id: WorkflowId) -> None:
        execution = self.residents.executions.get(workflow_id)
        if execution is None or not execution.is_terminal:
            return
        header, metrics = execution.header, self._front.metrics
        status, name = header.status.value, header.name
        metrics.workflow_execution.of(name, "").observe((header.end_ms - header.create_ms) / 1000)
        metrics.tasks_in_workflow.of(name, str(header.version)).observe(len(execution.tasks))
        if status != "COMPLETED":
            metrics.workflow_failure.of(name, status, "").inc()
