"""Admission: who is refused, in which order, and how much is let in while a node cannot keep up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import orjson
import pytest
from aiohttp import web

from cluster.errors import Overloaded
from cluster.metrics import Metrics
from cluster.node.admission import SLICE, Admission, Pass
from cluster.node.middleware import Answer, Call, Edge, Route
from tests.support.virtual_time import HandClock

START, READ, RESULT = (
    ("POST", "/api/workflow/{name}"),
    ("GET", "/api/workflow/{name}"),
    ("POST", "/api/tasks"),
)
DELAY_MS = 100


class Door:
    """The door of a node, whose stores have room or not."""

    def __init__(self, *, starts_max: int = 1_000, reads_max: int = 1_000) -> None:
        self.clock = HandClock()
        self.metrics = Metrics()
        self.has_room = True
        self.admission = Admission(
            self.clock,
            self.metrics,
            instance="here",
            delay_ms=DELAY_MS,
            starts_max=starts_max,
            reads_max=reads_max,
            has_room=lambda: self.has_room,
        )
        self.starts = self.admission.starts

    def refused(self, kind: str, reason: str) -> float:
        return self.metrics.requests_refused.of(kind, reason).value

    def offer(self, count: int) -> list[Pass]:
        """Starts that come in one after the other, as far as they are let in."""
        return [self.starts.enter() for _ in range(count) if self.starts.refusal() is None]


class Busy:
    """A node that does `per_ms` starts in a millisecond, in the order in which they came."""

    def __init__(self, door: Door, per_ms: float) -> None:
        self.door = door
        self.per_ms = per_ms
        self.waiting: list[tuple[int, Pass]] = []
        self.delays_ms: list[int] = []
        self._done = 0.0

    def run(self, ms: int, *, offered_per_ms: int) -> None:
        for _ in range(ms):
            self.waiting += [(self.door.clock.ms, one) for one in self.door.offer(offered_per_ms)]
            self.door.clock.ms += 1
            self._done += self.per_ms
            while self._done >= 1 and self.waiting:
                self._done -= 1
                came_ms, one = self.waiting.pop(0)
                self.delays_ms.append(self.door.clock.ms - came_ms)
                one.leave(done=True)
            self._done = min(self._done, 1)


def test_three_times_what_a_node_can_do_leaves_the_delay_where_it_should_be() -> None:
    door = Door()
    node = Busy(door, per_ms=3)
    node.run(3_000, offered_per_ms=9)
    node.delays_ms.clear()
    node.run(3_000, offered_per_ms=9)
    # All of its capacity is used, and whoever is let in is done in time.
    assert len(node.delays_ms) > 0.99 * 9_000
    assert max(node.delays_ms) < 2 * DELAY_MS
    assert door.starts.limit < 1_000
    assert door.refused("start", "delay") > 15_000


def test_below_its_capacity_nobody_is_refused() -> None:
    door = Door()
    node = Busy(door, per_ms=3)
    node.run(3_000, offered_per_ms=2)
    assert len(node.delays_ms) == 6_000
    assert door.starts.limit == 1_000


def test_a_node_that_got_its_speed_back_lets_in_as_much_as_before() -> None:
    door = Door()
    slow = Busy(door, per_ms=0.5)
    slow.run(3_000, offered_per_ms=3)
    assert door.starts.limit < 100
    for _, one in slow.waiting:
        one.leave(done=False)
    fast = Busy(door, per_ms=5)
    fast.run(2_000, offered_per_ms=4)
    fast.delays_ms.clear()
    fast.run(1_000, offered_per_ms=4)
    assert len(fast.delays_ms) == 4_000


def test_after_a_quiet_time_a_burst_is_let_in() -> None:
    door = Door()
    node = Busy(door, per_ms=3)
    node.run(1, offered_per_ms=1)
    door.clock.ms += 60_000
    node.run(1, offered_per_ms=250)
    node.run(200, offered_per_ms=0)
    assert len(node.delays_ms) == 251
    assert door.starts.limit == 1_000


def test_bursts_that_are_refused_though_they_get_done_find_more_room() -> None:
    door = Door()
    node = Busy(door, per_ms=0.2)
    node.run(3_000, offered_per_ms=3)
    node.run(3_000, offered_per_ms=0)
    assert door.starts.limit == 64
    node.per_ms = 5
    for _ in range(3):
        node.run(1, offered_per_ms=200)
        node.run(99, offered_per_ms=0)
    assert door.starts.limit > 200


def test_a_few_starts_are_let_in_however_long_they_take() -> None:
    door = Door()
    node = Busy(door, per_ms=0.01)
    node.run(60_000, offered_per_ms=1)
    assert door.starts.limit == 64
    assert len(door.offer(100)) <= 1


def test_while_a_store_stands_still_no_more_come_in_than_may_be_under_way() -> None:
    door = Door(starts_max=50)
    assert len(door.offer(200)) == 50
    assert door.refused("start", "under_way") == 150
    assert door.metrics.starts_under_way.of().value == 50


def test_what_was_refused_inside_says_nothing_about_the_delay() -> None:
    door = Door()
    admitted = door.offer(500)
    door.clock.ms += 10_000
    for one in admitted:
        one.leave(done=False)
        one.leave(done=True)
    assert door.starts.under_way == 0
    assert door.starts.limit == 1_000


def test_a_bulk_request_weighs_its_slices_and_shares_its_time_among_them() -> None:
    door = Door()
    one = door.starts.enter()
    one.weigh(10 * SLICE)
    assert door.starts.under_way == 11
    door.clock.ms += 11 * DELAY_MS
    one.leave(done=True)
    assert door.starts.under_way == 0
    assert door.starts.mean_ms == DELAY_MS
    assert door.starts.limit == 1_000


def test_without_room_in_the_stores_starts_are_refused_and_reads_are_not() -> None:
    door = Door()
    door.has_room = False
    assert door.offer(3) == []
    assert door.refused("start", "backlog") == 3
    with pytest.raises(Overloaded, match="waits to be written"):
        door.starts.enter_or_refuse()
    reads = door.admission.gate(*READ)
    assert reads is not None
    assert reads.refusal() is None


def test_reads_are_refused_after_starts_and_results_never() -> None:
    door = Door(reads_max=2)
    reads = door.admission.gate(*READ)
    assert reads is not None
    node = Busy(door, per_ms=1)
    node.run(5_000, offered_per_ms=5)
    assert door.refused("start", "delay") > 0
    assert reads.refusal() is None
    node.per_ms = 0.05
    node.run(5_000, offered_per_ms=5)
    assert reads.refusal() is not None
    for _, one in node.waiting:
        one.leave(done=False)
    first, second = reads.enter(), reads.enter()
    assert reads.refusal() is not None
    first.leave(done=True)
    first.leave(done=True)
    assert reads.refusal() is None
    second.leave(done=True)
    assert door.admission.gate(*RESULT) is None


# -- at the edge


class Served:
    def __init__(self, door: Door) -> None:
        self.door = door
        self.handled = 0
        self.handling = asyncio.Semaphore(0)
        self.go_on = asyncio.Event()
        self.port = 0

    async def handle(self, _call: Call) -> Answer:
        self.handled += 1
        self.handling.release()
        await self.go_on.wait()
        return Answer(b"{}")

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@asynccontextmanager
async def served(door: Door) -> AsyncIterator[Served]:
    server = Served(door)
    edge = Edge(door.metrics, body_bytes_max=1 << 20, admission=door.admission)
    edge.add([Route(*route, server.handle) for route in (START, READ, RESULT)])
    runner = web.ServerRunner(edge.server())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        server.go_on.set()
        await runner.cleanup()


def request(path: str, body: bytes = b"{}") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (
        path.encode(),
        len(body),
        body,
    )


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {
        name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:] if line)
    }
    body = await reader.readexactly(int(headers["content-length"]))
    return int(lines[0].split()[1]), headers, body


@pytest.mark.asyncio
async def test_a_refusal_is_conductors_and_spreads_those_who_come_back() -> None:
    door = Door()
    door.has_room = False
    async with served(door) as server:
        reader, writer = await server.connect()
        times = []
        for _ in range(32):
            writer.write(request("/api/workflow/one"))
            status, headers, raw = await answer(reader)
            body = orjson.loads(raw)
            assert status == body["status"] == 429
            assert headers["content-type"] == "application/json"
            assert set(body) == {"status", "message", "instance", "retryable", "retryAfterMs"}
            assert body["retryable"] is True
            after_s = int(headers["retry-after"])
            assert 1000 * after_s - 1000 < body["retryAfterMs"] <= 1000 * after_s
            times.append(body["retryAfterMs"])
        assert len(set(times)) == 16
        assert (min(times), max(times)) == (500, 2495)
        # Its results are taken, on the same connection.
        server.go_on.set()
        writer.write(request("/api/tasks"))
        assert (await answer(reader))[0] == 200
        assert server.handled == 1
        writer.close()


@pytest.mark.asyncio
async def test_who_does_not_keep_the_connection_is_refused_as_well() -> None:
    door = Door()
    door.has_room = False
    async with served(door) as server:
        reader, writer = await server.connect()
        writer.write(b"POST /api/workflow/one HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
        status, headers, _ = await answer(reader)
        assert (status, headers["retry-after"]) == (429, "1")
        assert await reader.read() == b""
        writer.close()


@pytest.mark.asyncio
async def test_a_body_that_trickles_in_takes_nobodys_place() -> None:
    door = Door(starts_max=1)
    async with served(door) as server:
        slow_reader, slow = await server.connect()
        slow.write(request("/api/workflow/one", b'{"a": 1}')[:-4])
        reader, writer = await server.connect()
        writer.write(request("/api/workflow/one"))
        await server.handling.acquire()
        server.go_on.set()
        assert (await answer(reader))[0] == 200
        slow.write(b": 1}")
        assert (await answer(slow_reader))[0] == 200
        assert door.starts.under_way == 0
        writer.close()
        slow.close()


@pytest.mark.asyncio
async def test_a_client_that_pipelines_waits_in_its_own_memory() -> None:
    async with served(Door()) as server:
        _, writer = await server.connect()
        piped = request("/api/tasks", b'{"x": "%b"}' % (b"y" * 1_000))
        written = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while written < 64 << 20:
                    writer.write(piped * 100)
                    written += 100 * len(piped)
                    await writer.drain()
        # The kernel's buffers and a few requests, not all that a client may think of.
        assert written < 32 << 20
        assert server.handled == 1
        writer.transport.abort()
