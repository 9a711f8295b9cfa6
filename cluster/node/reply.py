"""The usual answer, 200 with a body on a connection that stays open, in one write.

aiohttp builds headers in a multidict and a writer per response; for the hot routes that is half of
what an answer costs. All other answers are aiohttp's own.
"""

from email.utils import formatdate
from functools import lru_cache

import orjson
from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http import SERVER_SOFTWARE


class Reply:
    """What aiohttp's connection wants of a response: `prepare` writes all of it."""

    __slots__ = ("_body", "_head")

    status = 200
    keep_alive = True

    def __init__(self, body: bytes, content_type: str, at_s: int) -> None:
        """`at_s` is any clock that moves with the time of day; the date follows it."""
        self._head = b"%b%d\r\nDate: %b\r\n\r\n" % (_head(content_type), len(body), _date(at_s))
        self._body = body

    async def prepare(self, request: web.BaseRequest) -> None:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        transport.write(self._head + self._body)
        # A client that reads slower than it asks waits here, not in this process's memory.
        await request.writer.drain()

    async def write_eof(self) -> None:
        pass


class Refusal:
    """A 429 that is encoded before anybody is refused; one object answers any number of requests.

    `Retry-After` has whole seconds; `retryAfterMs` in the body is the same, to the millisecond.
    """

    status = 429
    keep_alive = True

    def __init__(self, message: str, instance: str, retry_after_ms: int) -> None:
        self.message = message
        self.at_s = 0
        """As of a Reply; to be set before each use."""
        self.retry_after_s = -(-retry_after_ms // 1000)
        self._body = orjson.dumps(
            {
                "status": self.status,
                "message": message,
                "instance": instance,
                "retryable": True,
                "retryAfterMs": retry_after_ms,
            }
        )
        self._head = (
            "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\n"
            f"Server: {SERVER_SOFTWARE}\r\nRetry-After: {self.retry_after_s}\r\n"
            f"Content-Length: {len(self._body)}\r\nDate: "
        ).encode("ascii")

    async def prepare(self, request: web.BaseRequest) -> None:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        transport.write(b"%b%b\r\n\r\n%b" % (self._head, _date(self.at_s), self._body))
        await request.writer.drain()

    async def write_eof(self) -> None:
        pass


def may_reply(request: web.BaseRequest) -> bool:
    """Whether the client understands a plain reply, and keeps its connection."""
    return (
        request.keep_alive and request.version == HttpVersion11 and request.method != hdrs.METH_HEAD
    )


@lru_cache(maxsize=64)
def _head(content_type: str) -> bytes:
    return (
        f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nServer: {SERVER_SOFTWARE}\r\n"
        "Content-Length: "
    ).encode("ascii")


@lru_cache(maxsize=2)
def _date(_at_s: int) -> bytes:
    return formatdate(usegmt=True).encode("ascii")
