"""A call to a store, repeated until it answers; whoever cancels it is obeyed."""

import asyncio

import pytest

from cluster.errors import StoreFault
from cluster.sharding.insist import insist
from tests.support.virtual_time import VirtualClock, run_virtual


def test_a_call_without_answer_is_sent_again() -> None:
    calls: list[float] = []

    async def call() -> str:
        calls.append(asyncio.get_running_loop().time())
        if len(calls) < 3:
            await asyncio.sleep(3600)
        return "answer"

    async def main() -> str:
        return await insist(call, clock=VirtualClock(), deadline_ms=None, attempt_ms=1000)

    assert run_virtual(main()) == "answer"
    assert len(calls) == 3
    assert calls[1] >= 1.0
    assert calls[2] >= calls[1] + 1.0


def test_the_deadline_ends_it() -> None:
    async def call() -> None:
        await asyncio.sleep(3600)

    async def main() -> None:
        await insist(call, clock=VirtualClock(), deadline_ms=5_000, attempt_ms=1000)

    with pytest.raises(StoreFault, match="no answer within 1000 ms"):
        run_virtual(main())


@pytest.mark.parametrize("after_s", [0.5, 1.0])
def test_a_cancelled_caller_is_cancelled_even_when_its_time_is_up_at_once(after_s: float) -> None:
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(3600)

    async def main() -> None:
        waiting = asyncio.ensure_future(
            insist(call, clock=VirtualClock(), deadline_ms=None, attempt_ms=1000)
        )
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(after_s, waiting.cancel)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert calls == 1

    run_virtual(main())


def test_the_time_limit_leaves_nothing_behind() -> None:
    async def main() -> None:
        async def call() -> None:
            pass

        await insist(call, clock=VirtualClock(), deadline_ms=None, attempt_ms=1000)
        await asyncio.sleep(5)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run_virtual(main())
