"""INLINE, LAMBDA and JSON_JQ_TRANSFORM: compute an output from the input."""

from typing import Any

from cluster.engine.model import Task
from cluster.engine.plan import Node
from cluster.engine.step import Outcome, Step, TaskType
from cluster.engine.tasks.decision import JAVASCRIPT
from cluster.engine.transitions import TaskStatus

_EMPTY = (
    "Empty '{name}' in {kind} task's input parameters. A non-empty String value must be provided."
)


def begin_inline(step: Step, task: Task, node: Node) -> None:
    step.start(task)
    value = step.execution.task_input(task)
    evaluator = value.get("evaluatorType") or "javascript"
    source = value.get("expression")
    if not isinstance(source, str) or not source.strip():
        reason = _EMPTY.format(name="expression", kind="Inline")
        _fail(step, task, TaskStatus.FAILED_WITH_TERMINAL_ERROR, reason)
    elif evaluator == "value-param":
        _succeed(step, task, value.get(source))
    elif evaluator in JAVASCRIPT:
        _evaluate(step, task, node, "javascript", source, value)
    else:
        reason = f"Unknown evaluator '{evaluator}' in INLINE task."
        _fail(step, task, TaskStatus.FAILED_WITH_TERMINAL_ERROR, reason)


def begin_lambda(step: Step, task: Task, node: Node) -> None:
    step.start(task)
    value = step.execution.task_input(task)
    source = value.get("scriptExpression")
    if not isinstance(source, str) or not source.strip():
        reason = _EMPTY.format(name="scriptExpression", kind="Lambda")
        step.finish(task, TaskStatus.FAILED, reason)
    else:
        _evaluate(step, task, node, "function", source, value)


def begin_jq(step: Step, task: Task, node: Node) -> None:
    step.start(task)
    value = step.execution.task_input(task)
    source = value.get("queryExpression")
    if not isinstance(source, str) or not source.strip():
        reason = "Missing 'queryExpression' in input parameters"
        step.finish(task, TaskStatus.FAILED, reason)
    else:
        _evaluate(step, task, node, "jq", source, value)


def _evaluate(
    step: Step, task: Task, node: Node, language: str, source: str, value: dict[str, Any]
) -> None:
    outcome = step.evaluate(task, node, language=language, source=source, value=value)
    if outcome is not None:
        on_script(step, task, node, outcome)


def on_script(step: Step, task: Task, node: Node, outcome: Outcome) -> None:
    if outcome.error is None:
        _succeed(step, task, outcome.value)
    else:
        wrong = task.type == "INLINE" and not outcome.timed_out
        status = TaskStatus.FAILED_WITH_TERMINAL_ERROR if wrong else TaskStatus.FAILED
        _fail(step, task, status, outcome.error)


def _succeed(step: Step, task: Task, value: Any) -> None:
    if task.type == "JSON_JQ_TRANSFORM":
        output = {"result": value[0] if value else None, "resultList": value}
        step.set_output(task, output)
    else:
        step.set_output(task, {"result": value})
    step.finish(task, TaskStatus.COMPLETED)


def _fail(step: Step, task: Task, status: TaskStatus, reason: str) -> None:
    step.set_output(task, {"error": reason})
    step.finish(task, status, reason)


INLINE = TaskType(begin=begin_inline, on_script=on_script, deferred=True)
LAMBDA = TaskType(begin=begin_lambda, on_script=on_script, deferred=True)
JSON_JQ_TRANSFORM = TaskType(begin=begin_jq, on_script=on_script, deferred=True)
