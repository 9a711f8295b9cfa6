"""What the owner of a workflow does for a request: starts, reads, commands.

Its relatives may live on other shards, so it asks for those by way of the router (`Others`).
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from cluster.clock import Clock
from cluster.engine import control, payloads, schedules
from cluster.engine.decider import may_be_polled
from cluster.engine.effects import StartChild
from cluster.engine.events import (
    Event,
    Rerun,
    Restarted,
    Retried,
    ScheduleSaved,
    TaskHandedBack,
    TaskPolled,
    TasksRequeued,
)
from cluster.engine.model import Execution, Header, Task
from cluster.engine.plan import Plan
from cluster.engine.transitions import OPEN_TASK, WorkflowStatus
from cluster.errors import (
    ClusterError,
    Conflict,
    Fenced,
    InvalidRequest,
    NotFound,
    NotOwner,
    Unavailable,
)
from cluster.ids import (
    ShardId,
    TaskId,
    WorkflowId,
    idempotency_id,
    number_of,
    same_slot,
    workflow_of,
)
from cluster.node.incarnation import Home
from cluster.node.metadata import Metadata, NoSuchWorkflow, Resolved
from cluster.node.poll import HandOver
from cluster.sharding.idempotency import KeyRecord
from cluster.sharding.plans import Plans
from cluster.sharding.resolutions import input_fault, with_template
from cluster.sharding.shard import NewWorkflow, Shards
from cluster.store.ports import OpenSet, Row

_SUB_WORKFLOW_DEPTH_MAX = 100
_FORGOTTEN_MS_MAX = 10_000
"""How long a schedule that was deleted may take to go, before one of its name can be saved."""


class StartWorkflow(msgspec.Struct, frozen=True):
    """A start as it was asked for; `input` is a JSON object."""

    name: str
    version: int | None = None
    input: bytes = payloads.EMPTY
    correlation_id: str | None = None
    priority: int = 0
    task_to_domain: dict[str, str] | None = None
    definition: dict[str, Any] | None = None
    """Used in place of a registered definition."""
    created_by: str = ""
    idempotency_key: str | None = None
    idempotency_strategy: str | None = None
    """FAIL, FAIL_ON_RUNNING, or RETURN_EXISTING, which is the default."""


class RerunRequest(msgspec.Struct, frozen=True):
    """From which task (None: from the top), and with what; None keeps what there is."""

    task_id: TaskId | None = None
    workflow_input: bytes | None = None
    task_input: bytes | None = None
    correlation_id: str | None = None


class Others(Protocol):
    """Other workflows, wherever they are served."""

    async def look(self, workflow_id: WorkflowId) -> Execution:
        """The committed state; to be used before the caller's next await. NotFound."""

    async def submit(self, workflow_id: WorkflowId, event: Event) -> None:
        """Decide an event; returns when what it rests on is durable."""

    async def revive(self, workflow_id: WorkflowId, event: Retried | Rerun) -> None:
        """Have a run go on that has ended, and its ancestors with it."""


class Owner:
    """Carries out what is asked of workflows whose shards are served by this node.

    Every method raises NotOwner for others; then nothing was done. The outcome is unknown when
    Fenced is raised.
    """

    def __init__(
        self,
        home: Home,
        others: Others,
        *,
        metadata: Metadata,
        plans: Plans,
        open_set: OpenSet,
        clock: Clock,
        removed: Callable[[WorkflowId], Awaitable[None]],
    ) -> None:
        """`removed` drops what other stores hold of a workflow (task logs)."""
        self._home = home
        self._others = others
        self._metadata = metadata
        self._plans = plans
        self._open_set = open_set
        self._clock = clock
        self._removed = removed
        self._knows_schedules = False

    @property
    def shards(self) -> Shards:
        """The shards that are served here. NotOwner: none, just now."""
        return self._home.shards

    def serves(self, workflow_id: WorkflowId) -> bool:
        """Whether a workflow's shard is served here, just now."""
        incarnation = self._home.incarnation
        return incarnation is not None and incarnation.shards.is_served(workflow_id)

    # -- starts

    async def start(
        self, workflow_id: WorkflowId, request: StartWorkflow, *, repeated: bool = False
    ) -> None:
        """Start a workflow under that id; returns when the start is durable. Repeated, it looks
        first whether that happened already.

        NotFound: no such definition. Overloaded: nothing was done; a repetition is never refused
        so, for that would not be true of it.
        """
        found = await self.definition(request)
        is_seen = not repeated
        while not is_seen:
            epoch = self.shards.epoch_of(workflow_id)
            if await self._is_there(workflow_id):
                return
            # Where the shard has been away and come back, another owner may have started it.
            is_seen = self.shards.epoch_of(workflow_id) == epoch
        await self._start(workflow_id, request, found, self._clock.now_ms(), is_promised=repeated)

    async def _is_there(self, workflow_id: WorkflowId) -> bool:
        shards = self.shards
        try:
            await shards.view(workflow_id)
        except NotFound:
            # Whoever else asked for the same start may have been faster since.
            if shards.resident(workflow_id) is None:
                return False
            await shards.view(workflow_id)
        return True

    async def definition(self, request: StartWorkflow) -> Resolved:
        """What a start of this would follow. NotFound."""
        if request.definition is not None:
            return await self._metadata.snapshot_inline(request.definition)
        found = self._metadata.snapshot_cached(request.name, request.version)
        if found is None:
            found = await self._metadata.snapshot(request.name, request.version)
        return found

    async def _start(
        self,
        workflow_id: WorkflowId,
        request: StartWorkflow,
        found: Resolved,
        now_ms: int,
        key_row: Row | None = None,
        *,
        is_promised: bool = False,
    ) -> int:
        new = self.new_workflow(workflow_id, request, found, now_ms)
        new.is_promised = is_promised
        if key_row is not None:
            new.extra_rows = (key_row,)
        return await self.shards.start(new)

    def new_workflow(
        self, workflow_id: WorkflowId, request: StartWorkflow, found: Resolved, now_ms: int
    ) -> NewWorkflow:
        """A start with its definition. InvalidRequest: that does not take its input."""
        plan: Plan = self._plans.of(found.snapshot)
        header = Header(
            snapshot=found.snapshot.hash,
            name=found.name or request.name,
            version=found.version,
            status=WorkflowStatus.RUNNING,
            create_ms=now_ms,
            update_ms=now_ms,
            priority=request.priority,
            correlation_id=request.correlation_id,
            task_to_domain=request.task_to_domain,
            created_by=request.created_by,
            idempotency_key=request.idempotency_key,
        )
        value = with_template(plan, request.input)
        check_input(plan, value)
        return NewWorkflow(workflow_id, plan, header, value)

    async def start_once(
        self, workflow_id: WorkflowId, request: StartWorkflow, key: str
    ) -> WorkflowId:
        """Start under that id, or find what the key has started before; returns which.

        The check, the key's row and the start are one commit of the key's shard.
        """
        found = await self.definition(request)
        key_id = idempotency_id(request.name, key)
        keys = self._home.keys
        async with keys.locked(key_id):
            epoch: int | None = -1
            # Where the shard has been away and come back, another owner may have used the key.
            while epoch != self.shards.epoch_of(workflow_id):
                if self._home.keys is not keys:
                    raise NotOwner(f"The shard of workflow {workflow_id} has moved")
                epoch = self.shards.epoch_of(workflow_id)
                now_ms = self._clock.now_ms()
                record = await keys.read(key_id, now_ms)
                if record is not None and record.workflow_id == workflow_id:
                    # This very start, asked for again because nobody heard the answer.
                    await self.shards.view(workflow_id)
                    return workflow_id
                if record is not None and await self._is_taken(record, request, key):
                    return WorkflowId(record.workflow_id)
            record = KeyRecord(workflow_id, request.name, key, now_ms)
            row = keys.note(key_id, record)
            try:
                entry = await self._start(workflow_id, request, found, now_ms, row)
            except ClusterError:
                # A caller that gives up waiting is another matter: its start goes on.
                keys.forget(key_id)
                raise
            keys.committed(key_id, entry)
            return workflow_id

    async def start_child(
        self, parent_id: WorkflowId, child: StartChild, *, repeated: bool
    ) -> bool:
        """Start the child of a workflow on another shard. False: the id belongs to another."""
        return await self.shards.start_child(parent_id, child, repeated=repeated)

    async def _is_taken(self, record: KeyRecord, request: StartWorkflow, key: str) -> bool:
        """Whether a known key answers with its workflow; False starts anew. Conflict otherwise."""
        try:
            execution = await self.shards.view(WorkflowId(record.workflow_id))
        except NotFound:
            return False
        strategy = request.idempotency_strategy or "RETURN_EXISTING"
        if strategy == "FAIL" or (strategy == "FAIL_ON_RUNNING" and not execution.is_terminal):
            raise Conflict(
                f"idempotencyKey '{key}' of workflow {request.name} is used by {execution.id}, "
                f"which is {execution.header.status}"
            )
        return strategy == "RETURN_EXISTING"

    # -- schedules

    async def save_schedule(self, schedule_id: WorkflowId, saved: bytes) -> None:
        """Save a schedule, new or in place of the one that stands; returns when that is durable.
        One that is being deleted is waited for."""
        if not self._knows_schedules:
            # Before any row names it.
            await self._metadata.keep_snapshot(schedules.SNAPSHOT)
            self._knows_schedules = True
        async with self._home.keys.locked(schedule_id):
            while True:
                shards = self.shards
                epoch = shards.epoch_of(schedule_id)
                try:
                    standing = await shards.view(schedule_id)
                except NotFound:
                    if shards.epoch_of(schedule_id) == epoch:
                        break
                    # Where the shard has been away and come back, another owner may have it.
                    continue
                if not schedules.state_of(standing).deleted:
                    event = ScheduleSaved(self._clock.now_ms(), saved)
                    await shards.apply(schedule_id, event)
                    return
                await self._is_forgotten(schedule_id)
            plan = self._plans.of(schedules.SNAPSHOT)
            now_ms = self._clock.now_ms()
            header = Header(
                snapshot=plan.hash,
                name=schedules.NAME,
                version=1,
                status=WorkflowStatus.RUNNING,
                create_ms=now_ms,
                update_ms=now_ms,
            )
            await self.shards.start(NewWorkflow(schedule_id, plan, header, saved))

    async def _is_forgotten(self, schedule_id: WorkflowId) -> None:
        try:
            await self.shards.wait_until(schedule_id, lambda _: False, _FORGOTTEN_MS_MAX)
        except NotFound:
            return
        raise Unavailable("The schedule is still being deleted; try again later")

    # -- events and reads

    def submit(self, workflow_id: WorkflowId, event: Event) -> Awaitable[None]:
        """Decide an event; done when what it rests on is durable."""
        return self.shards.apply(workflow_id, event)

    async def deliver(self, workflow_id: WorkflowId, event: Event) -> None:
        """The same for an order of another shard: nothing that it sets going is waited for."""
        await self.shards.deliver(workflow_id, event)

    async def view(self, workflow_id: WorkflowId) -> Execution:
        """The committed state, with its failure workflow if it has one."""
        return await self.shards.read(workflow_id)

    async def look(self, workflow_id: WorkflowId) -> Execution:
        """The committed state as it is."""
        return await self.shards.view(workflow_id)

    async def wait_until(
        self, workflow_id: WorkflowId, predicate: Callable[[Execution], bool], timeout_ms: int
    ) -> bool:
        """Whether `predicate` held for a committed state within the time."""
        return await self.shards.wait_until(workflow_id, predicate, timeout_ms)

    # -- tasks by name, signals

    async def open_by_ref(self, workflow_id: WorkflowId, ref: str) -> int | None:
        """The number of the open task of that reference name (rule 111)."""
        task = _open_by_ref(await self.shards.view(workflow_id), ref)
        return None if task is None else task.number

    async def waiting(self, workflow_id: WorkflowId) -> tuple[WorkflowId, int] | None:
        """The first WAIT that is open in the run or, depth first, in its children: whose, and its
        number."""
        return await self._waiting(await self.shards.view(workflow_id), _SUB_WORKFLOW_DEPTH_MAX)

    async def _waiting(self, execution: Execution, depth: int) -> tuple[WorkflowId, int] | None:
        children = []
        for task in execution.open_tasks():
            if task.type == "WAIT":
                return execution.id, task.number
            if task.type == "SUB_WORKFLOW" and task.sub_workflow_id:
                children.append(WorkflowId(task.sub_workflow_id))
        for child in children if depth else ():
            try:
                found = await self._waiting(await self._others.look(child), depth - 1)
            except NotFound:
                continue
            if found is not None:
                return found
        return None

    async def requeue(self, task_type: str) -> int:
        """Put every open worker task of a type back into its queue; returns how many. Of the
        shards that are served here."""
        count = 0
        for shard in tuple(self.shards.epochs):
            after: WorkflowId | None = None
            while True:
                page = await self._open_set.scan(ShardId(shard), after=after, limit=500)
                for entry in page:
                    count += await self._requeue(entry.workflow_id, task_type)
                if not page:
                    break
                after = page[-1].workflow_id
        return count

    async def catch_up(self) -> None:
        """Have all that was decided here written to where searches look."""
        if self._home.incarnation is not None:
            await self._home.incarnation.checkpoint.flush()

    async def _requeue(self, workflow_id: WorkflowId, task_type: str) -> int:
        try:
            execution = await self.shards.view(workflow_id)
        except NotFound:
            return 0
        found = sum(1 for task in execution.open_tasks() if task.type == task_type)
        if found:
            event = TasksRequeued(self._clock.now_ms(), task_type)
            await self.shards.apply(workflow_id, event)
        return found

    # -- control operations that take more than an event

    async def restart(self, workflow_id: WorkflowId, use_latest: bool) -> None:
        """Run again from the top, with the definition it followed or the latest one."""
        execution = await self.shards.view(workflow_id)
        plan: Plan | None = None
        version = 0
        if use_latest:
            name = execution.header.name
            try:
                found = await self._metadata.snapshot(name, None)
            except NoSuchWorkflow:
                raise NotFound(f"Unable to find latest definition for {workflow_id}") from None
            plan, version = self._plans.of(found.snapshot), found.version
            check_input(plan, execution.input)
        await self.shards.restart(
            workflow_id, Restarted(self._clock.now_ms()), plan=plan, version=version
        )

    async def retry(self, workflow_id: WorkflowId, resume_sub_workflows: bool) -> None:
        """Retry what failed here or, resuming sub-workflows, in the deepest failed child."""
        target = workflow_id
        if resume_sub_workflows:
            execution = await self.shards.view(workflow_id)
            if not execution.is_terminal:
                raise NotFound(f"Workflow is still running.  status={execution.header.status}")
            target = await self._deepest_failed(workflow_id)
        await self._others.revive(target, Retried(self._clock.now_ms()))

    async def revive(self, workflow_id: WorkflowId, event: Retried | Rerun) -> None:
        """Have a run go on that has ended, and its ancestors with it."""
        execution = await self.shards.view(workflow_id)
        if isinstance(event, Rerun) and event.workflow_input is not None:
            check_input(execution.plan, event.workflow_input)
        await self.shards.apply_with(workflow_id, event, await self._kin(execution))

    async def _deepest_failed(self, workflow_id: WorkflowId) -> WorkflowId:
        for _ in range(_SUB_WORKFLOW_DEPTH_MAX):
            execution = await self._others.look(workflow_id)
            task = control.failed_child(execution)
            if task is None:
                break
            child_id = WorkflowId(task.sub_workflow_id)
            try:
                child = await self._others.look(child_id)
            except NotFound:
                break
            if not child.is_terminal or not control.retryable(child):
                break
            workflow_id = child_id
        return workflow_id

    async def _kin(self, execution: Execution) -> list[WorkflowId]:
        """The failed children of a run's ancestors: its going on brings them back as well."""
        kin: list[WorkflowId] = []
        target_id = execution.id
        for _ in range(_SUB_WORKFLOW_DEPTH_MAX):
            parent_id = execution.header.parent_id
            # Those on other shards are told by orders.
            if parent_id is None or not same_slot(parent_id, target_id):
                break
            try:
                execution = await self.shards.view(WorkflowId(parent_id))
            except NotFound:
                break
            kin.append(execution.id)
            kin += [
                WorkflowId(task.sub_workflow_id)
                for task in execution.by_ref.values()
                if task.sub_workflow_id and task.status not in OPEN_TASK
            ]
        return [relative for relative in kin if same_slot(relative, target_id)]

    async def rerun(self, workflow_id: WorkflowId, request: RerunRequest) -> WorkflowId:
        """Run again from a task; one of a sub-workflow makes that child run again."""
        execution = await self.shards.view(workflow_id)
        control.must_have_ended(execution, "rerun")
        at_ms = self._clock.now_ms()
        number = 0
        target_id = workflow_id
        if request.task_id is not None:
            target_id = workflow_of(request.task_id)
            number = number_of(request.task_id)
            if not await self._holds(workflow_id, target_id, number):
                raise InvalidRequest(f"Task {request.task_id} not found")
        event = Rerun(
            at_ms,
            number,
            workflow_input=request.workflow_input if target_id == workflow_id else None,
            task_input=request.task_input,
            correlation_id=request.correlation_id if target_id == workflow_id else None,
        )
        await self._others.revive(target_id, event)
        return workflow_id

    async def _holds(self, workflow_id: WorkflowId, target_id: WorkflowId, number: int) -> bool:
        """Whether a task is one of the run, or of a child at any depth."""
        run_id = target_id
        for _ in range(_SUB_WORKFLOW_DEPTH_MAX):
            try:
                execution = await self._others.look(run_id)
            except NotFound:
                return False
            if number not in execution.tasks:
                return False
            if run_id == workflow_id:
                return True
            if execution.header.parent_id is None:
                return False
            run_id, number = WorkflowId(execution.header.parent_id), execution.header.parent_number
        return False

    async def remove(self, workflow_id: WorkflowId, archive: bool) -> None:
        """Delete a run everywhere; `archive` keeps it readable, and wants it to have ended."""
        execution = await self.shards.view(workflow_id)
        if archive:
            if not execution.is_terminal:
                raise InvalidRequest(
                    f"Cannot archive workflow: {execution.id} with status: "
                    f"{execution.header.status}"
                )
            return
        await self.shards.remove(workflow_id)
        await self._removed(workflow_id)

    # -- what polls need

    def hand_over(self, workflow_id: WorkflowId, event: TaskPolled) -> HandOver | None:
        """Note that a worker gets a delivery of a task; nobody waits for the commit. None: it is
        not to be handed out, and its queue forgets it."""
        shards = self.shards
        if not shards.are_sure:
            # A task that is not known here may be one that the next owner has pushed.
            raise NotOwner(f"The shard of workflow {workflow_id} may have another owner by now")
        execution = shards.resident(workflow_id)
        if execution is None:
            # It sleeps in the store: its queue has told what there is to tell.
            shards.apply_later(workflow_id, event)
            return HandOver(event.at_ms, event.at_ms, event.delivery, 0)
        found = may_be_polled(execution, event.number, event.delivery)
        if found is None:
            return None
        try:
            shards.apply_now(execution, event)
        except (NotOwner, Fenced):
            raise
        except ClusterError:
            return None
        wait_ms = found.start_ms - found.scheduled_ms if found.poll_count == 1 else 0
        return HandOver(found.start_ms, found.update_ms, found.poll_count, wait_ms)

    def note(self, workflow_id: WorkflowId, event: TaskPolled | TaskHandedBack) -> None:
        """Note what another node, or this one, did with a task; nobody waits for it."""
        self.shards.apply_later(workflow_id, event)


def check_input(plan: Plan, encoded: bytes) -> None:
    """InvalidRequest: the definition's inputSchema does not take this input."""
    fault = input_fault(plan, encoded)
    if fault is not None:
        raise InvalidRequest(fault)


def _open_by_ref(execution: Execution, ref: str) -> Task | None:
    """The first open task of that full name, else the first whose name without rounds is it."""
    for task in execution.open_tasks():
        if task.ref == ref:
            return task
    for task in execution.open_tasks():
        if task.base_ref == ref:
            return task
    return None
