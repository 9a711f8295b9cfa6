"""Messages between a workflow and relatives that it cannot tell in its own commit.

A relative in the same slot that is in memory is told in the same commit (effect Tell). Who is in
memory has its parent there too, but not always its children. To any other a message is an Order:
a row of the sender, written with the step it comes from, sent after the commit, sent again by
every new owner, and deleted when the target has acknowledged it. A workflow with orders left
counts as open.

Orders of one sender carry growing marks. Whoever hears the same order twice does it once
(`heard`), and what a child said before it heard its parent's latest order is out of date
(`Task.asked`).
"""

from msgspec.structs import replace

from cluster.engine.effects import Post, StartChild, Tell
from cluster.engine.events import ChildEnded, ChildRevived, Event, Retried, Terminated
from cluster.engine.model import STATE, Order, Task
from cluster.engine.step import Step
from cluster.ids import same_slot

START, TERMINATE, RETRY, ENDED, REVIVED = "start", "terminate", "retry", "ended", "revived"
"""The kinds of orders: the first three go to a child, the last two to the parent."""


def start_child(step: Step, task: Task, child: StartChild) -> None:
    """Start the child of a SUB_WORKFLOW task, wherever its id says that it lives."""
    task.heard = task.asked = 0
    if same_slot(step.execution.id, child.workflow_id):
        step.effects.append(child)
    else:
        text = f"{child.snapshot} {child.name}"
        task.asked = _post(step, Order(child.workflow_id, START, task.number, text))
        send_start(step, task.asked, child)


def terminate_child(step: Step, task: Task, reason: str) -> None:
    """End the child of a SUB_WORKFLOW task that was closed."""
    child_id = task.sub_workflow_id
    if _is_at_hand(step, child_id):
        event = Terminated(at_ms=step.at_ms, reason=reason, by_parent=True)
        step.effects.append(Tell(child_id, event))
    else:
        order = Order(child_id, TERMINATE, task.number, reason)
        _send(step, _post(step, order), order)


def retry_child(step: Step, task: Task) -> None:
    """Have the failed child of a SUB_WORKFLOW task go on; the task waits for it again."""
    child_id = task.sub_workflow_id
    if _is_at_hand(step, child_id):
        step.effects.append(Tell(child_id, Retried(step.at_ms, by_parent=True)))
        return
    order = Order(child_id, RETRY, task.number)
    task.asked = _post(step, order)
    _send(step, task.asked, order)


def _is_at_hand(step: Step, child_id: str) -> bool:
    return same_slot(step.execution.id, child_id) and step.surroundings.is_in_memory(child_id)


def tell_ended(step: Step) -> None:
    """Hand the end of a child to the task that waits for it."""
    _tell_parent(step, ENDED)


def tell_revived(step: Step) -> None:
    """Tell the parent that a child which had ended runs again."""
    _tell_parent(step, REVIVED)


def _tell_parent(step: Step, kind: str) -> None:
    header = step.execution.header
    if header.parent_id is None:
        return
    if same_slot(step.execution.id, header.parent_id):
        step.effects.append(Tell(header.parent_id, _news(step, kind, 0)))
        return
    _withdraw_end(step)
    order = Order(header.parent_id, kind)
    _send(step, _post(step, order), order)


def is_new(step: Step, event: Terminated | Retried) -> bool:
    """Whether an order of the parent is heard for the first time; notes that it was."""
    if not event.mark:
        return True
    header = step.execution.header
    if event.mark <= header.heard:
        return False
    header.heard = event.mark
    step.execution.parts |= STATE
    if isinstance(event, Retried):
        # The parent waits for the next end; the last one is news no more.
        _withdraw_end(step)
    return True


def is_news(step: Step, task: Task, event: ChildEnded | ChildRevived) -> bool:
    """Whether a child's word is heard for the first time and in time; notes that it was."""
    if not event.mark:
        return True
    if event.mark <= task.heard or event.heard < task.asked:
        return False
    task.heard = event.mark
    step.execution.touch(task)
    return True


def forget(step: Step, mark: int) -> Order | None:
    """An order is done with: it is not sent again. None if it was forgotten before."""
    execution = step.execution
    order = execution.orders.pop(mark, None)
    if order is not None:
        execution.posted.add(mark)
        execution.header.orders = len(execution.orders)
        execution.parts |= STATE
    return order


def send_again(step: Step, mark: int, order: Order) -> None:
    """Send an order that nobody acknowledged; starts: tasks/sub_workflow.py."""
    if order.kind == ENDED and not step.execution.is_terminal:
        forget(step, mark)
    else:
        _send(step, mark, order)


def send_start(step: Step, mark: int, child: StartChild, *, repeated: bool = False) -> None:
    """Send order `mark` of kind START."""
    start = replace(child, mark=mark)
    step.effects.append(Post(mark, child.workflow_id, start=start, repeated=repeated))


def _post(step: Step, order: Order) -> int:
    execution = step.execution
    header = execution.header
    header.mark += 1
    execution.orders[header.mark] = order
    execution.posted.add(header.mark)
    header.orders = len(execution.orders)
    execution.parts |= STATE
    return header.mark


def _send(step: Step, mark: int, order: Order) -> None:
    event: Event
    match order.kind:
        case "terminate":
            event = Terminated(step.at_ms, order.text, by_parent=True, mark=mark)
        case "retry":
            event = Retried(step.at_ms, by_parent=True, mark=mark)
        case kind:
            event = _news(step, kind, mark)
    step.effects.append(Post(mark, order.target, event=event))


def _news(step: Step, kind: str, mark: int) -> ChildEnded | ChildRevived:
    execution = step.execution
    header = execution.header
    if kind == REVIVED:
        return ChildRevived(
            step.at_ms, header.parent_number, execution.id, mark=mark, heard=header.heard
        )
    return ChildEnded(
        at_ms=step.at_ms,
        number=header.parent_number,
        child_id=execution.id,
        status=header.status.value,
        output=execution.output,
        reason=header.reason,
        mark=mark,
        heard=header.heard,
    )


def _withdraw_end(step: Step) -> None:
    """An end that the parent may not have heard of is overtaken by what comes now."""
    for mark, order in list(step.execution.orders.items()):
        if order.kind == ENDED:
            forget(step, mark)
