"""aiohttp's bare server, fitted to the edge.

The usual request does not come to aiohttp at all: it is read, handled and answered here, in one
task and one write. A connection that has sent anything else is aiohttp's from then on. What is no
HTTP is answered in Conductor's shape.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from aiohttp import web

from cluster.logs import get_log
from cluster.node.plain_http import PlainRequest, read_request
from cluster.node.reply import Reply

log = get_log(__name__)


Serve = Callable[[PlainRequest, asyncio.Transport], Coroutine[Any, Any, Reply] | None]
"""Begins to answer a plain request, whatever happens then; None: it is not at home here."""


class Server(web.Server):
    """What a runner of aiohttp serves."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[Any]],
        *,
        request_factory: Any,
        refuse: Callable[[int, str], web.Response],
        serve: Serve,
    ) -> None:
        """`serve` gets the plain requests, `handler` all others."""
        super().__init__(handler, request_factory=request_factory)
        self.refuse = refuse
        self.serve = serve

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, access_log=None)


class _Connection(web.RequestHandler):
    __slots__ = ("_ahead", "_answering", "_is_plain", "_refuse", "_serve")

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._refuse = server.refuse
        self._serve = server.serve
        self._is_plain = True
        self._answering: asyncio.Task[None] | None = None
        self._ahead = b""
        """What came before it was wanted: half a body, or the next request."""

    def data_received(self, data: bytes) -> None:
        if not self._is_plain:
            super().data_received(data)
            return
        if self._force_close or self._close:
            return
        if self._ahead:
            data = self._ahead + data
        transport = self.transport
        if self._answering is not None:
            self._ahead = data
            self._pause_transport_reading()
            return
        request = read_request(data)
        if isinstance(request, int):
            self._ahead = data
            return
        self._ahead = b""
        if request is not None and transport is not None:
            answering = self._serve(request, transport)
            if answering is not None:
                # aiohttp's own marks: for this one it waits too when it shuts down.
                self._request_in_progress = True
                self._answering = self._loop.create_task(self._answer(answering, transport))
                return
        self._is_plain = False
        super().data_received(data)

    async def _answer(
        self, answering: Coroutine[Any, Any, Reply], transport: asyncio.Transport
    ) -> None:
        closes = True
        try:
            reply = await answering
            if transport.is_closing():
                return
            transport.write(reply.data)
            closes = reply.closes or self._close or self._force_close
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
            if self._paused:
                # A client that reads slower than it asks waits here, not in this process's memory.
                await self._drain_helper()
        except ConnectionError:
            pass  # The client has gone.
        finally:
            self._answering = None
            self._request_in_progress = False
            if self._handler_waiter is not None and not self._handler_waiter.done():
                self._handler_waiter.set_result(None)
            if closes:
                self.close()
                transport.close()
            elif self._ahead:
                self._resume_transport_reading()
                self.data_received(b"")

    def _process_keepalive(self) -> None:
        if self._answering is not None:
            # Only silence wears a connection out, not a long wait for its answer.
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

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
