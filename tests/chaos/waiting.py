"""Waiting for what goes on meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

Say = Callable[[str], None]
"""Writes a line for whoever watches."""

_LIMIT_S = 60


async def until(condition: Callable[[], bool], *, pause_s: float) -> None:
    """Wait for a condition; TimeoutError if it does not come."""
    async with asyncio.timeout(_LIMIT_S):
        while True:
            if condition():
                return
            await asyncio.sleep(pause_s)


@asynccontextmanager
async def background(loop: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """A loop that runs meanwhile; if it fails, the test ends."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(loop)
        yield
        task.cancel()
