"""One connection to a Redis server: whose answer is whose, and what a silent server means."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio
from redis.exceptions import NoScriptError, ResponseError

from cluster.store.redis.pipe import Address, Server
from cluster.urls import Login, RedisUrl, parse_queue_url
from tests.support import redis


def server_at(timeout_ms: int = 2_000, login: Login | None = None, database: int = 0) -> Server:
    url = parse_queue_url(redis.shared_servers("standalone").url)
    assert isinstance(url, RedisUrl)

    async def address() -> Address:
        return url.host.name, url.host.port

    return Server(address, login=login, database=database, timeout_ms=timeout_ms)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    server = server_at()
    yield server
    server.close()


@pytest.mark.asyncio
async def test_answers_belong_to_calls_in_order(server: Server) -> None:
    words = [f"word-{number}" for number in range(200)]
    told = await asyncio.gather(*(server.call("ECHO", word) for word in words))
    assert told == [word.encode() for word in words]


@pytest.mark.asyncio
async def test_the_answer_to_a_call_that_was_given_up_is_nobody_elses(server: Server) -> None:
    await server.call("PING")
    given_up = asyncio.create_task(server.call("BLPOP", "nothing", "0.2"))
    later = asyncio.create_task(server.call("ECHO", "mine"))
    await asyncio.sleep(0.01)
    given_up.cancel()
    assert await later == b"mine"
    assert given_up.cancelled()


@pytest.mark.asyncio
async def test_a_server_that_is_silent_for_too_long_is_left_and_connected_with_anew() -> None:
    server = server_at(timeout_ms=100)
    silent = asyncio.create_task(server.call("BLPOP", "nothing", "30"))
    await asyncio.sleep(0)
    behind = asyncio.create_task(server.call("ECHO", "behind"))
    for call in (silent, behind):
        with pytest.raises(ConnectionError, match="no answer within"):
            await call
    assert await server.call("ECHO", "anew") == b"anew"
    server.close()


@pytest.mark.asyncio
async def test_a_connection_that_broke_fails_who_waits_and_nobody_later(server: Server) -> None:
    await server.call("PING")
    waiting = asyncio.create_task(server.call("BLPOP", "nothing", "30"))
    await asyncio.sleep(0.05)
    other = server_at()
    await other.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.raises(ConnectionError):
        await waiting
    assert await server.call("ECHO", "anew") == b"anew"
    other.close()


@pytest.mark.asyncio
async def test_errors_of_the_server_have_the_drivers_names(server: Server) -> None:
    with pytest.raises(NoScriptError):
        await server.call("EVALSHA", "0" * 40, 0)
    with pytest.raises(ResponseError, match="unknown command"):
        await server.call("NONSENSE")
    assert await server.call("PING") == b"PONG"


@pytest.mark.asyncio
async def test_a_password_is_told_and_a_database_chosen() -> None:
    wrong = server_at(login=Login("nobody", "wrong"))
    with pytest.raises(ResponseError):
        await wrong.call("PING")
    one, zero = server_at(database=1), server_at()
    key = redis.fresh_prefix()
    await one.call("SET", key, "here")
    assert await one.call("GET", key) == b"here"
    assert await zero.call("GET", key) is None
    for server in (wrong, one, zero):
        server.close()


@pytest.mark.asyncio
async def test_what_is_published_is_heard_until_the_connection_breaks(server: Server) -> None:
    channel = redis.fresh_prefix()
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    began = asyncio.Event()
    listening = asyncio.create_task(
        server.listen(channel, heard=heard.put_nowait, began=began.set, ping_s=0.02)
    )
    async with asyncio.timeout(20):
        await began.wait()
        for number in range(3):
            await server.call("PUBLISH", channel, number)
            await asyncio.sleep(0.05)
        assert [await heard.get() for _ in range(3)] == [b"0", b"1", b"2"]
        await server.call("CLIENT", "KILL", "TYPE", "pubsub")
        with pytest.raises(ConnectionError):
            await listening


@pytest.mark.asyncio
async def test_listening_ends_when_it_is_cancelled(server: Server) -> None:
    began = asyncio.Event()
    listening = asyncio.create_task(
        server.listen("any", heard=lambda _: None, began=began.set, ping_s=1)
    )
    await began.wait()
    listening.cancel()
    with suppress(asyncio.CancelledError):
        await listening
    assert listening.cancelled()
