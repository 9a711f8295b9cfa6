"""Sees to it that every shard has an owner: looks at leases, rows and members, decides, acts."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from cluster.clock import Clock, stopwatch_s
from cluster.errors import ClusterError, Fenced, StoreFault
from cluster.ids import ShardId
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.sharding.checkpoint import Describe
from cluster.sharding.insist import insist
from cluster.sharding.leases import LeaseKeeper, LeaseWatch
from cluster.sharding.membership import Presence
from cluster.sharding.placement import Moves, Sight, decide, is_up_for_claim
from cluster.sharding.routes import Routes
from cluster.sharding.shard import Shards
from cluster.sharding.takeover import delete_unnamed_logs, take_over
from cluster.store.lease_ports import Leases
from cluster.store.ports import LogId, ShardRow, Stores

# `log` means a commit log in this module.
_lines = get_log(__name__)

T = TypeVar("T")

_SOON_MS = 200
"""Between two looks while shards are on the move."""

_RESTLESS_MS = 15_000
"""A move that others ought to make is waited for with that patience."""

_TIDY_MS = 60_000


class GivenUp(NamedTuple):
    """When what happened to shards that were given up, by the monotonic clock."""

    stopped_ms: int
    durable_ms: int
    """All that was decided for them is in the log."""
    written_ms: int


class Holder(Protocol):
    """Who serves the shards of one log."""

    own: LogId
    lost: Fenced | None
    lease: LeaseKeeper
    shards: Shards

    def serve(self, rows: Sequence[ShardRow]) -> None:
        """Serve shards that were claimed."""

    async def give_up(self, shards: Collection[ShardId]) -> GivenUp:
        """Stop serving shards and write all of them down. Fenced: the log is lost."""

    async def forget(self, shards: Collection[ShardId]) -> None:
        """Drop what is in memory of shards that were given up."""

    def lose(self, lost: Fenced) -> None:
        """The log is lost."""


class Controller:
    """Claims, serves and gives up shards for one log, until that is lost or empty."""

    def __init__(
        self,
        holder: Holder,
        stores: Stores,
        leases: Leases,
        presence: Presence,
        routes: Routes,
        *,
        node_id: str,
        describe: Describe,
        tell: Callable[[Sequence[ShardRow], LogId | None], None],
        clock: Clock,
        metrics: Metrics,
        ttl_ms: int,
        heartbeat_ms: int,
        poll_ms: int,
        stable_ms: int,
    ) -> None:
        """`tell(rows, log)` has the node of a log hear that it owns these shards now; `log` None:
        all others, that they are served here. Hints: they look by themselves too, later."""
        self._holder = holder
        self._stores = stores
        self._leases = leases
        self._presence = presence
        self._routes = routes
        self._node_id = node_id
        self._describe = describe
        self._tell = tell
        self._clock = clock
        self._metrics = metrics
        self._ttl_ms = ttl_ms
        self._heartbeat_ms = heartbeat_ms
        self._poll_ms = poll_ms
        self._stable_ms = stable_ms
        self._watch = LeaseWatch(ttl_ms=ttl_ms, gap_ms_max=max(ttl_ms // 2, 2 * heartbeat_ms))
        self._rows: Sequence[ShardRow] = ()
        self._absent: AbstractSet[LogId] = frozenset()
        """Logs of others, and without a lease."""
        self._sealed: set[LogId] = set()
        self._strays: set[LogId] = set()
        self._given_up: dict[ShardId, int] = {}
        self._free_since: dict[ShardRow, int] = {}
        self._tidied_ms = clock.monotonic_ms()
        self._is_draining = False
        self._news = asyncio.Event()
        self.has_looked = False
        """The routing table was read, and acted upon, at least once."""
        self.is_empty = asyncio.Event()
        """Drained: no row names this log any more."""

    def drain(self) -> None:
        """Give everything up and claim nothing more."""
        self._is_draining = True
        self._news.set()

    def hear_of(self, rows: Sequence[ShardRow]) -> None:
        """Another node has handed these over to this log, or says that it serves them."""
        own = self._holder.own
        self._routes.learn_moved([row for row in rows if row.owner != own])
        if any(row.owner == own for row in rows):
            self._news.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_leases())
            group.create_task(self._look_after_shards())

    # -- whose lease has run out

    async def _watch_leases(self) -> None:
        while True:
            try:
                await self._read_leases()
            except ClusterError as failure:
                self._watch.missed()
                _lines.warning("the leases were not read", error=failure.message)
            await asyncio.sleep(self._heartbeat_ms / 1000)

    async def _read_leases(self) -> None:
        clock = self._clock
        sent_ms = clock.monotonic_ms()
        seen = await self._once(self._leases.read)
        others = self._others()
        self._absent = others - seen.counters.keys()
        before = self._watch.silent
        self._watch.saw(
            seen, others | self._strays, sent_ms=sent_ms, received_ms=clock.monotonic_ms()
        )
        if not self._holder.lease.is_proved:
            # Whom this node does not reach, others may not have reached.
            self._watch.missed()
        if self._watch.silent - before or self._absent:
            self._news.set()

    def _others(self) -> set[LogId]:
        """The logs of others that own shards, or belong to a member."""
        owners = {row.owner for row in self._rows if row.owner is not None}
        members = {member.log for member in self._presence.members.values() if member.log}
        return (owners | members) - {self._holder.own}

    # -- who owns what

    async def _look_after_shards(self) -> None:
        while True:
            wait_ms = self._poll_ms
            try:
                if await self._look():
                    wait_ms = min(wait_ms, _SOON_MS)
            except Fenced:
                return  # Whoever waits for the end of this log has been told.
            except ClusterError as failure:
                _lines.warning("shards could not be looked after", error=failure.message)
            await self._rest(wait_ms)

    async def _rest(self, wait_ms: int) -> None:
        """Until the next look is due, or something has changed."""
        until_ms = self._clock.monotonic_ms() + wait_ms
        changes = self._presence.changes
        while changes == self._presence.changes:
            left_ms = until_ms - self._clock.monotonic_ms()
            if left_ms <= 0:
                break
            try:
                async with asyncio.timeout(min(left_ms, _SOON_MS) / 1000):
                    await self._news.wait()
                break
            except TimeoutError:
                pass
        self._news.clear()

    async def _look(self) -> bool:
        """One look at all rows, and what follows from it; True to look again soon."""
        rows = await self._once(self._stores.shards.rows)
        self._rows = rows
        self._routes.learn_rows(rows)
        self._given_up = {
            row.shard: row.epoch
            for row in rows
            if self._given_up.get(row.shard) == row.epoch and row.owner == self._holder.own
        }
        await self._find_sealed()
        sight = self._sight(rows)
        self._note_free(sight)
        moves = decide(sight)
        await self._act(moves)
        self.has_looked = True
        if self._is_draining and all(row.owner != self._holder.own for row in rows):
            self.is_empty.set()
        elif not (self._is_draining or moves.is_restless):
            await self._tidy()
        return moves.is_restless and (
            self._is_draining
            or bool(moves.claim or moves.give_up or moves.release)
            or self._presence.unchanged_ms < self._stable_ms + _RESTLESS_MS
        )

    def _sight(self, rows: Sequence[ShardRow]) -> Sight:
        holder, presence = self._holder, self._presence
        now_ms = self._clock.monotonic_ms()
        return Sight(
            node_id=self._node_id,
            own=holder.own,
            rows=rows,
            members=presence.members,
            gone=self._watch.silent | self._sealed,
            served=dict(holder.shards.epochs),
            given_up=self._given_up,
            is_able=(
                holder.lease.is_renewed
                and holder.lease.is_proved
                and presence.is_current
                and presence.clock_is_right
            ),
            is_stable=presence.unchanged_ms >= self._stable_ms,
            is_draining=self._is_draining,
            overdue={
                row.shard
                for row, since_ms in self._free_since.items()
                if now_ms - since_ms >= 3 * self._ttl_ms
            },
        )

    def _note_free(self, sight: Sight) -> None:
        now_ms = self._clock.monotonic_ms()
        self._free_since = {
            row: self._free_since.get(row, now_ms)
            for row in sight.rows
            if is_up_for_claim(row, sight)
        }

    async def _find_sealed(self) -> None:
        """A log without a lease may have been sealed by another node already."""
        others = self._others()
        # Also one that has no shard any more: its node may still be listed, and must get none.
        self._sealed &= others
        for log in self._absent & others - self._sealed:
            fence = await self._once(partial(self._stores.logs.fence, log))
            if fence is None or not fence.open:
                self._sealed.add(log)

    async def _act(self, moves: Moves) -> None:
        holder = self._holder
        if moves.overruled is not None:
            row = moves.overruled
            holder.lose(Fenced(f"shard {row.shard} is owned by {row.owner} in epoch {row.epoch}"))
            return
        if moves.serve:
            self._serve(moves.serve)
            self._metrics.shard_moves.of("claimed").inc(len(moves.serve))
        # What nobody owns needs no replay, so it does not wait for one.
        for owner in sorted({row.owner or "" for row in moves.claim}):
            await self._claim([row for row in moves.claim if (row.owner or "") == owner])
        if moves.give_up:
            await self._give_up(moves.give_up, moves.heirs)
        if moves.release:
            await self._release(moves.release)

    async def _claim(self, rows: Sequence[ShardRow]) -> None:
        """Take over what one log, or nobody, owned."""
        began_s = stopwatch_s()
        try:
            won = await take_over(
                self._stores,
                rows,
                self._holder.own,
                describe=self._describe,
                clock=self._clock,
                deadline_ms=2 * self._ttl_ms,
            )
        except StoreFault as fault:
            # One log that cannot be read does not keep the shards of others from being served.
            _lines.error("shards were not claimed", owner=rows[0].owner, error=fault.message)
            return
        _lines.info("shards were claimed", wanted=len(rows), won=len(won))
        self._serve(won)
        self._count(rows, won, stopwatch_s() - began_s)

    def _serve(self, rows: Sequence[ShardRow]) -> None:
        self._holder.serve(rows)
        self._routes.learn_moved(rows)
        self._tell(rows, None)

    async def _seal(self, rows: Sequence[ShardRow]) -> None:
        """Close the logs that were seen to be silent, or raise StoreFault: an owner that is heard
        of again trusts its memory again after a while, so nobody may act upon an old reading."""
        for log in dict.fromkeys(row.owner for row in rows):
            if log is None or log in self._sealed:
                continue
            left_ms = self._watch.asked_ms + self._ttl_ms - self._clock.monotonic_ms()
            if left_ms <= 0:
                raise StoreFault(f"it was too long ago that log {log} was seen to be silent")
            await insist(
                partial(self._stores.logs.seal, log),
                clock=self._clock,
                deadline_ms=0,
                attempt_ms=left_ms,
            )

    def _count(self, claimed: Sequence[ShardRow], won: Sequence[ShardRow], took_s: float) -> None:
        owners = {row.shard: row.owner for row in claimed}
        for row in won:
            is_released = owners[row.shard] is None
            self._metrics.shard_moves.of("claimed" if is_released else "taken_over").inc()
            if not is_released:
                self._metrics.shard_takeover.of().observe(took_s)

    async def _give_up(self, rows: Sequence[ShardRow], heirs: Mapping[ShardId, LogId]) -> None:
        holder, shards = self._holder, [row.shard for row in rows]
        self._given_up.update({row.shard: row.epoch for row in rows})
        at = await holder.give_up(shards)
        try:
            await self._hand_over(rows, heirs)
        finally:
            moved_ms = self._clock.monotonic_ms()
            await holder.forget(shards)
        self._metrics.shard_moves.of("given_up").inc(len(rows))
        # What the move took of the time in which nobody serves them.
        _lines.info(
            "shards were given up",
            count=len(rows),
            append_ms=at.durable_ms - at.stopped_ms,
            write_ms=at.written_ms - at.durable_ms,
            move_ms=moved_ms - at.written_ms,
        )

    async def _hand_over(self, rows: Sequence[ShardRow], heirs: Mapping[ShardId, LogId]) -> None:
        """Write the rows over to the logs that get the shards: that is the claim of their owners,
        done for them, and one compare-and-set less than to release and to claim."""
        by_heir: dict[LogId | None, list[ShardRow]] = {}
        for row in rows:
            by_heir.setdefault(heirs.get(row.shard), []).append(row)

        async def hand_over(heir: LogId | None, some: Sequence[ShardRow]) -> None:
            if heir is None:
                await self._release(some)
                return
            stands = await insist(
                lambda: self._stores.shards.claim(some, heir),
                clock=self._clock,
                deadline_ms=self._ttl_ms,
            )
            self._tell([row for row in stands if row.owner == heir], heir)

        await asyncio.gather(*(hand_over(heir, some) for heir, some in by_heir.items()))

    async def _release(self, rows: Sequence[ShardRow]) -> None:
        await insist(
            lambda: self._stores.shards.release(rows),
            clock=self._clock,
            deadline_ms=self._ttl_ms,
        )

    # -- logs that nobody needs any more

    async def _tidy(self) -> None:
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._tidied_ms < _TIDY_MS:
            return
        self._tidied_ms = now_ms
        await delete_unnamed_logs(self._stores, clock=self._clock, deadline_ms=self._ttl_ms)
        # A process that ended before it claimed anything left its log open.
        for log in self._strays & self._watch.silent:
            await self._once(partial(self._stores.logs.seal, log))
        logs = set(await self._once(self._stores.logs.logs))
        self._strays = logs - {row.owner for row in self._rows} - {self._holder.own}

    async def _once(self, call: Callable[[], Awaitable[T]]) -> T:
        return await insist(call, clock=self._clock, deadline_ms=0, attempt_ms=self._ttl_ms // 2)
