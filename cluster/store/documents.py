"""A summary as a search sees it: its value by field, its place in an order, and its inputs."""

from collections.abc import Callable, Iterable
from functools import cmp_to_key, partial
from hashlib import blake2b
from typing import Any

from cluster.engine import payloads
from cluster.store.ports import Summary
from cluster.store.queries import (
    ALL_TEXTS,
    INPUT_PREFIX,
    Query,
    Value,
    ValueOf,
    matches,
    number_text,
    sorts_of,
)

INPUT_VALUES_MAX = 16
"""Of one workflow; the first ones are searched by."""
INPUT_CHARS_MAX = 256
"""Longer texts, and longer names of inputs, are not searched by."""
INPUT_BYTES_MAX = 256 * 1024
"""A longer input is not looked into: that would hold the loop up."""

CLASSIFIER = "workflow"

_READS: dict[str, Callable[[Summary], Value]] = {
    "workflowId": lambda one: one.workflow_id,
    "workflowType": lambda one: one.name,
    "version": lambda one: one.version,
    "status": lambda one: one.status,
    "correlationId": lambda one: one.correlation_id,
    "startTime": lambda one: one.start_ms,
    "updateTime": lambda one: one.update_ms or None,
    "endTime": lambda one: one.end_ms or None,
    "executionTime": lambda one: one.end_ms - one.start_ms if one.end_ms else None,
    "priority": lambda one: one.priority,
    "reasonForIncompletion": lambda one: one.reason,
    "failedReferenceTaskNames": lambda one: one.failed_reference_task_names,
    "failedTaskNames": lambda one: one.failed_task_names,
    "event": lambda one: one.event,
    "parentWorkflowId": lambda one: one.parent_workflow_id,
    "createdBy": lambda one: one.created_by,
    "idempotencyKey": lambda one: one.idempotency_key,
    "classifier": lambda _: CLASSIFIER,
}


def value_of(summary: Summary) -> ValueOf:
    """A summary as a document."""
    return partial(_read, summary)


def _read(summary: Summary, field: str) -> Value:
    if field.startswith(INPUT_PREFIX):
        return (summary.inputs or {}).get(field[len(INPUT_PREFIX) :])
    if field == ALL_TEXTS:
        return _texts(summary)
    return _READS[field](summary)


def _texts(summary: Summary) -> tuple[str, ...]:
    texts = (
        summary.workflow_id,
        summary.name,
        summary.status,
        summary.correlation_id,
        summary.parent_workflow_id,
        summary.reason,
        summary.event,
        summary.created_by,
        summary.idempotency_key,
        *summary.failed_reference_task_names,
        *summary.failed_task_names,
        *(summary.inputs or {}).values(),
    )
    return tuple(text for text in texts if text)


def is_found(query: Query, summary: Summary) -> bool:
    """Whether a summary fulfils the conditions of a query."""
    return matches(query.condition, value_of(summary))


def in_order(query: Query, summaries: Iterable[Summary]) -> list[Summary]:
    """Summaries as a query wants them sorted."""
    sorts = sorts_of(query)

    def compare(one: Summary, other: Summary) -> int:
        for sort in sorts:
            first, second = _sortable(one, sort.field), _sortable(other, sort.field)
            if first != second:
                return (-1 if first < second else 1) * (-1 if sort.is_descending else 1)
        return 0

    return sorted(summaries, key=cmp_to_key(compare))


def _sortable(summary: Summary, field: str) -> Any:
    value = _READS[field](summary)
    if value is None:
        return 0 if field in _NUMBERS else ""
    return value


_NUMBERS = frozenset({"version", "startTime", "updateTime", "endTime", "executionTime", "priority"})


# -- inputs


def inputs_of(encoded: bytes) -> dict[str, str]:
    """What can be searched by of a workflow's input: its first texts, numbers and truth values,
    as text."""
    if encoded == payloads.EMPTY or len(encoded) > INPUT_BYTES_MAX:
        return {}
    found: dict[str, str] = {}
    try:
        values = payloads.load(encoded).items()
    except (ValueError, AttributeError):
        return {}  # No JSON object: then there is nothing to search by.
    for name, value in values:
        text = _text(value)
        if text is not None and len(text) <= INPUT_CHARS_MAX and len(name) <= INPUT_CHARS_MAX:
            found[name] = text
            if len(found) == INPUT_VALUES_MAX:
                break
    return found


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return "true" if value else "false"
    return number_text(value) if isinstance(value, (int, float)) else None


def term(name: str, text: str) -> int:
    """One input with its value, as 64 bits: what indexes keep of it."""
    digest = blake2b(f"{name}\0{text}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
