"""What every implementation of Leases and Membership keeps."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import msgspec
import pytest
import pytest_asyncio

from cluster.clock import Clock, SystemClock
from cluster.store.lease_ports import Leases, Member, Membership
from cluster.store.memory.leases import MemoryLeases, MemoryMembership
from cluster.store.ports import LogId
from tests.support import redis

A, B = LogId("node-a/1"), LogId("node-b/1")
ANN = Member("node-a", A, "10.0.0.1:7001", "serving", 256, "1.0", 1_800_000_000_000)
BEN = Member("node-b", LogId(""), "10.0.0.2:7001", "joining", 256, "1.0", 1_800_000_000_001)


class SignsOfLife(msgspec.Struct):
    leases: Leases
    membership: Membership


@asynccontextmanager
async def open_memory() -> AsyncIterator[SignsOfLife]:
    yield SignsOfLife(MemoryLeases(), MemoryMembership(SystemClock()))


@asynccontextmanager
async def open_redis(kind: str) -> AsyncIterator[SignsOfLife]:
    async with redis.opened(kind) as stores:
        yield SignsOfLife(stores.leases, stores.membership)


OpenLife = Callable[[], AbstractAsyncContextManager[SignsOfLife]]
OPEN_LIFE: dict[str, OpenLife] = {
    "memory": open_memory,
    **{kind: partial(open_redis, kind) for kind in redis.KINDS},
}


@pytest_asyncio.fixture(params=OPEN_LIFE)
async def life(request: pytest.FixtureRequest) -> AsyncIterator[SignsOfLife]:
    async with OPEN_LIFE[request.param]() as life:
        yield life


@pytest_asyncio.fixture
async def leases(life: SignsOfLife) -> Leases:
    return life.leases


@pytest_asyncio.fixture
async def membership(life: SignsOfLife) -> Membership:
    return life.membership


async def gone(membership: Membership, node_id: str) -> None:
    """Wait until a member is off the list."""
    for _ in range(500):
        if node_id not in (await membership.read()).members:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"{node_id} is still listed")


@pytest.mark.asyncio
async def test_each_renewal_moves_its_own_counter(leases: Leases) -> None:
    assert (await leases.read()).counters == {}
    await leases.renew(A)
    await leases.renew(B)
    first = await leases.read()
    assert first.counters.keys() == {A, B}
    await leases.renew(A)
    second = await leases.read()
    assert second.counters[A] > first.counters[A]
    assert second.counters[B] == first.counters[B]
    assert second.generation == first.generation


@pytest.mark.asyncio
async def test_a_reading_does_not_change_afterwards(leases: Leases) -> None:
    await leases.renew(A)
    seen = await leases.read()
    before = dict(seen.counters)
    await leases.renew(A)
    await leases.drop(A)
    assert seen.counters == before


@pytest.mark.asyncio
async def test_a_dropped_lease_is_absent_and_nobody_elses_is(leases: Leases) -> None:
    await leases.renew(A)
    await leases.renew(B)
    await leases.drop(A)
    await leases.drop(A)
    await leases.drop(LogId("never/seen"))
    assert (await leases.read()).counters.keys() == {B}


@pytest.mark.asyncio
async def test_many_renewals_at_once_all_count(leases: Leases) -> None:
    logs = [LogId(f"node-{number}/1") for number in range(200)]
    await asyncio.gather(*(leases.renew(log) for log in logs))
    assert (await leases.read()).counters.keys() == set(logs)


@pytest.mark.asyncio
async def test_who_beats_is_listed_as_he_last_was(membership: Membership) -> None:
    assert (await membership.read()).members == {}
    await membership.beat(ANN, ttl_ms=60_000)
    await membership.beat(BEN, ttl_ms=60_000)
    serving = msgspec.structs.replace(BEN, log=B, state="serving")
    await membership.beat(serving, ttl_ms=60_000)
    assert (await membership.read()).members == {"node-a": ANN, "node-b": serving}


@pytest.mark.asyncio
async def test_who_leaves_is_off_the_list_at_once(membership: Membership) -> None:
    await membership.beat(ANN, ttl_ms=60_000)
    await membership.beat(BEN, ttl_ms=60_000)
    await membership.leave("node-a")
    await membership.leave("node-a")
    await membership.leave("nobody")
    assert (await membership.read()).members == {"node-b": BEN}


@pytest.mark.asyncio
async def test_who_is_silent_for_the_time_he_gave_is_off_the_list(membership: Membership) -> None:
    await membership.beat(ANN, ttl_ms=60_000)
    await membership.beat(BEN, ttl_ms=30)
    await gone(membership, "node-b")
    assert (await membership.read()).members == {"node-a": ANN}
    await membership.beat(BEN, ttl_ms=60_000)
    assert (await membership.read()).members == {"node-a": ANN, "node-b": BEN}


@pytest.mark.asyncio
async def test_the_last_beat_decides_how_long(membership: Membership) -> None:
    await membership.beat(ANN, ttl_ms=60_000)
    await membership.beat(ANN, ttl_ms=1)
    await gone(membership, "node-a")


@pytest.mark.asyncio
async def test_the_servers_clock_is_told(membership: Membership) -> None:
    clock: Clock = SystemClock()
    before_ms = clock.now_ms()
    told_ms = (await membership.read()).server_now_ms
    assert before_ms - 1000 <= told_ms <= clock.now_ms() + 1000
