"""Signs of life that simulated nodes share."""

import asyncio

from cluster.store.lease_ports import Member
from cluster.store.memory.leases import MemoryLeases, MemoryMembership
from cluster.store.ports import LogId
from tests.support.virtual_time import VirtualClock, run_virtual

LOG = LogId("a/1")


def test_a_server_that_lost_all_says_so() -> None:
    async def main() -> None:
        leases = MemoryLeases()
        await leases.renew(LOG)
        before = await leases.read()
        leases.lose()
        after = await leases.read()
        assert after.counters == {}
        assert after.generation != before.generation
        await leases.renew(LOG)
        assert (await leases.read()).generation == after.generation

    run_virtual(main())


def test_a_member_is_listed_for_as_long_as_it_said_and_no_longer() -> None:
    async def main() -> None:
        membership = MemoryMembership(VirtualClock())
        await membership.beat(Member("a", LOG, "", "serving", 4, "", 0), ttl_ms=100)
        await asyncio.sleep(0.099)
        assert "a" in (await membership.read()).members
        await asyncio.sleep(0.001)
        assert not (await membership.read()).members

    run_virtual(main())
