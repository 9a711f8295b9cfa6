"""A connection to one Redis server: commands go out as they come, answers come back in order.

The driver's connections serve every use of Redis, and a call through one costs several times what
it does here. A node makes hundreds of calls a second, all of them alike.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from ssl import SSLContext
from typing import Any, Final

import hiredis
from redis.exceptions import (
    InvalidResponse,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from cluster.urls import Login

Argument = bytes | str | int
Address = tuple[str, int]
Heard = Callable[[bytes], None]

_MORE: Final = object()
_ERRORS: Final[dict[str, type[RedisError]]] = {
    "NOSCRIPT": NoScriptError,
    "OOM": OutOfMemoryError,
    "READONLY": ReadOnlyError,
}


class Pipe(asyncio.Protocol):
    """One connection, made by the loop. What it raises are errors of the driver, or OSError."""

    def __init__(self, loop: asyncio.AbstractEventLoop, heard: Heard | None = None) -> None:
        """`heard` gets what is published, once there is a subscription."""
        self._loop = loop
        self._heard = heard
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=_error_of, notEnoughData=_MORE
        )
        self._asked: deque[asyncio.Future[Any]] = deque()
        self._transport: Any = None
        self.is_open = False

    async def call(self, words: tuple[Argument, ...], timeout_s: float) -> Any:
        """The answer to a command. Without one in time the connection ends, for all who wait."""
        if not self.is_open:
            raise ConnectionError("the connection is closed")
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._asked.append(answer)
        self._transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]
        limit = self._loop.call_later(timeout_s, self.close, f"no answer within {timeout_s} s")
        try:
            return await answer
        finally:
            limit.cancel()

    def close(self, why: str = "the connection was closed") -> None:
        """End it; whoever waits for an answer learns why. May be repeated."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()
        while self._asked:
            answer = self._asked.popleft()
            # One of its own for each: a traceback grows at every place that raises it.
            _settle(answer, ConnectionError(why))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        try:
            reader.feed(data)
            while (answer := reader.gets(False)) is not _MORE:
                self._take(answer)
        except RedisError as error:
            self.close(str(error))

    def connection_lost(self, error: Exception | None) -> None:
        self.close(f"the server closed the connection: {error}")

    def _take(self, answer: Any) -> None:
        if self._heard is not None and type(answer) is list and answer[0] == b"message":
            self._heard(answer[2])
        elif self._asked:
            # Whoever asked may have gone; his answer still has its place.
            _settle(self._asked.popleft(), answer)
        else:
            raise InvalidResponse(f"nobody asked for {answer!r}")


def _settle(asked: "asyncio.Future[Any]", answer: Any) -> None:
    if asked.done():
        return
    if isinstance(answer, Exception):
        asked.set_exception(answer)
    else:
        asked.set_result(answer)


def _error_of(text: str) -> RedisError:
    code, _, rest = text.partition(" ")
    if code == "MOVED":
        return MovedError(rest)
    return _ERRORS.get(code, ResponseError)(text)


class Server:
    """One server, connected with by the first call, and again whenever the connection broke."""

    def __init__(
        self,
        address: Callable[[], Awaitable[Address]],
        *,
        login: Login | None,
        database: int = 0,
        timeout_ms: int,
        tls: SSLContext | None = None,
    ) -> None:
        """`address` is asked for before each connection."""
        self._address = address
        self._login = login
        self._database = database
        self._timeout_s = timeout_ms / 1000
        self._tls = tls
        self._pipe: Pipe | None = None
        self._opening = asyncio.Lock()

    async def call(self, *words: Argument) -> Any:
        """The answer to a command; never repeated."""
        pipe = self._pipe
        if pipe is None or not pipe.is_open:
            pipe = await self._opened()
        try:
            return await pipe.call(words, self._timeout_s)
        except ReadOnlyError as error:
            # No primary any more: the next connection shall go to the one there is then.
            pipe.close(str(error))
            raise

    async def listen(
        self, channel: str, *, heard: Heard, began: Callable[[], None], ping_s: float
    ) -> None:
        """Hear what is published, over a connection of its own, until that breaks and raises.
        `began` is called when nothing is missed from now on."""
        pipe = await self._open(heard)
        try:
            await pipe.call(("SUBSCRIBE", channel), self._timeout_s)
            began()
            while True:
                await asyncio.sleep(ping_s)
                await pipe.call(("PING",), self._timeout_s)
        finally:
            pipe.close()

    def close(self) -> None:
        """End the connection; a later call makes another one."""
        if self._pipe is not None:
            self._pipe.close()

    async def _opened(self) -> Pipe:
        async with self._opening:
            if self._pipe is None or not self._pipe.is_open:
                self._pipe = await self._open(None)
            return self._pipe

    async def _open(self, heard: Heard | None) -> Pipe:
        loop = asyncio.get_running_loop()
        host, port = await self._address()
        async with asyncio.timeout(self._timeout_s):
            _, pipe = await loop.create_connection(
                lambda: Pipe(loop, heard), host, port, ssl=self._tls
            )
            try:
                if self._login is not None:
                    who = (self._login.user,) if self._login.user else ()
                    await pipe.call(("AUTH", *who, self._login.password), self._timeout_s)
                if self._database:
                    await pipe.call(("SELECT", self._database), self._timeout_s)
            except BaseException:
                pipe.close()
                raise
        return pipe
