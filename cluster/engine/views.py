"""What can be seen of an execution: derived outputs, and the document expressions look into."""

from collections.abc import Mapping
from typing import Any

from cluster.engine import payloads
from cluster.engine.model import Execution, Task
from cluster.engine.transitions import FAILED_TASK, OPEN_TASK, UNSUCCESSFUL_TASK
from cluster.ids import task_id


def output_of(execution: Execution, task: Task) -> bytes:
    """A task's output as JSON; that of an open JOIN or DO_WHILE is gathered from other tasks."""
    if task.status in OPEN_TASK and task.type in GATHERING:
        return payloads.dump_map(output_value(execution, task))
    return task.output


def output_value(execution: Execution, task: Task) -> dict[str, Any]:
    """The same, decoded; not to be changed by the caller."""
    if task.status in OPEN_TASK:
        if task.type == "JOIN":
            return join_output(execution, task)
        if task.type == "DO_WHILE":
            return loop_output(execution, task)
    return execution.task_output(task)


GATHERING = frozenset({"JOIN", "DO_WHILE"})
"""Types whose output, while they are open, is gathered from other tasks."""


def joined_refs(execution: Execution, task: Task) -> list[str]:
    """Full names of the tasks a JOIN waits for: inside a loop, those of the same round."""
    refs: list[str] = execution.task_input(task).get("joinOn") or []
    suffix = task.suffix
    return [ref + suffix for ref in refs] if suffix else refs


def join_output(execution: Execution, join: Task, *, upto_failure: bool = False) -> dict[str, Any]:
    """Reference name → output, of each joined task that has one.

    A JOIN that fails shows them up to the first unsuccessful one.
    """
    output = {}
    for ref in joined_refs(execution, join):
        task = execution.by_ref.get(ref)
        if task is not None:
            value = output_value(execution, task)
            if value:
                output[ref] = value
            if upto_failure and task.status in UNSUCCESSFUL_TASK:
                break
    return output


def loop_output(execution: Execution, loop: Task) -> dict[str, Any]:
    """Of an open loop: round number → {inner reference name: output}, plus the loop's own fields.

    Kept up to date round by round (tasks/loop.py), since every round may look at it; the round
    that still runs is not in it.
    """
    output = execution.loops.get(loop.number)
    if output is None:
        # Its keys stand in the order in which the rounds put them there.
        output = execution.loops[loop.number] = {"iteration": 0, **execution.task_output(loop)}
        rounds = {execution.tasks[n].iteration for n in execution.members.get(loop.number, ())}
        for number in sorted(rounds - {loop.rounds}):
            output[str(number)] = {}
        for number in reversed(execution.members.get(loop.number, ())):
            task = execution.tasks[number]
            if not task.retried and not task.origin and task.iteration < loop.rounds:
                output[str(task.iteration)][task.base_ref] = output_value(execution, task)
        output["iteration"] = loop.rounds
    return output


def round_output(execution: Execution, loop: Task) -> dict[str, Any]:
    """Inner reference name → output, of the present round of a loop; steps of the definition only,
    as in Conductor: the branches of a dynamic fork show in its JOIN."""
    output = {}
    for number in reversed(execution.members.get(loop.number, ())):
        task = execution.tasks[number]
        if task.iteration != loop.rounds:
            break
        if not task.retried and not task.origin:
            output[task.base_ref] = output_value(execution, task)
    return output


def failed_names(execution: Execution) -> tuple[list[str], list[str]]:
    """(failedReferenceTaskNames, failedTaskNames), without repeats; none before a first end."""
    if not execution.header.shows_failures:
        return [], []
    refs: dict[str, None] = {}
    names: dict[str, None] = {}
    for task in execution.tasks.values():
        if task.status in FAILED_TASK:
            refs[task.ref] = None
            names[task.name] = None
    return list(refs), list(names)


class ExecutionRoot:
    """The document that `${…}` looks into, read from the execution field by field."""

    __slots__ = ("_environment", "_execution")

    def __init__(self, execution: Execution, environment: Mapping[str, str]) -> None:
        self._execution = execution
        self._environment = environment

    def field(self, key: str, name: str) -> Any:
        """One field of `workflow` or of a task, None when there is none such."""
        if key == "workflow":
            return self._workflow_field(name)
        execution = self._execution
        task = execution.newest.get(key) or execution.by_ref.get(key)
        if task is None:
            return None
        if name == "output":
            return output_value(execution, task)
        if name == "input":
            return execution.task_input(task)
        return _task_field(execution, task, name)

    def _workflow_field(self, name: str) -> Any:
        execution = self._execution
        header = execution.header
        match name:
            case "input":
                return execution.workflow_input()
            case "output":
                return execution.workflow_output()
            case "variables":
                return execution.workflow_variables()
            case "workflowId":
                return execution.id
            case "status":
                return header.status.value
            case "workflowType":
                return header.name
            case "version":
                return header.version
            case "correlationId":
                return header.correlation_id
            case "parentWorkflowId":
                return header.parent_id
            case "parentWorkflowTaskId":
                return parent_task_id(execution)
            case "reasonForIncompletion":
                return header.reason or None
            case "schemaVersion":
                return execution.plan.definition.schema_version
            case "env":
                return self._environment
        return None

    def view(self, key: str) -> dict[str, Any] | None:
        """All fields of `workflow` or of a task."""
        if key == "workflow":
            return {name: self._workflow_field(name) for name in _WORKFLOW_FIELDS}
        execution = self._execution
        task = execution.newest.get(key) or execution.by_ref.get(key)
        if task is None:
            return None
        view = {name: _task_field(execution, task, name) for name in _TASK_FIELDS}
        view["input"] = execution.task_input(task)
        view["output"] = output_value(execution, task)
        return view

    def document(self) -> dict[str, Any]:
        """Everything, for paths that scan from the top."""
        return {key: self.view(key) for key in ("workflow", *self._execution.newest)}


_WORKFLOW_FIELDS = (
    "input",
    "output",
    "status",
    "workflowId",
    "parentWorkflowId",
    "parentWorkflowTaskId",
    "workflowType",
    "version",
    "correlationId",
    "reasonForIncompletion",
    "schemaVersion",
    "variables",
)
_TASK_FIELDS = (
    "taskType",
    "status",
    "referenceTaskName",
    "retryCount",
    "correlationId",
    "pollCount",
    "taskDefName",
    "scheduledTime",
    "startTime",
    "endTime",
    "workflowInstanceId",
    "taskId",
    "reasonForIncompletion",
    "callbackAfterSeconds",
    "workerId",
    "iteration",
)


def _task_field(execution: Execution, task: Task, name: str) -> Any:
    match name:
        case "taskType":
            return task.type
        case "status":
            return task.status.value
        case "referenceTaskName":
            return task.ref
        case "retryCount":
            return task.retry_count
        case "correlationId":
            return execution.header.correlation_id
        case "pollCount":
            return task.poll_count
        case "taskDefName":
            return task.name
        case "scheduledTime":
            return task.scheduled_ms
        case "startTime":
            return task.start_ms
        case "endTime":
            return task.end_ms
        case "workflowInstanceId":
            return execution.id
        case "taskId":
            return execution.task_id(task.number)
        case "reasonForIncompletion":
            return task.reason or None
        case "callbackAfterSeconds":
            return task.callback_after_s
        case "workerId":
            return task.worker_id or None
        case "iteration":
            return task.iteration
    return None


def parent_task_id(execution: Execution) -> str | None:
    """The id of the SUB_WORKFLOW task this run is the child of."""
    header = execution.header
    if header.parent_id is None:
        return None
    # Only the digits of the number differ between a workflow's id and its tasks' ids.
    return task_id(type(execution.id)(header.parent_id), header.parent_number)
