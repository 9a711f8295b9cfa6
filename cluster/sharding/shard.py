"""The decider loop of the shards of one node: one writer per workflow, one commit per step.

An event for a workflow in memory is decided on the spot, in the order in which the events came:
nothing is awaited between reading the execution and handing its changed rows to the commit log.
Only who needs a load waits. What a step touches beyond its workflow (children, parents) on the
same shard is part of the same transition, so it is durable together with it or not at all.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from msgspec.structs import replace

from cluster.clock import Clock, stopwatch_s
from cluster.engine import control, payloads
from cluster.engine.decider import decide
from cluster.engine.definitions import Snapshot
from cluster.engine.effects import (
    AcknowledgeTask,
    Effect,
    FreezeTaskDefs,
    PushTask,
    ResolveFailureWorkflow,
    ResolveSubWorkflow,
    RunScript,
    StartChild,
    Tell,
    WorkflowEnded,
)
from cluster.engine.events import (
    Continued,
    Event,
    FailureWorkflowResolved,
    Recovered,
    Restarted,
    SubWorkflowResolved,
    TaskUnheard,
    TaskUpdated,
    WorkflowStarted,
)
from cluster.engine.model import Execution, Header
from cluster.engine.plan import Plan
from cluster.engine.rows import HEADER_ROW, changed_rows
from cluster.engine.step import Surroundings, queue_name
from cluster.engine.transitions import WorkflowStatus
from cluster.errors import ClusterError, Fenced, NotFound, NotOwner, Unavailable
from cluster.ids import ShardId, WorkflowId, shard_of
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.sharding.commit_log import CommitLog
from cluster.sharding.meters import count_conflict, count_ended
from cluster.sharding.plans import Plans
from cluster.sharding.residents import Residents
from cluster.store.ports import Row
from cluster.store.queue_ports import QueueItem

log = get_log(__name__)

SETTLE_MS_MAX = 5_000
"""How long an answer waits for scripts and work items that its event set going (rule 44)."""

_ORDERS_MS_MAX = 5_000


class Found(Protocol):
    """A frozen definition, and what it was made of."""

    @property
    def snapshot(self) -> Snapshot: ...
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...


class Authority(Protocol):
    """Whether this process is still the one that decides."""

    @property
    def is_fresh(self) -> bool:
        """Surely so, without a look."""

    async def confirm(self) -> None:
        """Look. Fenced: it is not any more. StoreFault: nobody knows."""


class Definitions(Protocol):
    """What shards need of the metadata."""

    def snapshot_cached(self, name: str, version: int | None) -> Found | None:
        """A registered definition, frozen, if that takes no look into a store."""


@dataclass(frozen=True, slots=True)
class Sent:
    """An effect on its way out, after the commit of the step it came from."""

    workflow_id: WorkflowId
    effect: Effect | QueueItem | None
    """None: only tell those who wait for a change of the workflow."""
    queue: str = ""
    """Where a QueueItem goes."""


@dataclass(slots=True)
class NewWorkflow:
    """A workflow about to start: its header and payloads, and the plan it follows."""

    workflow_id: WorkflowId
    plan: Plan
    header: Header
    input: bytes
    extra_rows: Sequence[Row] = ()
    """Rows that must be durable together with the start (an idempotency key)."""


@dataclass(slots=True)
class _Transaction:
    """One transition: every execution it touches, and the effects in order."""

    touched: dict[str, Execution] = field(default_factory=dict)
    created: list[Execution] = field(default_factory=list)
    effects: list[Sent] = field(default_factory=list)
    scripts: list[Sent] = field(default_factory=list)
    """They read and change nothing outside, so they run while the commit is on its way."""


class Shards:
    """All shards that this process serves; which ones, changes while it runs."""

    def __init__(
        self,
        epochs: dict[ShardId, int],
        *,
        shard_count: int,
        authority: Authority,
        commit_log: CommitLog[Sent],
        residents: Residents,
        plans: Plans,
        definitions: Definitions,
        surroundings: Surroundings,
        clock: Clock,
        metrics: Metrics,
        send: Callable[[list[Sent]], None],
        queue_item: Callable[[Execution, int], tuple[str, QueueItem]],
        run_json: Callable[[Execution], bytes],
    ) -> None:
        """`epochs` are the shards that are served and their epochs, kept up to date here for all
        who look at it. `queue_item` makes what a queue holds of a task; `run_json` shows a run."""
        self.epochs = epochs
        self._shard_count = shard_count
        self._authority = authority
        self._log = commit_log
        self.residents = residents
        self._plans = plans
        self._definitions = definitions
        self._surroundings = surroundings
        self._clock = clock
        self._metrics = metrics
        self._decision_s = metrics.workflow_decision.of()
        self._send = send
        self._queue_item = queue_item
        self._run_json = run_json
        self._stamps: dict[ShardId, int] = {}
        self._watchers: dict[str, list[asyncio.Future[None]]] = {}
        self.quarantined: dict[str, str] = {}

    # -- what callers ask for

    async def start(self, new: NewWorkflow) -> int:
        """Create a workflow and take its first steps; returns its entry when that is durable."""
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
        self._own(workflow_id)
        execution = self.residents.executions.get(workflow_id)
        if execution is None:
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
        if execution is None and repeated:
            try:
                execution = await self.residents.get(child_id)
            except NotFound:
                # Another order for the same start may have been faster since.
                execution = self.resident(child_id)
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
            await self._change(workflow_id, left_ms)

    # -- deciding

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

    def _decide(self, execution: Execution, event: Event, *, extra_rows: Sequence[Row] = ()) -> int:
        """One transition: decide, collect rows, hand them to the log. Never awaits."""
        # Whoever has waited for something may find the shard given up since.
        shard = self._own(execution.id)
        stamp_ms = self._stamps.get(shard, 0)
        if event.at_ms < stamp_ms:
            event = replace(event, at_ms=stamp_ms)
        else:
            self._stamps[shard] = event.at_ms
        transaction = _Transaction()
        began_s = stopwatch_s()
        try:
            self._decide_all(transaction, execution, event)
        except ClusterError:
            raise
        except Exception as error:
            self._quarantine(transaction, execution, event, error)
            raise Unavailable(
                f"Workflow {execution.id} is quarantined: the engine failed to decide what comes "
                "next; nothing was changed, and its next event tries again"
            ) from error
        self._decision_s.observe(stopwatch_s() - began_s)
        if self.quarantined:
            self.quarantined.pop(execution.id, None)
        return self._log_transaction(shard, transaction, execution, event, extra_rows)

    def _decide_all(self, transaction: _Transaction, execution: Execution, event: Event) -> None:
        mailbox: deque[tuple[Execution, Event]] = deque(((execution, event),))
        first = event
        # What one event may change, and all that follow from it in this transition: children that
        # end as soon as they begin would else go on and on in one log entry.
        budget = self._surroundings.tasks_per_step_max
        while mailbox:
            execution, event = mailbox.popleft()
            transaction.touched[execution.id] = execution
            number = execution.header.next_number
            # Where a continuation is under way, only that goes on with it: a crowd of other events
            # would take the whole of it in one turn of the loop.
            waits = execution.header.work and not isinstance(event, Continued)
            try:
                effects = decide(
                    execution, event, self._surroundings, budget=0 if waits else budget
                )
            except ClusterError as refusal:
                if event is first:
                    raise
                # It does not fit this relative, and has changed nothing there. What the step has
                # changed elsewhere stands.
                log.info(
                    "a relative refused",
                    workflow_id=execution.id,
                    on=type(event).__name__,
                    error=refusal.message,
                )
                continue
            budget = max(0, budget - 1 - (execution.header.next_number - number))
            for effect in effects:
                self._take(transaction, mailbox, execution, effect, event.at_ms)

    def _take(
        self,
        transaction: _Transaction,
        mailbox: deque[tuple[Execution, Event]],
        execution: Execution,
        effect: Effect,
        at_ms: int,
    ) -> None:
        """What concerns this shard is decided in the same transition, the rest is sent later."""
        match effect:
            case PushTask():
                queue, item = self._queue_item(execution, effect.number)
                transaction.effects.append(Sent(execution.id, item, queue))
                return
            case Tell():
                target = self.residents.executions.get(WorkflowId(effect.workflow_id))
                if target is not None:
                    mailbox.append((target, effect.event))
                    return
            case StartChild():
                plan = self._plans.get(effect.snapshot)
                assert plan is not None, "a child starts right after its definition was found"
                child = self._child(plan, execution.id, effect, at_ms)
                if effect.failed_run:
                    # The run goes in as it ended, but for the note of this very start.
                    run = self._run_json(execution)
                    child.input = b'%b,"failedWorkflow":%b}' % (child.input[:-1], run)
                transaction.created.append(child)
                mailbox.append((child, WorkflowStarted(at_ms)))
                return
            case ResolveSubWorkflow() if effect.definition is None:
                found = self._definitions.snapshot_cached(effect.name, effect.version)
                if found is not None:
                    plan = self._plans.of(found.snapshot)
                    mailbox.append((execution, resolved(effect, found, plan, at_ms)))
                    return
            case ResolveFailureWorkflow():
                found = self._definitions.snapshot_cached(effect.name, effect.version)
                if found is not None:
                    self._plans.of(found.snapshot)
                    mailbox.append((execution, failure_resolved(found, at_ms)))
                    return
            case RunScript():
                transaction.scripts.append(Sent(execution.id, effect))
                return
            case FreezeTaskDefs():
                pass
        transaction.effects.append(Sent(execution.id, effect))

    def _child(
        self, plan: Plan, parent_id: WorkflowId, effect: StartChild, at_ms: int
    ) -> Execution:
        header = Header(
            snapshot=effect.snapshot,
            name=effect.name,
            version=effect.version,
            status=WorkflowStatus.RUNNING,
            create_ms=at_ms,
            priority=effect.priority,
            correlation_id=effect.correlation_id,
            task_to_domain=effect.task_to_domain,
            heard=effect.mark,
        )
        if effect.parent_number:
            header.parent_id = parent_id
            header.parent_number = effect.parent_number
        child = Execution(WorkflowId(effect.workflow_id), header, plan)
        child.input = with_template(plan, effect.input)
        if plan.definition.variables:
            child.variables = payloads.dump(plan.definition.variables)
        self.residents.add(child)
        return child

    def _log_transaction(
        self,
        shard: ShardId,
        transaction: _Transaction,
        execution: Execution,
        event: Event,
        extra_rows: Sequence[Row],
    ) -> int:
        rows: list[Row] = list(extra_rows)
        effects = transaction.effects
        for touched in transaction.touched.values():
            if not (touched.changed or touched.parts or touched.removed) and (
                isinstance(event, Recovered | TaskUnheard) or not effects
            ):
                # Nothing but its index changed: no row is due, the answer rests on older ones.
                continue
            changed = changed_rows(touched)
            rows += [Row(touched.id, number, data) for number, data in changed]
            if touched.id in self._watchers:
                effects.append(Sent(touched.id, None))
        if transaction.scripts:
            self._send(transaction.scripts)
        if not rows and not effects:
            return execution.last_entry
        try:
            entry = self._log.put(shard, self.epochs[shard], rows, effects)
        except Fenced:
            for touched in transaction.touched.values():
                self.residents.drop(touched)
            raise
        for touched in transaction.touched.values():
            touched.last_entry = entry
        return entry

    def _quarantine(
        self, transaction: _Transaction, execution: Execution, event: Event, error: Exception
    ) -> None:
        """Throw away what this transition changed; one broken workflow stops no other."""
        for touched in (*transaction.touched.values(), *transaction.created):
            self.residents.drop(touched)
        self.quarantined[execution.id] = repr(error)
        self._metrics.quarantined_workflows.of().set(len(self.quarantined))
        log.error(
            "workflow quarantined",
            workflow_id=execution.id,
            on=type(event).__name__,
            exc_info=error,
        )

    def _own(self, workflow_id: WorkflowId) -> ShardId:
        shard = shard_of(workflow_id, shard_count=self._shard_count)
        if shard not in self.epochs:
            raise NotOwner(f"This node does not own the shard of workflow {workflow_id}")
        return shard

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

    async def _change(self, workflow_id: WorkflowId, timeout_ms: int) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.setdefault(workflow_id, []).append(waiter)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await waiter
        except TimeoutError:
            pass
        finally:
            waiters = self._watchers.get(workflow_id)
            if waiters is not None and waiter in waiters:
                waiters.remove(waiter)
                if not waiters:
                    del self._watchers[workflow_id]

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
            self._stamps.pop(shard, None)
        for watched in list(self._watchers):
            if not self.is_served(WorkflowId(watched)):
                self.changed(WorkflowId(watched))
        for workflow_id in [one for one in self.quarantined if not self.is_served(WorkflowId(one))]:
            del self.quarantined[workflow_id]
        self._metrics.quarantined_workflows.of().set(len(self.quarantined))

    def changed(self, workflow_id: WorkflowId) -> None:
        """A change of this workflow has been committed: whoever waits for it looks again."""
        for waiter in self._watchers.pop(workflow_id, ()):
            if not waiter.done():
                waiter.set_result(None)


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


def resolved(
    effect: ResolveSubWorkflow, found: Found, plan: Plan, at_ms: int
) -> SubWorkflowResolved:
    """The answer to ResolveSubWorkflow."""
    if plan.check_input is not None:
        fault = input_fault(plan, with_template(plan, payloads.dump_map(effect.input)))
        if fault is not None:
            return SubWorkflowResolved(
                at_ms, effect.number, effect.token, name=found.name, error=fault, refused=True
            )
    return SubWorkflowResolved(
        at_ms,
        effect.number,
        effect.token,
        snapshot=found.snapshot.hash,
        name=found.name,
        version=found.version,
    )


def failure_resolved(found: Found, at_ms: int) -> FailureWorkflowResolved:
    """The answer to ResolveFailureWorkflow."""
    return FailureWorkflowResolved(
        at_ms, snapshot=found.snapshot.hash, name=found.name, version=found.version
    )


def input_fault(plan: Plan, encoded: bytes) -> str | None:
    """Why no run of this definition may start with an input, None if one may."""
    if plan.check_input is None:
        return None
    fault = plan.check_input(payloads.load(encoded))
    return None if fault is None else f"Workflow {plan.definition.name}: {fault}"


def with_template(plan: Plan, encoded: bytes) -> bytes:
    """The input of a run with its definition's inputTemplate filled in (rule 38)."""
    template: dict[str, Any] = plan.definition.input_template
    if not template or encoded == payloads.EMPTY:
        return encoded
    given: dict[str, Any] = payloads.load(encoded)
    if not given:
        return encoded
    # A null counts as absent, as in Conductor.
    filled = {key: value for key, value in template.items() if given.get(key) is None}
    return payloads.dump({**given, **filled})
