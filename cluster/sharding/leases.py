"""Leases from both sides: the owner that keeps its own alive, the watcher that sees others end."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from cluster.clock import Clock
from cluster.errors import ClusterError, Fenced
from cluster.logs import get_log
from cluster.sharding.insist import insist
from cluster.store.lease_ports import Leases, LeasesSeen
from cluster.store.ports import LogId, LogStore

# `log` means a commit log in this module.
_lines = get_log(__name__)


class Proof(Protocol):
    """What a commit log knows of its own being open."""

    proved_ms: int
    """Monotonic time before the last append or fence read that found it so."""

    @property
    def is_idle(self) -> bool:
        """Nothing waits to be appended, so appends prove nothing."""


class LeaseKeeper:
    """Renews the lease of one log while that log is provably open.

    A node that reaches the leases but not the store, or whose commit loop hangs, lets go.
    """

    def __init__(
        self,
        leases: Leases,
        logs: LogStore,
        own: LogId,
        proof: Proof,
        *,
        clock: Clock,
        ttl_ms: int,
        renew_ms: int,
        on_lost: Callable[[Fenced], None],
    ) -> None:
        self._leases = leases
        self._logs = logs
        self._own = own
        self._proof = proof
        self._clock = clock
        self._ttl_ms = ttl_ms
        self._renew_ms = renew_ms
        self._on_lost = on_lost
        self._renewed_ms: int | None = None
        """When the last renewal that was acknowledged was sent."""
        self._began_ms = clock.monotonic_ms()
        """The log was opened a moment before: others may know it for that much longer."""
        self._doubted_until_ms = 0
        """A seal may be under way of somebody who saw the lease stand still before."""
        self._reading: asyncio.Future[None] | None = None
        self._next: asyncio.Future[None] | None = None

    @property
    def is_renewed(self) -> bool:
        """The lease has not run out."""
        renewed_ms = self._renewed_ms
        return renewed_ms is not None and self._clock.monotonic_ms() < renewed_ms + self._ttl_ms

    @property
    def is_fresh(self) -> bool:
        """Nobody can have sealed the log yet: what is in memory is the latest there is."""
        return self.is_renewed and self._proof.proved_ms >= self._doubted_until_ms

    @property
    def age_ms(self) -> int:
        """Since the last renewal that was acknowledged was sent; 0 before the first."""
        renewed_ms = self._renewed_ms
        return 0 if renewed_ms is None else self._clock.monotonic_ms() - renewed_ms

    @property
    def is_proved(self) -> bool:
        """The store has answered this log within the last two renewals."""
        return self._clock.monotonic_ms() - self._proof.proved_ms <= 2 * self._renew_ms

    async def confirm(self) -> None:
        """Find out that the log is open now; one read of its fence for all that wait.

        Fenced: it is not. StoreFault: nobody knows.
        """
        if self._next is None:
            # A read that is under way may have looked before the caller asked.
            self._next = asyncio.ensure_future(self._confirm_after(self._reading))
            self._next.add_done_callback(_told)
        await asyncio.shield(self._next)

    async def run(self) -> None:
        """Renew until cancelled or the log is lost."""
        while True:
            began_ms = self._clock.monotonic_ms()
            try:
                await self._renew()
            except Fenced:
                return  # Whoever waits for the end of this log has been told.
            except ClusterError as failure:
                _lines.warning("the lease was not renewed", log=self._own, error=failure.message)
            took_ms = self._clock.monotonic_ms() - began_ms
            await asyncio.sleep(max(0, self._renew_ms - took_ms) / 1000)

    async def _renew(self) -> None:
        proof, clock = self._proof, self._clock
        if proof.is_idle and clock.monotonic_ms() - proof.proved_ms >= self._renew_ms:
            await self.confirm()
        sent_ms = clock.monotonic_ms()
        if sent_ms - proof.proved_ms >= self._ttl_ms:
            _lines.warning("the store is away, the lease is let go", log=self._own)
            return
        await insist(
            lambda: self._leases.renew(self._own),
            clock=clock,
            deadline_ms=0,
            attempt_ms=self._renew_ms,
        )
        now_ms, before_ms = clock.monotonic_ms(), self._renewed_ms
        if before_ms is None:
            stood_still = now_ms - self._began_ms >= self._ttl_ms // 2
        else:
            stood_still = now_ms - before_ms >= self._ttl_ms
        if stood_still:
            # Whoever saw it stand still acts upon that within a TTL or so, or not at all.
            self._doubted_until_ms = now_ms + 2 * self._ttl_ms
        self._renewed_ms = sent_ms

    async def _confirm_after(self, earlier: "asyncio.Future[None] | None") -> None:
        if earlier is not None:
            await asyncio.wait([earlier])
        self._reading, self._next = self._next, None
        began_ms = self._clock.monotonic_ms()
        fence = await insist(
            lambda: self._logs.fence(self._own),
            clock=self._clock,
            deadline_ms=0,
            attempt_ms=self._renew_ms,
        )
        if fence is None or not fence.open:
            lost = Fenced(f"log {self._own} is sealed")
            self._on_lost(lost)
            raise lost
        self._proof.proved_ms = max(self._proof.proved_ms, began_ms)


def _told(done: "asyncio.Future[None]") -> None:
    if not done.cancelled():
        done.exception()  # Whoever still waits hears of it.


class LeaseWatch:
    """Tells whose lease has run out: its counter stood still for a whole TTL of this process's own
    clock, in readings that all were answered, by a server that lost nothing in between."""

    def __init__(self, *, ttl_ms: int, gap_ms_max: int) -> None:
        """Readings further apart than `gap_ms_max` do not count as all that time: the owner may
        have had no chance to renew."""
        self._ttl_ms = ttl_ms
        self._gap_ms_max = gap_ms_max
        self._generation: str | None = None
        self._read_ms: int | None = None
        self.asked_ms = 0
        """When the last reading was asked for: what follows from it has to be done soon."""
        self._still: dict[LogId, tuple[int | None, int]] = {}
        """Log → its counter, and since when that stands still."""
        self._silent: frozenset[LogId] = frozenset()

    @property
    def silent(self) -> frozenset[LogId]:
        """The logs whose lease has run out, as of the last reading."""
        return self._silent

    def saw(
        self, seen: LeasesSeen, logs: Iterable[LogId], *, sent_ms: int, received_ms: int
    ) -> None:
        """Take a reading, for the logs that matter."""
        lost = self._generation is not None and seen.generation != self._generation
        gap = self._read_ms is None or sent_ms - self._read_ms > self._gap_ms_max
        if lost or gap:
            self._still.clear()
        self._generation = seen.generation
        self._read_ms = received_ms
        self.asked_ms = sent_ms
        still: dict[LogId, tuple[int | None, int]] = {}
        for log in logs:
            counter = seen.counters.get(log)
            before = self._still.get(log)
            if before is not None and before[0] == counter:
                still[log] = before
            else:
                still[log] = counter, received_ms
        self._still = still
        self._silent = frozenset(
            log for log, (_, since_ms) in still.items() if sent_ms - since_ms >= self._ttl_ms
        )

    def missed(self) -> None:
        """The leases or the store did not answer: owners may have had no chance to renew."""
        self._still.clear()
        self._silent = frozenset()
