"""Conductor's JSON of what searches find: WorkflowSummary and TaskSummary."""

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from cluster.engine import payloads
from cluster.engine.model import Execution, Task
from cluster.engine.text import to_text
from cluster.engine.views import output_of
from cluster.node.search import Hit
from cluster.node.wire import queue_wait_ms
from cluster.store.documents import CLASSIFIER

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS = 253_402_300_799_999
"""The end of the year 9999: later times cannot be written."""


def workflow_summary(hit: Hit) -> dict[str, Any]:
    """A WorkflowSummary; input and output as Java's text, as Conductor has them."""
    summary, header = hit.summary, hit.header
    shown_input, shown_output = _java_text(hit.input), _java_text(hit.output)
    body: dict[str, Any] = {
        "workflowType": summary.name,
        "version": summary.version,
        "workflowId": summary.workflow_id,
        "startTime": iso(summary.start_ms),
        "status": summary.status,
        "input": shown_input,
        "output": shown_output,
        "inputSize": len(shown_input),
        "outputSize": len(shown_output),
        "executionTime": summary.end_ms - summary.start_ms if summary.end_ms else 0,
        "failedReferenceTaskNames": ",".join(summary.failed_reference_task_names),
        "failedTaskNames": summary.failed_task_names,
        "priority": summary.priority,
        "taskToDomain": header.task_to_domain or {},
        "parentWorkflowId": summary.parent_workflow_id or "",
        "classifier": CLASSIFIER,
    }
    if summary.update_ms:
        body["updateTime"] = iso(summary.update_ms)
    if summary.end_ms:
        body["endTime"] = iso(summary.end_ms)
    return body | _present(
        correlationId=summary.correlation_id,
        reasonForIncompletion=summary.reason,
        event=summary.event,
        createdBy=summary.created_by,
        idempotencyKey=summary.idempotency_key,
        externalInputPayloadStoragePath=header.external_input,
    )


def task_summary(execution: Execution, task: Task, *, now_ms: int) -> dict[str, Any]:
    """A TaskSummary."""
    header = execution.header
    body: dict[str, Any] = {
        "workflowId": execution.id,
        "workflowType": header.name,
        "scheduledTime": iso(task.scheduled_ms),
        "startTime": iso(task.start_ms),
        "updateTime": iso(task.update_ms),
        "endTime": iso(task.end_ms),
        "status": task.status.value,
        "executionTime": max(0, task.end_ms - task.start_ms) if task.end_ms else 0,
        "queueWaitTime": queue_wait_ms(task, now_ms),
        "taskDefName": task.name,
        "taskType": task.type,
        "input": _java_text(task.input),
        "output": _java_text(output_of(execution, task)),
        "taskId": execution.task_id(task.number),
        "workflowPriority": header.priority,
    }
    return body | _present(
        correlationId=header.correlation_id,
        reasonForIncompletion=task.reason or None,
        domain=task.domain or None,
    )


def search_json(total: int, results: list[dict[str, Any]]) -> bytes:
    """A SearchResult."""
    return orjson.dumps({"totalHits": total, "results": results})


def iso(at_ms: int) -> str:
    """Unix ms as `2026-11-21T20:00:00.000Z`."""
    moment = _EPOCH + timedelta(milliseconds=min(at_ms, _LAST_MS))
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _present(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def _java_text(encoded: bytes) -> str:
    return to_text(payloads.load(encoded))
