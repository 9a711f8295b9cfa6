"""The routing table in a dictionary."""

from collections.abc import Sequence

from cluster.errors import Conflict
from cluster.ids import ShardId
from cluster.store.ports import LogId, ShardRow


class MemoryShardTable:
    """ShardTable."""

    def __init__(self) -> None:
        self._rows: dict[ShardId, ShardRow] = {}

    async def create(self, shard_count: int) -> None:
        if not self._rows:
            for number in range(shard_count):
                shard = ShardId(number)
                self._rows[shard] = ShardRow(shard=shard, owner=None, epoch=0)
        if len(self._rows) != shard_count:
            raise Conflict(
                f"this cluster was created with {len(self._rows)} shards, not {shard_count}"
            )

    async def rows(self) -> Sequence[ShardRow]:
        return list(self._rows.values())

    async def claim(self, rows: Sequence[ShardRow], own: LogId) -> Sequence[ShardRow]:
        for row in rows:
            if self._rows[row.shard] == row:
                self._rows[row.shard] = ShardRow(shard=row.shard, owner=own, epoch=row.epoch + 1)
        return [self._rows[row.shard] for row in rows]

    async def release(self, rows: Sequence[ShardRow]) -> None:
        for row in rows:
            if self._rows[row.shard] == row:
                self._rows[row.shard] = ShardRow(shard=row.shard, owner=None, epoch=row.epoch)
