"""Repeat a call to a store until it answers: writes through a port may always be repeated."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
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
    loop = asyncio.get_running_loop()
    began_ms = clock.monotonic_ms()
    pause_ms = _PAUSE_MS_MIN
    while True:
        sent_ms = clock.monotonic_ms()
        fault: Unavailable
        try:
            with _Limit(loop, attempt_ms / 1_000):
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


class _Limit:
    """`asyncio.timeout` for a path that every commit takes: that one asks for the running loop
    three times, each of which is a system call."""

    __slots__ = ("_cancels", "_is_over", "_task", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        task = asyncio.current_task(loop)
        assert task is not None
        self._task = task
        self._cancels = task.cancelling()
        self._is_over = False
        self._timer = loop.call_later(seconds, self._end)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        # Somebody else may have cancelled the task at the same moment: that goes on.
        if self._is_over and self._task.uncancel() <= self._cancels:
            if isinstance(error, asyncio.CancelledError):
                raise TimeoutError from error

    def _end(self) -> None:
        self._is_over = True
        self._task.cancel()
