"""Leases and Membership in this process: what embedded mode runs, and the readable model.

The nodes of a simulated cluster share one of each.
"""

from cluster.clock import Clock
from cluster.store.lease_ports import LeasesSeen, Member, MembersSeen
from cluster.store.ports import LogId


class MemoryLeases:
    """Leases for one event loop: no call ever suspends."""

    def __init__(self) -> None:
        self._counters: dict[LogId, int] = {}
        self._losses = 0

    async def renew(self, log: LogId) -> None:
        self._counters[log] = self._counters.get(log, 0) + 1

    async def drop(self, log: LogId) -> None:
        self._counters.pop(log, None)

    async def read(self) -> LeasesSeen:
        return LeasesSeen(str(self._losses), dict(self._counters))

    def lose(self) -> None:
        """Forget everything, as a server does that was flushed."""
        self._counters.clear()
        self._losses += 1


class MemoryMembership:
    """Membership for one event loop: no call ever suspends."""

    def __init__(self, clock: Clock) -> None:
        """`clock` is what the port calls the server's: the nodes may have others."""
        self._clock = clock
        self._listed: dict[str, tuple[Member, int]] = {}
        """Node id → the member, and until when it is listed (monotonic ms)."""

    async def beat(self, member: Member, *, ttl_ms: int) -> None:
        self._listed[member.node_id] = member, self._clock.monotonic_ms() + ttl_ms

    async def leave(self, node_id: str) -> None:
        self._listed.pop(node_id, None)

    async def read(self) -> MembersSeen:
        now_ms = self._clock.monotonic_ms()
        self._listed = {
            node_id: (member, until_ms)
            for node_id, (member, until_ms) in self._listed.items()
            if until_ms > now_ms
        }
        members = {node_id: member for node_id, (member, _) in self._listed.items()}
        return MembersSeen(members, self._clock.now_ms())

    def lose(self) -> None:
        """Forget everything, as a server does that was flushed."""
        self._listed.clear()
