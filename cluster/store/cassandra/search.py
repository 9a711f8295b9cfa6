"""Summaries in Cassandra: by time of the id, with indexes, and once more by correlation id."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from heapq import heapify, heappop, heapreplace
from typing import Any

import msgspec
from msgspec.structs import replace

from cluster.clock import Clock
from cluster.ids import WorkflowId, from_bytes, to_bytes
from cluster.store.cassandra.batches import Writes, int32, int64
from cluster.store.cassandra.finding import Finder, place_of, summary_of
from cluster.store.cassandra.session import Session
from cluster.store.documents import term
from cluster.store.ports import Found, Summary
from cluster.store.queries import HITS_MAX, ROWS_MAX, Query

_FOUND_MAX = 100_000
"""Rows looked at for one answer that has to be sorted."""

_PAGE_ROWS = 1_000
_SPREADS = 16
_FEW = 1_000
"""Rows of a definition in one partition that are better read all, by the index."""

_WALK_PAGE_ROWS = 100
_REMEMBERED_MAX = 100_000
_ENCODER = msgspec.msgpack.Encoder()
_INPUTS = msgspec.msgpack.Decoder(dict[str, str])


class CassandraSearchIndex:
    """SearchIndex. A bucket is spread over 16 partitions by a random digit of the id."""

    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._finder = Finder(session, clock)
        self._noted: set[tuple[str, int]] = set()
        self._crowded: set[tuple[str, int]] = set()
        """Names and buckets that are walked through in order, for there is much to be found."""
        prepare = session.prepare
        self._insert = prepare(
            "INSERT INTO summaries (bucket, spread, workflow_id, name, version, status, start_ms,"
            " update_ms, end_ms, correlation_id, summary)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"
        )
        self._insert_first = prepare(
            "INSERT INTO summaries (bucket, spread, workflow_id, name, version, status, start_ms,"
            " update_ms, end_ms, correlation_id, summary, inputs)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"
        )
        self._insert_term = prepare("INSERT INTO input_values (term, workflow_id) VALUES (?, ?)")
        self._remove_term = prepare("DELETE FROM input_values WHERE term = ? AND workflow_id = ?")
        self._remove = prepare(
            "DELETE FROM summaries USING TIMESTAMP ?"
            " WHERE bucket = ? AND spread = ? AND workflow_id = ?"
        )
        self._one = prepare(
            "SELECT name, correlation_id, inputs FROM summaries"
            " WHERE bucket = ? AND spread = ? AND workflow_id = ?"
        )
        self._note = prepare("INSERT INTO summary_buckets (name, bucket) VALUES (?, ?)")
        self._buckets = prepare("SELECT bucket FROM summary_buckets WHERE name = ? AND bucket >= ?")
        self._of_name = prepare(
            "SELECT summary, inputs FROM summaries"
            " WHERE bucket = ? AND spread = ? AND workflow_id > ? AND name = ?"
        )
        # The index knows one order only, newest first.
        self._in_order = prepare(
            "SELECT name, summary, inputs FROM summaries"
            " WHERE bucket = ? AND spread = ? AND workflow_id > ? ORDER BY workflow_id ASC"
        )
        self._of_status = prepare(
            "SELECT workflow_id, version, start_ms FROM summaries WHERE name = ? AND status = ?"
        )
        self._correlate = prepare(
            "INSERT INTO correlated (correlation_id, name, workflow_id, status)"
            " VALUES (?, ?, ?, ?) USING TIMESTAMP ?"
        )
        self._uncorrelate = prepare(
            "DELETE FROM correlated USING TIMESTAMP ?"
            " WHERE correlation_id = ? AND name = ? AND workflow_id = ?"
        )
        self._correlated = prepare(
            "SELECT workflow_id, status FROM correlated WHERE correlation_id = ? AND name = ?"
        )

    async def write(self, summaries: Sequence[tuple[Summary, int]]) -> None:
        writes = Writes(self._session)
        noted: set[tuple[str, int]] = set()
        for summary, revision in summaries:
            place = place_of(summary.workflow_id)
            noted.add((summary.name, place[0]))
            self._add(writes, place, summary, revision)
        new = noted - self._noted
        # First: a bucket that is not noted is not looked into.
        await self._note_buckets(new)
        await writes.send()

    async def remove(self, removed: Sequence[tuple[WorkflowId, int]]) -> None:
        places = [place_of(workflow_id) for workflow_id, _ in removed]
        standing = await asyncio.gather(
            *(
                self._session.one(self._one, (*place, to_bytes(workflow_id)))
                for place, (workflow_id, _) in zip(places, removed, strict=True)
            )
        )
        writes = Writes(self._session)
        for (workflow_id, upto), place, row in zip(removed, places, standing, strict=True):
            key, written = to_bytes(workflow_id), int64(upto)
            values = (written, int64(place[0]), int32(place[1]), key)
            writes.add(place, self._remove, values)
            if row is not None and row[1]:
                correlation_id = row[1].encode()
                gone = (written, correlation_id, row[0].encode(), key)
                writes.add(correlation_id, self._uncorrelate, gone)
            if row is not None and row[2]:
                for name, text in _INPUTS.decode(row[2]).items():
                    place_of_term = int64(term(name, text))
                    writes.add(place_of_term, self._remove_term, (place_of_term, key))
        await writes.send()

    async def find(
        self,
        query: Query,
        *,
        start: int,
        size: int,
        hits_max: int = HITS_MAX,
        rows_max: int = ROWS_MAX,
    ) -> Found:
        return await self._finder.find(
            query, start=start, size=size, hits_max=hits_max, rows_max=rows_max
        )

    async def running(
        self, name: str, *, version: int | None, start_ms: int, end_ms: int, limit: int
    ) -> Sequence[WorkflowId]:
        found: list[tuple[int, bytes]] = []
        async for page in self._session.pages(
            self._of_status, (name, "RUNNING"), page_rows=_PAGE_ROWS
        ):
            found += [
                (started_ms, key)
                for key, its_version, started_ms in page
                if version in (None, its_version) and start_ms <= started_ms < end_ms
            ]
            if len(found) >= _FOUND_MAX:
                break
        return [WorkflowId(from_bytes(key)) for _, key in sorted(found)[:limit]]

    async def correlated(
        self, name: str, correlation_id: str, *, include_closed: bool, limit: int
    ) -> Sequence[WorkflowId]:
        if not correlation_id:
            return []
        found: list[WorkflowId] = []
        async for page in self._session.pages(
            self._correlated, (correlation_id, name), page_rows=_PAGE_ROWS
        ):
            found += [
                WorkflowId(from_bytes(key))
                for key, status in page
                if include_closed or status == "RUNNING"
            ]
            if len(found) >= limit:
                break
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
        first = 0 if after is None else place_of(after)[0]
        key = b"" if after is None else to_bytes(after)

        def is_wanted(summary: Summary) -> bool:
            return (
                version in (None, summary.version)
                and (not statuses or summary.status in statuses)
                and start_ms <= summary.start_ms < end_ms
            )

        found: list[Summary] = []
        for (bucket,) in await self._session.all(self._buckets, (name, first)):
            few = await self._few(bucket, key, name)
            if few is not None:
                found += filter(is_wanted, few)
            else:
                found += await self._walk(bucket, key, name, is_wanted, limit - len(found))
            if len(found) >= limit:
                break
        return found[:limit]

    async def _few(self, bucket: int, key: bytes, name: str) -> list[Summary] | None:
        """All of a name in a bucket that are above `key`, in order; None: those are many."""
        if (name, bucket) in self._crowded:
            return None

        async def read(spread: int) -> list[Any] | None:
            rows: list[Any] = []
            values = (bucket, spread, key, name)
            async for page in self._session.pages(self._of_name, values, page_rows=_FEW):
                rows += page
                if len(rows) >= _FEW:
                    return None
            return rows

        found: list[Summary] = []
        for rows in await asyncio.gather(*(read(spread) for spread in range(_SPREADS))):
            if rows is None:
                if len(self._crowded) > _REMEMBERED_MAX:
                    self._crowded.clear()
                self._crowded.add((name, bucket))
                return None
            found += (summary_of(*row) for row in rows)
        return sorted(found, key=lambda summary: summary.workflow_id)

    async def _walk(
        self,
        bucket: int,
        key: bytes,
        name: str,
        is_wanted: Callable[[Summary], bool],
        limit: int,
    ) -> list[Summary]:
        """The first of a bucket above `key` that are wanted: no more is read than that takes."""
        lines = [_Line(self._in_bucket(bucket, spread, key, name)) for spread in range(_SPREADS)]
        await asyncio.gather(*(line.advance() for line in lines))
        heads = [(line.head.workflow_id, place) for place, line in enumerate(lines) if line.head]
        heapify(heads)
        found: list[Summary] = []
        while heads and len(found) < limit:
            line = lines[heads[0][1]]
            if line.head is not None and is_wanted(line.head):
                found.append(line.head)
            await line.advance()
            if line.head is not None:
                heapreplace(heads, (line.head.workflow_id, heads[0][1]))
            else:
                heappop(heads)
        return found

    async def _in_bucket(
        self, bucket: int, spread: int, key: bytes, name: str
    ) -> AsyncIterator[list[Summary]]:
        values = (bucket, spread, key)
        async for page in self._session.pages(self._in_order, values, page_rows=_WALK_PAGE_ROWS):
            yield [summary_of(row[1], row[2]) for row in page if row[0] == name]

    def _add(self, writes: Writes, place: tuple[int, int], summary: Summary, revision: int) -> None:
        key, written = to_bytes(summary.workflow_id), int64(revision)
        name, status = summary.name.encode(), summary.status.encode()
        correlation_id = (summary.correlation_id or "").encode()
        inputs = summary.inputs
        if inputs is not None:
            summary = replace(summary, inputs=None)
        encoded = _ENCODER.encode(summary)
        values = (
            int64(place[0]),
            int32(place[1]),
            key,
            name,
            int32(summary.version),
            status,
            int64(summary.start_ms),
            int64(summary.update_ms),
            int64(summary.end_ms),
            correlation_id,
            encoded,
        )
        if not inputs:
            writes.add(place, self._insert, (*values, written), len(encoded))
        else:
            kept = _ENCODER.encode(inputs)
            first = (*values, kept, written)
            writes.add(place, self._insert_first, first, len(encoded) + len(kept))
            for input_name, text in inputs.items():
                place_of_term = int64(term(input_name, text))
                writes.add(place_of_term, self._insert_term, (place_of_term, key))
        if correlation_id:
            correlated = (correlation_id, name, key, status, written)
            writes.add(correlation_id, self._correlate, correlated, len(correlation_id))

    async def _note_buckets(self, new: set[tuple[str, int]]) -> None:
        if not new:
            return
        writes = Writes(self._session)
        for name, bucket in new:
            writes.add(name, self._note, (name.encode(), int64(bucket)))
        await writes.send()
        if len(self._noted) > _REMEMBERED_MAX:
            self._noted.clear()  # What is forgotten is written again.
        self._noted |= new


class _Line:
    """Summaries of one partition in order; `head` is the next one."""

    def __init__(self, pages: AsyncIterator[list[Summary]]) -> None:
        self._pages = pages
        self._page: list[Summary] = []
        self.head: Summary | None = None

    async def advance(self) -> None:
        while not self._page:
            page = await anext(self._pages, None)
            if page is None:
                self.head = None
                return
            self._page = page[::-1]
        self.head = self._page.pop()
