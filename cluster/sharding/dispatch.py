"""Effects on their way out: after the commit, in order, batched, repeated after a crash."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from cluster.clock import Clock
from cluster.engine.effects import (
    AcknowledgeTask,
    ArmTimer,
    ContinueLater,
    ForgetSchedule,
    FreezeTaskDefs,
    HoldTask,
    LaunchWorkflow,
    ListSchedule,
    Post,
    PushTask,
    ResolveFailureWorkflow,
    ResolveSubWorkflow,
    RunScript,
    StartChild,
    StartScheduled,
    Tell,
    WorkflowEnded,
)
from cluster.engine.events import (
    Continued,
    Event,
    FailureWorkflowResolved,
    ScheduledStarted,
    ScheduleListed,
    ScriptEvaluated,
    SubWorkflowResolved,
    TaskDefsFrozen,
    WorkflowLaunched,
)
from cluster.errors import ClusterError, NotFound
from cluster.ids import WorkflowId, task_id
from cluster.logs import get_log
from cluster.sharding.decisions import Sent
from cluster.sharding.mail import Mail
from cluster.sharding.queue_lane import QueueLane
from cluster.sharding.resolutions import Found, failure_resolved, resolved
from cluster.sharding.shard import Shards
from cluster.sharding.timers import Timers
from cluster.store.queue_ports import QueueItem, TaskQueues

log = get_log(__name__)

_PAUSES_MS = (100, 400, 1_600, 6_400)
"""Before an effect that failed is tried again."""


class Outside(Protocol):
    """What effects reach for beyond the shards."""

    async def evaluate(self, language: str, source: str, input_json: bytes) -> bytes:
        """The JSON a script comes to. ScriptFailed."""

    async def definition(self, name: str, version: int | None) -> Found:
        """A registered definition, frozen and durable. NotFound."""

    async def inline_definition(self, definition: dict[str, object]) -> Found:
        """A definition that came out of a run, frozen and durable. InvalidRequest."""

    async def task_definitions(self, names: tuple[str, ...]) -> dict[str, object]:
        """The registered ones among some task definitions, as JSON."""

    async def launch(self, workflow_id: WorkflowId, request: dict[str, object]) -> None:
        """Start a workflow of its own under that id, once. NotFound, InvalidRequest."""

    async def start_scheduled(self, start: StartScheduled) -> None:
        """Start a workflow for a schedule, once, and put down what became of it."""

    async def list_schedule(self, schedule: ListSchedule) -> None:
        """Show a schedule in the list of schedules as it is now."""

    async def deliver(self, workflow_id: WorkflowId, event: Event) -> None:
        """As Carrier in mail.py."""

    async def start_child(
        self, parent_id: WorkflowId, child: StartChild, *, repeated: bool
    ) -> bool:
        """As Carrier in mail.py."""


class ScriptFailed(Exception):
    """A script that came to no value: why, and whether its time was up."""

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.timed_out = timed_out


class Dispatcher:
    """Takes the effects of committed entries, `send` of the commit log, and carries them out."""

    def __init__(
        self,
        *,
        queues: TaskQueues,
        outside: Outside,
        timers: Timers,
        clock: Clock,
        ended: Callable[[WorkflowId], None],
    ) -> None:
        self._lane = QueueLane(queues, clock)
        self._outside = outside
        self._timers = timers
        self._clock = clock
        self._ended = ended
        self.shards: Shards
        self._mail: Mail
        self._waiting: list[Sent | asyncio.Future[None]] = []
        self._under_way: Counter[WorkflowId] = Counter()
        self._unheard: set[WorkflowId] = set()
        """Whose answers came when their shard had been given up."""
        self._continuing: set[WorkflowId] = set()
        """Who is about to go on: every event of a workflow with a continuation asks for that."""
        self._news: asyncio.Event = asyncio.Event()
        self._group: asyncio.TaskGroup

    def send(self, effects: list[Sent]) -> None:
        """Take effects of one committed entry; never waits."""
        lane = self._lane
        for one in effects:
            effect = one.effect
            match effect:
                case QueueItem():
                    lane.push(one.queue, effect)
                case AcknowledgeTask():
                    lane.acknowledge(effect.queue, task_id(one.workflow_id, effect.number))
                    self._waiting.append(one)
                case HoldTask():
                    task = task_id(one.workflow_id, effect.number)
                    lane.hold(effect.queue, task, effect.delivery)
                case _:
                    self._waiting.append(one)
        if self._waiting:
            self._news.set()

    def all_out(self) -> asyncio.Future[None]:
        """Done when all that was sent so far has reached its queue or is under way."""
        marker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(marker)
        self._news.set()
        return marker

    @property
    def has_dropped(self) -> bool:
        """Whether the queues lack something, because too much had to wait for them."""
        return self._lane.has_dropped

    def take_dropped(self) -> bool:
        """The same; whoever asks sees to it that the queues are told again."""
        dropped, self._lane.has_dropped = self._lane.has_dropped, False
        return dropped

    def is_under_way(self, workflow_id: WorkflowId) -> bool:
        """Whether an effect of this workflow is being carried out whose answer is still to come."""
        return workflow_id in self._under_way or workflow_id in self._unheard

    def forget_unheard(self) -> None:
        """What was given up has been written down, with the mark that its next owner needs."""
        self._unheard.clear()

    async def run(self) -> None:
        """Carry effects out until cancelled."""
        self._mail = Mail(self.shards, self._outside, self._clock, spawn=self._spawn)
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._lane.run())
            while True:
                await self._news.wait()
                self._news.clear()
                sent, self._waiting = self._waiting, []
                self._carry_out(sent)

    def _carry_out(self, sent: list[Sent | asyncio.Future[None]]) -> None:
        for one in sent:
            if isinstance(one, asyncio.Future):
                self._lane.mark(one)
                continue
            effect = one.effect
            match effect:
                case AcknowledgeTask():
                    self.shards.task_ended(one.workflow_id, effect.number)
                case ArmTimer():
                    self._timers.arm(one.workflow_id, effect.due_ms)
                case WorkflowEnded():
                    self._timers.forget(one.workflow_id)
                    self._ended(one.workflow_id)
                case None:
                    self.shards.watchers.changed(one.workflow_id)
                case ContinueLater():
                    if one.workflow_id not in self._continuing:
                        self._continuing.add(one.workflow_id)
                        self._spawn(one.workflow_id, partial(self._continue, one.workflow_id))
                case RunScript():
                    self._spawn(one.workflow_id, partial(self._run_script, one.workflow_id, effect))
                case ResolveSubWorkflow():
                    self._spawn(one.workflow_id, partial(self._resolve, one.workflow_id, effect))
                case ResolveFailureWorkflow():
                    self._spawn(
                        one.workflow_id, partial(self._resolve_failure, one.workflow_id, effect)
                    )
                case FreezeTaskDefs():
                    self._spawn(one.workflow_id, partial(self._freeze, one.workflow_id, effect))
                case LaunchWorkflow():
                    self._spawn(one.workflow_id, partial(self._launch, one.workflow_id, effect))
                case StartScheduled():
                    self._spawn(
                        one.workflow_id, partial(self._start_scheduled, one.workflow_id, effect)
                    )
                case ListSchedule():
                    self._spawn(
                        one.workflow_id, partial(self._list_schedule, one.workflow_id, effect)
                    )
                case ForgetSchedule():
                    self._spawn(one.workflow_id, partial(self.shards.remove, one.workflow_id))
                case Tell():
                    target = WorkflowId(effect.workflow_id)
                    self._spawn(target, partial(self._apply, target, effect.event))
                case Post():
                    self._mail.send(one.workflow_id, effect)
                case QueueItem() | HoldTask():
                    raise AssertionError("on the way to its queue already")
                case PushTask() | StartChild():
                    raise AssertionError("carried out by the shard itself")

    def _spawn(self, workflow_id: WorkflowId, work: Callable[[], Awaitable[None]]) -> None:
        self._under_way[workflow_id] += 1
        self._group.create_task(self._guarded(workflow_id, work))

    async def _guarded(self, workflow_id: WorkflowId, work: Callable[[], Awaitable[None]]) -> None:
        """One effect that fails stops no other; the audit finds what it left undone."""
        try:
            for pause_ms in (*_PAUSES_MS, None):
                try:
                    await work()
                    return
                except ClusterError as failure:
                    if not self.shards.is_served(workflow_id):
                        # Its next owner asks for it again, if the checkpoint tells it to.
                        self._unheard.add(workflow_id)
                        return
                    log.warning("an effect failed", workflow_id=workflow_id, error=failure.message)
                    if pause_ms is None or not failure.retryable:
                        return
                await asyncio.sleep(pause_ms / 1000)
        except Exception:
            log.exception("an effect failed", workflow_id=workflow_id)
        finally:
            self._under_way[workflow_id] -= 1
            if not self._under_way[workflow_id]:
                del self._under_way[workflow_id]

    async def _apply(self, workflow_id: WorkflowId, event: Event) -> None:
        try:
            await self.shards.deliver(workflow_id, event)
        except NotFound:
            # Removed meanwhile: there is nobody left to tell.
            log.debug("an answer came for a workflow that is gone", workflow_id=workflow_id)

    async def _continue(self, workflow_id: WorkflowId) -> None:
        # Behind what else is ready now, so that a long continuation holds nobody up.
        await asyncio.sleep(0)
        self._continuing.discard(workflow_id)
        await self._apply(workflow_id, Continued(self._clock.now_ms()))

    async def _run_script(self, workflow_id: WorkflowId, effect: RunScript) -> None:
        result = error = None
        timed_out = False
        try:
            result = await self._outside.evaluate(effect.language, effect.source, effect.input)
        except ScriptFailed as failure:
            error, timed_out = failure.message, failure.timed_out
        event = ScriptEvaluated(
            self._clock.now_ms(),
            effect.number,
            effect.token,
            result=result,
            error=error,
            timed_out=timed_out,
        )
        await self._apply(workflow_id, event)

    async def _resolve(self, workflow_id: WorkflowId, effect: ResolveSubWorkflow) -> None:
        try:
            if effect.definition is not None:
                found = await self._outside.inline_definition(effect.definition)
            else:
                found = await self._outside.definition(effect.name, effect.version)
        except ClusterError as failure:
            event = SubWorkflowResolved(
                self._clock.now_ms(),
                effect.number,
                effect.token,
                name=effect.name,
                error=failure.message,
                transient=failure.retryable,
            )
        else:
            plan = self.shards.prepare(found.snapshot)
            event = resolved(effect, found, plan, self._clock.now_ms())
        await self._apply(workflow_id, event)

    async def _resolve_failure(
        self, workflow_id: WorkflowId, effect: ResolveFailureWorkflow
    ) -> None:
        try:
            found = await self._outside.definition(effect.name, effect.version)
        except NotFound as failure:
            event = FailureWorkflowResolved(
                self._clock.now_ms(), name=effect.name, error=failure.message
            )
        else:
            self.shards.prepare(found.snapshot)
            event = failure_resolved(found, self._clock.now_ms())
        await self._apply(workflow_id, event)

    async def _freeze(self, workflow_id: WorkflowId, effect: FreezeTaskDefs) -> None:
        definitions = await self._outside.task_definitions(effect.names)
        await self._apply(
            workflow_id,
            TaskDefsFrozen(self._clock.now_ms(), effect.number, effect.token, definitions),
        )

    async def _launch(self, workflow_id: WorkflowId, effect: LaunchWorkflow) -> None:
        started: str | None = effect.workflow_id
        error = None
        try:
            await self._outside.launch(WorkflowId(effect.workflow_id), effect.request)
        except ClusterError as failure:
            if failure.retryable:
                raise
            started, error = None, failure.message
        await self._apply(
            workflow_id,
            WorkflowLaunched(
                self._clock.now_ms(),
                effect.number,
                effect.token,
                workflow_id=started,
                error=error,
            ),
        )

    async def _start_scheduled(self, schedule_id: WorkflowId, effect: StartScheduled) -> None:
        await self._until_done(schedule_id, partial(self._outside.start_scheduled, effect))
        await self._apply(schedule_id, ScheduledStarted(self._clock.now_ms(), effect.number))

    async def _list_schedule(self, schedule_id: WorkflowId, effect: ListSchedule) -> None:
        await self._until_done(schedule_id, partial(self._outside.list_schedule, effect))
        await self._apply(schedule_id, ScheduleListed(self._clock.now_ms(), effect.revision))

    async def _until_done(
        self, schedule_id: WorkflowId, work: Callable[[], Awaitable[None]]
    ) -> None:
        """A schedule has nobody who would ask again: as long as its shard is served here."""
        pause_ms = _PAUSES_MS[0]
        while True:
            try:
                await work()
                return
            except ClusterError as failure:
                if not failure.retryable or not self.shards.is_served(schedule_id):
                    raise
                log.warning("a schedule waits", schedule_id=schedule_id, error=failure.message)
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, _PAUSES_MS[-1])
