"""Many small questions to one server in few calls: a call costs the same whatever it carries."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cluster.errors import StoreFault

Operation = list[Any]
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
        self._asked: deque[tuple[Operation, int, asyncio.Future[Any]]] = deque()
        self._news = asyncio.Event()
        self._is_closed = False

    def ask(self, operation: Operation, *, size: int = 0) -> asyncio.Future[Any]:
        """The answer to an operation of about `size` bytes. StoreFault: its outcome is unknown."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._is_closed:
            _fail(answer, StoreFault("the connection to Redis is closed"))
        else:
            self._asked.append((operation, size, answer))
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
            for _, _, answer in self._asked:
                _fail(answer, StoreFault("the connection to Redis is closed"))
            self._asked.clear()

    async def _call_once(self) -> None:
        operations: list[Operation] = []
        answers: list[asyncio.Future[Any]] = []
        arguments_left, bytes_left = _ARGUMENTS_MAX, _BYTES_MAX
        while self._asked and bytes_left > 0 and arguments_left > 0:
            operation, size, answer = self._asked.popleft()
            # Whoever has gone before it was sent wants nothing any more.
            if not answer.done():
                operations.append(operation)
                answers.append(answer)
                arguments_left -= len(operation)
                bytes_left -= size
        if not answers:
            return
        given: Sequence[Any]
        try:
            given = await self._call(operations)
        except StoreFault as fault:
            given = [fault] * len(answers)
        except BaseException:
            for answer in answers:
                _fail(answer, StoreFault("the connection to Redis is closed"))
            raise
        for answer, one in zip(answers, given, strict=True):
            if isinstance(one, StoreFault):
                # One of its own for each: a traceback grows at every place that raises it.
                _fail(answer, StoreFault(one.message))
            elif not answer.done():
                answer.set_result(one)


def _fail(answer: "asyncio.Future[Any]", fault: StoreFault) -> None:
    if not answer.done():
        answer.set_exception(fault)
        answer.exception()  # Whoever asked may have gone: that is no news.
