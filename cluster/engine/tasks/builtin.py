"""The small ones: NOOP, SET_VARIABLE, TERMINATE, DYNAMIC."""

from cluster.engine import payloads
from cluster.engine.ending import end_by_terminate_task
from cluster.engine.expressions import to_text
from cluster.engine.model import Task
from cluster.engine.plan import Node
from cluster.engine.step import Step, TaskType, WorkflowFailed
from cluster.engine.transitions import TaskStatus, WorkflowStatus


def begin_noop(step: Step, task: Task, node: Node) -> None:
    step.start(task)
    step.finish(task, TaskStatus.COMPLETED)


def begin_set_variable(step: Step, task: Task, node: Node) -> None:
    """Put the resolved inputs over the workflow's variables, key by key."""
    step.start(task)
    execution = step.execution
    variables = {**execution.workflow_variables(), **execution.task_input(task)}
    encoded = payloads.dump_map(variables)
    limit = step.surroundings.variables_bytes_max
    if len(encoded) > limit:
        reason = (
            f"The variables payload size: {len(encoded) // 1024} of workflow: {execution.id} is "
            f"greater than the permissible limit: {limit // 1024} kilobytes"
        )
        step.finish(task, TaskStatus.FAILED_WITH_TERMINAL_ERROR, reason)
        return
    execution.set_variables(encoded)
    step.finish(task, TaskStatus.COMPLETED)


_TERMINATION = {
    "COMPLETED": WorkflowStatus.COMPLETED,
    "FAILED": WorkflowStatus.FAILED,
    "TERMINATED": WorkflowStatus.TERMINATED,
}


def begin_terminate(step: Step, task: Task, node: Node) -> None:
    """End the workflow with a status, a reason and an output of its own."""
    if any(kind == "begin" and not _ends(step, number) for kind, number, _ in step.work):
        # What was scheduled beside it, and needs nobody, still runs.
        step.later("begin", task.number, 0, task.scope)
        return
    step.start(task)
    execution = step.execution
    value = execution.task_input(task)
    wanted = str(value.get("terminationStatus"))
    status = _TERMINATION.get(wanted)
    if status is None:
        step.finish(task, TaskStatus.FAILED, "given termination status is not valid")
        return
    output = value.get("workflowOutput")
    if output is None:
        output = {}
    elif not isinstance(output, dict):
        output = {"output": output}
    step.set_output(task, output)
    step.close(task, TaskStatus.COMPLETED)
    task.executed = True
    given = value.get("terminationReason")
    reason = (
        to_text(given)
        if given not in (None, "")
        else f"Workflow is {wanted} by TERMINATE task: {execution.task_id(task.number)}"
    )
    end_by_terminate_task(step, status, reason, task.output, task)


def begin_dynamic(step: Step, task: Task, node: Node) -> None:
    """The type of this step stands in its input; its task definition has to be looked up first."""
    param = node.task.dynamic_task_name_param or ""
    value = step.execution.task_input(task)
    given = value.get(param)
    if given is None:
        raise WorkflowFailed(
            "Cannot map a dynamic task based on the parameter and input. "
            f"Parameter= {param}, input= {to_text(value)}"
        )
    name = to_text(given)
    task.name = name
    if node.definition is not None or name in step.execution.frozen_task_defs():
        _become(step, task, node)
    elif step.freeze(task, (name,)):
        on_definitions(step, task, node)


def on_definitions(step: Step, task: Task, node: Node) -> None:
    if task.name not in step.execution.frozen_task_defs():
        if step.types[task.name].is_worker:
            raise WorkflowFailed(
                "Invalid task specified.  Cannot find task by name "
                f"{task.name} in the task definitions"
            )
    _become(step, task, node)


_STRUCTURAL = frozenset({"DYNAMIC", "FORK", "FORK_JOIN", "FORK_JOIN_DYNAMIC"})
"""Types whose steps have others inside or behind them; a name alone does not make one."""


def _become(step: Step, task: Task, node: Node) -> None:
    if task.name in _STRUCTURAL:
        raise WorkflowFailed(f"A dynamic task cannot become a {task.name}")
    task.type = task.name
    step.execution.touch(task)
    definition = step.execution.definition_of(task, node)
    if definition is not None and definition.input_template:
        step.set_input(task, step.resolve_input(task, node))
    task_type = step.types[task.type]
    if task_type.deferred:
        step.later("begin", task.number, 0, task.scope)
    else:
        task_type.begin(step, task, node)


def _ends(step: Step, number: int) -> bool:
    return step.execution.tasks[number].type == "TERMINATE"


NOOP = TaskType(begin=begin_noop, resolves_input=False, deferred=True)
SET_VARIABLE = TaskType(begin=begin_set_variable, deferred=True)
TERMINATE = TaskType(begin=begin_terminate, deferred=True)
DYNAMIC = TaskType(begin=begin_dynamic, on_definitions=on_definitions)
