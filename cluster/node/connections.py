"""aiohttp's bare server, fitted to the edge.

What is no HTTP is answered in Conductor's shape, and a request costs no task of its own.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

from aiohttp import web

from cluster.logs import get_log

log = get_log(__name__)

T = TypeVar("T")


class Server(web.Server):
    """What a runner of aiohttp serves."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[Any]],
        *,
        request_factory: Any,
        refuse: Callable[[int, str], web.Response],
    ) -> None:
        super().__init__(handler, request_factory=request_factory)
        self.refuse = refuse

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, access_log=None)


class _Connection(web.RequestHandler):
    __slots__ = ("_refuse",)

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._refuse = server.refuse

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if sys.version_info < (3, 12):
            # Later versions begin a task at once, which does as well.
            self._loop = cast(asyncio.AbstractEventLoop, _LoopWithoutTasks(self._loop))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Called for requests that never reached a handler; closes the connection."""
        if status >= 500:
            log.error("connection failed", exc_info=exc)
        text = " ".join((message or "The request cannot be read").split())
        response = self._refuse(status, f"This is not HTTP as it should be: {text}")
        response.force_close()
        return response


class _LoopWithoutTasks:
    """The loop as a connection uses it after it is made, but for one thing: where aiohttp has each
    request handled in a new task, and awaits that, the connection's own task handles it.

    aiohttp does so to give each request context variables of its own; nothing here sets any for
    longer than a `with`. Two turns of the loop less per request were a fifth of the CPU of chain5.
    """

    __slots__ = ("call_at", "create_future", "time")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.call_at = loop.call_at
        self.create_future = loop.create_future
        self.time = loop.time

    def create_task(self, handling: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        return handling
