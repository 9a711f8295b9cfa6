"""SWITCH and the older DECISION: choose one of several branches."""

from typing import Any

from cluster.engine.expressions import to_text
from cluster.engine.model import Execution, Task
from cluster.engine.plan import Node
from cluster.engine.scheduling import end_on_the_way
from cluster.engine.step import Outcome, Step, TaskType, WorkflowFailed
from cluster.engine.transitions import TaskStatus

JAVASCRIPT = frozenset({"javascript", "graaljs"})


def begin_switch(step: Step, task: Task, node: Node) -> None:
    step.start(task)
    value = step.execution.task_input(task)
    source = node.task.expression or ""
    evaluator = node.task.evaluator_type or ""
    if evaluator == "value-param":
        _choose(step, task, node, value.get(source))
    elif evaluator in JAVASCRIPT:
        outcome = step.evaluate(task, node, language="javascript", source=source, value=value)
        if outcome is not None:
            on_switch_script(step, task, node, outcome)
    else:
        raise WorkflowFailed(f"No evaluator registered for type: {evaluator}")


def on_switch_script(step: Step, task: Task, node: Node, outcome: Outcome) -> None:
    if outcome.error is not None:
        step.finish(task, TaskStatus.FAILED, outcome.error)
    else:
        _choose(step, task, node, outcome.value)


def _choose(step: Step, task: Task, node: Node, value: Any) -> None:
    case = to_text(value)
    value = {**step.execution.task_input(task), "case": case}
    _note(step, task, node, value)
    step.set_output(task, {"evaluationResult": [case], "selectedCase": case})
    end_on_the_way(step, task)


def begin_decision(step: Step, task: Task, node: Node) -> None:
    step.start(task)
    value = step.execution.task_input(task)
    source = node.task.case_expression
    if source:
        outcome = step.evaluate(task, node, language="javascript", source=source, value=value)
        if outcome is not None:
            on_decision_script(step, task, node, outcome)
    else:
        _decide(step, task, node, value.get(node.task.case_value_param or ""))


def on_decision_script(step: Step, task: Task, node: Node, outcome: Outcome) -> None:
    if outcome.error is not None:
        raise WorkflowFailed(f"Error while evaluating script: {node.task.case_expression}")
    _decide(step, task, node, outcome.value)


def _decide(step: Step, task: Task, node: Node, value: Any) -> None:
    case = to_text(value)
    _note(step, task, node, {"case": case})
    step.set_output(task, {"caseOutput": [case]})
    end_on_the_way(step, task)


def _note(step: Step, task: Task, node: Node, value: dict[str, Any]) -> None:
    """Conductor shows in the input what was chosen, and whether a branch runs."""
    if _branch(node, value["case"]) is not None:
        value["hasChildren"] = "true"
    step.set_input(task, value)


def branch(execution: Execution, task: Task, node: Node) -> Node | None:
    """The first step of the branch that was chosen; None where it is empty."""
    if task.status is not TaskStatus.COMPLETED:
        return None
    return _branch(node, execution.task_input(task).get("case", ""))


def _branch(node: Node, case: str) -> Node | None:
    if case in node.cases:
        first = node.cases[case]
        # An empty case is a choice of SWITCH; DECISION takes it for none.
        if first is not None or node.type == "SWITCH":
            return first
    return node.default_case


SWITCH = TaskType(
    begin=begin_switch,
    on_script=on_switch_script,
    branch=branch,
    shown_as="SWITCH",
    retries=False,
)
DECISION = TaskType(
    begin=begin_decision,
    on_script=on_decision_script,
    branch=branch,
    shown_as="DECISION",
    retries=False,
)
