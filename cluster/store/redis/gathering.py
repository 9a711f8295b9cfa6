"""Many small questions to one server in few calls: a call costs the same whatever it carries."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cluster.errors import StoreFault

Operation = list[Any]
"""A word that says what to do, and its arguments."""
Call = Callable[[Sequence[Operation]], Awaitable[Sequence[Any]]]
"""Sends operations in their order; returns one answer for each, or the StoreFault it met."""

_ARGUMENTS_MAX = 20_000
_BYTES_MAX = 4 * 1024 * 1024


class Gathering:
    """Operations for one server, in the order in which they were asked for.

    One call is under way at a time. What is asked for meanwhile goes with the next one, so the
    calls grow with the load by themselves.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._asked: deque[tuple[Sequence[Operation], int, bool, asyncio.Future[Any]]] = deque()
        """Operations, bytes, whether it is a single one, who waits."""
        self._news = asyncio.Event()
        self._is_closed = False
        # Asked for once: to look up the running loop costs a system call.
        self._loop = asyncio.get_running_loop()

    def ask(self, operation: Operation, *, size: int = 0) -> asyncio.Future[Any]:
        """The answer to an operation of about `size` bytes. StoreFault: its outcome is unknown."""
        return self._ask((operation,), size, is_single=True)

    def ask_all(self, operations: Sequence[Operation], *, size: int = 0) -> asyncio.Future[Any]:
        """The answers to several that go in one call; the first fault among them, if any."""
        return self._ask(operations, size, is_single=False)

    def _ask(
        self, operations: Sequence[Operation], size: int, *, is_single: bool
    ) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self._is_closed:
            _fail(answer, StoreFault("the connection to Redis is closed"))
        else:
            self._asked.append((operations, size, is_single, answer))
            self._news.set()
        return answer

    async def run(self) -> None:
        """Call until cancelled; then nothing is answered any more."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._asked:
                    await self._call_once()
        finally:
            self._is_closed = True
            for *_, answer in self._asked:
                _fail(answer, StoreFault("the connection to Redis is closed"))
            self._asked.clear()

    async def _call_once(self) -> None:
        operations: list[Operation] = []
        asked: list[tuple[int, bool, asyncio.Future[Any]]] = []
        arguments_left, bytes_left = _ARGUMENTS_MAX, _BYTES_MAX
        while self._asked and bytes_left > 0 and arguments_left > 0:
            some, size, is_single, answer = self._asked.popleft()
            # Whoever has gone before it was sent wants nothing any more.
            if not answer.done():
                operations += some
                asked.append((len(some), is_single, answer))
                arguments_left -= sum(map(len, some))
                bytes_left -= size
        if not asked:
            return
        given: Sequence[Any]
        try:
            given = await self._call(operations)
        except StoreFault as fault:
            given = [fault] * len(operations)
        except BaseException:
            for *_, answer in asked:
                _fail(answer, StoreFault("the connection to Redis is closed"))
            raise
        start = 0
        for count, is_single, answer in asked:
            own = given[start : start + count]
            start += count
            _settle(answer, own, is_single=is_single)
        assert start == len(given), "one answer for each operation"


def _settle(answer: "asyncio.Future[Any]", given: Sequence[Any], *, is_single: bool) -> None:
    for one in given:
        if isinstance(one, StoreFault):
            # One of its own for each: a traceback grows at every place that raises it.
            _fail(answer, StoreFault(one.message))
            return
    if not answer.done():
        answer.set_result(given[0] if is_single else given)


def _fail(answer: "asyncio.Future[Any]", fault: StoreFault) -> None:
    if not answer.done():
        answer.set_exception(fault)
        answer.exception()  # Whoever asked may have gone: that is no news.
