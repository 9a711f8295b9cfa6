"""Searches: what the index finds is checked against the store before anybody sees it.

First everything that was answered so far is brought to where searches look; searches that come
together share that. Then the index names candidates, the store says how they stand now, and those
that are not as wanted any more are left out and replaced by the next ones.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from cluster.engine import payloads
from cluster.engine.model import Header
from cluster.engine.rows import HEADER_ROW, INPUT_ROW, OUTPUT_ROW, decode_header
from cluster.ids import WorkflowId
from cluster.node.summaries import describe
from cluster.store.documents import in_order, inputs_of, is_found
from cluster.store.ports import ExecutionStore, Row, SearchIndex, Summary
from cluster.store.queries import HITS_MAX, Query

_ROUNDS_MAX = 5
"""How often a page is filled up in place of what has changed meanwhile."""


class Hit(NamedTuple):
    """A workflow as it stands in the store."""

    summary: Summary
    header: Header
    input: bytes
    output: bytes


class Hits(NamedTuple):
    """A page of them."""

    hits: list[Hit]
    total: int
    """HITS_MAX: as many or more."""
    is_partial: bool
    """The search ended at its bound."""


class Search:
    """Searches for workflows."""

    def __init__(
        self,
        index: SearchIndex,
        executions: ExecutionStore,
        catch_up: Callable[[], Awaitable[None]],
    ) -> None:
        """`catch_up` has all nodes write what they answered so far to where searches look."""
        self._index = index
        self._executions = executions
        self._write_down = catch_up
        self._under_way: asyncio.Future[None] | None = None
        self._next: asyncio.Future[None] | None = None

    async def catch_up(self) -> None:
        """Have everything that was answered before this call found. Whoever asks while that is
        under way shares the next time."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._catch_up(self._under_way))
        await asyncio.shield(self._next)

    async def _catch_up(self, earlier: "asyncio.Future[None] | None") -> None:
        if earlier is not None:
            await asyncio.wait([earlier])
        # From here on it is too late to join.
        self._under_way, self._next = self._next, None
        await self._write_down()

    async def workflows(self, query: Query, *, start: int, size: int) -> Hits:
        """A page of the workflows that fulfil a query."""
        await self.catch_up()
        found = await self._index.find(query, start=start, size=size)
        hits = await self._checked(query, found.summaries)
        dropped = len(found.summaries) - len(hits)
        after = start + size
        for _ in range(_ROUNDS_MAX):
            missing = size - len(hits)
            if not missing or not dropped or after >= found.total:
                break
            more = (await self._index.find(query, start=after, size=missing)).summaries
            kept = await self._checked(query, more)
            hits += kept
            dropped += len(more) - len(kept)
            after += len(more)
            if not more:
                break
        total = found.total if found.total >= HITS_MAX else max(found.total - dropped, len(hits))
        by_id = {hit.summary.workflow_id: hit for hit in hits}
        ordered = in_order(query, [hit.summary for hit in by_id.values()])
        return Hits([by_id[one.workflow_id] for one in ordered], total, found.is_partial)

    async def ids(self, query: Query, *, start: int, size: int) -> tuple[list[WorkflowId], bool]:
        """The workflows that the index names, unchecked; and whether there are more, or may be."""
        found = await self._index.find(query, start=start, size=size)
        ids = [summary.workflow_id for summary in found.summaries]
        return ids, found.is_partial or found.total > start + len(ids)

    async def _checked(self, query: Query, found: Sequence[Summary]) -> list[Hit]:
        heads = await self._executions.heads([summary.workflow_id for summary in found])
        hits = []
        for summary in found:
            rows = heads.get(summary.workflow_id)
            if rows is not None:
                hit = _hit(summary, rows)
                if is_found(query, hit.summary):
                    hits.append(hit)
        return hits


def _hit(found: Summary, rows: Sequence[Row]) -> Hit:
    parts = {row.number: row.data for row in rows}
    header = decode_header(parts[HEADER_ROW])
    failed = (
        (found.failed_reference_task_names, found.failed_task_names)
        if header.shows_failures
        else ((), ())
    )
    workflow_input = parts.get(INPUT_ROW, payloads.EMPTY)
    described = describe(found.workflow_id, parts[HEADER_ROW], failed=failed).summary
    assert described is not None
    return Hit(
        replace(described, inputs=inputs_of(workflow_input)),
        header,
        workflow_input,
        parts.get(OUTPUT_ROW, payloads.EMPTY),
    )
