"""Plain requests: what is taken for one, and all that is left to aiohttp."""

import pytest

from cluster.node.plain_http import BODY_BYTES_MAX, PlainRequest, read_request


def head(line: bytes = b"POST /a?b=c HTTP/1.1", *headers: bytes) -> bytes:
    return b"\r\n".join((line, b"Host: h", *headers)) + b"\r\n\r\n"


def test_a_usual_request_is_read() -> None:
    request = head(
        b"POST /api/tasks?x=%20&y HTTP/1.1",
        b"User-Agent: w/1 (x)",
        b"Connection: Keep-Alive",
        b"content-TYPE:application/json; charset=utf-8 ",
        b"Content-Length:  4",
        b"X-Empty:",
    )
    assert read_request(request + b"body") == PlainRequest(
        "POST", "/api/tasks?x=%20&y", "application/json; charset=utf-8", b"body"
    )
    # The second time from memory.
    assert read_request(request + b"BODY") == PlainRequest(
        "POST", "/api/tasks?x=%20&y", "application/json; charset=utf-8", b"BODY"
    )


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_request_needs_no_body(method: str) -> None:
    line = f"{method} / HTTP/1.1".encode()
    assert read_request(head(line)) == PlainRequest(method, "/", "", b"")


def test_a_body_is_waited_for() -> None:
    request = head(b"POST / HTTP/1.1", b"Content-Length: 10")
    assert read_request(request) == 10
    assert read_request(request + b"123456789") == 1
    assert read_request(request + b"0123456789") == PlainRequest("POST", "/", "", b"0123456789")


def test_a_long_head_is_read_too() -> None:
    long = b"/" + b"a" * 1000
    request = read_request(head(b"GET " + long + b" HTTP/1.1", b"X: " + b"y" * 1000))
    assert request == PlainRequest("GET", long.decode(), "", b"")


LINE = b"POST / HTTP/1.1"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n",
        b"\r\n" + head(),
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"GET / HTTP/1.1\nHost: h\r\n\r\n",
        head(b"GET / HTTP/1.0"),
        head(b"GET / HTTP/1.1 "),
        head(b" GET / HTTP/1.1"),
        head(b"GET  / HTTP/1.1"),
        head(b"get / HTTP/1.1"),
        head(b"HEAD / HTTP/1.1"),
        head(b"OPTIONS * HTTP/1.1"),
        head(b"PATCH / HTTP/1.1"),
        head(b"CONNECT h:1 HTTP/1.1"),
        head(b"GET http://h/ HTTP/1.1"),
        head(b"GET /a#b HTTP/1.1"),
        head(b"GET /\xc3\xa9 HTTP/1.1"),
        head(b"GET /\x00 HTTP/1.1"),
        head(LINE, b"Transfer-Encoding: chunked"),
        head(LINE, b"Content-Length: 0", b"Transfer-Encoding: chunked"),
        head(LINE, b"TRANSFER-encoding: identity"),
        head(LINE, b"Content-Encoding: gzip"),
        head(LINE, b"Expect: 100-continue"),
        head(LINE, b"Upgrade: websocket"),
        head(LINE, b"Connection: close"),
        head(LINE, b"Connection: keep-alive, Upgrade"),
        head(LINE, b"Connection: "),
        head(LINE, b"Content-Length: 1", b"Content-Length: 1"),
        head(LINE, b"Content-Length: 1, 1") + b"a",
        head(LINE, b"Content-Length: +1") + b"a",
        head(LINE, b"Content-Length: -1"),
        head(LINE, b"Content-Length: 0x1") + b"a",
        head(LINE, b"Content-Length: \xb2") + b"aa",
        head(LINE, b"Content-Length:"),
        head(LINE, b"Content-Length: %d" % (BODY_BYTES_MAX + 1)),
        head(LINE, b"Content-Length: 9999999999"),
        head(LINE, b"Host: other"),
        head(LINE, b"Content-Length : 1") + b"a",
        head(LINE, b" Folded: 1"),
        head(LINE, b"A: 1\r\n continued"),
        head(LINE, b"A: 1\rB: 2"),
        head(LINE, b"A: 1\nB: 2"),
        head(LINE, b"A: \x00"),
        head(LINE, b": nameless"),
        head(LINE, b"no colon"),
        head(LINE, b"X: " + b"a" * 5000),
        head(LINE) + head(LINE),
        head(LINE, b"Content-Length: 1") + b"ab",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    ],
)
def test_anything_else_is_left_alone(request_bytes: bytes) -> None:
    assert read_request(request_bytes) is None
