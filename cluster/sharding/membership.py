"""This node among the others: its heartbeat, who else is up, and whether its clock is right."""

import asyncio
from collections.abc import Callable, Mapping

from cluster.clock import Clock, SystemClock
from cluster.errors import ClusterError
from cluster.logs import get_log
from cluster.sharding.insist import insist
from cluster.sharding.routes import Routes
from cluster.store.lease_ports import Member, Membership

log = get_log(__name__)

CLOCK_OFF_MS_MAX = 1_000
"""A node whose clock is further off than this takes no shards."""


class Presence:
    """Tells the others about this node at intervals, and listens to what they tell."""

    def __init__(
        self,
        membership: Membership,
        routes: Routes,
        member: Callable[[], Member],
        *,
        clock: Clock,
        heartbeat_ms: int,
        ttl_ms: int,
    ) -> None:
        """`member` says what there is to tell."""
        self._membership = membership
        self._routes = routes
        self._member = member
        self._clock = clock
        self._heartbeat_ms = heartbeat_ms
        self._ttl_ms = ttl_ms
        self._read_ms: int | None = None
        self._changed_ms = clock.monotonic_ms()
        self._serving: frozenset[str] = frozenset()
        self._has_left = False
        self.clock_is_right = False
        self.clock_off_ms = 0
        """How far this clock was ahead of the server's at the last look."""
        self.changes = 0
        """How often nodes that may own shards came or went."""

    @property
    def members(self) -> Mapping[str, Member]:
        """Those that were up at the last look, by node id."""
        return self._routes.members

    @property
    def is_current(self) -> bool:
        """The last look is no older than a heartbeat lasts."""
        read_ms = self._read_ms
        return read_ms is not None and self._clock.monotonic_ms() - read_ms < self._ttl_ms

    @property
    def unchanged_ms(self) -> int:
        """For how long nobody who may own shards came or went."""
        return self._clock.monotonic_ms() - self._changed_ms

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            await self.beat()
            await asyncio.sleep(self._heartbeat_ms / 1000)

    async def beat(self) -> None:
        """Tell and listen once; what is not answered is left to the next beat."""
        try:
            await insist(self._beat, clock=self._clock, deadline_ms=0, attempt_ms=self._ttl_ms // 2)
        except ClusterError as failure:
            log.warning("the other nodes were not reached", error=failure.message)

    async def leave(self) -> None:
        """Take this node off the list. Unavailable: it will fall off by itself."""
        self._has_left = True
        await insist(
            lambda: self._membership.leave(self._member().node_id),
            clock=self._clock,
            deadline_ms=0,
            attempt_ms=self._ttl_ms // 2,
        )

    async def _beat(self) -> None:
        if not self._has_left:
            await self._membership.beat(self._member(), ttl_ms=self._ttl_ms)
        sent_ms, began_ms = self._clock.now_ms(), self._clock.monotonic_ms()
        seen = await self._membership.read()
        self._read_ms = self._clock.monotonic_ms()
        took_ms = self._read_ms - began_ms
        # The server looked at its clock at some moment between question and answer.
        self.clock_off_ms = sent_ms + took_ms // 2 - seen.server_now_ms
        off_ms = abs(self.clock_off_ms) - (took_ms + 1) // 2
        is_right = off_ms <= CLOCK_OFF_MS_MAX
        if not is_right and isinstance(self._clock, SystemClock):
            self._clock.hear(seen.server_now_ms + took_ms // 2)
        if is_right != self.clock_is_right:
            self.clock_is_right = is_right
            if not is_right:
                log.error("this clock is off: the node takes no shards", off_ms=off_ms)
        self._routes.learn_members(seen.members)
        serving = frozenset(
            member.node_id for member in seen.members.values() if member.state == "serving"
        )
        if serving != self._serving:
            self._serving = serving
            self._changed_ms = self._read_ms
            self.changes += 1
            log.info("nodes came or went", serving=sorted(serving))
