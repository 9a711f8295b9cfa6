"""The routing table in Cassandra: each row its own compare-and-set."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from cluster.errors import Conflict
from cluster.ids import ShardId
from cluster.store.cassandra.session import Session
from cluster.store.cassandra.settled import Settled
from cluster.store.ports import LogId, ShardRow

T = TypeVar("T")
R = TypeVar("R")

_PARTS = 16
_SHARD_COUNT = "shard_count"


class CassandraShardTable:
    """ShardTable."""

    def __init__(self, session: Session, settled: Settled) -> None:
        self._session = session
        self._settled = settled
        prepare = session.prepare
        self._set_count = prepare("INSERT INTO cluster (name, value) VALUES (?, ?) IF NOT EXISTS")
        self._insert = prepare(
            "INSERT INTO shards (part, shard, epoch) VALUES (?, ?, 0) IF NOT EXISTS"
        )
        self._rows = prepare("SELECT shard, owner, epoch FROM shards WHERE part IN ?")
        self._change = prepare(
            "UPDATE shards SET owner = ?, epoch = ? WHERE part = ? AND shard = ?"
            " IF owner = ? AND epoch = ?"
        )

    async def create(self, shard_count: int) -> None:
        stands = await self._session.compare_and_set(self._set_count, (_SHARD_COUNT, shard_count))
        if stands is not None and stands["value"] != shard_count:
            raise Conflict(
                f"this cluster was created with {stands['value']} shards, not {shard_count}"
            )
        there = {row.shard for row in await self.rows()}

        async def insert(shard: ShardId) -> None:
            await self._session.compare_and_set(self._insert, (shard % _PARTS, shard))

        missing = [ShardId(shard) for shard in range(shard_count) if shard not in there]
        await _by_part(missing, lambda shard: shard, insert)

    async def rows(self) -> Sequence[ShardRow]:
        found = await self._session.all(self._rows, (list(range(_PARTS)),))
        rows = [_row(ShardId(shard), owner, epoch) for shard, owner, epoch in found]
        for row in rows:
            # Also one that its last owner has handed over to this process.
            if row.owner is not None:
                self._settled.claimed(row.shard, row.epoch, row.owner)
        return sorted(rows, key=lambda row: row.shard)

    async def claim(self, rows: Sequence[ShardRow], own: LogId) -> Sequence[ShardRow]:
        async def claim(row: ShardRow) -> ShardRow:
            stands = await self._compare_and_set(row, own, row.epoch + 1)
            if stands.owner == own:
                self._settled.claimed(stands.shard, stands.epoch, own)
            return stands

        return await _by_part(rows, lambda row: row.shard, claim)

    async def release(self, rows: Sequence[ShardRow]) -> None:
        async def release(row: ShardRow) -> None:
            await self._compare_and_set(row, None, row.epoch)

        await _by_part(rows, lambda row: row.shard, release)

    async def _compare_and_set(self, row: ShardRow, owner: LogId | None, epoch: int) -> ShardRow:
        """The row as it stands afterwards."""
        values = (owner, epoch, row.shard % _PARTS, row.shard, row.owner, row.epoch)
        stands = await self._session.compare_and_set(self._change, values)
        if stands is None:
            return ShardRow(shard=row.shard, owner=owner, epoch=epoch)
        return _row(row.shard, stands.get("owner"), stands.get("epoch") or 0)


async def _by_part(
    items: Sequence[T], shard_of: Callable[[T], ShardId], act: Callable[[T], Awaitable[R]]
) -> list[R]:
    """Act on each; one at a time per partition, where they would only hinder each other."""
    answers: dict[int, R] = {}
    parts: dict[int, list[int]] = {}
    for place, item in enumerate(items):
        parts.setdefault(shard_of(item) % _PARTS, []).append(place)

    async def act_on(places: list[int]) -> None:
        for place in places:
            answers[place] = await act(items[place])

    await asyncio.gather(*(act_on(places) for places in parts.values()))
    return [answers[place] for place in range(len(items))]


def _row(shard: ShardId, owner: str | None, epoch: int) -> ShardRow:
    return ShardRow(shard=shard, owner=None if owner is None else LogId(owner), epoch=epoch)
