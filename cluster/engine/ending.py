"""How a workflow ends: its output, its open tasks, its children, its parent, its compensation."""

from cluster.engine import payloads
from cluster.engine.effects import ResolveFailureWorkflow, WorkflowEnded
from cluster.engine.model import REASON_CHARS_MAX, Task
from cluster.engine.outbox import tell_ended, terminate_child
from cluster.engine.step import Step
from cluster.engine.transitions import (
    UNSUCCESSFUL_TASK,
    TaskStatus,
    WorkflowStatus,
)
from cluster.engine.views import GATHERING, output_of, output_value


def complete(step: Step, *, reason: str = "") -> None:
    """Everything that was to be done is done."""
    execution = step.execution
    failures = []
    for task in execution.by_ref.values():
        if task.status in UNSUCCESSFUL_TASK:
            node = execution.node_of(task)
            if node.task.permissive and not node.task.optional:
                failures.append(
                    f"Task {execution.task_id(task.number)} failed with status: {task.status} "
                    f"and reason: '{task.reason or 'null'}'"
                )
    if failures:
        fail(step, WorkflowStatus.FAILED, ". ".join(failures))
    else:
        _end(step, WorkflowStatus.COMPLETED, reason)
        if step.execution.header.status is not WorkflowStatus.COMPLETED:
            compensate(step)


def fail(step: Step, status: WorkflowStatus, reason: str, task: Task | None = None) -> None:
    """End the workflow unsuccessfully and start its failure workflow."""
    header = step.execution.header
    if task is not None:
        header.failed_number = task.number
    _end(step, status, reason)
    compensate(step)


def end_by_terminate_task(
    step: Step, status: WorkflowStatus, reason: str, output: bytes, task: Task
) -> None:
    """A TERMINATE task has the last word on status and output."""
    execution = step.execution
    header = execution.header
    execution.set_output(output)
    header.terminated_output = True
    if status is not WorkflowStatus.COMPLETED:
        header.failed_number = task.number
    _end(step, status, reason)
    if header.status is not WorkflowStatus.COMPLETED:
        compensate(step)


def terminate(step: Step, reason: str) -> None:
    """An operator, or the parent, ends it; nothing is compensated."""
    _end(step, WorkflowStatus.TERMINATED, reason)


def _end(step: Step, status: WorkflowStatus, reason: str) -> None:
    execution = step.execution
    header = execution.header
    if status is not WorkflowStatus.COMPLETED:
        # What the output looks at: a run that completes is RUNNING until it has its output.
        header.status = status
    if not header.terminated_output:
        _set_output(step)
    check_output = execution.plan.check_output
    if check_output is not None and status is WorkflowStatus.COMPLETED:
        fault = check_output(execution.workflow_output())
        if fault is not None:
            # The output stays: it shows what is wrong with it.
            status, reason = WorkflowStatus.FAILED, f"Workflow {fault}"
    header.status = status
    header.reason = reason[:REASON_CHARS_MAX]
    header.end_ms = step.at_ms
    header.due_ms = 0
    header.shows_failures = True
    execution.timers.clear()
    step.work.clear()
    for task in step.advanced:
        if task.number not in execution.tasks:
            continue
        # As in Conductor: nothing came after it. A retry walks on from here again.
        task.executed = False
        execution.touch(task)
    tell_ended(step)
    step.effects.append(WorkflowEnded())


def _set_output(step: Step) -> None:
    execution = step.execution
    if not execution.tasks:
        return
    if execution.plan.definition.output_parameters:
        output = execution.plan.outputs.resolve(step.root)
        execution.set_output(payloads.dump_map(output))
    else:
        execution.set_output(output_of(execution, execution.tasks_by_seq()[-1]))


def cancel_open_tasks(step: Step) -> bool:
    """Cancel what is still open, children included; False when some are left for the next turn."""
    execution = step.execution
    for number in list(execution.open):
        if step.budget <= 0:
            return False
        step.budget -= 1
        task = execution.tasks[number]
        gathered = output_value(execution, task) if task.type in GATHERING else {}
        step.close(task, TaskStatus.CANCELED)
        if task.type in GATHERING:
            step.set_output(task, gathered)
        _terminate_child(step, task)
    return True


def _terminate_child(step: Step, task: Task) -> None:
    """End the child that a closed SUB_WORKFLOW task has started."""
    if task.sub_workflow_id and task.type == "SUB_WORKFLOW":
        header = step.execution.header
        reason = f"Parent workflow has been terminated with reason: {header.reason}"
        terminate_child(step, task, reason)


def compensate(step: Step) -> None:
    """Have the failure workflow looked up, if the definition names one."""
    execution = step.execution
    definition = execution.plan.definition
    name = definition.failure_workflow
    if not name:
        return
    if "${" in name:
        from cluster.engine.expressions import compile_template

        resolved = compile_template(name).resolve(step.root)
        if not isinstance(resolved, str) or not resolved:
            return
        name = resolved
    elif name.startswith("$"):
        # The older form, `$workflow.input.key`.
        resolved = execution.workflow_input().get(name.split(".")[-1])
        if not isinstance(resolved, str):
            return
        name = resolved
    execution.header.failure_workflow = "?"
    step.effects.append(ResolveFailureWorkflow(name, definition.failure_workflow_version))
