"""All that can happen to a workflow: the inputs of `decide`. `at_ms` is stamped by the owner."""

from typing import Any, Literal

import msgspec

from cluster.engine.transitions import TaskStatus


class _Event(msgspec.Struct, frozen=True):
    at_ms: int


class WorkflowStarted(_Event, frozen=True):
    """The first event of every execution; its header and input are already in place."""


class TaskPolled(_Event, frozen=True):
    """A worker was handed delivery `delivery` of a task."""

    number: int
    worker_id: str
    delivery: int


class TaskHandedBack(_Event, frozen=True):
    """The worker never got delivery `delivery`: it waits in its queue again."""

    number: int
    delivery: int


class TaskUpdated(_Event, frozen=True):
    """A worker, an operator or an event reports about a task. `output` is a JSON object."""

    number: int
    status: TaskStatus
    output: bytes | None = None
    """None keeps what is stored; see `merge`."""
    merge: bool = False
    """True puts the keys of `output` over the stored ones; False replaces them."""
    reason: str | None = None
    worker_id: str | None = None
    callback_after_s: int = 0
    sub_workflow_id: str | None = None
    by_worker: bool = True
    """False: the engine's own executors report; IN_PROGRESS then keeps the task with them."""


class TaskHeld(_Event, frozen=True):
    """An executor is still at delivery `delivery` of a task: its lease counts from now."""

    number: int
    worker_id: str
    delivery: int


class TaskExecuted(_Event, frozen=True):
    """An executor is through with delivery `delivery` of a task. `output` is a JSON object."""

    number: int
    worker_id: str
    delivery: int
    status: TaskStatus
    """IN_PROGRESS: it goes on after `callback_after_s`."""
    output: bytes
    reason: str | None = None
    callback_after_s: int = 0


class TaskUnheard(_Event, frozen=True):
    """`queue` gave delivery `delivery` of a task away a while ago, and has heard nothing since."""

    number: int
    queue: str
    delivery: int


class LeaseExtended(_Event, frozen=True):
    """A worker's heartbeat: the response timeout counts from now."""

    number: int


class TimerFired(_Event, frozen=True):
    """Some due time of this workflow has come; looking too early changes nothing."""


class Continued(_Event, frozen=True):
    """Go on with the work items that the last transition left."""


class Recovered(_Event, frozen=True):
    """A new owner has loaded it: ask again for whatever was under way."""


class ScriptEvaluated(_Event, frozen=True):
    """The answer to effect RunScript `token` of a task: JSON in `result`, or an error text."""

    number: int
    token: int
    result: bytes | None = None
    error: str | None = None
    timed_out: bool = False


class SubWorkflowResolved(_Event, frozen=True):
    """The definition for a SUB_WORKFLOW task is frozen as `snapshot`, or there is none."""

    number: int
    token: int
    snapshot: str | None = None
    name: str = ""
    version: int = 0
    error: str | None = None
    transient: bool = False
    refused: bool = False
    """There is a definition, but it does not take the child's input."""


class TaskDefsFrozen(_Event, frozen=True):
    """The registered task definitions that steps made at run time use; unknown names are absent."""

    number: int
    token: int
    definitions: dict[str, Any]


class WorkflowLaunched(_Event, frozen=True):
    """START_WORKFLOW `number` has started workflow `workflow_id`, or could not."""

    number: int
    token: int
    workflow_id: str | None = None
    error: str | None = None


class FailureWorkflowResolved(_Event, frozen=True):
    """The compensating definition is frozen as `snapshot` (version `version`), or missing."""

    snapshot: str | None = None
    name: str = ""
    version: int = 0
    error: str | None = None


class ChildEnded(_Event, frozen=True):
    """The child of SUB_WORKFLOW task `number` ended (again)."""

    number: int
    child_id: str
    status: str
    output: bytes
    reason: str
    mark: int = 0
    """From another shard: which order of the child this is (outbox.py)."""
    heard: int = 0
    """From another shard: the last order of the parent the child had heard."""


class ChildRevived(_Event, frozen=True):
    """A child that had ended runs again: its parent goes back to waiting for it."""

    number: int
    child_id: str
    mark: int = 0
    heard: int = 0


class Delivered(_Event, frozen=True):
    """Another shard has order `mark`: it is durable there, or needs not be."""

    mark: int
    outcome: Literal["done", "gone", "taken"] = "done"
    """gone: there is no such workflow; taken: the id of a start belongs to another workflow."""


class Paused(_Event, frozen=True):
    pass


class Resumed(_Event, frozen=True):
    pass


class Terminated(_Event, frozen=True):
    reason: str
    by_parent: bool = False
    mark: int = 0
    """From another shard: which order of the parent this is."""


class Restarted(_Event, frozen=True):
    """Run again from the top. The shard has put the plan to use into `execution.plan`."""


class Retried(_Event, frozen=True):
    """Give what failed another attempt, in place."""

    by_parent: bool = False
    """A parent that goes on takes its failed children along; it needs no telling."""
    mark: int = 0


class Rerun(_Event, frozen=True):
    """Run again from task `number` (0: from the top); payloads of None are kept."""

    number: int = 0
    workflow_input: bytes | None = None
    task_input: bytes | None = None
    correlation_id: str | None = None


class TaskSkipped(_Event, frozen=True):
    """The step `ref` shall not run when the flow gets there."""

    ref: str
    input: bytes | None = None
    output: bytes | None = None


class CallbacksReset(_Event, frozen=True):
    """Every postponed worker task becomes visible now."""


class TasksRequeued(_Event, frozen=True):
    """Put the open worker tasks of one type back into their queue, handed out or not."""

    task_type: str


class MessageSent(_Event, frozen=True):
    """Somebody sends the workflow a message: a JSON object, under an id of its own."""

    id: str
    payload: bytes


class VariablesUpdated(_Event, frozen=True):
    variables: dict[str, Any]


class ScheduleSaved(_Event, frozen=True):
    """A schedule is saved anew: `saved` is the WorkflowSchedule, checked."""

    saved: bytes


class SchedulePaused(_Event, frozen=True):
    reason: str | None = None


class ScheduleResumed(_Event, frozen=True):
    pass


class ScheduleDeleted(_Event, frozen=True):
    """Nothing starts any more; it goes when the list of schedules has forgotten it."""


class ScheduledStarted(_Event, frozen=True):
    """Start `number` of a schedule has happened, or cannot; its record of execution is written."""

    number: int


class ScheduleListed(_Event, frozen=True):
    """The list of schedules shows `revision` of a schedule."""

    revision: int


Event = (
    WorkflowStarted
    | TaskPolled
    | TaskHandedBack
    | TaskHeld
    | TaskExecuted
    | TaskUnheard
    | TaskUpdated
    | LeaseExtended
    | TimerFired
    | Continued
    | Recovered
    | ScriptEvaluated
    | SubWorkflowResolved
    | TaskDefsFrozen
    | WorkflowLaunched
    | FailureWorkflowResolved
    | ChildEnded
    | ChildRevived
    | Delivered
    | Paused
    | Resumed
    | Terminated
    | Restarted
    | Retried
    | Rerun
    | TaskSkipped
    | CallbacksReset
    | TasksRequeued
    | VariablesUpdated
    | ScheduleSaved
    | SchedulePaused
    | ScheduleResumed
    | ScheduleDeleted
    | ScheduledStarted
    | ScheduleListed
    | MessageSent
)
