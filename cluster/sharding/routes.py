"""Which node owns which shard: a copy of the routing table, refreshed by looks and on a miss."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from cluster.ids import ShardId
from cluster.store.lease_ports import Member, Membership
from cluster.store.ports import LogId, ShardRow, ShardTable


class Routes:
    """May be out of date at any moment: who is asked in vain says so, and the caller asks for a
    `refresh`. What is served here is not asked of it but of the shards themselves."""

    def __init__(self, shards: ShardTable, membership: Membership) -> None:
        self._shards = shards
        self._membership = membership
        self._owned: dict[ShardId, ShardRow] = {}
        self._by_log: dict[LogId, Member] = {}
        self._refreshing: asyncio.Future[None] | None = None
        self._heard: Counter[ShardId] = Counter()
        self._waiting: dict[ShardId, list[asyncio.Future[None]]] = {}
        self.members: Mapping[str, Member] = {}
        """By node id: those that were up at the last look."""

    def owner_of(self, shard: ShardId) -> Member | None:
        """The member that owns a shard; None: nobody does, or its owner is not up."""
        row = self._owned.get(shard)
        return None if row is None or row.owner is None else self._by_log.get(row.owner)

    def epoch_of(self, shard: ShardId) -> int:
        """The epoch in which that owner holds it; -1: it has none."""
        row = self._owned.get(shard)
        return -1 if row is None else row.epoch

    def learn_rows(self, rows: Sequence[ShardRow]) -> None:
        """Somebody has read the routing table; news of a later epoch may have come meanwhile."""
        owned = self._owned
        newest = (
            known if (known := owned.get(row.shard, row)).epoch > row.epoch else row for row in rows
        )
        self._owned = {row.shard: row for row in newest if row.owner is not None}

    def learn_moved(self, rows: Sequence[ShardRow]) -> None:
        """Their owner says that it serves these from now on: whoever waits for one goes on."""
        for row in rows:
            if row.epoch >= self.epoch_of(row.shard):
                self._owned[row.shard] = row
            self._heard[row.shard] += 1
            for waiter in self._waiting.pop(row.shard, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def heard_of(self, shard: ShardId) -> int:
        """How often `learn_moved` told of a shard: to be asked for before it is gone to."""
        return self._heard[shard]

    async def moved(self, shard: ShardId, heard: int, wait_ms: int) -> bool:
        """Wait until more is heard of a shard than that; False: it was not, for so long."""
        if self._heard[shard] != heard:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiting.setdefault(shard, [])
        waiters.append(waiter)
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await waiter
            return True
        except TimeoutError:
            return False
        finally:
            if not waiter.done() or waiter.cancelled():
                waiters.remove(waiter)

    def learn_members(self, members: Mapping[str, Member]) -> None:
        """Somebody has read who is up."""
        self.members = members
        self._by_log = {member.log: member for member in members.values() if member.log}

    async def refresh(self) -> None:
        """Read both again. Unavailable: a store did not answer. One reading serves all who ask
        while it is under way; who is sent wrong again asks again after a pause."""
        if self._refreshing is None:
            self._refreshing = asyncio.ensure_future(self._read())
            self._refreshing.add_done_callback(self._refreshed)
        # Whoever gives up waiting must not stop the reading for the others.
        await asyncio.shield(self._refreshing)

    async def _read(self) -> None:
        rows, seen = await asyncio.gather(self._shards.rows(), self._membership.read())
        self.learn_rows(rows)
        self.learn_members(seen.members)

    def _refreshed(self, refreshing: asyncio.Future[None]) -> None:
        self._refreshing = None
        if not refreshing.cancelled():
            refreshing.exception()  # Whoever asked has been told.
