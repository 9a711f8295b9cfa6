"""FORK_JOIN: begin several branches at once, with the JOIN that waits for them."""

from cluster.engine.model import Task
from cluster.engine.plan import Node
from cluster.engine.scheduling import schedule
from cluster.engine.step import Step, TaskType, WorkflowFailed, place_of
from cluster.engine.tasks import dynamic_fork
from cluster.engine.transitions import TaskStatus


def begin(step: Step, task: Task, node: Node) -> None:
    """The FORK itself is over at once; its branches and the JOIN come with it."""
    if node.next is None or node.next.type != "JOIN":
        raise WorkflowFailed(
            "Fork task definition is not followed by a join task.  Check the blueprint"
        )
    step.start(task)
    step.close(task, TaskStatus.COMPLETED)
    task.executed = True
    # Held as an open task still: the scope cannot be done before the branches are there.
    resume(step, task, 0)
    step.execution.release(task.scope)


def resume(step: Step, task: Task, index: int) -> None:
    """Begin the branches from `index` on, as many as this transition may, and the JOIN last."""
    if task.number in step.execution.dynamic:  # Both kinds of fork show themselves as FORK.
        dynamic_fork.schedule_branches(step, task, index)
        return
    node = step.execution.node_of(task)
    place = place_of(task)
    while index < len(node.branches):
        if step.budget <= 0 or step.bytes_left <= 0:
            step.later("resume", task.number, index, task.scope)
            return
        schedule(step, node.branches[index], place)
        index += 1
    schedule(step, node.next, place)


TYPE = TaskType(begin=begin, resume=resume, shown_as="FORK", retries=False)
