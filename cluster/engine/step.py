"""One call of the decider: the execution, the time, what is still to be walked, what was asked."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from cluster.engine import payloads
from cluster.engine.conditions import NotSimple, compile_condition
from cluster.engine.effects import (
    AcknowledgeTask,
    ArmTimer,
    Effect,
    FreezeTaskDefs,
    RunScript,
)
from cluster.engine.expressions import compile_template
from cluster.engine.model import (
    NO_SCOPE,
    REASON_CHARS_MAX,
    SCANS,
    WITHOUT_TASK,
    Execution,
    Task,
    WorkItem,
)
from cluster.engine.plan import Node
from cluster.engine.transitions import OPEN_TASK, TaskStatus
from cluster.engine.views import ExecutionRoot
from cluster.ids import NUMBER_MAX


def _nobody_polls(task_type: str, domain: str, at_ms: int) -> bool:
    return False


def _is_there(workflow_id: str) -> bool:
    return True


def _knows_none(names: tuple[str, ...]) -> dict[str, Any] | None:
    return None


class Surroundings(msgspec.Struct, frozen=True):
    """What the engine may know of the process it runs in; the same for all executions."""

    environment: Mapping[str, str] = {}
    """What `${workflow.env.NAME}` resolves to."""
    is_polled: Callable[[str, str, int], bool] = _nobody_polls
    """Whether a worker asked for (task type, domain) within the last seconds before a time."""
    is_in_memory: Callable[[str], bool] = _is_there
    """Whether what is decided about a workflow of the same slot now is in the same commit."""
    types: "Mapping[str, TaskType] | None" = None
    """Task types, where some are installed that the engine does not have by itself."""
    executor_lease_ms: int = 30_000
    """How long an executor has a task without a sign of life, before another one gets it."""
    task_definitions: Callable[[tuple[str, ...]], dict[str, Any] | None] = _knows_none
    """The registered ones among some names, as JSON; None where that takes a look into a store."""
    tasks_per_step_max: int = 200
    """New or ended tasks per transition; the rest is a continuation."""
    step_bytes_max: int = 128 * 1024
    open_tasks_max: int = 100_000
    together_max: int = 100
    """Sub-workflows of a wider fork do not live on the shard of their parent."""
    variables_bytes_max: int = 256 * 1024
    payload_bytes_max: int = 5 * 1024 * 1024
    task_output_bytes_max: int = 3 * 1024 * 1024
    schedule_grace_ms: int = 60_000
    """Missed instants of a schedule that does not catch up are made good for so long."""
    schedule_jitter_ms: int = 0
    messages_max: int = 1000
    """Messages that wait for a task of their workflow."""


class Place(NamedTuple):
    """Where in a run a step is scheduled: which loop round, which dynamic fork."""

    scope: int = NO_SCOPE
    suffix: str = ""
    iteration: int = 0
    origin: int = 0


TOP = Place()
_UNKNOWN = object()


def place_of(task: Task) -> Place:
    """The place of a task is also that of the steps that follow it."""
    return Place(task.scope, task.suffix, task.iteration, task.origin)


class Outcome(NamedTuple):
    """What a script came to: a JSON value, or an error."""

    value: Any = None
    error: str | None = None
    timed_out: bool = False


class TaskType(NamedTuple):
    """What the engine does with tasks of one type; see `engine/tasks/__init__.py`."""

    begin: "Callable[[Step, Task, Node], None]"
    """A first or further attempt begins: its input is in place, its status SCHEDULED."""
    on_script: "Callable[[Step, Task, Node, Outcome], None] | None" = None
    """The script it asked for with `Step.evaluate` has come back."""
    branch: "Callable[[Execution, Task, Node], Node | None] | None" = None
    """After it ended: the first step of the branch it chose, None for the step that follows."""
    resume: "Callable[[Step, Task, int], None] | None" = None
    """Go on with work item ("resume", task, index): branches of a fork, rounds of a loop."""
    on_joined: "Callable[[Step, Task], None] | None" = None
    """One more of the tasks that a join waits for has ended."""
    on_wake: "Callable[[Step, Task, Node], None] | None" = None
    """Its `wake_ms` has come; None begins the attempt, whose delay is then over."""
    deferred: bool = False
    """Begins when all steps that are scheduled together are there, not on the way."""
    shown_as: str | None = None
    """taskType and taskDefName where they are not those of the step."""
    resolves_input: bool = True
    is_worker: bool = False
    """It waits in a queue for whoever polls for it."""
    by_executor: bool = False
    """It does so for the executors of nodes, not for workers; see `engine/tasks/outside.py`."""
    on_definitions: "Callable[[Step, Task, Node], None] | None" = None
    """The task definitions it asked for have been frozen."""
    retries: bool = True
    """Failed attempts are repeated as its task definition says."""


class WorkflowFailed(Exception):
    """Raised inside a step: the definition cannot go on from here; the workflow ends FAILED."""

    def __init__(self, reason: str, *, status: str = "FAILED") -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class Step:
    """Everything one `decide` call reads and collects."""

    __slots__ = (
        "advanced",
        "at_ms",
        "budget",
        "bytes_left",
        "depth",
        "effects",
        "execution",
        "root",
        "surroundings",
        "types",
        "work",
    )

    def __init__(
        self,
        execution: Execution,
        at_ms: int,
        surroundings: Surroundings,
        types: Mapping[str, TaskType],
    ) -> None:
        self.types = types
        """Task types by name; a name the engine does not know is a worker's."""
        self.execution = execution
        self.at_ms = at_ms
        self.surroundings = surroundings
        self.effects: list[Effect] = []
        self.advanced: list[Task] = []
        """Tasks behind which the walk went on in this step."""
        self.work: deque[WorkItem] = deque(execution.header.work)
        self.budget = surroundings.tasks_per_step_max
        self.depth = 0
        """How many steps are just being passed within each other (scheduling.end_on_the_way)."""
        self.bytes_left = surroundings.step_bytes_max
        self.root = ExecutionRoot(execution, surroundings.environment)

    # -- scripts

    def evaluate(
        self, task: Task, node: Node, *, language: str, source: str, value: dict[str, Any]
    ) -> Outcome | None:
        """Run a script over `value`: at once when it is simple, else outside (None; see effects).

        The answer from outside comes back through the task type's `on_script`.
        """
        if language == "javascript":
            closure = node.compiled.get(source, _UNKNOWN)
            if closure is _UNKNOWN:
                closure = node.compiled[source] = compile_condition(source)
            if closure is not None:
                try:
                    return Outcome(closure(value))
                except NotSimple:
                    pass
        self.ask(task)
        self.effects.append(
            RunScript(task.number, task.token, language, source, payloads.dump_map(value))
        )
        return None

    def ask(self, task: Task) -> None:
        """Note that a task waits for an answer from outside, under a new token.

        Callers that set it going are answered when the answer has come (rule 44).
        """
        task.token += 1
        self.execution.touch(task)
        self.execution.scripts.add(task.number)

    def freeze(self, task: Task, names: tuple[str, ...]) -> bool:
        """Freeze registered task definitions for steps made at run time.

        False: they have to be looked up; the task type's `on_definitions` is called then.
        """
        found = self.surroundings.task_definitions(names)
        if found is None:
            self.ask(task)
            self.effects.append(FreezeTaskDefs(task.number, task.token, names))
            return False
        self.keep_definitions(found)
        return True

    def keep_definitions(self, found: dict[str, Any]) -> None:
        """Add frozen task definitions to those of this run."""
        if found:
            execution = self.execution
            frozen = {**execution.frozen_task_defs(), **found}
            execution.set_task_defs(payloads.dump(frozen))

    # -- the walk

    @property
    def is_full(self) -> bool:
        """This transition is large enough; the rest is for the next one."""
        return self.budget <= 0 or self.bytes_left <= 0

    @property
    def is_scanning(self) -> bool:
        """A scan (revival.py) has yet to look at some tasks: nothing is done before it has."""
        return any(kind in SCANS for kind, _, _ in self.work)

    def later(self, kind: str, number: int, index: int, scope: int) -> None:
        """Add a work item; its scope cannot finish before it is done."""
        self.work.append((kind, number, index))
        self.execution.hold(scope)

    # -- tasks

    def type_of(self, task: Task, node: Node) -> TaskType:
        """What begins a task; both kinds of fork show themselves as FORK."""
        return self.types[node.type if task.type == "FORK" else task.type]

    def new_task(
        self, node: Node, place: Place, *, type: str | None = None, name: str | None = None
    ) -> Task:
        """Create the first attempt of a step, SCHEDULED, with its input.

        The input is resolved before the task is there: inside a loop, a step that names itself
        means the round before.
        """
        header = self.execution.header
        self.check_number()
        if len(self.execution.open) >= self.surroundings.open_tasks_max:
            raise WorkflowFailed(
                f"A workflow can have at most {self.surroundings.open_tasks_max} open tasks"
            )
        task = Task(
            number=header.next_number,
            ref=node.ref + place.suffix if place.suffix else node.ref,
            base_ref=node.ref,
            type=type or node.type,
            name=name or node.name,
            status=TaskStatus.SCHEDULED,
            seq=header.next_seq,
            scope=place.scope,
            iteration=place.iteration,
            origin=place.origin,
            scheduled_ms=self.at_ms,
            first_scheduled_ms=self.at_ms,
        )
        header.next_number += 1
        header.next_seq += 1
        self.budget -= 1
        if self.types[node.type].resolves_input:
            task.input = payloads.dump_map(self.resolve_input(task, node))
            self.bytes_left -= len(task.input)
        self.execution.add_task(task)
        return task

    def check_number(self) -> None:
        """Raises WorkflowFailed where the numbers of a workflow have run out."""
        if self.execution.header.next_number > NUMBER_MAX:
            raise WorkflowFailed(f"A workflow can have at most {NUMBER_MAX} tasks")

    def resolve_input(self, task: Task, node: Node) -> dict[str, Any]:
        """The step's inputParameters over what there is now, defaults of its TaskDef filled in."""
        value: dict[str, Any] = node.template.resolve(
            self.root, task_id=self.execution.task_id(task.number)
        )
        defaults = node.defaults
        if defaults is None and node.definition is None:
            definition = self.execution.definition_of(task, node)
            if definition is not None and definition.input_template:
                defaults = compile_template(definition.input_template)
        if defaults is not None:
            for key, fallback in defaults.resolve(
                self.root, task_id=self.execution.task_id(task.number)
            ).items():
                if value.get(key) is None:
                    value[key] = fallback
        return value

    def set_input(self, task: Task, value: dict[str, Any]) -> None:
        encoded = payloads.dump_map(value)
        self.bytes_left -= len(encoded)
        self.execution.set_task_input(task, encoded)

    def set_output(self, task: Task, value: dict[str, Any]) -> None:
        encoded = payloads.dump_map(value)
        self.bytes_left -= len(encoded)
        self.execution.set_task_output(task, encoded)

    def start(self, task: Task) -> None:
        """An attempt that the engine itself works on: IN_PROGRESS from now."""
        task.status = TaskStatus.IN_PROGRESS
        task.start_ms = task.start_ms or self.at_ms
        self.execution.touch(task)

    def finish(self, task: Task, status: TaskStatus, reason: str | None = None) -> None:
        """End an attempt and have the walk go on from it (retry, failure or what follows)."""
        self.close(task, status, reason)
        # What was held as an open task is now held as a work item.
        self.later("ended", task.number, 0, task.scope)
        self.execution.release(task.scope)

    def discard(self, first: int) -> None:
        """Undo the tasks from number `first` on: they came of a step that could not begin."""
        tasks = self.execution.tasks
        self.forget([tasks[number] for number in tasks if number >= first])
        self.effects = [effect for effect in self.effects if getattr(effect, "number", 0) < first]

    def forget(self, tasks: list[Task]) -> None:
        """Remove tasks for good, with what they still hold: scopes, queues, work items."""
        execution = self.execution
        numbers = {task.number for task in tasks}
        for item in [item for item in self.work if item[1] in numbers]:
            if item[0] not in WITHOUT_TASK:
                self.work.remove(item)
                execution.release(execution.tasks[item[1]].scope)
        for task in tasks:
            if task.status in OPEN_TASK:
                self.close(task, TaskStatus.CANCELED)
                execution.release(task.scope)
            execution.remove_task(task)

    def close(self, task: Task, status: TaskStatus, reason: str | None = None) -> None:
        """End an attempt without any consequence but for its queue."""
        execution = self.execution
        task.status = status
        if reason is not None:
            task.reason = reason[:REASON_CHARS_MAX]
        task.end_ms = self.at_ms
        task.update_ms = self.at_ms
        task.wake_ms = 0
        execution.open.pop(task.number, None)
        execution.pulling.pop(task.number, None)
        execution.scripts.discard(task.number)
        execution.touch(task)
        if task.delivery:
            self.effects.append(AcknowledgeTask(queue_name(task), task.number))

    def reopen(self, task: Task, status: TaskStatus) -> None:
        """Bring a task that ended back, in place; for operator commands."""
        execution = self.execution
        if task.status not in OPEN_TASK:
            execution.open[task.number] = None
            execution.hold(task.scope)
        task.status = status
        task.end_ms = 0
        task.reason = ""
        task.executed = False
        task.update_ms = self.at_ms
        execution.touch(task)

    def wake(self, task: Task, due_ms: int) -> None:
        """Come back to this task at `due_ms`."""
        task.wake_ms = due_ms
        self.execution.touch(task)
        self.arm(task, due_ms)

    def arm(self, task: Task, due_ms: int) -> None:
        self.execution.arm(task, due_ms)
        self.set_due(due_ms)

    def set_due(self, due_ms: int) -> None:
        """Ask to be woken at `due_ms` unless that happens earlier anyway."""
        header = self.execution.header
        if not header.due_ms or due_ms < header.due_ms:
            header.due_ms = due_ms
            self.effects.append(ArmTimer(due_ms))


def queue_name(task: Task) -> str:
    """The queue a worker task waits in: its type, with its domain in front if it has one."""
    return f"{task.domain}:{task.type}" if task.domain else task.type
