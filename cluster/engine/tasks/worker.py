"""SIMPLE and every type the engine does not know: work for whoever polls for it."""

from cluster.engine.model import Task
from cluster.engine.plan import Node
from cluster.engine.retries import arm
from cluster.engine.scheduling import push
from cluster.engine.schemas import task_checks
from cluster.engine.step import Step, TaskType
from cluster.engine.transitions import TaskStatus

NO_DOMAIN = "NO_DOMAIN"


def begin(step: Step, task: Task, node: Node) -> None:
    """Put the attempt into its queue, visible when its delay is over."""
    if node.type == "SIMPLE":
        task.type = node.name
    if not task.retry_count:
        delay_s = node.task.start_delay
        task.callback_after_s = delay_s
        task.start_delay_s = delay_s
        task.visible_ms = step.at_ms + delay_s * 1000
    domains = step.execution.header.task_to_domain
    if domains:
        task.domain = _domain(step, task.type, domains)
    check_input, _ = task_checks(node, step.execution.definition_of(task, node))
    fault = check_input(step.execution.task_input(task)) if check_input is not None else None
    if fault is not None:
        step.finish(task, TaskStatus.FAILED_WITH_TERMINAL_ERROR, f"Task {fault}")
        return
    push(step, task)
    arm(step, task, node)


def _domain(step: Step, task_type: str, domains: dict[str, str]) -> str:
    """The domain for a task type: its own entry or `*`; in a list, the first that is polled."""
    text = domains.get(task_type)
    if text is None:
        text = domains.get("*")
    if not text:
        return ""
    choices = [choice.strip() for choice in text.split(",") if choice.strip()]
    for choice in choices:
        if choice != NO_DOMAIN and step.surroundings.is_polled(task_type, choice, step.at_ms):
            return choice
    last = choices[-1] if choices else ""
    return "" if last == NO_DOMAIN else last


TYPE = TaskType(begin=begin, is_worker=True)
