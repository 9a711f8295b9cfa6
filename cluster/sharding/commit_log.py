"""Group commit of one node: what is pending goes into one fenced append, then its waiters go on."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

import msgspec

from cluster.clock import Clock, stopwatch_s
from cluster.errors import Fenced, StoreFault
from cluster.ids import ShardId
from cluster.metrics import Metrics
from cluster.sharding.insist import insist
from cluster.store.ports import LogId, LogStore, Row

E = TypeVar("E")

Transition: TypeAlias = tuple[ShardId, int, Sequence[Row]]
"""What one step of a shard changed: the shard, its epoch, the rows."""

ENTRY_BYTES_MAX = 256 * 1024
_NEVER_MS = -(1 << 60)
_ROW_BYTES = 48
"""What a row takes in an entry beside its data."""

_GATHERING_TURNS = 4
"""Turns of the event loop between a commit and the next append: whoever was answered asks again,
and more of that goes into one append. Turns are short when there is little to do: chain5 of the
benchmark took 1.4 appends instead of 2.3 per workflow, and a tenth less CPU."""

_GATHERING_S_MIN = 0.001
_GATHERING_S_MAX = 0.003
"""Between these two, and for as long as the append took (by the loop's clock, of milliseconds), the
next one waits for those who were just answered to ask again: an append is as much work as ten
transitions. Nobody waits for more than were there last time, so a lone client is never held up."""

_UNASKED_S = 0.005
"""For this long an entry that nobody waits for (notes of polls) waits for one who does."""

_FORMAT = b"\x01"
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[tuple[ShardId, int, list[Row]]])


def encode_entry(transitions: Sequence[Transition]) -> bytes:
    """The bytes of an entry: one byte that names the format, then the transitions."""
    return _FORMAT + _ENCODER.encode(transitions)


def decode_entry(entry: bytes) -> Sequence[Transition]:
    """The transitions of an entry. ValueError: it is not one of a known format."""
    if entry[:1] != _FORMAT:
        raise ValueError(f"a log entry of unknown format {entry[:1]!r}")
    return _DECODER.decode(memoryview(entry)[1:])


class _Entry(Generic[E]):
    __slots__ = ("effects", "position", "size", "transitions", "waiters")

    def __init__(self, position: int) -> None:
        self.position = position
        self.size = 0
        self.transitions: list[Transition] = []
        self.effects: list[E] = []
        self.waiters: list[asyncio.Future[None]] = []


class CommitLog(Generic[E]):
    """The log of one process, from position 1. `run` must be running for anything to commit.

    Called in order of positions, once per committed entry: `on_committed(position, transitions,
    size in bytes)`, then `send(effects)` if there are any; then the waiters go on. `on_lost` is
    called once when the log is fenced or given up; nothing is acknowledged from then on. None of
    the three may raise.
    """

    def __init__(
        self,
        store: LogStore,
        log: LogId,
        *,
        clock: Clock,
        metrics: Metrics,
        send: Callable[[list[E]], None],
        on_committed: Callable[[int, Sequence[Transition], int], None],
        on_lost: Callable[[Fenced], None],
        entry_bytes_max: int = ENTRY_BYTES_MAX,
        deadline_ms: int = 10_000,
        attempt_ms: int = 2_000,
    ) -> None:
        self._store = store
        self._log = log
        self._clock = clock
        self._send = send
        self._on_committed = on_committed
        self._on_lost = on_lost
        self._entry_bytes_max = entry_bytes_max
        self._deadline_ms = deadline_ms
        self._attempt_ms = attempt_ms
        self._entries = metrics.commit_log_entries.of()
        self._bytes = metrics.commit_log_bytes.of()
        self._group_size = metrics.commit_log_transitions.of()
        self._append_s = metrics.commit_log_append.of()
        self._gathering: _Entry[E] | None = None
        self._full: deque[_Entry[E]] = deque()
        self._pending: dict[int, _Entry[E]] = {}
        self._wake: asyncio.Future[None] | None = None
        self._complete: asyncio.Future[None] | None = None
        self._waiters_expected = self._waiters_wanted = 0
        self._gather_until_s = 0.0
        # Asked for once: to look up the running loop costs a system call.
        self._loop = asyncio.get_running_loop()
        self._lost: Fenced | None = None
        self.proved_ms = _NEVER_MS
        """Monotonic time before the last append (or fence read) that found the log open."""
        self.last_put = 0
        self.last_committed = 0
        self.pending_bytes = 0
        self.pending_transitions = 0

    def put(
        self, shard: ShardId, epoch: int, rows: Sequence[Row], effects: Sequence[E] = ()
    ) -> int:
        """Add one transition to the gathering entry; returns the entry's position.

        The order of calls is the order of commits, and effects keep it. `rows` must not change
        afterwards. Fenced: the log is lost.
        """
        size = len(rows) * _ROW_BYTES
        for row in rows:
            size += len(row.data)
        entry = self._gathering
        if entry is None or entry.size + size > self._entry_bytes_max:
            entry = self._next_entry()
        entry.size += size
        self.pending_bytes += size
        self.pending_transitions += 1
        entry.transitions.append((shard, epoch, rows))
        if effects:
            entry.effects += effects
        return entry.position

    async def committed(self, position: int) -> None:
        """Wait until everything up to `position` is durable. Fenced: it will never be known."""
        if position <= self.last_committed:
            return
        if self._lost is not None:
            raise self._lost
        # A future per waiter: one that gives up must not take the others with it.
        waiter = self._loop.create_future()
        waiters = self._pending[position].waiters
        waiters.append(waiter)
        if self._complete is not None and len(waiters) >= self._waiters_wanted:
            self._end_gathering()
        await waiter

    @property
    def is_idle(self) -> bool:
        """Everything that was put is durable."""
        return self.last_put == self.last_committed

    async def drain(self) -> None:
        """Wait until everything that was put is durable."""
        await self.committed(self.last_put)

    async def run(self) -> None:
        """Append what is put, one entry in flight, until the log is lost or the task cancelled.

        While an append is in flight the next entry gathers, so its size adapts to the load.
        """
        try:
            while True:
                entry = self._take()
                if entry is None:
                    self._wake = self._loop.create_future()
                    await self._wake
                    await self._gather()
                else:
                    took_s = await self._append(entry)
                    self._expect(entry, took_s)
                    self._acknowledge(entry)
                    for _ in range(_GATHERING_TURNS):
                        await asyncio.sleep(0)
                    await self._gather()
        except Fenced as lost:
            self._give_up(lost)
            self._on_lost(lost)
        finally:
            self._give_up(Fenced(f"log {self._log} is closed"))

    def _next_entry(self) -> _Entry[E]:
        if self._lost is not None:
            raise self._lost
        if self._gathering is not None:
            self._full.append(self._gathering)
            self._end_gathering()
        self.last_put += 1
        entry: _Entry[E] = _Entry(self.last_put)
        self._gathering = self._pending[self.last_put] = entry
        if self._wake is not None and not self._wake.done():
            # The append starts once the callbacks that are ready now have put theirs too.
            self._wake.set_result(None)
        self._wake = None
        return entry

    def _expect(self, entry: _Entry[E], took_s: float) -> None:
        """Those who are about to be answered, and those who wait already."""
        self._waiters_expected = len(entry.waiters)
        if self._gathering is not None:
            self._waiters_expected += len(self._gathering.waiters)
        self._gather_until_s = self._loop.time() + min(
            max(took_s, _GATHERING_S_MIN), _GATHERING_S_MAX
        )

    async def _gather(self) -> None:
        """Wait for those who are expected; if nobody has come, a little for anybody."""
        await self._wait_for(self._waiters_expected, self._gather_until_s)
        if self._gathering is not None and not self._gathering.waiters:
            await self._wait_for(1, self._loop.time() + _UNASKED_S)

    async def _wait_for(self, waiters: int, until_s: float) -> None:
        """Until so many wait for the gathering entry, if there is one, or it is full."""
        gathering = self._gathering
        if gathering is None or self._full or len(gathering.waiters) >= waiters:
            return
        if self._loop.time() >= until_s:
            return
        self._waiters_wanted = waiters
        self._complete = self._loop.create_future()
        timer = self._loop.call_at(until_s, self._end_gathering)
        try:
            await self._complete
        finally:
            timer.cancel()
            self._complete = None

    def _end_gathering(self) -> None:
        if self._complete is not None and not self._complete.done():
            self._complete.set_result(None)

    def _take(self) -> _Entry[E] | None:
        if self._full:
            return self._full.popleft()
        entry, self._gathering = self._gathering, None
        return entry

    async def _append(self, entry: _Entry[E]) -> float:
        """How long it took by the clock of the loop, in seconds."""
        # Encoded once: a position that was tried never gets other bytes.
        encoded = encode_entry(entry.transitions)
        began_ms = self._clock.monotonic_ms()
        began_s, loop_began_s = stopwatch_s(), self._loop.time()
        try:
            await insist(
                lambda: self._store.append(self._log, entry.position, encoded),
                clock=self._clock,
                deadline_ms=self._deadline_ms,
                attempt_ms=self._attempt_ms,
            )
        except StoreFault as fault:
            raise Fenced(f"log {self._log} is given up: {fault.message}") from fault
        self.proved_ms = max(self.proved_ms, began_ms)
        self._append_s.observe(stopwatch_s() - began_s)
        self._entries.inc()
        self._bytes.inc(len(encoded))
        self._group_size.observe(len(entry.transitions))
        return self._loop.time() - loop_began_s

    def _acknowledge(self, entry: _Entry[E]) -> None:
        self.last_committed = entry.position
        self.pending_bytes -= entry.size
        self.pending_transitions -= len(entry.transitions)
        del self._pending[entry.position]
        self._on_committed(entry.position, entry.transitions, entry.size)
        if entry.effects:
            self._send(entry.effects)
        for waiter in entry.waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _give_up(self, lost: Fenced) -> None:
        if self._lost is not None:
            return
        self._lost = lost
        self._gathering = None
        self._full.clear()
        for entry in self._pending.values():
            for waiter in entry.waiters:
                if not waiter.done():
                    waiter.set_exception(lost)
        self._pending.clear()
