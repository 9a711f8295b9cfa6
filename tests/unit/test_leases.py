"""Leases: kept while the log is provably open, run out only before the eyes of a watcher."""

import asyncio
from collections.abc import Mapping

import pytest

from cluster.errors import Fenced, StoreFault, Unavailable
from cluster.sharding.leases import LeaseKeeper, LeaseWatch
from cluster.store.lease_ports import LeasesSeen
from cluster.store.memory.leases import MemoryLeases
from cluster.store.memory.log import MemoryLogStore
from cluster.store.ports import Fence, LogId
from tests.support.virtual_time import VirtualClock, run_virtual

OWN, A, B = LogId("own/1"), LogId("a/1"), LogId("b/1")
TTL_MS, RENEW_MS = 5_000, 1_500


# -- watching


class Watcher:
    """A watch with its clock."""

    def __init__(self) -> None:
        self.watch = LeaseWatch(ttl_ms=TTL_MS, gap_ms_max=2_500)
        self.now_ms = 0

    def see(
        self, counters: Mapping[LogId, int], *, after_ms: int = 1_000, generation: str = "1"
    ) -> frozenset[LogId]:
        self.now_ms += after_ms
        seen = LeasesSeen(generation, counters)
        # The question was sent 10 ms before the answer came.
        self.watch.saw(seen, (A, B), sent_ms=self.now_ms - 10, received_ms=self.now_ms)
        return self.watch.silent


def test_a_lease_runs_out_when_its_counter_stood_still_for_a_whole_ttl() -> None:
    one = Watcher()
    found = [one.see({A: 7, B: count}) for count in range(7)]
    assert found[:6] == [frozenset()] * 6
    assert found[6] == {A}


def test_the_way_of_the_question_does_not_count_as_silence() -> None:
    one = Watcher()
    one.see({A: 7, B: 1})
    for count in range(4):
        one.see({A: 7, B: 2 + count})
    # A whole TTL after the first answer came, but this question was sent before that.
    assert one.see({A: 7, B: 9}, after_ms=1_005) == frozenset()
    assert one.see({A: 7, B: 10}, after_ms=5) == {A}


def test_one_that_was_never_renewed_runs_out_too() -> None:
    one = Watcher()
    found = [one.see({B: count}) for count in range(7)]
    assert found[-2:] == [frozenset(), {A}]


def test_a_renewal_begins_the_ttl_anew() -> None:
    one = Watcher()
    for count in (1, 1, 1, 1, 2, 2, 2, 2, 2):
        assert one.see({A: count, B: one.now_ms}) == frozenset()
    assert one.see({A: 2, B: -1}) == frozenset()
    assert one.see({A: 2, B: -2}) == {A}


def test_so_does_a_counter_that_went_back_or_away() -> None:
    one = Watcher()
    for counters in ({A: 5}, {A: 5}, {A: 3}, {A: 3}, {}, {}, {}, {}, {}):
        assert one.see({**counters, B: one.now_ms}) == frozenset()


def test_after_a_loss_of_the_server_everybody_gets_a_whole_ttl() -> None:
    one = Watcher()
    for _ in range(5):
        one.see({A: 7, B: one.now_ms})
    for _ in range(6):
        assert one.see({A: 7, B: one.now_ms}, generation="2") == frozenset()
    assert one.see({A: 7, B: one.now_ms}, generation="2") == {A}


def test_and_after_a_reading_that_was_not_answered() -> None:
    one = Watcher()
    for _ in range(5):
        one.see({A: 7, B: one.now_ms})
    one.watch.missed()
    for _ in range(6):
        assert one.see({A: 7, B: one.now_ms}) == frozenset()


def test_and_after_a_pause_of_the_watcher() -> None:
    """Redis may have been away just as long: the owner had no chance."""
    one = Watcher()
    one.see({A: 7, B: 1})
    assert one.see({A: 7, B: 2}, after_ms=60_000) == frozenset()
    assert one.see({A: 7, B: 3}) == frozenset()


def test_who_ran_out_and_renews_again_is_silent_no_more() -> None:
    one = Watcher()
    for _ in range(7):
        one.see({A: 7, B: one.now_ms})
    assert one.watch.silent == {A}
    assert one.see({A: 8, B: one.now_ms}) == frozenset()


# -- keeping


class FakeProof:
    """What a commit log knows of itself."""

    def __init__(self) -> None:
        self.proved_ms = -(1 << 60)
        self.is_idle = True


class Fences(MemoryLogStore):
    """Logs whose fences can be away or slow."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False
        self.delay_s = 0.0
        self.reads = 0

    async def fence(self, log: LogId) -> Fence | None:
        self.reads += 1
        if self.is_away:
            raise StoreFault("away")
        found = await super().fence(log)
        await asyncio.sleep(self.delay_s)
        return found


class Kept:
    """A keeper with all it stands on."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.leases = MemoryLeases()
        self.logs = Fences()
        self.proof = FakeProof()
        self.lost: list[Fenced] = []
        self.keeper = LeaseKeeper(
            self.leases,
            self.logs,
            OWN,
            self.proof,
            clock=self.clock,
            ttl_ms=TTL_MS,
            renew_ms=RENEW_MS,
            on_lost=self.lost.append,
        )

    async def begin(self) -> "Kept":
        await self.logs.create(OWN)
        self._run = asyncio.create_task(self.keeper.run())
        await asyncio.sleep(0.01)
        return self

    async def end(self) -> None:
        self._run.cancel()
        await asyncio.gather(self._run, return_exceptions=True)

    def is_fresh(self) -> bool:
        return self.keeper.is_fresh

    def is_renewed(self) -> bool:
        return self.keeper.is_renewed

    def is_proved(self) -> bool:
        return self.keeper.is_proved

    async def counter(self) -> int:
        return (await self.leases.read()).counters.get(OWN, 0)


def test_an_idle_log_reads_its_fence_and_keeps_its_lease() -> None:
    async def main() -> None:
        kept = await Kept().begin()
        assert kept.is_fresh()
        await asyncio.sleep(30)
        assert await kept.counter() == 21
        assert kept.logs.reads == 21
        assert kept.is_fresh()
        assert kept.is_proved()
        await kept.end()

    run_virtual(main())


def test_a_busy_one_need_not_read_it() -> None:
    async def main() -> None:
        kept = await Kept().begin()
        kept.logs.reads = 0
        for _ in range(300):
            kept.proof.proved_ms = kept.clock.monotonic_ms()
            await asyncio.sleep(0.1)
        assert kept.logs.reads == 0
        assert await kept.counter() == 21
        await kept.end()

    run_virtual(main())


def test_a_node_that_reaches_the_leases_but_not_the_store_lets_go() -> None:
    async def main() -> None:
        kept = await Kept().begin()
        await asyncio.sleep(10)
        kept.logs.is_away = True
        await asyncio.sleep(TTL_MS / 1000)
        count = await kept.counter()
        await asyncio.sleep(30)
        assert await kept.counter() == count
        assert not kept.is_fresh()
        assert not kept.is_proved()
        assert not kept.lost
        kept.logs.is_away = False
        await asyncio.sleep(2)
        assert kept.is_renewed()
        # Somebody may have seen it silent, and be about to seal the log.
        assert not kept.is_fresh()
        await asyncio.sleep(2 * TTL_MS / 1000 + RENEW_MS / 1000)
        assert kept.is_fresh()
        await kept.end()

    run_virtual(main())


def test_so_does_one_whose_appends_hang_though_its_fence_can_be_read() -> None:
    async def main() -> None:
        kept = await Kept().begin()
        kept.proof.is_idle = False
        await asyncio.sleep(TTL_MS / 1000 + RENEW_MS / 1000)
        count = await kept.counter()
        await asyncio.sleep(30)
        assert await kept.counter() == count
        await kept.end()

    run_virtual(main())


def test_an_idle_log_that_was_sealed_is_found_out() -> None:
    async def main() -> None:
        kept = await Kept().begin()
        await kept.logs.seal(OWN)
        count = await kept.counter()
        await asyncio.sleep(RENEW_MS / 1000 + 0.1)
        assert len(kept.lost) == 1
        await asyncio.sleep(30)
        assert await kept.counter() == count
        assert len(kept.lost) == 1
        await kept.end()

    run_virtual(main())


def test_memory_is_trusted_for_one_ttl_after_the_last_renewal_was_sent() -> None:
    async def main() -> None:
        kept = await Kept().begin()

        async def lose(log: LogId) -> None:
            raise Unavailable("away")

        await asyncio.sleep(1)
        kept.leases.renew = lose  # type: ignore[method-assign]
        await asyncio.sleep(TTL_MS / 1000 - 1.1)
        assert kept.is_fresh()
        await asyncio.sleep(0.2)
        assert not kept.is_fresh()
        # The fence still says who decides.
        await kept.keeper.confirm()
        assert not kept.lost
        await kept.end()

    run_virtual(main())


def test_who_renews_for_the_first_time_so_late_that_it_may_have_been_given_up_is_not_sure() -> None:
    async def main() -> None:
        kept = Kept()
        renew = kept.leases.renew

        async def lose(log: LogId) -> None:
            raise Unavailable("away")

        kept.leases.renew = lose  # type: ignore[method-assign]
        await kept.begin()
        await asyncio.sleep(TTL_MS / 1000)
        kept.leases.renew = renew  # type: ignore[method-assign]
        await asyncio.sleep(RENEW_MS / 1000)
        assert kept.is_renewed()
        assert not kept.is_fresh(), "somebody may be about to seal it, or have done so"
        await asyncio.sleep(2 * TTL_MS / 1000)
        await kept.keeper.confirm()
        assert kept.is_fresh()
        await kept.end()

    run_virtual(main())


def test_one_read_of_the_fence_serves_all_who_wait_for_it_to_begin() -> None:
    async def main() -> None:
        kept = await Kept().begin()
        await kept.end()
        kept.logs.delay_s, kept.logs.reads = 1.0, 0
        first = [asyncio.ensure_future(kept.keeper.confirm()) for _ in range(9)]
        await asyncio.sleep(0.5)
        assert kept.logs.reads == 1
        # The read under way may have looked before these came: they wait for another one.
        await kept.logs.seal(OWN)
        late = [asyncio.ensure_future(kept.keeper.confirm()) for _ in range(9)]
        await asyncio.gather(*first)
        found = await asyncio.gather(*late, return_exceptions=True)
        assert {type(one) for one in found} == {Fenced}
        assert kept.logs.reads == 2
        assert len(kept.lost) == 1

    run_virtual(main())


def test_who_cannot_read_the_fence_does_not_know() -> None:
    async def main() -> None:
        kept = await Kept().begin()
        kept.logs.is_away = True
        with pytest.raises(StoreFault):
            await kept.keeper.confirm()
        assert not kept.lost
        await kept.end()

    run_virtual(main())
