"""The routing table in SQL."""

import sqlite3
from collections.abc import Sequence

from cluster.errors import Conflict
from cluster.ids import ShardId
from cluster.store.ports import LogId, ShardRow
from cluster.store.sql.database import Database


class SqlShardTable:
    """ShardTable. Stands in the file of the log, which a checkpoint does not hold up."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, shard_count: int) -> None:
        def work(connection: sqlite3.Connection) -> None:
            (standing,) = connection.execute("SELECT count(*) FROM shards").fetchone()
            if standing == 0:
                connection.executemany(
                    "INSERT INTO shards (shard, owner, epoch) VALUES (?, NULL, 0)",
                    [(shard,) for shard in range(shard_count)],
                )
            elif standing != shard_count:
                raise Conflict(
                    f"this cluster was created with {standing} shards, not {shard_count}"
                )

        await self._database.write(work)

    async def rows(self) -> Sequence[ShardRow]:
        return await self._database.read(_rows)

    async def claim(self, rows: Sequence[ShardRow], own: LogId) -> Sequence[ShardRow]:
        def work(connection: sqlite3.Connection) -> Sequence[ShardRow]:
            for row in rows:
                connection.execute(
                    "UPDATE shards SET owner = ?, epoch = epoch + 1 WHERE shard = ? AND epoch = ?"
                    " AND (owner = ? OR (owner IS NULL AND ? IS NULL))",
                    (own, row.shard, row.epoch, row.owner, row.owner),
                )
            standing = {row.shard: row for row in _rows(connection)}
            return [standing[row.shard] for row in rows]

        return await self._database.write(work)

    async def release(self, rows: Sequence[ShardRow]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            for row in rows:
                connection.execute(
                    "UPDATE shards SET owner = NULL WHERE shard = ? AND epoch = ? AND owner = ?",
                    (row.shard, row.epoch, row.owner),
                )

        await self._database.write(work)


def _rows(connection: sqlite3.Connection) -> Sequence[ShardRow]:
    return [
        ShardRow(shard=ShardId(shard), owner=None if owner is None else LogId(owner), epoch=epoch)
        for shard, owner, epoch in connection.execute(
            "SELECT shard, owner, epoch FROM shards ORDER BY shard"
        )
    ]
