"""Answers in one write: what a client sees of them, and who gets aiohttp's own instead."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from cluster.metrics import Metrics
from cluster.node.middleware import Answer, Call, Edge, Route

pytestmark = pytest.mark.asyncio

LARGE = 8 << 20


async def small(_call: Call) -> Answer:
    return Answer(b'{"a":1}')


async def large(_call: Call) -> Answer:
    return Answer(b"x" * LARGE)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    edge = Edge(Metrics(), body_bytes_max=1000)
    edge.add([Route(method, "/small", small) for method in ("GET", "HEAD")])
    edge.add([Route("GET", "/large", large)])
    runner = web.ServerRunner(edge.server())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await runner.cleanup()


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
