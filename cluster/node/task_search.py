"""Searches for tasks. Tasks have no index: the workflows that can hold them are found by theirs,
newest first, and looked through, within a bound."""

import asyncio
from collections.abc import Sequence
from functools import cmp_to_key, partial
from typing import Any, NamedTuple

from cluster.engine.model import Execution, Header, Task
from cluster.engine.rows import HEADER_ROW, decode_header, tasks_in
from cluster.engine.transitions import OPEN_TASK, OPEN_WORKFLOW
from cluster.errors import NotFound
from cluster.ids import WorkflowId, task_id, workflow_of
from cluster.node.router import Router
from cluster.node.search import Search
from cluster.node.wire import queue_wait_ms
from cluster.store.ports import ExecutionStore
from cluster.store.queries import (
    ALL_TEXTS,
    EVERYTHING,
    HITS_MAX,
    AllOf,
    AnyOf,
    Comparison,
    Condition,
    Query,
    Sort,
    Value,
    matches,
)

WORKFLOWS_MAX = 1_000
"""Workflows that one search for tasks looks through."""
TASKS_MAX = 100_000
_PAGE = 100
_AT_ONCE = 16

BY_SCHEDULED = (Sort("scheduledTime"),)


class FoundTask(NamedTuple):
    """A task and the run it belongs to, as they stand."""

    execution: Execution
    task: Task


class FoundTasks(NamedTuple):
    tasks: list[FoundTask]
    total: int
    is_partial: bool


class _Candidate(NamedTuple):
    workflow_id: WorkflowId
    header: Header
    task: Task


class TaskSearch:
    """Searches for tasks, and for workflows by their tasks."""

    def __init__(self, search: Search, executions: ExecutionStore, router: Router) -> None:
        self._search = search
        self._executions = executions
        self._router = router

    async def tasks(self, query: Query, *, start: int, size: int, now_ms: int) -> FoundTasks:
        """A page of the tasks that fulfil a query."""
        candidates, is_partial = await self._candidates(query.condition, now_ms)
        ordered = _in_order(query, candidates, now_ms)
        found: list[FoundTask] = []
        for candidate in ordered[start:]:
            if len(found) == size:
                break
            try:
                execution = await self._router.view(candidate.workflow_id)
            except NotFound:
                continue
            task = execution.tasks.get(candidate.task.number)
            # It may have changed since it was found.
            if task is not None and matches(
                query.condition, value_of(execution.id, execution.header, task, now_ms)
            ):
                found.append(FoundTask(execution, task))
        return FoundTasks(found, min(len(ordered), HITS_MAX), is_partial)

    async def workflows(
        self, condition: Condition, *, now_ms: int
    ) -> tuple[list[WorkflowId], bool]:
        """The workflows that have a task which fulfils a condition, newest first; and whether
        there may be more."""
        candidates, is_partial = await self._candidates(condition, now_ms)
        return list(dict.fromkeys(one.workflow_id for one in candidates)), is_partial

    async def _candidates(self, condition: Condition, now_ms: int) -> tuple[list[_Candidate], bool]:
        await self._search.catch_up()
        query = Query(workflows_with(condition))
        found: list[_Candidate] = []
        looked_at = start = 0
        while start < WORKFLOWS_MAX:
            ids, has_more = await self._search.ids(query, start=start, size=_PAGE)
            for at in range(0, len(ids), _AT_ONCE):
                part = ids[at : at + _AT_ONCE]
                for workflow_id, rows in zip(
                    part, await asyncio.gather(*map(self._executions.read, part)), strict=True
                ):
                    numbered = [(row.number, row.data) for row in rows]
                    if not numbered or numbered[0][0] != HEADER_ROW:
                        continue
                    header, tasks = decode_header(numbered[0][1]), tasks_in(numbered)
                    looked_at += len(tasks)
                    found += [
                        _Candidate(workflow_id, header, task)
                        for task in tasks
                        if matches(condition, value_of(workflow_id, header, task, now_ms))
                    ]
                    # A workflow of thousands of tasks must not hold everybody else up.
                    await asyncio.sleep(0)
            start += len(ids)
            if not has_more or not ids:
                return found, has_more
            if looked_at >= TASKS_MAX or len(found) >= HITS_MAX:
                return found, True
        return found, True


# -- a task as a document


def value_of(workflow_id: WorkflowId, header: Header, task: Task, now_ms: int) -> Any:
    """A task as a document."""
    return partial(_read, workflow_id, header, task, now_ms)


def _read(workflow_id: WorkflowId, header: Header, task: Task, now_ms: int, field: str) -> Value:
    match field:
        case "taskId":
            return task_id(workflow_id, task.number)
        case "taskType":
            return task.type
        case "taskDefName":
            return task.name
        case "referenceTaskName":
            return task.ref
        case "workflowId":
            return workflow_id
        case "workflowType":
            return header.name
        case "status":
            return task.status.value
        case "correlationId":
            return header.correlation_id
        case "scheduledTime":
            return task.scheduled_ms or None
        case "startTime":
            return task.start_ms or None
        case "updateTime":
            return task.update_ms or None
        case "endTime":
            return task.end_ms or None
        case "executionTime":
            return task.end_ms - task.start_ms if task.end_ms and task.start_ms else None
        case "queueWaitTime":
            return queue_wait_ms(task, now_ms)
        case "priority":
            return header.priority
        case "reasonForIncompletion":
            return task.reason
        case "workerId":
            return task.worker_id
        case "domain":
            return task.domain
        case _ if field == ALL_TEXTS:
            return _texts(workflow_id, header, task)
    raise ValueError(f"no such field of tasks: {field}")


def _texts(workflow_id: WorkflowId, header: Header, task: Task) -> tuple[str, ...]:
    texts = (
        workflow_id,
        task_id(workflow_id, task.number),
        header.name,
        header.correlation_id,
        task.type,
        task.name,
        task.ref,
        task.status.value,
        task.reason,
        task.worker_id,
        task.input.decode(errors="replace"),
        task.output.decode(errors="replace"),
    )
    return tuple(text for text in texts if text)


def _in_order(query: Query, found: Sequence[_Candidate], now_ms: int) -> list[_Candidate]:
    def place(sort: Sort, one: _Candidate) -> Any:
        value = value_of(one.workflow_id, one.header, one.task, now_ms)(sort.field)
        return (value is not None, value)

    def compare(one: _Candidate, other: _Candidate) -> int:
        for sort in (*query.sort, Sort("scheduledTime"), Sort("taskId")):
            first, second = place(sort, one), place(sort, other)
            if first != second:
                return (-1 if first < second else 1) * (-1 if sort.is_descending else 1)
        return 0

    return sorted(found, key=cmp_to_key(compare))


# -- which workflows can hold such tasks

_SAME = frozenset({"workflowId", "workflowType", "correlationId"})
_TIMES = frozenset({"scheduledTime", "startTime", "updateTime", "endTime"})
_OPEN = frozenset(status.value for status in OPEN_TASK)
_OPEN_WORKFLOWS = Comparison("status", "IN", tuple(sorted(one.value for one in OPEN_WORKFLOW)))


def workflows_with(condition: Condition) -> Condition:
    """What a workflow has to fulfil to have a task that fulfils `condition`."""
    match condition:
        case AllOf(parts):
            return AllOf(tuple(workflows_with(part) for part in parts))
        case AnyOf(parts):
            needed = tuple(workflows_with(part) for part in parts)
            return EVERYTHING if EVERYTHING in needed else AnyOf(needed)
        case Comparison():
            return _workflow_of_task(condition)
        case _:
            return EVERYTHING


def _workflow_of_task(asked: Comparison) -> Condition:
    if asked.field in _SAME:
        return asked
    if asked.is_negated:
        return EVERYTHING
    if asked.field == "taskId" and asked.operator in ("=", "IN"):
        ids = tuple(workflow_of(str(value)) for value in asked.values if len(str(value)) == 36)
        return Comparison("workflowId", "IN", ids)
    if asked.field == "status" and asked.operator in ("=", "IN"):
        return _OPEN_WORKFLOWS if _OPEN.issuperset(map(str, asked.values)) else EVERYTHING
    if asked.field in _TIMES and asked.operator in ("=", ">", ">=", "BETWEEN"):
        # A workflow changes whenever one of its tasks does.
        return Comparison("updateTime", ">=", asked.values[:1])
    if asked.field in _TIMES and asked.operator in ("<", "<="):
        return Comparison("startTime", "<=", asked.values)
    return EVERYTHING
