"""The way from a handler to the node that owns a workflow, and what takes more than one of them.

A workflow that is served here costs one look into a dict. One that is not goes over a link, as a
whole operation. While its shard is in motion, or its owner has died, the request waits and is
tried again; every operation may be repeated: a start under the same id, a result by its task, a
command whose effect is there is done.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from cluster.clock import Clock, Random
from cluster.engine.effects import StartChild
from cluster.engine.events import (
    Event,
    Paused,
    Rerun,
    Resumed,
    Retried,
    ScheduleResumed,
    TaskHandedBack,
    TaskPolled,
    TaskUpdated,
    Terminated,
)
from cluster.engine.model import Execution
from cluster.engine.schedules import state_of
from cluster.engine.transitions import TaskStatus, WorkflowStatus
from cluster.errors import (
    ClusterError,
    Fenced,
    NotFound,
    NotOwner,
    OutcomeUnknown,
    StoreFault,
    Unavailable,
    Unreached,
)
from cluster.ids import (
    SLOT_BITS,
    ShardId,
    TaskId,
    WorkflowId,
    new_workflow_id,
    number_of,
    schedule_id,
    slot_of_key,
    task_id,
    workflow_of,
)
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.node import remote
from cluster.node.admission import Admission
from cluster.node.elsewhere import Elsewhere
from cluster.node.incarnation import Home
from cluster.node.link import LinkCall
from cluster.node.link_faults import Fault, error_of
from cluster.node.metadata import Metadata
from cluster.node.notes import Notes
from cluster.node.owner import Owner, RerunRequest, StartWorkflow
from cluster.node.poll import HandOver
from cluster.node.remote import Operation, Seen, pack
from cluster.sharding.plans import Plans
from cluster.store.lease_ports import Member
from cluster.store.ports import LogId, OpenSet, ShardRow

__all__ = ["RerunRequest", "Router", "StartWorkflow"]

log = get_log(__name__)

_SLOTS = 1 << SLOT_BITS
_PAUSE_MS, _PAUSE_MS_MAX = 10, 400
_WAIT_MS_MAX = 5_000
"""A change of a workflow elsewhere is waited for so long at a time."""
_CATCH_UP_MS = 2_000
_LISTED_MS_MAX = 2_000
"""How long an answer about a schedule waits for the list of schedules."""
_TOLD_MS_MAX = 2_000

_NOTHING_DONE = (NotOwner, Unreached)
_UNKNOWN = (Fenced, OutcomeUnknown, StoreFault)
AGAIN = _NOTHING_DONE + _UNKNOWN
"""What a request is tried again after, elsewhere or later."""


class Router:
    """Takes requests to the nodes that own their workflows."""

    def __init__(
        self,
        home: Home,
        elsewhere: Elsewhere | None,
        *,
        admission: Admission,
        metadata: Metadata,
        plans: Plans,
        open_set: OpenSet,
        clock: Clock,
        random: Random,
        metrics: Metrics,
        removed: Callable[[WorkflowId], Awaitable[None]],
        shard_count: int,
        timeout_ms: int,
    ) -> None:
        """`elsewhere` None: this node is the only one. `admission` is for what other nodes bring;
        requests of clients have come through it before they get here. `removed` drops what other
        stores hold of a workflow (task logs)."""
        self._home = home
        self._elsewhere = elsewhere
        self._plans = plans
        self._clock = clock
        self._random = random
        self._metrics = metrics
        self._shard_count = shard_count
        self._slots_per_shard = _SLOTS // shard_count
        self._timeout_ms = timeout_ms
        self._telling: set[asyncio.Future[None]] = set()
        self._owner = Owner(
            home,
            self,
            metadata=metadata,
            plans=plans,
            open_set=open_set,
            clock=clock,
            removed=removed,
        )
        self._here = remote.Here(self._owner, clock, shard_count, admission)
        self._notes = Notes(
            self._here, elsewhere, clock=clock, metrics=metrics, timeout_ms=timeout_ms
        )

    @property
    def owner(self) -> Owner:
        """What this node does for the workflows that it serves itself."""
        return self._owner

    # -- starts

    def draw_id(self) -> WorkflowId:
        """An id for a new workflow, of a shard that is served here if there is one."""
        return self._draw(self._slot())

    async def start(self, request: StartWorkflow) -> WorkflowId:
        """Start a workflow; returns its id when the start is durable.

        NotFound: no such definition. Conflict: the idempotency key is in use.
        """
        key = request.idempotency_key
        if key is not None:
            workflow_id = self._draw(slot_of_key(request.name, key))
            arguments = (workflow_id, request, key)
            started: WorkflowId = await self._do(workflow_id, remote.START_ONCE, arguments)
            return started
        workflow_id = self.draw_id()
        try:
            await self._owner.start(workflow_id, request)
        except AGAIN as failure:
            await self._again(workflow_id, remote.START, (workflow_id, request, False), failure)
        return workflow_id

    async def launch(self, workflow_id: WorkflowId, request: StartWorkflow) -> None:
        """Start under an id drawn before; a start that happened already is success."""
        await self._do(workflow_id, remote.START, (workflow_id, request, True))

    async def launch_once(
        self, workflow_id: WorkflowId, request: StartWorkflow, key: str
    ) -> WorkflowId:
        """The same with an idempotency key, in whose slot the id was drawn; returns what the key
        stands for. Conflict."""
        arguments = (workflow_id, request, key)
        started: WorkflowId = await self._do(workflow_id, remote.START_ONCE, arguments)
        return started

    # -- schedules: an execution each, under an id made of the name

    async def save_schedule(self, name: str, saved: bytes) -> Execution:
        """Save a schedule, new or in place of the one of its name; returns it when it is durable
        and shown by the list of schedules."""
        own_id = schedule_id(name)
        await self._do(own_id, remote.SAVE_SCHEDULE, (own_id, saved))
        return await self._listed(own_id)

    async def change_schedule(self, name: str, event: Event) -> None:
        """Pause, resume or delete a schedule; returns when that is durable and listed. NotFound."""
        own_id = schedule_id(name)
        try:
            await self.submit(own_id, event)
        except NotFound:
            raise NotFound(f"Schedule '{name}' not found") from None
        try:
            await self._listed(own_id)
        except NotFound:
            pass  # It was deleted.

    async def schedule(self, name: str) -> Execution:
        """A schedule as it stands; to be used before the caller's next await. NotFound."""
        try:
            found = await self.look(schedule_id(name))
        except NotFound:
            found = None
        if found is None or state_of(found).deleted:
            raise NotFound(f"Schedule '{name}' not found")
        return found

    async def _listed(self, own_id: WorkflowId) -> Execution:
        await self.wait_until(own_id, _is_listed, _LISTED_MS_MAX)
        return await self.look(own_id)

    def _draw(self, slot: int) -> WorkflowId:
        return new_workflow_id(at_ms=self._clock.now_ms(), slot=slot, random=self._random)

    def _slot(self) -> int:
        """Any, but one that is served here if there is one: that saves a hop."""
        slot = self._random.bits(SLOT_BITS)
        incarnation = self._home.incarnation
        if incarnation is None:
            return slot
        epochs = incarnation.shards.epochs
        if not epochs or len(epochs) == self._shard_count:
            return slot
        served = tuple(epochs)
        return served[slot % len(served)] * self._slots_per_shard + slot % self._slots_per_shard

    # -- events and reads

    async def submit(self, workflow_id: WorkflowId, event: Event) -> None:
        """Decide an event; returns when what it rests on is durable."""
        try:
            await self._owner.submit(workflow_id, event)
        except AGAIN as failure:
            await self.submit_again(workflow_id, event, failure)

    async def submit_again(
        self, workflow_id: WorkflowId, event: Event, failure: ClusterError
    ) -> None:
        """`submit`, after a first attempt came to one of `AGAIN`."""
        await self._again(
            workflow_id,
            remote.SUBMIT,
            (workflow_id, pack(event)),
            failure,
            was_done=_was_done(event),
        )

    def way_elsewhere(self, workflow_id: WorkflowId) -> tuple[Member, int] | None:
        """The other node that owns a workflow, and the epoch of its shard; None: it is served
        here, or nobody is known to serve it."""
        if self._owner.serves(workflow_id):
            return None
        return self._way_to(self._here.shard_of(workflow_id))

    async def submit_to(
        self, owner: Member, events: Sequence[tuple[WorkflowId, Event, int]]
    ) -> dict[int, ClusterError]:
        """Have another node decide events, each in an epoch of its shard; returns which it
        refused, by place, when the others are durable. Raises as Links does."""
        assert self._elsewhere is not None
        packed = [(workflow_id, pack(event), epoch) for workflow_id, event, epoch in events]
        faults: list[tuple[int, Fault]] = await self._elsewhere.call(
            owner, remote.SUBMIT_MANY, (packed,), timeout_ms=self._timeout_ms
        )
        return {place: error_of(fault) for place, fault in faults}

    async def view(self, workflow_id: WorkflowId) -> Execution:
        """The committed state, with its failure workflow if it has one; to be used before the
        caller's next await. NotFound."""
        try:
            return await self._owner.view(workflow_id)
        except AGAIN as failure:
            return await self._seen(workflow_id, failure, is_settled=True)

    async def look(self, workflow_id: WorkflowId) -> Execution:
        """The committed state as it is; to be used before the caller's next await. NotFound."""
        try:
            return await self._owner.look(workflow_id)
        except AGAIN as failure:
            return await self._seen(workflow_id, failure, is_settled=False)

    async def wait_until(
        self, workflow_id: WorkflowId, predicate: Callable[[Execution], bool], timeout_ms: int
    ) -> bool:
        """Whether `predicate` held for a committed state within the time."""
        deadline_ms = self._clock.monotonic_ms() + timeout_ms
        known = remote.UNSEEN
        wait_ms = 0
        while True:
            left_ms = max(0, deadline_ms - self._clock.monotonic_ms())
            try:
                return await self._owner.wait_until(workflow_id, predicate, left_ms)
            except AGAIN as failure:
                seen = await self._see(workflow_id, failure, known, wait_ms)
            # No rows: nothing has changed.
            if seen.rows and predicate(await self._executed(workflow_id, seen)):
                return True
            left_ms = deadline_ms - self._clock.monotonic_ms()
            if left_ms <= 0:
                return False
            known, wait_ms = seen, min(left_ms, _WAIT_MS_MAX)

    async def _seen(
        self, workflow_id: WorkflowId, failure: ClusterError, *, is_settled: bool
    ) -> Execution:
        seen = await self._see(workflow_id, failure, remote.UNSEEN, 0, is_settled=is_settled)
        return await self._executed(workflow_id, seen)

    async def _see(
        self,
        workflow_id: WorkflowId,
        failure: ClusterError,
        known: Seen,
        wait_ms: int,
        *,
        is_settled: bool = False,
    ) -> Seen:
        arguments = (workflow_id, known.epoch, known.entry, wait_ms, is_settled)
        seen: Seen = await self._again(
            workflow_id, remote.SEE, arguments, failure, extra_ms=wait_ms
        )
        return seen

    async def _executed(self, workflow_id: WorkflowId, seen: Seen) -> Execution:
        return seen.execution(workflow_id, await self._plans.load(seen.snapshot))

    # -- tasks by name, signals

    async def update_by_ref(
        self,
        workflow_id: WorkflowId,
        ref: str,
        status: TaskStatus,
        output: bytes,
        worker_id: str | None,
    ) -> TaskId | None:
        """Update the open task of that reference name (rule 111); None where there is none."""
        # The task is found first: to repeat the whole might meet the next task of that name.
        number: int | None = await self._do(workflow_id, remote.OPEN_BY_REF, (workflow_id, ref))
        if number is None:
            return None
        await self._update(workflow_id, number, status, output, worker_id)
        return task_id(workflow_id, number)

    async def signal(
        self, workflow_id: WorkflowId, status: TaskStatus, output: bytes
    ) -> tuple[WorkflowId, TaskId] | None:
        """Update the first WAIT that is open in the run or, depth first, in its children."""
        found: tuple[WorkflowId, int] | None = await self._do(
            workflow_id, remote.WAITING, (workflow_id,)
        )
        if found is None:
            return None
        run_id, number = found
        await self._update(run_id, number, status, output, None)
        return run_id, task_id(run_id, number)

    async def _update(
        self,
        workflow_id: WorkflowId,
        number: int,
        status: TaskStatus,
        output: bytes,
        worker_id: str | None,
    ) -> None:
        event = TaskUpdated(
            self._clock.now_ms(), number, status, output=output, merge=True, worker_id=worker_id
        )
        await self.submit(workflow_id, event)

    # -- control operations that take more than an event

    async def restart(self, workflow_id: WorkflowId, use_latest: bool) -> None:
        """Run again from the top, with the definition it followed or the latest one."""
        await self._do(workflow_id, remote.RESTART, (workflow_id, use_latest), was_done=_runs_again)

    async def retry(self, workflow_id: WorkflowId, *, resume_sub_workflows: bool) -> None:
        """Retry what failed here or, resuming sub-workflows, in the deepest failed child."""
        arguments = (workflow_id, resume_sub_workflows)
        await self._do(workflow_id, remote.RETRY, arguments, was_done=_runs_again)

    async def revive(self, workflow_id: WorkflowId, event: Retried | Rerun) -> None:
        """Have a run go on that has ended, and its ancestors with it."""
        await self._do(workflow_id, remote.REVIVE, (workflow_id, pack(event)), was_done=_runs_again)

    async def rerun(self, workflow_id: WorkflowId, request: RerunRequest) -> WorkflowId:
        """Run again from a task; one of a sub-workflow makes that child run again."""
        await self._do(workflow_id, remote.RERUN, (workflow_id, request), was_done=_runs_again)
        return workflow_id

    async def remove(self, workflow_id: WorkflowId, archive: bool) -> None:
        """Delete a run everywhere; `archive` keeps it readable, and wants it to have ended."""
        await self._do(workflow_id, remote.REMOVE, (workflow_id, archive), was_done=_is_gone)

    # -- orders of other shards (Carrier of the mail): one attempt, the sender repeats

    async def deliver(self, workflow_id: WorkflowId, event: Event) -> None:
        """Have another shard decide an event; returns when that is durable."""
        await self._attempt(workflow_id, remote.DELIVER, (workflow_id, pack(event)))

    async def start_child(
        self, parent_id: WorkflowId, child: StartChild, *, repeated: bool
    ) -> bool:
        """Start a child on another shard; returns when that is durable. False: the id belongs to
        another workflow."""
        arguments = (parent_id, child, repeated)
        child_id = WorkflowId(child.workflow_id)
        started: bool = await self._attempt(child_id, remote.START_CHILD, arguments)
        return started

    async def _attempt(
        self, workflow_id: WorkflowId, operation: Operation, arguments: tuple[Any, ...]
    ) -> Any:
        try:
            return await self._once(workflow_id, operation, arguments)
        except _NOTHING_DONE:
            if self._elsewhere is not None:
                await self._elsewhere.refresh()
            raise

    # -- all nodes

    async def requeue(self, task_type: str) -> int:
        """Put every open worker task of a type back into its queue; returns how many."""
        counts = await self._everywhere(remote.REQUEUE, (task_type,), timeout_ms=self._timeout_ms)
        return sum(counts)

    async def catch_up(self) -> None:
        """Have all that was answered so far written to where searches look. A node that does not
        answer is not waited for: it writes by itself about once a second."""
        try:
            await self._everywhere(remote.CATCH_UP, (), timeout_ms=_CATCH_UP_MS)
        except (Unavailable, Fenced) as failure:
            log.info("a search may lag behind", error=failure.message)

    async def _everywhere(
        self, operation: Operation, arguments: tuple[Any, ...], *, timeout_ms: int
    ) -> list[Any]:
        asked: list[Awaitable[Any]] = []
        if self._home.incarnation is not None:
            asked.append(operation.run(self._here, *arguments))
        elsewhere = self._elsewhere
        if elsewhere is not None:
            asked += [
                elsewhere.call(member, operation, arguments, timeout_ms=timeout_ms)
                for member in elsewhere.members
            ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    def drains_by(self, drain: Callable[[], Awaitable[None]]) -> None:
        """What another node's order to drain begins here."""
        self._here.drain = drain

    def hears_by(self, hear: Callable[[Sequence[ShardRow]], None]) -> None:
        """Who listens when another node tells of shards that have another owner now."""
        self._here.heard = hear

    def tell_moved(self, rows: Sequence[ShardRow], log_id: LogId | None) -> None:
        """Have the node of a log, or all others, hear of shards that have another owner now;
        nobody waits for it."""
        if self._elsewhere is None:
            return
        for member in self._elsewhere.members:
            if log_id not in (None, member.log):
                continue
            telling = asyncio.ensure_future(self._tell_moved(self._elsewhere, member, rows))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)

    async def _tell_moved(
        self, elsewhere: Elsewhere, member: Member, rows: Sequence[ShardRow]
    ) -> None:
        try:
            await elsewhere.call(member, remote.MOVED, (rows,), timeout_ms=_TOLD_MS_MAX)
        except ClusterError as failure:
            # It finds out by itself.
            log.info("a node did not hear of a move", node=member.node_id, error=failure.message)

    async def drain(self, member: Member) -> None:
        """Have another node begin to hand its shards over."""
        if self._elsewhere is None:
            raise NotOwner("This node is alone")
        await self._elsewhere.call(member, remote.DRAIN, (), timeout_ms=self._timeout_ms)

    async def serve(self, call: LinkCall) -> bytes:
        """What another node asks of this one."""
        return await remote.carry_out(self._here, call)

    # -- what polls need (TaskOwner)

    def hand_over(
        self, task: TaskId, *, delivery: int, worker_id: str | None, at_ms: int
    ) -> HandOver | None:
        """Note that a worker gets this delivery of a task; nobody waits for the commit."""
        workflow_id = workflow_of(task)
        event = TaskPolled(at_ms, number_of(task), worker_id or "", delivery)
        if self._owner.serves(workflow_id):
            try:
                return self._owner.hand_over(workflow_id, event)
            except ClusterError as failure:
                log.info("a task was handed over while its shard moves", error=failure.message)
        # Its queue has told what there is to tell; its owner hears of it in a moment.
        self._notes.put(workflow_id, event)
        return HandOver(at_ms, at_ms, delivery, 0)

    def take_back(self, task: TaskId, *, delivery: int) -> None:
        """The worker never got it."""
        workflow_id = workflow_of(task)
        event = TaskHandedBack(self._clock.now_ms(), number_of(task), delivery)
        if self._owner.serves(workflow_id):
            self._owner.note(workflow_id, event)
        else:
            self._notes.put(workflow_id, event)

    async def run(self) -> None:
        """Tell owners elsewhere what was done with their tasks, until cancelled."""
        await self._notes.run()

    # -- the way to the owner

    def _way_to(self, shard: ShardId) -> tuple[Member, int] | None:
        return None if self._elsewhere is None else self._elsewhere.way_to(shard)

    async def _do(
        self,
        workflow_id: WorkflowId,
        operation: Operation,
        arguments: tuple[Any, ...],
        *,
        was_done: "WasDone | None" = None,
    ) -> Any:
        """Have the owner of a workflow do something, wherever it is, before time is up."""
        try:
            return await operation.run(self._here, *arguments)
        except AGAIN as failure:
            return await self._again(workflow_id, operation, arguments, failure, was_done=was_done)

    async def _again(
        self,
        workflow_id: WorkflowId,
        operation: Operation,
        arguments: tuple[Any, ...],
        failure: ClusterError,
        *,
        was_done: "WasDone | None" = None,
        extra_ms: int = 0,
    ) -> Any:
        """It did not work out here: go where the shard is, and wait while it is in motion.

        Unavailable when time is up. `extra_ms` is what the operation itself may take.
        """
        if self._elsewhere is None:
            raise failure
        deadline_ms = self._clock.monotonic_ms() + self._timeout_ms + extra_ms
        is_repeated = isinstance(failure, _UNKNOWN)
        pause_ms = _PAUSE_MS
        shard = self._here.shard_of(workflow_id)
        # A shard that is served elsewhere is the normal case, and no reason to look again.
        is_known = isinstance(failure, NotOwner)
        heard = self._elsewhere.heard_of(shard)
        while True:
            left_ms = deadline_ms - self._clock.monotonic_ms()
            if left_ms <= 0:
                raise Unavailable(
                    f"The owner of workflow {workflow_id} does not answer: {failure.message}"
                ) from failure
            if not is_known:
                self._metrics.request_repeats.of(operation.name).inc()
                await self._elsewhere.moved(shard, heard, min(pause_ms, left_ms))
                pause_ms = min(2 * pause_ms, _PAUSE_MS_MAX)
            is_known = False
            # What is told while the call is under way counts too.
            heard = self._elsewhere.heard_of(shard)
            given = operation.repeated(arguments) if is_repeated else arguments
            try:
                return await self._once(workflow_id, operation, given, shard, left_ms)
            except AGAIN as again:
                failure = again
                is_repeated = is_repeated or isinstance(again, _UNKNOWN)
            except ClusterError:
                if (
                    is_repeated
                    and was_done is not None
                    and await self._finds(workflow_id, was_done)
                ):
                    return None
                raise

    async def _finds(self, workflow_id: WorkflowId, was_done: "WasDone") -> bool:
        try:
            return was_done(await self.look(workflow_id))
        except NotFound:
            return was_done(None)

    async def _once(
        self,
        workflow_id: WorkflowId,
        operation: Operation,
        arguments: tuple[Any, ...],
        shard: ShardId | None = None,
        timeout_ms: int | None = None,
    ) -> Any:
        if self._owner.serves(workflow_id):
            return await operation.run(self._here, *arguments)
        if shard is None:
            shard = self._here.shard_of(workflow_id)
        way = self._way_to(shard)
        if self._elsewhere is None or way is None:
            raise NotOwner(f"Nobody serves shard {shard} at present")
        member, epoch = way
        return await self._elsewhere.call(
            member,
            operation,
            arguments,
            timeout_ms=timeout_ms or self._timeout_ms,
            shard=shard,
            epoch=epoch,
        )


# -- repetitions whose first attempt nobody answered

WasDone = Callable[[Execution | None], bool]
"""Whether a command that is refused now was done before; None: there is no such workflow."""


def _was_done(event: Event) -> WasDone | None:
    match event:
        case Terminated():
            return partial(_has_status, WorkflowStatus.TERMINATED)
        case Paused():
            return partial(_has_status, WorkflowStatus.PAUSED)
        case Resumed():
            return partial(_has_status, WorkflowStatus.RUNNING)
        case ScheduleResumed():
            return _runs_on_schedule
        case _:
            return None


def _has_status(status: WorkflowStatus, execution: Execution | None) -> bool:
    return execution is not None and execution.header.status is status


def _runs_again(execution: Execution | None) -> bool:
    return execution is not None and not execution.is_terminal


def _is_gone(execution: Execution | None) -> bool:
    return execution is None


def _runs_on_schedule(execution: Execution | None) -> bool:
    return execution is not None and not state_of(execution).paused


def _is_listed(execution: Execution) -> bool:
    state = state_of(execution)
    return state.listed == state.revision and not state.deleted
