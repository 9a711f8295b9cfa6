"""One transition: an event decided, with all that follows from it on the same shard.

What a step touches beyond its workflow (children, parents) is part of the same entry of the commit
log, so it is durable together with it or not at all. Nothing here waits.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence

import msgspec
from msgspec.structs import replace

from cluster.clock import stopwatch_s
from cluster.engine import payloads
from cluster.engine.decider import decide
from cluster.engine.effects import (
    Effect,
    FreezeTaskDefs,
    PushTask,
    ResolveFailureWorkflow,
    ResolveSubWorkflow,
    RunScript,
    StartChild,
    Tell,
)
from cluster.engine.events import Continued, Event, Recovered, TaskUnheard, WorkflowStarted
from cluster.engine.model import Execution, Header
from cluster.engine.plan import Plan
from cluster.engine.rows import changed_rows
from cluster.engine.step import Surroundings
from cluster.engine.transitions import WorkflowStatus
from cluster.errors import ClusterError, Fenced, NotOwner, Unavailable
from cluster.ids import ShardId, WorkflowId, shard_of
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.sharding.commit_log import CommitLog
from cluster.sharding.plans import Plans
from cluster.sharding.residents import Residents
from cluster.sharding.resolutions import Definitions, failure_resolved, resolved, with_template
from cluster.sharding.watchers import Watchers
from cluster.store.ports import Row
from cluster.store.queue_ports import QueueItem

log = get_log(__name__)


class Sent(msgspec.Struct, frozen=True, gc=False):
    """An effect on its way out, after the commit of the step it came from."""

    workflow_id: WorkflowId
    effect: Effect | QueueItem | None
    """None: only tell those who wait for a change of the workflow."""
    queue: str = ""
    """Where a QueueItem goes."""


class _Transaction(msgspec.Struct):
    """One transition: every execution it touches, and the effects in order."""

    touched: dict[str, Execution] = {}
    created: list[Execution] = []
    effects: list[Sent] = []
    scripts: list[Sent] = []
    """They read and change nothing outside, so they run while the commit is on its way."""


class Decisions:
    """Decides events for executions in memory, and hands what changed to the commit log."""

    def __init__(
        self,
        epochs: dict[ShardId, int],
        *,
        shard_count: int,
        commit_log: CommitLog[Sent],
        residents: Residents,
        plans: Plans,
        definitions: Definitions,
        surroundings: Surroundings,
        metrics: Metrics,
        send: Callable[[list[Sent]], None],
        queue_item: Callable[[Execution, int], tuple[str, QueueItem]],
        run_json: Callable[[Execution], bytes],
    ) -> None:
        """`epochs` are the shards that are served. `queue_item` makes what a queue holds of a
        task; `run_json` shows a run."""
        self._epochs = epochs
        self._shard_count = shard_count
        self._log = commit_log
        self._residents = residents
        self._plans = plans
        self._definitions = definitions
        self._surroundings = surroundings
        self._metrics = metrics
        self._decision_s = metrics.workflow_decision.of()
        self._send = send
        self._queue_item = queue_item
        self._run_json = run_json
        self._stamps: dict[ShardId, int] = {}
        self.watchers = Watchers()
        self._watched = self.watchers.watched
        self.quarantined: dict[str, str] = {}

    def decide(self, execution: Execution, event: Event, *, extra_rows: Sequence[Row] = ()) -> int:
        """One transition: decide, collect rows, hand them to the log. Never awaits."""
        # Whoever has waited for something may find the shard given up since.
        shard = self.own(execution.id)
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
                target = self._residents.executions.get(WorkflowId(effect.workflow_id))
                if target is not None:
                    mailbox.append((target, effect.event))
                    return
            case StartChild():
                plan = self._plans.get(effect.snapshot)
                assert plan is not None, "a child starts right after its definition was found"
                child = self.child(plan, execution.id, effect, at_ms)
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

    def child(self, plan: Plan, parent_id: WorkflowId, effect: StartChild, at_ms: int) -> Execution:
        """A workflow of this shard that another one starts, before its first step."""
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
        self._residents.add(child)
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
            if touched.id in self._watched:
                effects.append(Sent(touched.id, None))
        if transaction.scripts:
            self._send(transaction.scripts)
        if not rows and not effects:
            return execution.last_entry
        try:
            entry = self._log.put(shard, self._epochs[shard], rows, effects)
        except Fenced:
            for touched in transaction.touched.values():
                self._residents.drop(touched)
            raise
        for touched in transaction.touched.values():
            touched.last_entry = entry
        return entry

    def _quarantine(
        self, transaction: _Transaction, execution: Execution, event: Event, error: Exception
    ) -> None:
        """Throw away what this transition changed; one broken workflow stops no other."""
        for touched in (*transaction.touched.values(), *transaction.created):
            self._residents.drop(touched)
        self.quarantined[execution.id] = repr(error)
        self._metrics.quarantined_workflows.of().set(len(self.quarantined))
        log.error(
            "workflow quarantined",
            workflow_id=execution.id,
            on=type(event).__name__,
            exc_info=error,
        )

    def own(self, workflow_id: WorkflowId) -> ShardId:
        """The shard of a workflow. NotOwner: it is not served here."""
        shard = shard_of(workflow_id, shard_count=self._shard_count)
        if shard not in self._epochs:
            raise NotOwner(f"This node does not own the shard of workflow {workflow_id}")
        return shard

    def forget(self, shards: Collection[ShardId]) -> None:
        """Shards were given up: what is known here of them is no longer right."""
        for shard in shards:
            self._stamps.pop(shard, None)
        for workflow_id in list(self.quarantined):
            if shard_of(WorkflowId(workflow_id), shard_count=self._shard_count) not in self._epochs:
                del self.quarantined[workflow_id]
        self._metrics.quarantined_workflows.of().set(len(self.quarantined))
