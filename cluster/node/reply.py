"""An answer as the bytes that go over the wire, for connections that aiohttp does not write to."""

from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson
from aiohttp.http import SERVER_SOFTWARE


class Reply(NamedTuple):
    data: bytes
    closes: bool
    """The connection ends with it."""


def reply(
    status: int,
    body: bytes,
    content_type: str,
    *,
    at_s: int,
    headers: Iterable[tuple[str, str]] = (),
    closes: bool = False,
) -> Reply:
    """`at_s` is any clock that moves with the time of day; the date follows it."""
    head = _head(status, content_type if body else "") + b"Date: %b\r\n" % _date(at_s)
    for name, value in headers:
        head += f"{name}: {value}\r\n".encode("latin-1")
    if closes:
        head += b"Connection: close\r\n"
    if status == HTTPStatus.NO_CONTENT:
        return Reply(head + b"\r\n", closes)
    return Reply(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body), closes)


def error_body(status: int, message: str, instance: str, *, retryable: bool, **more: Any) -> bytes:
    """Conductor's JSON of an error, with what only some errors say."""
    body = {"status": status, "message": message, "instance": instance, "retryable": retryable}
    return orjson.dumps(body | more)


class Refusal:
    """A 429 that is encoded before anybody is refused; one object answers any number of requests.

    `Retry-After` has whole seconds; `retryAfterMs` in the body is the same, to the millisecond.
    """

    status = 429

    def __init__(self, message: str, instance: str, retry_after_ms: int) -> None:
        self.message = message
        self.retry_after_s = -(-retry_after_ms // 1000)
        self.body = error_body(
            self.status, message, instance, retryable=True, retryAfterMs=retry_after_ms
        )


@lru_cache(maxsize=64)
def _head(status: int, content_type: str) -> bytes:
    kind = f"Content-Type: {content_type}\r\n" if content_type else ""
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{kind}Server: {SERVER_SOFTWARE}\r\n"
    ).encode("latin-1")


@lru_cache(maxsize=2)
def _date(_at_s: int) -> bytes:
    return formatdate(usegmt=True).encode("ascii")
