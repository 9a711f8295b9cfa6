"""The driver's timers: most are cancelled, and the others fire, in a line of their length."""

import asyncio

from cluster.store.cassandra.connection import _Timer, _Timers
from tests.support.virtual_time import run_virtual


def test_those_not_cancelled_fire_after_their_time_in_seconds() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        timers, fired = _Timers(loop), []
        began_s = loop.time()

        def start(name: str, timeout_s: float) -> _Timer:
            timer = _Timer(lambda: fired.append((name, round(loop.time() - began_s, 3))))
            timers.add(timeout_s, timer)
            return timer

        first = start("first", 9.99)
        start("short", 0.01)
        await asyncio.sleep(0.5)
        start("second", 9.98)
        first.cancel()
        await asyncio.sleep(20)
        assert fired == [("short", 1.0), ("second", 10.5)]
        start("again", 10)
        await asyncio.sleep(10.001)
        assert fired[2:] == [("again", 30.5)]
        assert not timers._lines

    run_virtual(main())


def test_a_line_of_cancelled_ones_stays_short() -> None:
    async def main() -> None:
        timers = _Timers(asyncio.get_running_loop())
        for _ in range(1_000):
            timer = _Timer(lambda: None)
            timers.add(10, timer)
            timer.cancel()
        assert len(timers._lines[10]) == 1

    run_virtual(main())
