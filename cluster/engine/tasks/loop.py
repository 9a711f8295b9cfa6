"""DO_WHILE: run its body again as long as a condition holds, or once per item of a list."""

from typing import Any

from cluster.engine.expressions import compile_template
from cluster.engine.model import Execution, Task
from cluster.engine.plan import Node, inner_nodes
from cluster.engine.scheduling import schedule
from cluster.engine.step import Outcome, Place, Step, TaskType
from cluster.engine.transitions import OPEN_TASK, UNSUCCESSFUL_TASK, TaskStatus
from cluster.engine.views import loop_output, output_value, round_output


def begin(step: Step, task: Task, node: Node) -> None:
    step.start(task)
    items = _items(step, task, node)
    if items is not None and not items:
        task.rounds = 0
        step.set_output(task, {"iteration": 0})
        step.finish(task, TaskStatus.COMPLETED)
        return
    _begin_round(step, task, node, items)


def _begin_round(step: Step, task: Task, node: Node, items: list[Any] | None) -> None:
    execution = step.execution
    output = loop_output(execution, task)
    task.rounds += 1
    stored: dict[str, Any] = {}
    if items is not None:
        stored["loopIndex"] = task.rounds - 1
        if task.rounds <= len(items):
            stored["loopItem"] = items[task.rounds - 1]
        output.update(stored)
    output["iteration"] = task.rounds
    execution.touch(task)
    last = _last_forgotten(task, node)
    if last > 0:
        _forget_rounds(step, task, min(last, task.rounds - 1))
        # The output shows these for one round more than there are tasks to gather them from.
        stored |= _rounds_down_from(last, output)
    if stored:
        step.set_output(task, stored)
    place = Place(task.number, f"{task.suffix}__{task.rounds}", task.rounds, task.origin)
    execution.hold(task.number)
    schedule(step, node.body, place)
    if execution.release(task.number):
        # Every step of this round is to be skipped.
        step.later("resume", task.number, 0, task.scope)


def end_round(step: Step, task: Task, index: int) -> None:
    """All tasks of the present round have ended: look whether another is to follow."""
    execution = step.execution
    if task.status not in OPEN_TASK or task.number in execution.scripts:
        return
    node = execution.node_of(task)
    loop_output(execution, task)[str(task.rounds)] = round_output(execution, task)
    reasons = _failures_of_round(execution, task)
    if reasons:
        _finish(step, task, TaskStatus.FAILED, "".join(f"{reason} " for reason in reasons))
        return
    last = _last_forgotten(task, node)
    if last > 0:
        _forget_rounds(step, task, min(last, task.rounds - 1))
        output = loop_output(execution, task)
        old = _rounds_down_from(min(last, task.rounds), output)
        for key in old:
            del output[key]
        if old:
            stored = execution.task_output(task)
            step.set_output(task, {key: stored[key] for key in stored if key not in old})
    items = _items(step, task, node)
    condition = node.task.loop_condition
    if items is not None and task.rounds >= len(items):
        _finish(step, task, TaskStatus.COMPLETED)
    elif not condition or not condition.strip():
        _go_on(step, task, node, items is not None)
    else:
        outcome = step.evaluate(
            task,
            node,
            language="javascript",
            source=condition,
            value=_condition_input(step, task, node, condition),
        )
        if outcome is not None:
            on_condition(step, task, node, outcome)


def on_condition(step: Step, task: Task, node: Node, outcome: Outcome) -> None:
    if outcome.error is not None:
        reason = (
            f"Unable to evaluate condition {node.task.loop_condition}, exception {outcome.error}"
        )
        _finish(step, task, TaskStatus.FAILED_WITH_TERMINAL_ERROR, reason)
    else:
        _go_on(step, task, node, is_true(outcome.value))


def is_true(value: Any) -> bool:
    """What another round follows: true, and numbers above zero; no text, no object."""
    return isinstance(value, int | float) and value > 0


def _go_on(step: Step, task: Task, node: Node, another: bool) -> None:
    if another:
        _begin_round(step, task, node, _items(step, task, node))
    else:
        _finish(step, task, TaskStatus.COMPLETED)


def _finish(step: Step, task: Task, status: TaskStatus, reason: str | None = None) -> None:
    """Gather the outputs of all rounds, once, and end the loop."""
    step.set_output(task, loop_output(step.execution, task))
    step.execution.loops.pop(task.number, None)
    step.finish(task, status, reason)


def _failures_of_round(execution: Execution, task: Task) -> list[str]:
    """Reasons of what failed in the present round, up to the first (permissive steps)."""
    for number in reversed(execution.members.get(task.number, ())):
        inner = execution.tasks[number]
        if inner.iteration != task.rounds:
            break
        if not inner.retried and inner.status in UNSUCCESSFUL_TASK:
            return [inner.reason or "null"]
    return []


def _forget_rounds(step: Step, task: Task, last: int) -> None:
    """Drop the tasks of rounds 1…`last`, with those of loops inside them."""
    execution = step.execution
    old = []
    for number in execution.members.get(task.number, ()):
        if execution.tasks[number].iteration > last:
            break
        old.append(number)
    for number in old:
        inner = execution.tasks[number]
        if inner.type == "DO_WHILE":
            _forget_rounds(step, inner, inner.rounds)
    if old:
        step.forget([execution.tasks[number] for number in old])


def _rounds_down_from(last: int, output: dict[str, Any]) -> dict[str, Any]:
    """What an output holds of round `last` and those before it."""
    found = {}
    while str(last) in output:
        found[str(last)] = output[str(last)]
        last -= 1
    return found


def _last_forgotten(task: Task, node: Node) -> int:
    """The last round that `keepLastN` does not keep; 0 or less: all are kept."""
    keep = node.task.input_parameters.get("keepLastN")
    if not isinstance(keep, int) or isinstance(keep, bool):
        return 0
    return task.rounds - keep


def _items(step: Step, task: Task, node: Node) -> list[Any] | None:
    """The list to iterate over; None where the loop only has a condition."""
    value = None
    if node.task.items and node.task.items.strip():
        template = node.compiled.get("items")
        if template is None:
            template = node.compiled["items"] = compile_template(node.task.items)
        value = template.resolve(step.root)
    elif "_items" in node.task.input_parameters:
        given = node.task.input_parameters["_items"]
        if not (isinstance(given, str) and given.strip()) and not isinstance(given, list):
            return None
    else:
        return None
    if value is None:
        value = step.resolve_input(task, node).get("_items")
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _condition_input(step: Step, task: Task, node: Node, condition: str) -> dict[str, Any]:
    """`$` of a loop condition: inputs, the loop's own output, the latest output of each step.

    The loop's output grows with every round. It goes in whole only to a condition that looks at
    more of it than the number of rounds, or sending it to a script would cost more every round.
    """
    execution = step.execution
    value = step.resolve_input(task, node)
    names = node.compiled.get("inner")
    if names is None:
        names = node.compiled["inner"] = [inner.ref for inner in inner_nodes(node.body)]
    if _looks_at_rounds(node, condition):
        own = loop_output(execution, task)
    else:
        own = {**execution.task_output(task), "iteration": task.rounds}
    value[task.base_ref] = own
    for name in names:
        inner = execution.newest.get(name)
        if inner is not None:
            value[name] = output_value(execution, inner)
    return value


def _looks_at_rounds(node: Node, condition: str) -> bool:
    known = node.compiled.get("looks at rounds")
    if known is None:
        rest = condition
        for quoted in ("'", '"'):
            rest = rest.replace(f"[{quoted}{node.ref}{quoted}]", f".{node.ref}")
            rest = rest.replace(f"[{quoted}iteration{quoted}]", ".iteration")
        rest = rest.replace(f"$.{node.ref}.iteration", "")
        known = node.compiled["looks at rounds"] = node.ref in rest
    return bool(known)


TYPE = TaskType(begin=begin, on_script=on_condition, resume=end_round, deferred=True, retries=False)
