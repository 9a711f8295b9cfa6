"""PULL_WORKFLOW_MESSAGES: takes messages that somebody sent to the workflow, oldest first."""

from datetime import UTC, datetime
from typing import Any

from cluster.engine import payloads
from cluster.engine.events import MessageSent
from cluster.engine.model import Message, Task
from cluster.engine.plan import Node
from cluster.engine.step import Step, TaskType
from cluster.engine.transitions import TaskStatus, WorkflowStatus
from cluster.errors import Conflict, Overloaded

BATCH_MAX = 100


def on_sent(step: Step, event: MessageSent) -> None:
    """Keep a message until a task takes it. Conflict: the run is not RUNNING; Overloaded: too many
    wait already, and nothing was done."""
    execution = step.execution
    status = execution.header.status
    if status is not WorkflowStatus.RUNNING:
        raise Conflict(f"Workflow {execution.id} is not in RUNNING state. Current status: {status}")
    waiting = execution.messages
    if any(message.id == event.id for message in waiting.values()):
        return  # Sent again because nobody heard the answer.
    limit = step.surroundings.messages_max
    if len(waiting) >= limit:
        raise Overloaded(f"The message queue of workflow {execution.id} is full ({limit} messages)")
    size = len(event.payload) + sum(len(message.payload) for message in waiting.values())
    if waiting and size > step.surroundings.payload_bytes_max:
        raise Overloaded(f"The message queue of workflow {execution.id} is full ({size} bytes)")
    execution.add_message(Message(event.id, step.at_ms, event.payload))
    if execution.pulling:
        number = next(iter(execution.pulling))
        _take(step, execution.tasks[number])


def begin(step: Step, task: Task, node: Node) -> None:
    step.start(task)
    if step.execution.messages:
        _take(step, task)
    elif step.execution.task_input(task).get("blocking") in (False, "false"):
        step.set_output(task, {"messages": [], "count": 0})
        step.finish(task, TaskStatus.COMPLETED)
    else:
        step.execution.pulling[task.number] = None


def _take(step: Step, task: Task) -> None:
    execution = step.execution
    found: list[dict[str, Any]] = []
    size = 0
    for mark, message in list(execution.messages.items()):
        size += len(message.payload)
        if found and size > step.surroundings.task_output_bytes_max // 2:
            break
        found.append(
            {
                "id": message.id,
                "workflowId": execution.id,
                "payload": payloads.load(message.payload),
                "receivedAt": _instant(message.received_ms),
            }
        )
        execution.drop_message(mark)
        if len(found) >= _batch_size(execution.task_input(task).get("batchSize")):
            break
    step.set_output(task, {"messages": found, "count": len(found)})
    step.finish(task, TaskStatus.COMPLETED)


def _batch_size(given: Any) -> int:
    try:
        return min(max(int(given), 1), BATCH_MAX)
    except (TypeError, ValueError, OverflowError):
        return 1


def _instant(at_ms: int) -> str:
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


TYPE = TaskType(begin=begin)
