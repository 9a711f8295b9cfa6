"""From a TaskResult to what the router takes."""

from typing import NamedTuple

from cluster.engine import payloads
from cluster.engine.events import LeaseExtended, TaskUpdated
from cluster.engine.transitions import TaskStatus
from cluster.errors import InvalidRequest, NotFound, NotSupported, Violation
from cluster.ids import (
    TaskId,
    WorkflowId,
    number_of,
    parse_task_id,
    parse_workflow_id,
    workflow_of,
)
from cluster.node.api.bodies import TaskResultBody, as_text, invalid, optional_object
from cluster.store.ports import TaskLog

LOG_LINES_PER_UPDATE = 10
REASON_LENGTH_MAX = 500

WORKER_STATUSES = {
    status.value: status
    for status in (
        TaskStatus.IN_PROGRESS,
        TaskStatus.FAILED,
        TaskStatus.FAILED_WITH_TERMINAL_ERROR,
        TaskStatus.COMPLETED,
        TaskStatus.CANCELED,
    )
}


class Report(NamedTuple):
    """What a worker says of a task."""

    workflow_id: WorkflowId
    task_id: TaskId
    event: TaskUpdated | LeaseExtended
    logs: list[TaskLog]


def report_of(result: TaskResultBody, method: str, at_ms: int) -> Report:
    """Check a body; `method` is how violations name it. InvalidRequest, NotFound, NotSupported."""
    if result.status:
        worker_status(result.status)
    workflow_id, task_id = _ids_of(result, method)
    number = number_of(task_id)
    if result.extend_lease:
        return Report(workflow_id, task_id, LeaseExtended(at_ms, number), [])
    if result.external_output_payload_storage_path:
        raise NotSupported("externalOutputPayloadStoragePath is not served yet")
    reason = as_text(result.reason_for_incompletion)
    event = TaskUpdated(
        at_ms,
        number,
        worker_status(result.status),
        output=optional_object(result.output_data, "outputData") or payloads.EMPTY,
        reason=reason and reason[:REASON_LENGTH_MAX],
        worker_id=as_text(result.worker_id),
        callback_after_s=max(0, result.callback_after_seconds or 0),
        sub_workflow_id=result.sub_workflow_id,
    )
    logs = []
    if result.logs:
        logs = [
            TaskLog(task_id, line.created_time or 0, as_text(line.log) or "")
            for line in result.logs[:LOG_LINES_PER_UPDATE]
            if line is not None
        ]
    return Report(workflow_id, task_id, event, logs)


def worker_status(text: str | None) -> TaskStatus:
    """What a worker may report; raises InvalidRequest."""
    status = WORKER_STATUSES.get(text or "")
    if status is None:
        given = "it is missing" if not text else f"not '{text[:100]}'"
        raise InvalidRequest(f"status must be one of {', '.join(WORKER_STATUSES)}; {given}")
    return status


def _ids_of(result: TaskResultBody, method: str) -> tuple[WorkflowId, TaskId]:
    workflow_text, task_text = result.workflow_instance_id, result.task_id
    if not workflow_text or not task_text:
        violations = []
        for field, label, text in (
            ("taskId", "Task ID", task_text),
            ("workflowInstanceId", "Workflow Id", workflow_text),
        ):
            if not text:
                path, message = f"{method}.arg0.{field}", f"{label} cannot be null or empty"
                violations.append(Violation(path, message, text))
        raise invalid(*violations)
    workflow_id = parse_workflow_id(workflow_text)
    try:
        task_id = parse_task_id(task_text)
    except NotFound as error:
        raise NotFound(f"No such task found by id: {task_text}") from error
    if workflow_of(task_id) != workflow_id:
        raise NotFound(f"No such task found by id: {task_text}")
    return workflow_id, task_id
