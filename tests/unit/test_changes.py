"""The counter of changed definitions: nobody is given what was read before it asked."""

import asyncio

from cluster.node.metadata import STANDS_MS, Changes
from cluster.store.memory.metadata import MemoryMetadataStore
from cluster.store.ports import Definition
from tests.support.virtual_time import HandClock, VirtualClock, run_virtual

READ_S = 0.001


class Slow(MemoryMetadataStore):
    """Counts its reads, which take a while."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    async def get(self, kind: str, name: str, version: int | None) -> Definition | None:
        self.reads += 1
        found = await super().get(kind, name, version)
        await asyncio.sleep(READ_S)
        return found


def test_who_asks_after_a_change_knows_of_it() -> None:
    async def main() -> None:
        changes = Changes(Slow(), VirtualClock())
        before = await changes.latest()
        under_way = asyncio.ensure_future(changes.latest())
        await asyncio.sleep(READ_S / 2)
        await changes.announce(1)
        assert await changes.latest() > before
        assert await under_way >= before

    run_virtual(main())


def test_a_change_is_known_to_a_node_that_has_just_looked() -> None:
    """However recently another node read the counter: who announces waits that long."""

    async def main() -> None:
        store, clock = Slow(), VirtualClock()
        here, there = Changes(store, clock), Changes(store, clock)
        before = await there.latest()
        announcing = asyncio.ensure_future(here.announce(1))
        while not announcing.done():
            await there.latest()
            await asyncio.sleep(0.003)
        assert await there.latest() > before

    run_virtual(main())


def test_what_was_read_counts_from_when_it_was_asked_for() -> None:
    async def main() -> None:
        store, clock = Slow(), HandClock()
        changes = Changes(store, clock)
        reading = asyncio.ensure_future(changes.latest())
        await asyncio.sleep(READ_S / 2)
        clock.ms += STANDS_MS - 1
        await reading
        await changes.latest()
        assert store.reads == 1
        clock.ms += 1
        await changes.latest()
        assert store.reads == 2

    run_virtual(main())


def test_one_after_the_other_asks_without_delay() -> None:
    async def main() -> None:
        changes, loop = Changes(Slow(), VirtualClock()), asyncio.get_running_loop()
        began_s = loop.time()
        for _ in range(10):
            await changes.latest()
        assert loop.time() - began_s < 11 * READ_S

    run_virtual(main())


def test_many_who_ask_at_a_time_share_a_read() -> None:
    async def main() -> None:
        store = Slow()
        changes = Changes(store, VirtualClock())

        async def ask(number: int) -> None:
            for _ in range(40):
                await asyncio.sleep(0.0002 * (1 + number))
                await changes.latest()

        await asyncio.gather(*(ask(number) for number in range(8)))
        # 320 times it was asked, within 70 ms.
        assert store.reads == 1

    run_virtual(main())
