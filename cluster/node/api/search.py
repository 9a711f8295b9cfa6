"""Searches for workflows and tasks."""

import asyncio
from collections.abc import Sequence

import orjson

from cluster.errors import ClusterError, InvalidRequest, NotFound, Violation
from cluster.ids import WorkflowId, parse_workflow_id
from cluster.node import wire, wire_search
from cluster.node.api.bodies import invalid, read, reader
from cluster.node.api.bulk import checked_ids
from cluster.node.api.services import Services
from cluster.node.middleware import JSON, Answer, Call, Route
from cluster.node.query_language import TASK, WORKFLOW, Fields, parse, parse_sort, parse_words
from cluster.node.search import Hits
from cluster.node.task_search import BY_SCHEDULED, FoundTasks
from cluster.store.queries import EVERYTHING, HITS_MAX, AllOf, Comparison, Condition, Query

SIZE_MAX = 5_000
_SIZE = 100
_IDS = reader(list[str])
_PARTIAL = (
    "X-Search-Partial",
    "true; not everything was looked at: narrow the query by workflowType, status, correlationId,"
    " an input value or startTime",
)


def routes(services: Services) -> list[Route]:
    api = SearchApi(services)
    base = "/api/workflow"
    return [
        Route("GET", f"{base}/search", api.workflows),
        Route("GET", f"{base}/search-v2", api.whole_workflows),
        Route("GET", f"{base}/search-by-tasks", api.workflows_by_tasks),
        Route("GET", f"{base}/search-by-tasks-v2", api.whole_workflows_by_tasks),
        Route("POST", f"{base}/bulk/search", api.by_ids),
        Route("GET", "/api/tasks/search", api.tasks),
        Route("GET", "/api/tasks/search-v2", api.whole_tasks),
    ]


class SearchApi:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._router = services.router
        self._clock = services.clock
        self._search = services.searches
        self._tasks = services.task_searches

    async def workflows(self, call: Call) -> Answer:
        return _summaries(await self._workflows(call, "searchWorkflows"))

    async def whole_workflows(self, call: Call) -> Answer:
        return await self._whole(await self._workflows(call, "searchWorkflowsV2"))

    async def workflows_by_tasks(self, call: Call) -> Answer:
        return _summaries(await self._by_tasks(call))

    async def whole_workflows_by_tasks(self, call: Call) -> Answer:
        return await self._whole(await self._by_tasks(call))

    async def tasks(self, call: Call) -> Answer:
        now_ms = self._clock.now_ms()
        found = await self._found_tasks(call, now_ms)
        results = [
            wire_search.task_summary(execution, task, now_ms=now_ms)
            for execution, task in found.tasks
        ]
        return _answer(wire_search.search_json(found.total, results), found.is_partial)

    async def whole_tasks(self, call: Call) -> Answer:
        now_ms = self._clock.now_ms()
        found = await self._found_tasks(call, now_ms)
        results = wire.list_json(
            wire.task_json(execution, task, now_ms=now_ms) for execution, task in found.tasks
        )
        return _answer(wire.page_json(found.total, results), found.is_partial)

    async def by_ids(self, call: Call) -> Answer:
        ids = checked_ids(read(_IDS, call.body), "searchWorkflow")
        include_tasks = call.flag("includeTasks", default=True)
        found: list[orjson.Fragment] = []
        errors: dict[str, str] = {}
        for text in ids:
            try:
                execution = await self._router.view(parse_workflow_id(text))
            except ClusterError as error:
                errors[text] = error.message
                continue
            body = wire.workflow_json(
                execution, include_tasks=include_tasks, now_ms=self._clock.now_ms()
            )
            found.append(orjson.Fragment(body))
            await asyncio.sleep(0)
        return Answer(orjson.dumps({"bulkErrorResults": errors, "bulkSuccessfulResults": found}))

    # -- what is asked for

    async def _workflows(self, call: Call, method: str) -> Hits:
        condition = _condition(call, WORKFLOW)
        classifiers = [
            name for value in call.all_of("classifier") for name in value.split(",") if name
        ]
        if classifiers:
            wanted = Comparison("classifier", "IN", tuple(classifiers))
            condition = AllOf((condition, wanted))
        if call.flag("topLevelOnly", default=False):
            condition = AllOf((condition, Comparison("parentWorkflowId", "IS NULL")))
        start, size = _page(call, method)
        query = Query(condition, parse_sort(call.text("sort") or "", WORKFLOW))
        return await self._search.workflows(query, start=start, size=size)

    async def _by_tasks(self, call: Call) -> Hits:
        condition = _condition(call, TASK)
        start, size = _page(call, "searchWorkflowsByTasks")
        ids, is_partial = await self._tasks.workflows(condition, now_ms=self._clock.now_ms())
        sort = parse_sort(call.text("sort") or "", WORKFLOW)
        wanted = Query(Comparison("workflowId", "IN", tuple(ids)), sort)
        found = await self._search.workflows(wanted, start=start, size=size)
        return found._replace(is_partial=is_partial)

    async def _found_tasks(self, call: Call, now_ms: int) -> FoundTasks:
        start, size = _page(call, "searchTasks")
        text = call.text("sort")
        query = Query(_condition(call, TASK), parse_sort(text, TASK) if text else BY_SCHEDULED)
        return await self._tasks.tasks(query, start=start, size=size, now_ms=now_ms)

    # -- answers

    async def _whole(self, found: Hits) -> Answer:
        shown = await self._shown([hit.summary.workflow_id for hit in found.hits])
        total = found.total
        if total < HITS_MAX:
            total -= len(found.hits) - len(shown)
        return _answer(wire.page_json(total, wire.list_json(shown)), found.is_partial)

    async def _shown(self, ids: Sequence[WorkflowId]) -> list[bytes]:
        shown = []
        for workflow_id in ids:
            try:
                execution = await self._router.view(workflow_id)
            except NotFound:
                continue  # It was removed meanwhile.
            shown.append(wire.workflow_json(execution, include_tasks=False))
        return shown


def _summaries(found: Hits) -> Answer:
    results = [wire_search.workflow_summary(hit) for hit in found.hits]
    return _answer(wire_search.search_json(found.total, results), found.is_partial)


def _answer(body: bytes, is_partial: bool) -> Answer:
    return Answer(body, 200, JSON, (_PARTIAL,) if is_partial else ())


def _condition(call: Call, fields: Fields) -> Condition:
    parts = (
        parse(call.text("query") or "", fields),
        parse_words(call.text("freeText") or ""),
    )
    asked = tuple(part for part in parts if part != EVERYTHING)
    return asked[0] if len(asked) == 1 else AllOf(asked)


def _page(call: Call, method: str) -> tuple[int, int]:
    """(start, size); `method` is Conductor's, which its answer names."""
    start, size = call.integer("start", 0), call.integer("size", _SIZE)
    if size > SIZE_MAX:
        what = "tasks" if method == "searchTasks" else "workflows"
        text = f"Cannot return more than {SIZE_MAX} {what}. Please use pagination."
        raise invalid(Violation(f"{method}.arg1", text, str(size)))
    if start < 0 or size < 0:
        raise InvalidRequest("start and size must not be negative")
    if start >= HITS_MAX:
        raise InvalidRequest(
            f"start must be below {HITS_MAX}: narrow the query, for example by startTime"
        )
    return start, min(size, HITS_MAX - start)
