"""All the decider can ask for. Every effect is derived from saved state and may be repeated."""

from typing import Any

import msgspec

from cluster.engine.events import Event


class _Effect(msgspec.Struct, frozen=True):
    pass


class PushTask(_Effect, frozen=True):
    """Put the present delivery of a worker task into its queue."""

    number: int


class AcknowledgeTask(_Effect, frozen=True):
    """Take a task out of its queue, free what it held there. `queue` as `queue_name` says."""

    queue: str
    number: int


class HoldTask(_Effect, frozen=True):
    """After a restart: a worker has this task; its queue must count it against the limits."""

    queue: str
    number: int
    delivery: int


class RunScript(_Effect, frozen=True):
    """Evaluate `source` over `input` outside; the answer comes back as ScriptEvaluated."""

    number: int
    token: int
    language: str
    """javascript (an expression), function (a body with return) or jq."""
    source: str
    input: bytes


class FreezeTaskDefs(_Effect, frozen=True):
    """Read the task definitions of these names; comes back as TaskDefsFrozen."""

    number: int
    token: int
    names: tuple[str, ...]


class ResolveSubWorkflow(_Effect, frozen=True):
    """Find and freeze the definition of a child; comes back as SubWorkflowResolved."""

    number: int
    token: int
    name: str
    version: int | None
    definition: dict[str, Any] | None = None
    input: dict[str, Any] = {}
    """What the child is to start with: its definition may refuse it."""


class StartChild(_Effect, frozen=True):
    """Create a workflow on this shard, in the same commit: a child, or a failure workflow."""

    workflow_id: str
    snapshot: str
    name: str
    version: int
    input: bytes
    correlation_id: str | None
    priority: int
    task_to_domain: dict[str, str] | None
    parent_number: int
    """0: no link back (failure workflows)."""
    failed_run: bool = False
    """Add the whole failed run to the input, as `failedWorkflow`."""
    mark: int = 0
    """On another shard: the parent's order that starts it."""


class LaunchWorkflow(_Effect, frozen=True):
    """START_WORKFLOW: start `workflow_id` wherever it lives; comes back as WorkflowLaunched."""

    number: int
    token: int
    workflow_id: str
    request: dict[str, Any]


class ResolveFailureWorkflow(_Effect, frozen=True):
    """Find the compensating definition; comes back as FailureWorkflowResolved."""

    name: str
    version: int | None


class Tell(_Effect, frozen=True):
    """Hand an event to a workflow of this shard, in the same commit."""

    workflow_id: str
    event: Event


class Post(_Effect, frozen=True):
    """Hand order `mark` to another shard: an event for `target`, or the start of `target`.

    Orders of one workflow for one target are handed over in the order of their marks, each when
    the one before was acknowledged; comes back as Delivered.
    """

    mark: int
    target: str
    event: Event | None = None
    start: StartChild | None = None
    repeated: bool = False
    """It may have been handed over before: the child may be there."""


class ArmTimer(_Effect, frozen=True):
    """Send TimerFired at `due_ms` or soon after."""

    due_ms: int


class ContinueLater(_Effect, frozen=True):
    """Work items are left: send Continued after what else waits in the mailbox."""


class StartScheduled(_Effect, frozen=True):
    """Start `workflow_id` for a schedule and put down what became of it; comes back as
    ScheduledStarted. `record` is the execution without its outcome."""

    number: int
    workflow_id: str
    request: dict[str, Any]
    record: dict[str, Any]
    forgets_ms: int
    """The instant whose record goes, 0 = none."""


class ListSchedule(_Effect, frozen=True):
    """Have the list of schedules show a schedule as `value`, None: not any more, with the records
    of the instants `forgets_ms`; comes back as ScheduleListed."""

    revision: int
    name: str
    value: bytes | None
    forgets_ms: tuple[int, ...]


class ForgetSchedule(_Effect, frozen=True):
    """Remove the execution of a schedule that was deleted."""


class WorkflowEnded(_Effect, frozen=True):
    """It has reached a terminal status: for metrics, waiters and eviction."""


Effect = (
    PushTask
    | AcknowledgeTask
    | HoldTask
    | RunScript
    | FreezeTaskDefs
    | ResolveSubWorkflow
    | StartChild
    | LaunchWorkflow
    | ResolveFailureWorkflow
    | Tell
    | Post
    | ArmTimer
    | ContinueLater
    | StartScheduled
    | ListSchedule
    | ForgetSchedule
    | WorkflowEnded
)
