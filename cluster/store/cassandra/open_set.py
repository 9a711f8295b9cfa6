"""The open set in Cassandra: buckets by the id's time and by the hour due, and an index of both.

Entries come and go, and a partition where many went is slow to read. So entries lie in buckets of
ten minutes of their id, due times in buckets of an hour; an index says which buckets may hold
something. Buckets that are found empty leave the index, hours that are over are dropped whole.

What may be tidied up without losing an entry that a slow or stale process writes meanwhile is
decided by revisions. Index rows and due times carry the revision of the entry they were written
for. They are deleted up to revision d only, where every entry up to d is known to have been written
before (settled.py) and was not found any more. An entry above d has an index row above d: a process
trusts its memory of having written one only within the same epoch, and only above what it tidied
up itself.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from cluster.ids import ShardId, WorkflowId, from_bytes, shard_of, time_of, to_bytes
from cluster.store.cassandra.batches import Writes, int32, int64
from cluster.store.cassandra.session import Session
from cluster.store.cassandra.settled import Settled
from cluster.store.ports import OpenEntry, epoch_of

_K = TypeVar("_K")
_V = TypeVar("_V")

_BUCKET_MS = 600_000
_HOUR_MS = 3_600_000
_OPEN, _DUE = 0, 1
_WIDTH_MAX = 16
"""Buckets read at a time while they turn out to be empty."""

_IDS_PER_READ = 200
_PAGE_ROWS = 1_000
_REMEMBERED_MAX = 200_000
_OVERTAKEN_MAX = 200
"""Due times of an hour that lead nowhere, before they are removed from the head of it."""

_YES, _NO = b"\x01", b"\x00"


class _Standing(NamedTuple):
    """An entry as it stands, and when it was written."""

    entry: OpenEntry
    revision: int


class CassandraOpenSet:
    """OpenSet. `shard_count` is the cluster's."""

    def __init__(self, session: Session, settled: Settled, *, shard_count: int) -> None:
        self._session = session
        self._settled = settled
        self._shard_count = shard_count
        self._indexed: dict[tuple[ShardId, int, int], int] = {}
        """Index rows that this process wrote, with their revision."""
        self._timed: dict[WorkflowId, tuple[int, int]] = {}
        """The due time that stands for a workflow, with its revision."""
        self._tidied: dict[ShardId, int] = {}
        """Up to here this process removes index rows and due times: what it remembers is void."""
        self._putting: Counter[ShardId] = Counter()
        prepare = session.prepare
        self._put = prepare(
            "INSERT INTO open_set (shard, bucket, workflow_id, next_due_ms, unfinished)"
            " VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?"
        )
        self._remove = prepare(
            "DELETE FROM open_set USING TIMESTAMP ?"
            " WHERE shard = ? AND bucket = ? AND workflow_id = ?"
        )
        self._scan = prepare(
            "SELECT workflow_id, next_due_ms, unfinished FROM open_set"
            " WHERE shard = ? AND bucket = ? AND workflow_id > ? LIMIT ?"
        )
        self._standing = prepare(
            "SELECT workflow_id, next_due_ms, unfinished, writetime(next_due_ms) FROM open_set"
            " WHERE shard = ? AND bucket = ? AND workflow_id IN ?"
        )
        self._index = prepare(
            "INSERT INTO open_index (shard, kind, bucket) VALUES (?, ?, ?) USING TIMESTAMP ?"
        )
        self._unindex = prepare(
            "DELETE FROM open_index USING TIMESTAMP ? WHERE shard = ? AND kind = ? AND bucket = ?"
        )
        self._buckets = prepare(
            "SELECT bucket FROM open_index"
            " WHERE shard = ? AND kind = ? AND bucket >= ? AND bucket <= ?"
        )
        self._time = prepare(
            "INSERT INTO due_times (shard, hour, due_ms, workflow_id)"
            " VALUES (?, ?, ?, ?) USING TIMESTAMP ?"
        )
        self._times = prepare(
            "SELECT due_ms, workflow_id FROM due_times WHERE shard = ? AND hour = ? AND due_ms < ?"
        )
        self._drop_times = prepare(
            "DELETE FROM due_times USING TIMESTAMP ? WHERE shard = ? AND hour = ? AND due_ms < ?"
        )
        self._drop_hour = prepare(
            "DELETE FROM due_times USING TIMESTAMP ? WHERE shard = ? AND hour = ?"
        )

    async def put(self, entries: Sequence[tuple[OpenEntry, int]]) -> None:
        shards = [self._shard(entry.workflow_id) for entry, _ in entries]
        with self._counted(set(shards)):
            writes = Writes(self._session)
            index: dict[tuple[ShardId, int, int], int] = {}
            timed: dict[WorkflowId, tuple[int, int]] = {}
            for (entry, revision), shard in zip(entries, shards, strict=True):
                self._put_one(entry, revision, shard, writes, index, timed)
            # The index first: what is not in it is not found.
            await self._write_index(index)
            await writes.send()
            _remember(self._timed, timed)

    async def remove(self, removed: Sequence[tuple[WorkflowId, int]]) -> None:
        writes = Writes(self._session)
        for workflow_id, upto in removed:
            shard, bucket = self._shard(workflow_id), _bucket_of(workflow_id)
            values = (int64(upto), int32(shard), int64(bucket), to_bytes(workflow_id))
            writes.add((shard, bucket), self._remove, values)
            self._timed.pop(workflow_id, None)
        await writes.send()

    async def scan(
        self, shard: ShardId, *, after: WorkflowId | None, limit: int
    ) -> Sequence[OpenEntry]:
        upto = self._begin_to_tidy(shard)
        key = b"" if after is None else to_bytes(after)
        first = 0 if after is None else _bucket_of(after)
        buckets = await self._indexed_buckets(shard, _OPEN, first, 1 << 62)
        found: list[OpenEntry] = []
        empty: list[int] = []
        width, place = 1, 0
        while place < len(buckets) and len(found) < limit:
            group = buckets[place : place + width]
            place += width
            reads = [
                self._session.all(self._scan, (shard, bucket, key, limit - len(found)))
                for bucket in group
            ]
            pages = await asyncio.gather(*reads)
            for bucket, rows in zip(group, pages, strict=True):
                found += [_entry(*row) for row in rows]
                # Of the first bucket only a part was looked at.
                if not rows and (after is None or bucket > first):
                    empty.append(bucket)
            width = 1 if any(pages) else min(2 * width, _WIDTH_MAX)
        if upto is not None:
            await self._unindex_all(shard, _OPEN, empty, upto)
        return found[:limit]

    async def due(self, shard: ShardId, *, before_ms: int, limit: int) -> Sequence[OpenEntry]:
        upto = self._begin_to_tidy(shard)
        found: dict[WorkflowId, OpenEntry] = {}
        for hour in await self._indexed_buckets(shard, _DUE, 0, before_ms // _HOUR_MS):
            is_whole = await self._due_in(shard, hour, before_ms, limit, upto, found)
            if not is_whole:
                break
        ordered = sorted((entry.next_due_ms or 0, one) for one, entry in found.items())
        return [found[one] for _, one in ordered[:limit]]

    # -- writing

    def _put_one(
        self,
        entry: OpenEntry,
        revision: int,
        shard: ShardId,
        writes: Writes,
        index: dict[tuple[ShardId, int, int], int],
        timed: dict[WorkflowId, tuple[int, int]],
    ) -> None:
        workflow_id, due_ms = entry.workflow_id, entry.next_due_ms
        bucket, key, written = _bucket_of(workflow_id), to_bytes(workflow_id), int64(revision)
        flag = _YES if entry.has_unfinished_effects else _NO
        values = (int32(shard), int64(bucket), key, int64(due_ms or 0), flag, written)
        writes.add((shard, _OPEN, bucket), self._put, values)
        self._note(index, (shard, _OPEN, bucket), revision)
        if due_ms is None:
            return
        known = self._timed.get(workflow_id)
        if known and known[0] <= due_ms and self._still_stands(known[1], revision, shard):
            return  # What stands fires early and leads here.
        hour = due_ms // _HOUR_MS
        writes.add(
            (shard, _DUE, hour),
            self._time,
            (int32(shard), int64(hour), int64(due_ms), key, written),
        )
        self._note(index, (shard, _DUE, hour), revision)
        timed[workflow_id] = (due_ms, revision)

    def _note(
        self, index: dict[tuple[ShardId, int, int], int], place: tuple[ShardId, int, int], at: int
    ) -> None:
        known = self._indexed.get(place)
        if known is None or not self._still_stands(known, at, place[0]):
            index[place] = max(at, index.get(place, 0))

    def _still_stands(self, known: int, revision: int, shard: ShardId) -> bool:
        """Whether nobody can have removed what this process wrote at `known`."""
        return epoch_of(known) == epoch_of(revision) and known > self._tidied.get(shard, -1)

    async def _write_index(self, index: dict[tuple[ShardId, int, int], int]) -> None:
        writes = Writes(self._session)
        for (shard, kind, bucket), revision in index.items():
            values = (int32(shard), int32(kind), int64(bucket), int64(revision))
            writes.add(shard, self._index, values)
        await writes.send()
        _remember(self._indexed, index)

    @contextmanager
    def _counted(self, shards: Iterable[ShardId]) -> Iterator[None]:
        """While writes are under way that may rest on what is remembered, nothing is tidied up."""
        shards = list(shards)
        self._putting.update(shards)
        try:
            yield
        finally:
            self._putting.subtract(shards)

    # -- reading

    async def _indexed_buckets(self, shard: ShardId, kind: int, first: int, last: int) -> list[int]:
        found = await self._session.all(self._buckets, (shard, kind, first, last))
        return [bucket for (bucket,) in found]

    async def _due_in(
        self,
        shard: ShardId,
        hour: int,
        before_ms: int,
        limit: int,
        upto: int | None,
        found: dict[WorkflowId, OpenEntry],
    ) -> bool:
        """Add what is due within an hour. False: it stopped at the limit."""
        overtaken = 0
        first_ms: int | None = None
        async for page in self._session.pages(
            self._times, (shard, hour, before_ms), page_rows=_PAGE_ROWS
        ):
            standing = await self._stand(shard, [key for _, key in page])
            later: list[_Standing] = []
            for due_ms, key in page:
                stands = standing.get(key)
                next_ms = stands.entry.next_due_ms if stands else None
                if stands is None or next_ms is None or next_ms < due_ms:
                    overtaken += 1  # It ended, or has an earlier row of its own.
                    continue
                if next_ms > due_ms:
                    overtaken += 1
                    later.append(stands)
                if next_ms < before_ms:
                    found[stands.entry.workflow_id] = stands.entry
                    first_ms = next_ms if first_ms is None else min(first_ms, next_ms)
            await self._arm_again(shard, later)
            if len(found) >= limit:
                return False
        if upto is not None:
            await self._tidy_hour(shard, hour, before_ms, first_ms, overtaken, upto)
        return True

    async def _stand(self, shard: ShardId, keys: Sequence[bytes]) -> dict[bytes, _Standing]:
        buckets: dict[int, set[bytes]] = {}
        for key in keys:
            buckets.setdefault(_bucket_of(from_bytes(key)), set()).add(key)
        reads = [
            self._session.all(
                self._standing, (shard, bucket, sorted(some)[at : at + _IDS_PER_READ])
            )
            for bucket, some in buckets.items()
            for at in range(0, len(some), _IDS_PER_READ)
        ]
        return {
            key: _Standing(_entry(key, due_ms, unfinished), revision)
            for rows in await asyncio.gather(*reads)
            for key, due_ms, unfinished, revision in rows
        }

    async def _arm_again(self, shard: ShardId, later: Sequence[_Standing]) -> None:
        """What fired early gets a row at its true time."""
        writes = Writes(self._session)
        index: dict[tuple[ShardId, int, int], int] = {}
        for entry, revision in later:
            due_ms = entry.next_due_ms or 0
            hour = due_ms // _HOUR_MS
            key = to_bytes(entry.workflow_id)
            values = (int32(shard), int64(hour), int64(due_ms), key, int64(revision))
            writes.add((shard, _DUE, hour), self._time, values)
            index[shard, _DUE, hour] = max(revision, index.get((shard, _DUE, hour), 0))
        if later:
            await self._write_index(index)
            await writes.send()

    # -- tidying up

    def _begin_to_tidy(self, shard: ShardId) -> int | None:
        """The revision up to which this reading may tidy up behind itself; None: not at all."""
        upto = self._settled.upto(shard)
        if upto is None:
            return None
        self._tidied[shard] = max(upto, self._tidied.get(shard, -1))
        return None if self._putting[shard] else upto

    async def _unindex_all(
        self, shard: ShardId, kind: int, buckets: Sequence[int], upto: int
    ) -> None:
        writes = Writes(self._session)
        for bucket in buckets:
            values = (int64(upto), int32(shard), int32(kind), int64(bucket))
            writes.add(shard, self._unindex, values)
        await writes.send()

    async def _tidy_hour(
        self,
        shard: ShardId,
        hour: int,
        before_ms: int,
        first_ms: int | None,
        overtaken: int,
        upto: int,
    ) -> None:
        is_over = (hour + 1) * _HOUR_MS <= before_ms
        if is_over and first_ms is None:
            await self._session.execute(self._drop_hour.bind((upto, shard, hour)))
            await self._unindex_all(shard, _DUE, [hour], upto)
        elif overtaken > _OVERTAKEN_MAX:
            head_ms = before_ms if first_ms is None else first_ms
            await self._session.execute(self._drop_times.bind((upto, shard, hour, head_ms)))

    def _shard(self, workflow_id: WorkflowId) -> ShardId:
        return shard_of(workflow_id, shard_count=self._shard_count)


def _remember(memory: dict[_K, _V], new: dict[_K, _V]) -> None:
    if len(memory) > _REMEMBERED_MAX:
        memory.clear()  # What is forgotten is written again.
    memory.update(new)


def _bucket_of(workflow_id: str) -> int:
    return time_of(workflow_id) // _BUCKET_MS


def _entry(key: bytes, due_ms: int, unfinished: bool) -> OpenEntry:
    return OpenEntry(WorkflowId(from_bytes(key)), due_ms or None, unfinished)
