"""A node among the others: what it tells, what it hears, and whether its clock is right."""

import asyncio

import pytest
from msgspec.structs import replace

from cluster.errors import Unavailable
from cluster.sharding.membership import Presence
from cluster.sharding.routes import Routes
from cluster.store.lease_ports import Member, MembersSeen
from cluster.store.memory.leases import MemoryMembership
from cluster.store.memory.shards import MemoryShardTable
from cluster.store.ports import LogId
from tests.support.virtual_time import VirtualClock, run_virtual

ME = Member("me", LogId("me/1"), "127.0.0.1:1", "serving", 4, "0", 0)
OTHER = replace(ME, node_id="other", log=LogId("other/1"))


class Server(MemoryMembership):
    """Membership that may be away, slow, or wrong about the time."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock)
        self.is_away = False
        self.ahead_ms = 0
        self.there_s = self.back_s = 0.0

    async def read(self) -> MembersSeen:
        if self.is_away:
            raise Unavailable("away")
        await asyncio.sleep(self.there_s)
        seen = await super().read()
        seen = replace(seen, server_now_ms=seen.server_now_ms + self.ahead_ms)
        await asyncio.sleep(self.back_s)
        return seen


def presence(member: Member = ME) -> tuple[Presence, Server]:
    clock = VirtualClock()
    server = Server(clock)
    routes = Routes(MemoryShardTable(), server)
    return (
        Presence(server, routes, lambda: member, clock=clock, heartbeat_ms=1_000, ttl_ms=5_000),
        server,
    )


def test_it_tells_of_itself_and_hears_of_the_others() -> None:
    async def main() -> None:
        mine, server = presence()
        await server.beat(OTHER, ttl_ms=5_000)
        await mine.beat()
        assert mine.members == {"me": ME, "other": OTHER}
        assert mine.is_current

    run_virtual(main())


@pytest.mark.parametrize(
    ("ahead_ms", "is_right"),
    [(0, True), (900, True), (-900, True), (1_200, False), (-1_200, False)],
)
def test_a_clock_that_is_far_off_the_servers_is_wrong(ahead_ms: int, is_right: bool) -> None:
    async def main() -> None:
        mine, server = presence()
        server.ahead_ms = ahead_ms
        await mine.beat()
        assert mine.clock_is_right is is_right

    run_virtual(main())


@pytest.mark.parametrize(("there_s", "back_s"), [(1.5, 0.0), (0.0, 1.5), (1.0, 1.0)])
def test_a_slow_answer_says_nothing_against_the_clock(there_s: float, back_s: float) -> None:
    async def main() -> None:
        mine, server = presence()
        server.there_s, server.back_s = there_s, back_s
        await mine.beat()
        assert mine.clock_is_right

    run_virtual(main())


def test_what_was_heard_gets_old_while_nobody_answers() -> None:
    async def main() -> None:
        mine, server = presence()
        run = asyncio.create_task(mine.run())
        await asyncio.sleep(2.5)
        server.is_away = True
        currents = []
        for _ in range(2):
            await asyncio.sleep(4)
            currents.append(mine.is_current)
        assert currents == [True, False]
        server.is_away = False
        await asyncio.sleep(1.1)
        assert len(mine.members) == 1
        run.cancel()

    run_virtual(main())


def test_who_comes_goes_or_drains_is_a_change_and_a_new_log_is_none() -> None:
    async def main() -> None:
        mine, server = presence()
        await mine.beat()
        count = mine.changes
        steps = [
            (OTHER, 1),
            (replace(OTHER, log=LogId("other/2")), 0),
            (replace(OTHER, state="draining"), 1),
            (replace(OTHER, state="joining"), 0),
            (OTHER, 1),
        ]
        for member, more in steps:
            await asyncio.sleep(1)
            await server.beat(member, ttl_ms=5_000)
            await mine.beat()
            count += more
            assert mine.changes == count
            assert (mine.unchanged_ms == 0) is bool(more)
        await server.leave("other")
        await mine.beat()
        assert mine.changes == count + 1

    run_virtual(main())


def test_after_it_left_it_is_not_listed_again() -> None:
    async def main() -> None:
        mine, server = presence()
        await mine.beat()
        await mine.leave()
        await mine.beat()
        assert (await server.read()).members == {}

    run_virtual(main())
