"""SUB_WORKFLOW: a child workflow, started and awaited in the same commits as its parent's steps."""

from typing import Any

from cluster.engine import payloads
from cluster.engine.effects import ResolveSubWorkflow, StartChild
from cluster.engine.events import ChildEnded, SubWorkflowResolved
from cluster.engine.expressions import Template, compile_template
from cluster.engine.model import Order, Task
from cluster.engine.outbox import forget, send_start, start_child
from cluster.engine.plan import Node
from cluster.engine.step import Step, TaskType, WorkflowFailed
from cluster.engine.transitions import TaskStatus
from cluster.ids import derived_workflow_id, slot_of, slot_of_key

PRIORITY_MAX = 99

STATUS_AFTER = {
    "COMPLETED": TaskStatus.COMPLETED,
    "FAILED": TaskStatus.FAILED,
    "TIMED_OUT": TaskStatus.TIMED_OUT,
    "TERMINATED": TaskStatus.CANCELED,
}


def begin(step: Step, task: Task, node: Node) -> None:
    """Have the child's definition looked up; the child starts when it is known."""
    if node.task.sub_workflow_param is None:
        raise WorkflowFailed(
            f"Task {node.name} is defined as sub-workflow and is missing subWorkflowParams. "
            "Please check the workflow definition"
        )
    value = _input(step, task, node)
    step.set_input(task, value)
    definition = value.get("subWorkflowDefinition")
    if definition is not None and not isinstance(definition, dict):
        reason = "workflowDefinition of a sub-workflow must resolve to a workflow definition"
        step.finish(task, TaskStatus.FAILED, reason)
        return
    priority = value.get("priority")
    if isinstance(priority, int) and not 0 <= priority <= PRIORITY_MAX:
        reason = f"priority MUST be between 0 and {PRIORITY_MAX} (inclusive)"
        step.finish(task, TaskStatus.FAILED, reason)
        return
    if not value["subWorkflowName"] and definition is None:
        reason = "Workflow name must be specified when searching for a definition"
        step.finish(task, TaskStatus.FAILED, reason)
        return
    step.ask(task)
    version = value.get("subWorkflowVersion")
    step.effects.append(
        ResolveSubWorkflow(
            task.number,
            task.token,
            str(value["subWorkflowName"]),
            version if isinstance(version, int) and version > 0 else None,
            definition,
            _child_input(value),
        )
    )


def _input(step: Step, task: Task, node: Node) -> dict[str, Any]:
    """What Conductor shows in the task: the resolved parameters, those that are null too."""
    if task.retry_count:
        # A retry has resolved the step's own parameters over the old input.
        return step.execution.task_input(task)
    params = node.task.sub_workflow_param
    assert params is not None
    compiled: tuple[Template, bool] | None = node.compiled.get("params")
    if compiled is None:
        wanted: dict[str, Any] = {
            "name": params.name,
            "version": params.version,
            "priority": params.priority,
            "taskToDomain": params.task_to_domain,
            "idempotencyKey": params.idempotency_key,
            "idempotencyStrategy": params.idempotency_strategy,
        }
        inline = isinstance(params.workflow_definition, dict)
        if not inline:
            wanted["definition"] = params.workflow_definition
        compiled = node.compiled["params"] = (compile_template(wanted), inline)
    template, inline = compiled
    resolved = template.resolve(step.root, task_id=step.execution.task_id(task.number))
    version = resolved.get("version")
    if isinstance(version, str) and version.isdigit():
        version = int(version)
    definition = params.workflow_definition if inline else resolved.get("definition")
    return {
        "subWorkflowName": resolved.get("name"),
        "subWorkflowVersion": version if definition is None else None,
        "subWorkflowTaskToDomain": resolved.get("taskToDomain"),
        "subWorkflowDefinition": definition,
        "priority": resolved.get("priority"),
        "idempotencyKey": resolved.get("idempotencyKey"),
        "idempotencyStrategy": resolved.get("idempotencyStrategy"),
        "workflowInput": step.resolve_input(task, node),
    }


def on_resolved(step: Step, task: Task, event: SubWorkflowResolved) -> None:
    """The definition is frozen: create the child in this commit."""
    execution = step.execution
    if event.snapshot is None:
        if event.transient:
            task.reason = f"Transient error starting sub workflow {event.name}: {event.error}"
            step.set_output(task, {"subWorkflowLaunchError": event.error})
            step.wake(task, step.at_ms + 5_000)
            return
        if execution.task_input(task).get("subWorkflowVersion") is None and not event.refused:
            raise WorkflowFailed(
                f"The Task {event.name} defined as a sub-workflow has no workflow definition "
                "available "
            )
        step.finish(task, TaskStatus.FAILED, event.error)
        return
    value = execution.task_input(task)
    task.sub_version = event.version
    task.reason = ""
    step.start(task)
    if value.get("subWorkflowVersion") is None and value.get("subWorkflowDefinition") is None:
        step.set_input(task, {**value, "subWorkflowVersion": event.version})
    place(step, task, execution.node_of(task), event.snapshot, event.name)


def place(step: Step, task: Task, node: Node, snapshot: str, name: str) -> None:
    """Draw the id of the child, which says where it lives, and start it there."""
    execution = step.execution
    if task.sub_workflow_id:
        # The id drawn before belongs to another workflow.
        task.token += 1
    origin = f"{execution.id}/{task.number}/{task.retry_count}/{task.token}"
    slot = slot_of(execution.id)
    if _is_spread(step, task, node):
        slot = slot_of_key(execution.id, origin)
    child_id = derived_workflow_id(at_ms=step.at_ms, slot=slot, origin=origin)
    task.sub_workflow_id = child_id
    step.set_output(task, {"subWorkflowId": child_id})
    start_child(step, task, _child(step, task, snapshot, name))


def start_again(step: Step, mark: int, order: Order) -> None:
    """Send the start of a child on another shard that nobody has acknowledged."""
    task = step.execution.tasks.get(order.number)
    if task is None or not task.is_open or task.sub_workflow_id != order.target:
        # Ended with this run; the order to terminate comes after the start.
        forget(step, mark)
    else:
        child = _child(step, task, *order.text.split(" ", 1))
        send_start(step, mark, child, repeated=True)


def _is_spread(step: Step, task: Task, node: Node) -> bool:
    """Whether the child lives on a shard of its own choice: asked for, or one of very many."""
    params = node.task.sub_workflow_param
    if params is not None and params.placement == "spread":
        return True
    width = step.surroundings.together_max
    fork = step.execution.tasks.get(task.origin)
    if fork is not None and len(step.execution.task_input(fork).get("forkedTasks", ())) > width:
        return True
    around = node.parent
    while around is not None:
        if len(around.branches) > width:
            return True
        around = around.parent
    return False


def _child(step: Step, task: Task, snapshot: str, name: str) -> StartChild:
    execution = step.execution
    value = execution.task_input(task)
    domains = value.get("subWorkflowTaskToDomain")
    priority = value.get("priority")
    return StartChild(
        workflow_id=task.sub_workflow_id,
        snapshot=snapshot,
        name=name,
        version=task.sub_version,
        input=payloads.dump_map(_child_input(value)),
        correlation_id=execution.header.correlation_id,
        priority=int(priority) if isinstance(priority, int | float) else 0,
        task_to_domain=domains if isinstance(domains, dict) else execution.header.task_to_domain,
        parent_number=task.number,
    )


def _child_input(value: dict[str, Any]) -> dict[str, Any]:
    child_input: dict[str, Any] = value.get("workflowInput") or value
    if value.get("subWorkflowDefinition") is not None:
        metadata = child_input.get("_systemMetadata")
        child_input = {
            **child_input,
            "_systemMetadata": {
                **(metadata if isinstance(metadata, dict) else {}),
                "dynamic": True,
            },
        }
    return child_input


def on_child_ended(step: Step, task: Task, event: ChildEnded) -> None:
    """The child's end is the task's end."""
    execution = step.execution
    output = dict(payloads.load(event.output))
    output["subWorkflowId"] = event.child_id
    step.set_output(task, output)
    reason = None
    if event.status != "COMPLETED":
        name = execution.task_input(task).get("subWorkflowName")
        reason = (
            f"Sub workflow {name}.{task.sub_version}/{event.child_id} failure reason: "
            f"{event.reason or 'null'}"
        )
    step.finish(task, STATUS_AFTER[event.status], reason)


TYPE = TaskType(begin=begin, resolves_input=False)
