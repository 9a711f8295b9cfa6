"""START_WORKFLOW: start another workflow and go on without waiting for it."""

from typing import Any

from cluster.engine.effects import LaunchWorkflow
from cluster.engine.events import WorkflowLaunched
from cluster.engine.model import Task
from cluster.engine.plan import Node
from cluster.engine.step import Step, TaskType
from cluster.engine.transitions import TaskStatus
from cluster.ids import derived_workflow_id, slot_of_key


def begin(step: Step, task: Task, node: Node) -> None:
    """The new workflow lives in a slot of its own; its id is drawn once, so it starts once."""
    execution = step.execution
    wanted: Any = execution.task_input(task).get("startWorkflow")
    if not isinstance(wanted, dict) or not isinstance(wanted.get("name"), str):
        reason = "Missing 'startWorkflow' in input data, or it names no workflow"
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
    origin = f"{execution.id}/{task.number}/{task.token}"
    workflow_id = derived_workflow_id(
        at_ms=task.scheduled_ms, slot=slot_of_key(execution.id, origin), origin=origin
    )
    step.effects.append(LaunchWorkflow(task.number, task.token, workflow_id, request))


def on_launched(step: Step, task: Task, event: WorkflowLaunched) -> None:
    step.start(task)
    if event.workflow_id is None:
        step.finish(task, TaskStatus.FAILED, event.error)
    else:
        step.set_output(task, {"workflowId": event.workflow_id})
        step.finish(task, TaskStatus.COMPLETED)


TYPE = TaskType(begin=begin)
