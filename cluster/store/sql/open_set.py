"""The open set in SQL."""

import sqlite3
from collections.abc import Sequence

from cluster.ids import ShardId, WorkflowId, from_bytes, shard_of, to_bytes
from cluster.store.ports import OpenEntry
from cluster.store.sql.batches import Removal, Upsert
from cluster.store.sql.database import Database

_UPSERT = Upsert(
    "open_set", key=("workflow_id",), columns=("shard", "next_due_ms", "has_unfinished_effects")
)
_REMOVAL = Removal("open_set", key="workflow_id")


class SqlOpenSet:
    """OpenSet. `shard_count` must be the cluster's."""

    def __init__(self, database: Database, *, shard_count: int) -> None:
        self._database = database
        self._shard_count = shard_count

    async def put(self, entries: Sequence[tuple[OpenEntry, int]]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            values: list[object] = []
            for entry, revision in entries:
                values += (
                    to_bytes(entry.workflow_id),
                    shard_of(entry.workflow_id, shard_count=self._shard_count),
                    entry.next_due_ms,
                    entry.has_unfinished_effects,
                    revision,
                )
            _UPSERT.run(connection, values)

        await self._database.write(work)

    async def remove(self, removed: Sequence[tuple[WorkflowId, int]]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            values: list[object] = []
            for workflow_id, upto in removed:
                values += (to_bytes(workflow_id), upto)
            _REMOVAL.run(connection, values)

        await self._database.write(work)

    async def scan(
        self, shard: ShardId, *, after: WorkflowId | None, limit: int
    ) -> Sequence[OpenEntry]:
        return await self._database.read(
            lambda connection: _entries(
                connection,
                "WHERE shard = ? AND workflow_id > ? ORDER BY workflow_id LIMIT ?",
                (shard, b"" if after is None else to_bytes(after), limit),
            )
        )

    async def due(self, shard: ShardId, *, before_ms: int, limit: int) -> Sequence[OpenEntry]:
        return await self._database.read(
            lambda connection: _entries(
                connection,
                "WHERE shard = ? AND next_due_ms IS NOT NULL AND next_due_ms < ?"
                " ORDER BY next_due_ms, workflow_id LIMIT ?",
                (shard, before_ms, limit),
            )
        )


def _entries(
    connection: sqlite3.Connection, where: str, values: tuple[object, ...]
) -> Sequence[OpenEntry]:
    found = connection.execute(
        f"SELECT workflow_id, next_due_ms, has_unfinished_effects FROM open_set {where}", values
    ).fetchall()
    return [
        OpenEntry(WorkflowId(from_bytes(key)), next_due_ms, bool(has_unfinished_effects))
        for key, next_due_ms, has_unfinished_effects in found
    ]
