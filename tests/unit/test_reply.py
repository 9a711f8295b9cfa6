"""Connections: what a client sees of plain requests, and of those that aiohttp reads instead."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from cluster.metrics import Metrics
from cluster.node.middleware import Answer, Call, Edge, Route
from cluster.node.plain_http import BODY_BYTES_MAX

pytestmark = pytest.mark.asyncio

LARGE = 8 << 20


async def small(_call: Call) -> Answer:
    return Answer(b'{"a":1}')


async def large(_call: Call) -> Answer:
    return Answer(b"x" * LARGE)


async def echo(call: Call) -> Answer:
    return Answer(call.body, content_type=call.content_type)


async def nothing(_call: Call) -> Answer:
    return Answer(status=204)


class Served:
    """A served edge, and one connection to it."""

    def __init__(self, edge: Edge, runner: web.ServerRunner) -> None:
        self.edge = edge
        self.runner = runner
        self.handling = asyncio.Semaphore(0)
        self.go_on = asyncio.Event()

    async def wait(self, _call: Call) -> Answer:
        self.handling.release()
        await self.go_on.wait()
        return Answer(b"at last")


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Served, asyncio.StreamReader, asyncio.StreamWriter]]:
    edge = Edge(Metrics(), body_bytes_max=2 * BODY_BYTES_MAX)
    runner = web.ServerRunner(edge.server(), shutdown_timeout=5)
    server = Served(edge, runner)
    edge.add([Route(method, "/small", small) for method in ("GET", "HEAD")])
    edge.add([Route("GET", "/large", large), Route("POST", "/echo", echo)])
    edge.add([Route("GET", "/wait", server.wait), Route("GET", "/nothing", nothing)])
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield server, reader, writer
    finally:
        server.go_on.set()
        writer.close()
        await runner.cleanup()


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with served() as (_, reader, writer):
        yield reader, writer


async def answer_to(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[bytes, dict[str, str]]:
    writer.write(request)
    lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    pairs = (line.decode().split(": ", 1) for line in lines[1:] if line)
    return lines[0], {name.lower(): value for name, value in pairs}


async def test_a_reply_has_what_a_client_needs_and_keeps_the_connection() -> None:
    async with connected() as (reader, writer):
        for _ in range(3):
            status, headers = await answer_to(
                reader, writer, b"GET /small HTTP/1.1\r\nHost: a\r\n\r\n"
            )
            assert status == b"HTTP/1.1 200 OK"
            assert headers["content-type"] == "application/json"
            assert headers["content-length"] == "7"
            assert headers["date"].endswith(" GMT")
            assert "aiohttp" in headers["server"]
            assert await reader.readexactly(7) == b'{"a":1}'


async def test_who_wants_the_connection_closed_gets_it_closed() -> None:
    async with connected() as (reader, writer):
        request = b"GET /small HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        _, headers = await answer_to(reader, writer, request)
        assert headers["connection"] == "close"
        assert await reader.read() == b'{"a":1}'


async def test_http_1_0_is_answered_in_its_own_terms() -> None:
    async with connected() as (reader, writer):
        status, headers = await answer_to(reader, writer, b"GET /small HTTP/1.0\r\n\r\n")
        assert status == b"HTTP/1.0 200 OK"
        assert headers["content-length"] == "7"
        assert await reader.read() == b'{"a":1}'


async def test_head_has_no_body() -> None:
    async with connected() as (reader, writer):
        request = b"HEAD /small HTTP/1.1\r\nHost: a\r\n\r\nGET /small HTTP/1.1\r\nHost: a\r\n\r\n"
        status, _ = await answer_to(reader, writer, request)
        assert status == b"HTTP/1.1 200 OK"
        assert (await reader.readexactly(15)) == b"HTTP/1.1 200 OK"


async def test_a_client_that_reads_slowly_gets_all_of_a_large_body_and_the_next() -> None:
    async with connected() as (reader, writer):
        writer.write(2 * b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(0.1)
        for _ in range(2):
            _, headers = await answer_to(reader, writer, b"")
            assert int(headers["content-length"]) == LARGE
            assert await reader.readexactly(LARGE) == b"x" * LARGE


GET_SMALL = b"GET /small HTTP/1.1\r\nHost: a\r\n\r\n"
GET_WAIT = b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n"


def post(body: bytes, *headers: bytes) -> bytes:
    lines = (b"Host: a", b"Content-Length: %d" % len(body), *headers)
    return b"POST /echo HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + body


async def test_an_answer_without_content_has_no_length() -> None:
    async with connected() as (reader, writer):
        for _ in range(2):
            status, headers = await answer_to(
                reader, writer, b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n"
            )
            assert status == b"HTTP/1.1 204 No Content"
            assert not headers.keys() & {"content-length", "content-type"}


@pytest.mark.parametrize("size", [0, 5, BODY_BYTES_MAX, BODY_BYTES_MAX + 1])
@pytest.mark.parametrize("cut", [10, -3, -1], ids=["in the head", "near the end", "at the end"])
async def test_a_request_may_come_in_pieces(size: int, cut: int) -> None:
    body = b"b" * size
    request = post(body, b"Content-Type: text/x; charset=y")
    async with connected() as (reader, writer):
        # Whoever reads it first, the connection serves on.
        for _ in range(2):
            writer.write(request[:cut])
            await asyncio.sleep(0.01)
            _, headers = await answer_to(reader, writer, request[cut:])
            assert headers.get("content-type") == ("text/x" if body else None)
            assert await reader.readexactly(int(headers["content-length"])) == body


async def test_many_requests_at_once_are_answered_in_their_order() -> None:
    async with connected() as (reader, writer):
        bodies = [b"%d" % number for number in range(200)]
        writer.write(GET_SMALL)
        await answer_to(reader, writer, b"")
        assert await reader.readexactly(7) == b'{"a":1}'
        writer.write(b"".join(map(post, bodies)))
        for body in bodies:
            _, headers = await answer_to(reader, writer, b"")
            assert await reader.readexactly(int(headers["content-length"])) == body


async def test_what_comes_while_a_request_is_handled_is_answered_after_it() -> None:
    async with served() as (server, reader, writer):
        writer.write(GET_WAIT)
        await server.handling.acquire()
        for piece in (GET_SMALL[:9], GET_SMALL[9:], post(b"last")):
            writer.write(piece)
            await asyncio.sleep(0.01)
        server.go_on.set()
        for body in (b"at last", b'{"a":1}', b"last"):
            await answer_to(reader, writer, b"")
            assert await reader.readexactly(len(body)) == body


@pytest.mark.parametrize(
    "odd",
    [
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"4\r\nodd!\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nodd!",
        b"POST http://a/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nodd!",
    ],
    ids=["chunked", "expects", "absolute"],
)
async def test_after_an_unusual_request_a_connection_serves_on(odd: bytes) -> None:
    async with connected() as (reader, writer):
        for request, body in ((post(b"b"), b"b"), (odd, b"odd!"), (post(b"c"), b"c")):
            status, headers = await answer_to(reader, writer, request)
            if status == b"HTTP/1.1 100 Continue":
                status, headers = await answer_to(reader, writer, b"")
            assert status == b"HTTP/1.1 200 OK"
            assert await reader.readexactly(int(headers["content-length"])) == body


async def test_a_second_length_is_refused_whatever_came_before() -> None:
    async with connected() as (reader, writer):
        await answer_to(reader, writer, GET_SMALL)
        assert await reader.readexactly(7) == b'{"a":1}'
        smuggled = post(b"b", b"Content-Length: 0")
        status, _ = await answer_to(reader, writer, smuggled + GET_SMALL)
        assert status == b"HTTP/1.0 400 Bad Request"


async def test_a_node_that_closes_sends_its_clients_elsewhere() -> None:
    async with served() as (server, reader, writer):
        server.edge.closing = True
        _, headers = await answer_to(reader, writer, GET_SMALL)
        assert headers["connection"] == "close"
        assert await reader.read() == b'{"a":1}'


async def test_a_request_under_way_is_answered_before_the_server_ends() -> None:
    async with served() as (server, reader, writer):
        writer.write(GET_WAIT)
        await server.handling.acquire()
        ending = asyncio.create_task(server.runner.cleanup())
        await asyncio.sleep(0.05)
        assert not ending.done()
        server.go_on.set()
        await answer_to(reader, writer, b"")
        assert await reader.read() == b"at last"
        await ending


async def test_a_client_that_leaves_in_the_middle_stops_nobody() -> None:
    async with served() as (server, _, writer):
        writer.write(GET_WAIT)
        await server.handling.acquire()
        writer.transport.abort()
        await asyncio.sleep(0.01)
        server.go_on.set()
        reader, other = await asyncio.open_connection(*server.runner.addresses[0][:2])
        await answer_to(reader, other, GET_SMALL)
        other.close()
