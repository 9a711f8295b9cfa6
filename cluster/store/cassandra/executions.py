"""The rows of workflows in Cassandra: the write timestamp is the revision."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter

from cluster.ids import WorkflowId, from_bytes, shard_of, time_of, to_bytes
from cluster.store.cassandra.batches import Writes, int32, int64
from cluster.store.cassandra.bundles import bundled, newest, number_of_bundle
from cluster.store.cassandra.session import Session
from cluster.store.ports import HEAD_ROWS, HEADER, NO_BUNDLES, Revised, Row

_MINUTE_MS = 60_000
_IDS_PER_READ = 100
_NUMBERS = [int32(number) for number in range(64)]


class CassandraExecutionStore:
    """ExecutionStore. `shard_count` is the cluster's: it is part of where a row lies."""

    def __init__(self, session: Session, *, shard_count: int) -> None:
        self._session = session
        self._shard_count = shard_count
        prepare = session.prepare
        self._insert = prepare(
            "INSERT INTO executions (shard, minute, workflow_id, number, data)"
            " VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?"
        )
        self._read = prepare(
            "SELECT number, data, writetime(data) FROM executions"
            " WHERE shard = ? AND minute = ? AND workflow_id = ?"
        )
        # Bundles come before the header, and hold it.
        self._headers = prepare(
            "SELECT workflow_id, number, data, writetime(data) FROM executions"
            f" WHERE shard = ? AND minute = ? AND workflow_id IN ? AND number <= {HEADER}"
        )
        self._head = prepare(
            "SELECT number, data, writetime(data) FROM executions"
            f" WHERE shard = ? AND minute = ? AND workflow_id = ? AND number < {HEAD_ROWS}"
        )
        self._remove = prepare(
            "DELETE FROM executions USING TIMESTAMP ?"
            " WHERE shard = ? AND minute = ? AND workflow_id = ?"
        )

    async def write(
        self, rows: Sequence[Revised], bundles: Mapping[WorkflowId, int] = NO_BUNDLES
    ) -> None:
        writes = Writes(self._session)
        for workflow_id, group in groupby(rows, key=_owner):
            place = self._place(workflow_id)
            key = (int32(place[0]), int64(place[1]), to_bytes(workflow_id))
            own = list(group)
            bundle = bundles.get(workflow_id)
            data = None if bundle is None else bundled(own)
            if bundle is not None and data is not None:
                # Above all that it holds: what it held before, and what a removal has to drop.
                revision = max(revision for _, revision in own)
                values = (*key, int32(number_of_bundle(bundle)), data, int64(revision))
                writes.add(place, self._insert, values, len(data))
                continue
            for row, revision in own:
                number = _NUMBERS[row.number] if row.number < 64 else int32(row.number)
                values = (*key, number, row.data, int64(revision))
                writes.add(place, self._insert, values, len(row.data))
        await writes.send()

    async def read(self, workflow_id: WorkflowId) -> Sequence[Row]:
        shard, minute = self._place(workflow_id)
        found = await self._session.all(self._read, (shard, minute, to_bytes(workflow_id)))
        rows = newest(found)
        if rows.get(HEADER) == b"":
            return []
        return [Row(workflow_id, number, data) for number, data in rows.items() if data]

    async def headers(self, workflow_ids: Sequence[WorkflowId]) -> Mapping[WorkflowId, bytes]:
        places: dict[tuple[int, int], list[bytes]] = {}
        for workflow_id in workflow_ids:
            places.setdefault(self._place(workflow_id), []).append(to_bytes(workflow_id))
        reads = [
            self._session.all(self._headers, (*place, keys[start : start + _IDS_PER_READ]))
            for place, keys in places.items()
            for start in range(0, len(keys), _IDS_PER_READ)
        ]
        found: dict[WorkflowId, bytes] = {}
        for rows in await asyncio.gather(*reads):
            for key, group in groupby(rows, key=itemgetter(0)):
                header = newest(row[1:] for row in group).get(HEADER)
                if header:
                    found[WorkflowId(from_bytes(key))] = header
        return found

    async def heads(self, workflow_ids: Sequence[WorkflowId]) -> Mapping[WorkflowId, Sequence[Row]]:
        reads = [
            self._session.all(self._head, (*self._place(workflow_id), to_bytes(workflow_id)))
            for workflow_id in workflow_ids
        ]
        heads: dict[WorkflowId, Sequence[Row]] = {}
        for workflow_id, found in zip(workflow_ids, await asyncio.gather(*reads), strict=True):
            rows = newest(found)
            if rows.get(HEADER):
                heads[workflow_id] = [
                    Row(workflow_id, number, data)
                    for number, data in rows.items()
                    if data and number < HEAD_ROWS
                ]
        return heads

    async def remove(self, removed: Sequence[tuple[WorkflowId, int]]) -> None:
        writes = Writes(self._session)
        for workflow_id, upto in removed:
            place = self._place(workflow_id)
            shard, minute, key = int32(place[0]), int64(place[1]), to_bytes(workflow_id)
            writes.add(place, self._remove, (int64(upto), shard, minute, key))
            # The deletion is forgotten one day, this mark is not: it hides what a late writer with
            # an earlier epoch puts back. One above `upto`, or the deletion would take it along.
            mark = (shard, minute, key, _NUMBERS[HEADER], b"", int64(upto + 1))
            writes.add(place, self._insert, mark)
        await writes.send()

    def _place(self, workflow_id: WorkflowId) -> tuple[int, int]:
        shard = shard_of(workflow_id, shard_count=self._shard_count)
        return shard, time_of(workflow_id) // _MINUTE_MS


def _owner(revised: Revised) -> WorkflowId:
    return revised[0].workflow_id
