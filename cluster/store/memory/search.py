"""Summaries in a dictionary; every question looks at all of them."""

from collections.abc import Sequence

from msgspec.structs import replace

from cluster.ids import WorkflowId
from cluster.store.documents import in_order, is_found
from cluster.store.ports import Found, Summary
from cluster.store.queries import HITS_MAX, ROWS_MAX, Query


class MemorySearchIndex:
    """SearchIndex."""

    def __init__(self) -> None:
        self._summaries: dict[WorkflowId, tuple[Summary, int]] = {}

    async def write(self, summaries: Sequence[tuple[Summary, int]]) -> None:
        for summary, revision in summaries:
            standing = self._summaries.get(summary.workflow_id)
            if standing is not None and revision <= standing[1]:
                continue
            if summary.inputs is None and standing is not None:
                summary = replace(summary, inputs=standing[0].inputs)
            self._summaries[summary.workflow_id] = (summary, revision)

    async def remove(self, removed: Sequence[tuple[WorkflowId, int]]) -> None:
        for workflow_id, upto in removed:
            standing = self._summaries.get(workflow_id)
            if standing is not None and standing[1] <= upto:
                del self._summaries[workflow_id]

    async def find(
        self,
        query: Query,
        *,
        start: int,
        size: int,
        hits_max: int = HITS_MAX,
        rows_max: int = ROWS_MAX,
    ) -> Found:
        found = [summary for summary, _ in self._summaries.values() if is_found(query, summary)]
        page = in_order(query, found)[start : start + size]
        return Found(page, min(len(found), hits_max))

    async def running(
        self, name: str, *, version: int | None, start_ms: int, end_ms: int, limit: int
    ) -> Sequence[WorkflowId]:
        found = sorted(
            (summary.start_ms, summary.workflow_id)
            for summary in self._of(name)
            if summary.is_running
            and version in (None, summary.version)
            and start_ms <= summary.start_ms < end_ms
        )
        return [workflow_id for _, workflow_id in found[:limit]]

    async def correlated(
        self, name: str, correlation_id: str, *, include_closed: bool, limit: int
    ) -> Sequence[WorkflowId]:
        found = sorted(
            summary.workflow_id
            for summary in self._of(name)
            if summary.correlation_id == correlation_id and (include_closed or summary.is_running)
        )
        return found[:limit]

    async def by_definition(
        self,
        name: str,
        *,
        version: int | None,
        statuses: Sequence[str],
        start_ms: int,
        end_ms: int,
        after: WorkflowId | None,
        limit: int,
    ) -> Sequence[Summary]:
        found = [
            summary
            for summary in self._of(name)
            if version in (None, summary.version)
            and (not statuses or summary.status in statuses)
            and start_ms <= summary.start_ms < end_ms
            and (after is None or summary.workflow_id > after)
        ]
        return sorted(found, key=lambda summary: summary.workflow_id)[:limit]

    def _of(self, name: str) -> list[Summary]:
        return [summary for summary, _ in self._summaries.values() if summary.name == name]
