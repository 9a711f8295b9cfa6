"""Repeat a call to a store until it answers: writes through a port may always be repeated."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cluster.clock import Clock
from cluster.errors import StoreFault, Unavailable

T = TypeVar("T")

ATTEMPT_MS = 5_000
"""A call without an answer for this long is sent again."""

_PAUSE_MS_MIN = 10
_PAUSE_MS_MAX = 1_000


async def insist(
    call: Callable[[], Awaitable[T]],
    *,
    clock: Clock,
    deadline_ms: int | None,
    attempt_ms: int = ATTEMPT_MS,
) -> T:
    """The first answer of `call`, repeated while it is Unavailable, or there is none.

    Unavailable (of a durable store, a StoreFault): no answer within `deadline_ms` (None: there is
    no such limit); the outcome of the attempts is unknown.
    """
    began_ms = clock.monotonic_ms()
    pause_ms = _PAUSE_MS_MIN
    while True:
        sent_ms = clock.monotonic_ms()
        fault: Unavailable
        try:
            async with asyncio.timeout(attempt_ms / 1_000):
                return await call()
        except Unavailable as error:
            fault = error
        except TimeoutError:
            fault = StoreFault(f"a store gave no answer within {attempt_ms} ms")
            # While this process itself stood still no answer could be heard: that is not held
            # against the store.
            began_ms += max(0, clock.monotonic_ms() - sent_ms - attempt_ms)
        if deadline_ms is not None and clock.monotonic_ms() - began_ms >= deadline_ms:
            raise fault
        await asyncio.sleep(pause_ms / 1_000)
        pause_ms = min(2 * pause_ms, _PAUSE_MS_MAX)
