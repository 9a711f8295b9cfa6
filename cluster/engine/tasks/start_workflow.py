"""START_WORKFLOW: start another workflow and go on without waiting for it."""

from typing import Any

from cluster.engine.effects import LaunchWorkflow
from cluster.engine.events import WorkflowLaunched
from cluster.engine.model import Task
from cluster.engine.plan import Node
from cluster.engine.step import Step, TaskType
from cluster.engine.tasks.sub_workflow import PRIORITY_MAX
from cluster.engine.transitions import TaskStatus
from cluster.ids import derived_workflow_id, slot_of_key


def begin(step: Step, task: Task, node: Node) -> None:
    """The new workflow lives in a slot of its own; its id is drawn once, so it starts once."""
    execution = step.execution
    wanted: Any = execution.task_input(task).get("startWorkflow")
    reason = _what_is_wrong(wanted)
    if reason is not None:
        step.finish(task, TaskStatus.FAILED, reason)
        return
    request = dict(wanted)
    header = execution.header
    if not request.get("taskToDomain") and header.task_to_domain:
        request["taskToDomain"] = header.task_to_domain
    if not request.get("correlationId") and header.correlation_id:
        request["correlationId"] = header.correlation_id
    task.token += 1
    execution.touch(task)
    # Not the token: asked again after a crash, it is still the same workflow that is to start.
    origin = f"{execution.id}/{task.number}/{task.scheduled_ms}"
    workflow_id = derived_workflow_id(
        at_ms=task.scheduled_ms, slot=slot_of_key(execution.id, origin), origin=origin
    )
    step.effects.append(LaunchWorkflow(task.number, task.token, workflow_id, request))


def _what_is_wrong(wanted: Any) -> str | None:
    if wanted is None:
        return "Missing 'startWorkflow' in input data."
    if not isinstance(wanted, dict):
        return "Error reading StartWorkflowRequest. It must be a JSON object."
    if not wanted.get("name"):
        return "startWorkflow validation failed. 'name' -> Workflow name cannot be null or empty. "
    priority = wanted.get("priority") or 0
    if not isinstance(priority, int):
        return "Error reading StartWorkflowRequest. priority must be an integer."
    if not 0 <= priority <= PRIORITY_MAX:
        bound = f"maximum {PRIORITY_MAX}" if priority > 0 else "minimum 0"
        return (
            f"startWorkflow validation failed. 'priority' -> priority: {priority} should be "
            f"{bound}. "
        )
    if "input" in wanted and not isinstance(wanted["input"], dict):
        return "NULL input passed when starting workflow"
    return None


def on_launched(step: Step, task: Task, event: WorkflowLaunched) -> None:
    step.start(task)
    if event.workflow_id is None:
        step.finish(task, TaskStatus.FAILED, event.error)
    else:
        step.set_output(task, {"workflowId": event.workflow_id})
        step.finish(task, TaskStatus.COMPLETED)


TYPE = TaskType(begin=begin)
