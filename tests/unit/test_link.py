"""Links between nodes, over real sockets: many calls, hostile peers, slow ones, dead ones."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
from aiohttp import web

from cluster.clock import SystemClock
from cluster.errors import (
    ClusterError,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    TooLarge,
    Unavailable,
    Unreached,
    ValidationFailed,
    Violation,
)
from cluster.metrics import Metrics
from cluster.node import link, link_frames
from cluster.node.link import LinkCall, WebSocketLinks
from cluster.node.link_server import LinkServer
from cluster.node.metadata import NoSuchWorkflow

TOKEN = "sesame"
pytestmark = pytest.mark.asyncio

encode = msgspec.msgpack.encode
Serve = Callable[[LinkCall], Awaitable[bytes]]


class Node:
    """A node that is called."""

    def __init__(self, serve: Serve) -> None:
        self.metrics = Metrics()
        self.server = LinkServer(serve, token=TOKEN, metrics=self.metrics)
        self.address = ""
        self._runner: web.ServerRunner

    async def up(self, port: int = 0) -> None:
        self._runner = web.ServerRunner(web.Server(self.server.accept), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"

    async def down(self) -> None:
        await self.server.close()
        await self._runner.cleanup()


@asynccontextmanager
async def node(serve: Serve) -> AsyncIterator[Node]:
    served = Node(serve)
    await served.up()
    try:
        yield served
    finally:
        await served.down()


@asynccontextmanager
async def caller(token: str = TOKEN, node_id: str = "caller") -> AsyncIterator[WebSocketLinks]:
    links = WebSocketLinks(node_id=node_id, token=token, clock=SystemClock(), metrics=Metrics())
    try:
        yield links
    finally:
        await links.close()


async def echo(call: LinkCall) -> bytes:
    return bytes(call.arguments)


async def ask(links: WebSocketLinks, to: Node, value: object, timeout_ms: int = 5_000) -> object:
    return msgspec.msgpack.decode(
        await links.call(to.address, "echo", encode(value), timeout_ms=timeout_ms)
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


async def test_calls_of_one_turn_share_a_frame_and_get_their_own_answers() -> None:
    async with node(echo) as to, caller() as links:
        await ask(links, to, "warm")
        before = links.metrics.link_frames.of().value
        found = await asyncio.gather(*(ask(links, to, n) for n in range(500)))
        assert found == list(range(500))
        assert links.metrics.link_frames.of().value - before == 1
        assert links.metrics.link_pending.of().value == 0


async def test_what_a_call_is_meant_for_arrives_with_it() -> None:
    seen: list[LinkCall] = []

    async def keep(call: LinkCall) -> bytes:
        seen.append(call)
        return encode(None)

    async with node(keep) as to, caller() as links:
        await links.call(to.address, "do", encode([1]), timeout_ms=3_000, shard=7, epoch=9)
    assert [(call.operation, call.shard, call.epoch) for call in seen] == [("do", 7, 9)]
    assert 2_500 < seen[0].left_ms <= 3_000


async def test_a_large_message_lets_small_ones_pass() -> None:
    large = b"x" * (20 << 20)
    order: list[str] = []

    async def answer(call: LinkCall) -> bytes:
        return bytes(call.arguments)

    async with node(answer) as to, caller() as links:
        await ask(links, to, "warm")

        async def whole() -> None:
            assert await ask(links, to, large) == large
            order.append("large")

        async def small() -> None:
            for n in range(3):
                assert await ask(links, to, n) == n
            order.append("small")

        await asyncio.gather(whole(), small())
    assert order == ["small", "large"]


@pytest.mark.parametrize(
    "error",
    [
        NotFound("none such"),
        InvalidRequest("never"),
        TooLarge("too much"),
        Overloaded("later", retry_after_s=7),
        ValidationFailed([Violation("a.b", "must not be", None), Violation("c", "d", "e")]),
        NoSuchWorkflow("order", None),
        Unavailable("no store"),
    ],
)
async def test_an_error_comes_back_as_it_was_raised(error: ClusterError) -> None:
    async def refuse(_: LinkCall) -> bytes:
        raise error

    async with node(refuse) as to, caller() as links:
        with pytest.raises(type(error)) as found:
            await ask(links, to, 1)
    assert type(found.value) is type(error)
    assert vars(found.value) == vars(error)
    assert (found.value.status, found.value.retryable) == (error.status, error.retryable)
    assert str(found.value) == str(error)


async def test_a_defect_is_answered_and_the_link_stays() -> None:
    async def fail(call: LinkCall) -> bytes:
        if call.operation == "break":
            raise RuntimeError("a defect")
        return encode(1)

    async with node(fail) as to, caller() as links:
        with pytest.raises(ClusterError) as found:
            await links.call(to.address, "break", encode(0), timeout_ms=1_000)
        assert found.value.status == 500
        assert "a defect" not in found.value.message
        assert await ask(links, to, 0) == 1
        assert links.metrics.link_lost.of().value == 0


@pytest.mark.parametrize("token", ["", "wrong", "sesame1", "sésame"])
async def test_who_does_not_know_the_token_gets_no_link(token: str) -> None:
    served = False

    async def serve(_: LinkCall) -> bytes:
        nonlocal served
        served = True
        return encode(0)

    async with node(serve) as to, aiohttp.ClientSession() as session:
        headers = {"Authorization": f"Bearer {token}", link.NODE_HEADER: "x"}
        with pytest.raises(aiohttp.WSServerHandshakeError) as found:
            await session.ws_connect(
                f"http://{to.address}/link", protocols=(link.PROTOCOL,), headers=headers
            )
        assert found.value.status == 401
        assert to.metrics.link_refused.of().value == 1
    assert not served


async def test_a_page_in_a_browser_gets_no_link() -> None:
    async with node(echo) as to, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(
                f"http://{to.address}/link", protocols=(link.PROTOCOL,), headers=known("http://x")
            )


async def test_another_version_gets_no_link() -> None:
    async with node(echo) as to, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as found:
            await session.ws_connect(
                f"http://{to.address}/link", protocols=("podium.0",), headers=known()
            )
        assert found.value.status == 426


async def test_a_caller_with_another_token_is_told_at_once() -> None:
    async with node(echo) as to, caller(token="wrong") as links:
        with pytest.raises(Unreached):
            await ask(links, to, 1)


def known(origin: str | None = None) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {TOKEN}", link.NODE_HEADER: "hostile"}
    return headers if origin is None else headers | {"Origin": origin}


def piece(stream: int, *, is_last: bool, data: bytes) -> bytes:
    return b"\x03" + encode([stream, is_last, data])


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x01",
        b"\x09abc",
        b"\x01\xc1",
        b"\x01" + encode({"no": "list"}),
        b"\x01" + encode([[1, 2, 3]]),
        b"\x01" + encode([["1", "echo", 1, 1, 1, 1]]),
        b"\x01" + b"\x91" * 100_000,
        b"\x02" + encode([[1, 2]]),
        b"\x03" + encode([1]),
        piece(1, is_last=True, data=b"\x01\xc1"),
        piece(1, is_last=True, data=piece(2, is_last=True, data=b"")),
        b"x" * (3 << 20),
    ],
    ids=lambda frame: repr(frame[:12]),
)
async def test_a_peer_that_sends_garbage_is_cut_off_and_nobody_else(frame: bytes) -> None:
    async with node(echo) as to, caller() as links, aiohttp.ClientSession() as session:
        hostile = await session.ws_connect(
            f"http://{to.address}/link", protocols=(link.PROTOCOL,), headers=known()
        )
        await hostile.send_bytes(frame)
        assert (await hostile.receive(timeout=5)).type in (
            aiohttp.WSMsgType.CLOSE,
            aiohttp.WSMsgType.CLOSED,
        )
        assert await ask(links, to, 5) == 5


async def test_pieces_without_end_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_frames, "WHOLE_BYTES_MAX", 1 << 20)
    async with node(echo) as to, aiohttp.ClientSession() as session:
        hostile = await session.ws_connect(
            f"http://{to.address}/link", protocols=(link.PROTOCOL,), headers=known()
        )
        for _ in range(21):
            await hostile.send_bytes(piece(1, is_last=False, data=b"x" * (100 << 10)))
        assert (await hostile.receive(timeout=5)).type in (
            aiohttp.WSMsgType.CLOSE,
            aiohttp.WSMsgType.CLOSED,
        )


async def test_more_calls_than_any_node_makes_end_the_link() -> None:
    hold = asyncio.Event()

    async def wait(_: LinkCall) -> bytes:
        await hold.wait()
        return encode(0)

    async with node(wait) as to, aiohttp.ClientSession() as session:
        hostile = await session.ws_connect(
            f"http://{to.address}/link", protocols=(link.PROTOCOL,), headers=known()
        )
        frame = b"\x01" + encode([[n, "x", 60_000, -1, -1, None] for n in range(3_000)])
        for _ in range(3):
            await hostile.send_bytes(frame)
        assert (await hostile.receive(timeout=5)).type in (
            aiohttp.WSMsgType.CLOSE,
            aiohttp.WSMsgType.CLOSED,
        )


async def test_a_slow_peer_holds_up_no_more_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "CALLS_MAX", 10)
    monkeypatch.setattr(link, "WAITING_MAX", 5)
    free = asyncio.Event()
    under_way = most = 0

    async def slow(call: LinkCall) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await free.wait()
        under_way -= 1
        return bytes(call.arguments)

    async with node(slow) as to, caller() as links:
        calls = [asyncio.ensure_future(ask(links, to, n)) for n in range(16)]
        await until(lambda: most == 10)
        # There is no more room, not even to wait for it.
        assert [call.done() for call in calls] == [False] * 15 + [True]
        with pytest.raises(Overloaded):
            calls[15].result()
        free.set()
        assert await asyncio.gather(*calls[:15]) == list(range(15))
    assert most == 10


async def test_who_waits_for_room_in_vain_is_told_that_nothing_was_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "BYTES_MAX", 1_000)
    free = asyncio.Event()
    seen = 0

    async def slow(call: LinkCall) -> bytes:
        nonlocal seen
        seen += 1
        await free.wait()
        return bytes(call.arguments)

    async with node(slow) as to, caller() as links:
        # Larger than all room there is: it goes alone.
        first = asyncio.ensure_future(ask(links, to, "x" * 2_000))
        await until(lambda: seen == 1)
        with pytest.raises(Overloaded):
            await ask(links, to, 1, timeout_ms=50)
        # One that is given up while it waits leaves no hole in the line.
        given_up = asyncio.ensure_future(ask(links, to, 2))
        last = asyncio.ensure_future(ask(links, to, 3))
        await asyncio.sleep(0.01)
        given_up.cancel()
        free.set()
        assert await last == 3
        await first
    assert seen == 2


async def test_an_answer_that_comes_too_late_is_an_unknown_outcome() -> None:
    cancelled = asyncio.Event()

    async def never(call: LinkCall) -> bytes:
        if call.operation == "echo":
            return bytes(call.arguments)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    async with node(never) as to, caller() as links:
        with pytest.raises(OutcomeUnknown):
            await links.call(to.address, "wait", encode(0), timeout_ms=50)
        # Nobody waits for it over there either.
        await asyncio.wait_for(cancelled.wait(), 5)
        assert await ask(links, to, 1) == 1


async def test_a_peer_that_dies_in_the_middle_of_a_call() -> None:
    begun = asyncio.Event()

    async def wait(_: LinkCall) -> bytes:
        begun.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async with caller() as links:
        async with node(wait) as to:
            call = asyncio.ensure_future(ask(links, to, 1, timeout_ms=60_000))
            await begun.wait()
            address = to.address
        with pytest.raises(OutcomeUnknown):
            await call
        # Now nobody is there: that is known, and told without waiting for the time to be over.
        with pytest.raises(Unreached):
            await links.call(address, "echo", encode(1), timeout_ms=60_000)
        # It comes back on the same port.
        again = Node(echo)
        await again.up(int(address.rpartition(":")[2]))
        try:
            async with asyncio.timeout(5):
                while True:
                    try:
                        assert await ask(links, again, 3) == 3
                        break
                    except Unreached:
                        await asyncio.sleep(0.01)
        finally:
            await again.down()


async def test_a_peer_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "HEARTBEAT_S", 0.1)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # It shakes hands and then says nothing more, as behind a cable that was pulled.
        head = await reader.readuntil(b"\r\n\r\n")
        key = next(
            line.split(b": ")[1]
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key")
        )
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Protocol: podium.1\r\n"
            b"Sec-WebSocket-Accept: " + accept_of(key) + b"\r\n\r\n"
        )
        try:
            while await reader.read(1 << 16):
                pass
        finally:
            writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server, caller() as links:
        port = server.sockets[0].getsockname()[1]
        async with asyncio.timeout(5):
            with pytest.raises(OutcomeUnknown):
                await links.call(f"127.0.0.1:{port}", "x", encode(1), timeout_ms=60_000)


def accept_of(key: bytes) -> bytes:
    import base64
    import hashlib

    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


async def test_a_node_that_never_answers_the_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_CONNECT_S", 0.05)

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    async with server, caller() as links:
        port = server.sockets[0].getsockname()[1]
        async with asyncio.timeout(5):
            with pytest.raises(Unreached):
                await links.call(f"127.0.0.1:{port}", "x", encode(1), timeout_ms=60_000)


async def test_a_node_that_links_anew_leaves_nothing_behind_of_before() -> None:
    """A start that was under way on the old link must not come after its repetition."""
    cancelled = 0
    done: list[str] = []

    async def serve(call: LinkCall) -> bytes:
        nonlocal cancelled
        if call.operation == "first":
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled += 1
                raise
        done.append(call.operation)
        return encode(0)

    async with node(serve) as to, caller() as before, caller() as after:
        first = asyncio.ensure_future(
            before.call(to.address, "first", encode(0), timeout_ms=60_000)
        )
        await until(lambda: before.metrics.link_frames.of().value == 1)
        await asyncio.sleep(0.05)
        await after.call(to.address, "second", encode(0), timeout_ms=5_000)
        with pytest.raises(OutcomeUnknown):
            await first
    assert done == ["second"]
    assert cancelled == 1


async def test_a_caller_that_gives_up_disturbs_nobody() -> None:
    free = asyncio.Event()

    async def wait(call: LinkCall) -> bytes:
        await free.wait()
        return bytes(call.arguments)

    async with node(wait) as to, caller() as links:
        given_up = asyncio.ensure_future(ask(links, to, 1))
        other = asyncio.ensure_future(ask(links, to, 2))
        await asyncio.sleep(0.02)
        given_up.cancel()
        free.set()
        assert await other == 2
        assert await ask(links, to, 3) == 3
        assert links.metrics.link_lost.of().value == 0


async def test_links_to_nodes_that_are_gone_are_dropped() -> None:
    async with caller() as links:
        async with node(echo) as gone:
            await ask(links, gone, 1)
        await until(lambda: links.metrics.link_lost.of().value == 1)
        async with node(echo) as one:
            await ask(links, one, 1)
            assert list(links._links) == [one.address]


async def test_a_stopped_node_calls_nobody() -> None:
    async with node(echo) as to, caller() as links:
        await ask(links, to, 1)
        await links.close()
        with pytest.raises(Unreached):
            await ask(links, to, 1)
