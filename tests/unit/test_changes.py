"""The counter of changed definitions: nobody is given what was read before it asked."""

import asyncio

from cluster.node.metadata import Changes
from cluster.store.memory.metadata import MemoryMetadataStore
from cluster.store.ports import Definition
from tests.support.virtual_time import run_virtual

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
        changes = Changes(Slow())
        before = await changes.latest()
        under_way = asyncio.ensure_future(changes.latest())
        await asyncio.sleep(READ_S / 2)
        await changes.announce(1)
        assert await changes.latest() > before
        assert await under_way >= before

    run_virtual(main())


def test_one_after_the_other_asks_without_delay() -> None:
    async def main() -> None:
        changes, loop = Changes(Slow()), asyncio.get_running_loop()
        began_s = loop.time()
        for _ in range(10):
            await changes.latest()
        assert loop.time() - began_s < 11 * READ_S

    run_virtual(main())


def test_many_who_ask_all_the_time_share_few_reads() -> None:
    async def main() -> None:
        store = Slow()
        changes = Changes(store)

        async def ask(number: int) -> None:
            for _ in range(50):
                await asyncio.sleep(0.0002 * (1 + number))
                await changes.latest()

        await asyncio.gather(*(ask(number) for number in range(8)))
        # 400 times it was asked; 150 reads, if none waited for others.
        assert store.reads <= 120

    run_virtual(main())
