"""Summaries in Cassandra: by time of the id, with indexes, and once more by correlation id."""

import asyncio
from collections.abc import Sequence

import msgspec

from cluster.ids import WorkflowId, from_bytes, time_of, to_bytes
from cluster.store.cassandra.batches import Writes, int32, int64
from cluster.store.cassandra.session import Session
from cluster.store.ports import Summary

_BUCKET_MS = 600_000
_FOUND_MAX = 100_000
"""Rows looked at for one answer that has to be sorted."""

_PAGE_ROWS = 1_000
_REMEMBERED_MAX = 100_000
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Summary)


class CassandraSearchIndex:
    """SearchIndex. A bucket is spread over 16 partitions by a random digit of the id."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._noted: set[tuple[str, int]] = set()
        prepare = session.prepare
        self._insert = prepare(
            "INSERT INTO summaries (bucket, spread, workflow_id, name, version, status, start_ms,"
            " update_ms, end_ms, correlation_id, summary)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"
        )
        self._remove = prepare(
            "DELETE FROM summaries USING TIMESTAMP ?"
            " WHERE bucket = ? AND spread = ? AND workflow_id = ?"
        )
        self._one = prepare(
            "SELECT name, correlation_id FROM summaries"
            " WHERE bucket = ? AND spread = ? AND workflow_id = ?"
        )
        self._note = prepare("INSERT INTO summary_buckets (name, bucket) VALUES (?, ?)")
        self._buckets = prepare("SELECT bucket FROM summary_buckets WHERE name = ? AND bucket >= ?")
        self._of_name = prepare(
            "SELECT summary FROM summaries"
            " WHERE bucket = ? AND spread = ? AND workflow_id > ? AND name = ?"
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
            place = _place(summary.workflow_id)
            noted.add((summary.name, place[0]))
            self._add(writes, place, summary, revision)
        new = noted - self._noted
        # First: a bucket that is not noted is not looked into.
        await self._note_buckets(new)
        await writes.send()

    async def remove(self, removed: Sequence[tuple[WorkflowId, int]]) -> None:
        places = [_place(workflow_id) for workflow_id, _ in removed]
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
        await writes.send()

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
        first = 0 if after is None else _place(after)[0]
        key = b"" if after is None else to_bytes(after)
        found: list[Summary] = []
        for (bucket,) in await self._session.all(self._buckets, (name, first)):
            spreads = await asyncio.gather(
                *(
                    self._session.all(self._of_name, (bucket, spread, key, name))
                    for spread in range(16)
                )
            )
            summaries = [_DECODER.decode(row[0]) for rows in spreads for row in rows]
            found += sorted(
                (
                    summary
                    for summary in summaries
                    if version in (None, summary.version)
                    and (not statuses or summary.status in statuses)
                    and start_ms <= summary.start_ms < end_ms
                ),
                key=lambda summary: summary.workflow_id,
            )
            if len(found) >= limit:
                break
        return found[:limit]

    def _add(self, writes: Writes, place: tuple[int, int], summary: Summary, revision: int) -> None:
        key, written = to_bytes(summary.workflow_id), int64(revision)
        name, status = summary.name.encode(), summary.status.encode()
        correlation_id = (summary.correlation_id or "").encode()
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
            written,
        )
        writes.add(place, self._insert, values, len(encoded))
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


def _place(workflow_id: WorkflowId) -> tuple[int, int]:
    # The digit before the slot: the ids of a family share slot and time, not this.
    return time_of(workflow_id) // _BUCKET_MS, int(workflow_id[26], 16)
