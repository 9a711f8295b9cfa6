"""The decider loop of the shards of one node: one writer per workflow, one commit per step.

An event for a workflow in memory is decided on the spot, in the order in which the events came:
nothing is awaited between reading the execution and handing its changed rows to the commit log
(decisions.py). Only who needs a load waits, and then all wait for the commit.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.clock import Clock
from cluster.engine import control, payloads
from cluster.engine.definitions import Snapshot
from cluster.engine.effects import AcknowledgeTask, StartChild, Tell, WorkflowEnded
from cluster.engine.events import Event, Restarted, TaskUpdated, WorkflowStarted
from cluster.engine.model import Execution, Header
from cluster.engine.plan import Plan
from cluster.engine.rows import HEADER_ROW
from cluster.engine.step import queue_name
from cluster.engine.transitions import WorkflowStatus
from cluster.errors import ClusterError, NotFound, NotOwner, Overloaded, Unavailable
from cluster.ids import ShardId, WorkflowId, shard_of
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.sharding.commit_log import CommitLog
from cluster.sharding.decisions import Decisions, Sent
from cluster.sharding.meters import count_conflict, count_ended
from cluster.sharding.plans import Plans
from cluster.sharding.residents import Residents
from cluster.store.ports import Row

log = get_log(__name__)

SETTLE_MS_MAX = 5_000
"""How long an answer waits for scripts and work items that its event set going (rule 44)."""

_ORDERS_MS_MAX = 5_000


class Authority(Protocol):
    """Whether this process is still the one that decides."""

    @property
    def is_fresh(self) -> bool:
        """Surely so, without a look."""

    async def confirm(self) -> None:
        """Look. Fenced: it is not any more. StoreFault: nobody knows."""


@dataclass(slots=True)
class NewWorkflow:
    """A workflow about to start: its header and payloads, and the plan it follows."""

    workflow_id: WorkflowId
    plan: Plan
    header: Header
    input: bytes
    extra_rows: Sequence[Row] = ()
    """Rows that must be durable together with the start (an idempotency key)."""
    is_promised: bool = False
    """It may have been started before, or a workflow has ordered it: it is not refused any more."""


class Shards:
    """All shards that this process serves; which ones, changes while it runs."""

    def __init__(
        self,
        epochs: dict[ShardId, int],
        decisions: Decisions,
        *,
        shard_count: int,
        authority: Authority,
        commit_log: CommitLog[Sent],
        residents: Residents,
        plans: Plans,
        clock: Clock,
        metrics: Metrics,
        send: Callable[[list[Sent]], None],
        has_room: Callable[[], bool],
    ) -> None:
        """`epochs` are the shards that are served and their epochs, kept up to date here for all
        who look at it. `has_room`: the stores keep up, so that new workflows may start."""
        self.epochs = epochs
        self._shard_count = shard_count
        self._authority = authority
        self._log = commit_log
        self.residents = residents
        self._plans = plans
        self._clock = clock
        self._metrics = metrics
        self._send = send
        self._has_room = has_room
        self._decide = decisions.decide
        self._own = decisions.own
        self._child = decisions.child
        self._forget = decisions.forget
        self.watchers = decisions.watchers
        self.quarantined = decisions.quarantined

    # -- what callers ask for

    async def start(self, new: NewWorkflow) -> int:
        """Create a workflow and take its first steps; returns its entry when that is durable.

        Overloaded: too much waits for its write-back. Nothing was changed.
        """
        return await self._answer(
            self._created(new), WorkflowStarted(new.header.create_ms), extra_rows=new.extra_rows
        )

    def start_now(self, new: NewWorkflow) -> int:
        """The same for one of many, without waiting: whoever answers waits for `stands`."""
        return self._decide(
            self._created(new), WorkflowStarted(new.header.create_ms), extra_rows=new.extra_rows
        )

    def _created(self, new: NewWorkflow) -> Execution:
        self._own(new.workflow_id)
        if not (new.is_promised or self._has_room()):
            self._metrics.requests_refused.of("start", "backlog").inc()
            # Results are taken: they end workflows. What nobody has begun may wait outside.
            raise Overloaded("Too much waits to be written to the store; try again later")
        execution = Execution(new.workflow_id, new.header, new.plan)
        execution.input = new.input
        variables = new.plan.definition.variables
        if variables:
            execution.variables = payloads.dump(variables)
        self.residents.add(execution)
        return execution

    async def apply(self, workflow_id: WorkflowId, event: Event) -> None:
        """Decide an event; returns when what it rests on is durable.

        NotFound: no such workflow. Raises what `decide` raises for commands that do not fit, and
        Unavailable or Fenced when the outcome is unknown.
        """
        execution = self.residents.executions.get(workflow_id)
        if execution is None:
            self._own(workflow_id)
            execution = await self._find(workflow_id)
        if isinstance(event, TaskUpdated):
            count_conflict(self._metrics, execution, event)
        await self._answer(execution, event)

    async def deliver(self, workflow_id: WorkflowId, event: Event) -> None:
        """`apply` for those who want no answer, another shard or an effect: returns when it is
        durable, and waits for nothing that the event has set going."""
        self._own(workflow_id)
        execution = await self._find(workflow_id)
        await self._stands(self._decide(execution, event))

    async def start_child(
        self, parent_id: WorkflowId, child: StartChild, *, repeated: bool
    ) -> bool:
        """Start the child of a workflow on another shard; returns when that is durable.

        Repeated, it starts once. False: the id belongs to another workflow.
        """
        child_id = WorkflowId(child.workflow_id)
        self._own(child_id)
        plan = await self._plans.load(child.snapshot)
        self._own(child_id)
        execution = self.resident(child_id)
        while execution is None and repeated:
            epoch = self.epoch_of(child_id)
            try:
                execution = await self.residents.get(child_id)
            except NotFound:
                # Another order for the same start may have been faster since.
                execution = self.resident(child_id)
            # Where the shard has been away and come back, another owner may have started it.
            repeated = self.epoch_of(child_id) != epoch
        if execution is not None:
            await self._log.committed(execution.last_entry)
            header = execution.header
            return (header.parent_id, header.parent_number) == (parent_id, child.parent_number)
        self._own(child_id)
        at_ms = self._clock.now_ms()
        execution = self._child(plan, parent_id, child, at_ms)
        await self._log.committed(self._decide(execution, WorkflowStarted(at_ms)))
        return True

    def resident(self, workflow_id: WorkflowId) -> Execution | None:
        """The execution if it is in memory; its latest, perhaps uncommitted state."""
        return self.residents.executions.get(workflow_id)

    def apply_now(self, execution: Execution, event: Event) -> int:
        """Decide an event for an execution in memory, without waiting for its commit."""
        return self._decide(execution, event)

    def submit_now(self, execution: Execution, event: Event) -> int:
        """`apply` for one of many, in memory, without waiting: see `stands`."""
        if isinstance(event, TaskUpdated):
            count_conflict(self._metrics, execution, event)
        return self._decide(execution, event)

    async def stands(self, entry: int) -> None:
        """Wait until all that was decided up to a log entry is durable, and nobody else can have
        decided meanwhile. Fenced: the outcome is unknown."""
        await self._log.committed(entry)
        await self._sure(self._authority.is_fresh)

    def apply_later(self, workflow_id: WorkflowId, event: Event) -> None:
        """Decide an event that nobody waits for; on the spot where that is possible."""
        execution = self.resident(workflow_id)
        effect = Tell(workflow_id, event)
        if execution is None:
            self._send([Sent(workflow_id, effect)])
            return
        try:
            self._decide(execution, event)
        except ClusterError as failure:
            log.warning("an event came to nothing", error=failure.message)

    async def restart(
        self, workflow_id: WorkflowId, event: Restarted, *, plan: Plan | None, version: int
    ) -> None:
        """Run again from the top; `plan` None keeps the definition."""
        self._own(workflow_id)
        execution = await self._find(workflow_id)
        control.check_restart(execution, plan or execution.plan)
        if plan is not None:
            execution.plan = plan
            execution.header.snapshot = plan.hash
            execution.header.version = version
        await self._answer(execution, event)

    async def remove(self, workflow_id: WorkflowId) -> None:
        """Delete a run; returns when that is durable. Open tasks leave their queues.

        Unavailable: other shards have not heard yet what it had to tell them.
        """
        self._own(workflow_id)
        execution = await self._find(workflow_id)
        if execution.orders:
            await self.wait_until(workflow_id, has_no_orders, _ORDERS_MS_MAX)
            execution = await self._find(workflow_id)
            if execution.orders:
                raise Unavailable(f"Relatives of workflow {workflow_id} cannot be reached now")
        shard = self._own(workflow_id)
        effects = [
            Sent(workflow_id, AcknowledgeTask(queue_name(task), task.number))
            for task in execution.open_tasks()
            if task.delivery
        ]
        effects.append(Sent(workflow_id, WorkflowEnded()))
        entry = self._log.put(
            shard, self.epochs[shard], [Row(workflow_id, HEADER_ROW, b"")], effects
        )
        self.residents.remove(execution, entry)
        await self._log.committed(entry)

    def prepare(self, snapshot: Snapshot) -> Plan:
        """Have the plan of a definition at hand that the next event will start a run of."""
        return self._plans.of(snapshot)

    async def apply_with(
        self, workflow_id: WorkflowId, event: Event, others: Sequence[WorkflowId]
    ) -> None:
        """The same, with other executions kept in memory that the event will touch."""
        for other in others:
            self.residents.pin(other)
        try:
            for other in others:
                try:
                    await self.residents.get(other)
                except ClusterError:
                    log.warning("a workflow that an event touches is not there", other=other)
            await self.apply(workflow_id, event)
        finally:
            for other in others:
                self.residents.unpin(other)

    async def view(self, workflow_id: WorkflowId) -> Execution:
        """The committed state; to be used before the caller's next await. NotFound."""
        self._own(workflow_id)
        is_sure = self._authority.is_fresh
        while True:
            execution = await self._find(workflow_id)
            self._own(workflow_id)
            if execution.last_entry > self._log.last_committed:
                # This proves nothing of now: it may be the answer to an append of before the
                # question, which this process has only come to hear after it had stood still.
                await self._log.committed(execution.last_entry)
            elif is_sure:
                return execution
            else:
                await self._authority.confirm()
                is_sure = True

    async def read(self, workflow_id: WorkflowId) -> Execution:
        """`view` for those who want to see how a run ended: with its failure workflow, if that
        can be told within a moment."""
        execution = await self.view(workflow_id)
        if execution.header.failure_workflow == "?":
            await self.wait_until(
                workflow_id, lambda execution: execution.header.failure_workflow != "?", 1_000
            )
            execution = await self.view(workflow_id)
        return execution

    async def wait_until(
        self, workflow_id: WorkflowId, predicate: Callable[[Execution], bool], timeout_ms: int
    ) -> bool:
        """Whether `predicate` held for a committed state within the time."""
        deadline_ms = self._clock.monotonic_ms() + timeout_ms
        while True:
            if predicate(await self.view(workflow_id)):
                return True
            left_ms = deadline_ms - self._clock.monotonic_ms()
            if left_ms <= 0:
                return False
            await self.watchers.change(workflow_id, left_ms)

    # -- deciding and waiting for what it rests on

    async def _answer(
        self, execution: Execution, event: Event, *, extra_rows: Sequence[Row] = ()
    ) -> int:
        try:
            entry = self._decide(execution, event, extra_rows=extra_rows)
        except NotOwner:
            raise
        except ClusterError:
            # A refusal too must not rest on what may never become durable.
            await self._stands(execution.last_entry)
            raise
        await self._stands(entry)
        if is_unsettled(execution):
            await self._settled(execution.id)
        return entry

    async def _stands(self, entry: int) -> None:
        """Wait until what an answer rests on is durable, and known to be the latest there is."""
        if entry > self._log.last_committed:
            # A commit shows that nobody else decides.
            await self._log.committed(entry)
        else:
            await self._sure(self._authority.is_fresh)

    async def _find(self, workflow_id: WorkflowId) -> Execution:
        """The execution. NotFound: there is none, and no later owner can have started it."""
        is_sure = self._authority.is_fresh
        try:
            return await self.residents.get(workflow_id)
        except NotFound:
            await self._sure(is_sure)
            raise

    async def _sure(self, is_sure: bool) -> None:
        if not is_sure:
            await self._authority.confirm()

    # -- waiting for changes

    async def _settled(self, workflow_id: WorkflowId) -> None:
        """Wait until the scripts and work items of a workflow are through, or long enough."""

        def is_settled(execution: Execution) -> bool:
            return not is_unsettled(execution)

        try:
            await self.wait_until(workflow_id, is_settled, SETTLE_MS_MAX)
        except ClusterError:
            # What was asked for is durable; that it cannot be watched any longer is no failure.
            log.info("stopped waiting for a workflow to settle", workflow_id=workflow_id)

    # -- what is served, and what became of it

    def task_ended(self, workflow_id: WorkflowId, number: int) -> None:
        """The end of a worker's task has been committed."""
        execution = self.residents.executions.get(workflow_id)
        if execution is not None:
            count_ended(self._metrics, execution, number)

    @property
    def are_sure(self) -> bool:
        """Nobody can have taken these shards over yet: what is in memory is the latest there is."""
        return self._authority.is_fresh

    def is_served(self, workflow_id: WorkflowId) -> bool:
        """Whether events for a workflow are taken here."""
        return shard_of(workflow_id, shard_count=self._shard_count) in self.epochs

    def epoch_of(self, workflow_id: WorkflowId) -> int | None:
        """The epoch in which its shard is served here; None: it is not."""
        return self.epochs.get(shard_of(workflow_id, shard_count=self._shard_count))

    def serve(self, epochs: Mapping[ShardId, int]) -> None:
        """Take events for these shards from now on; what earlier owners did is in the store."""
        self.epochs.update(epochs)

    def give_up(self, shards: Collection[ShardId]) -> None:
        """Take no more events for these shards: whoever comes, or waits, gets NotOwner."""
        for shard in shards:
            self.epochs.pop(shard, None)
        self._forget(shards)
        for watched in list(self.watchers.watched):
            if not self.is_served(WorkflowId(watched)):
                self.watchers.changed(WorkflowId(watched))


def has_no_orders(execution: Execution) -> bool:
    """Whether other shards have acknowledged all that a workflow had to tell them."""
    return not execution.orders


def is_unsettled(execution: Execution) -> bool:
    """Whether steps that need no worker and no time are still on their way."""
    header = execution.header
    return (
        bool(execution.scripts)
        or header.failure_workflow == "?"
        or (bool(header.work) and header.status is not WorkflowStatus.PAUSED)
    )
