"""Links between nodes: calls from one node to another, many to a frame, on one websocket.

Each direction has a connection of its own: a node dials those it wants something of, and gets its
answers on the same connection. All calls that are made in one turn of the event loop travel in one
frame, and so do answers. A frame that is too large for one message is cut into pieces, between
which other frames pass.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Protocol

import aiohttp
import msgspec
from aiohttp import WSMsgType, hdrs

from cluster.clock import Clock
from cluster.errors import ClusterError, OutcomeUnknown, Overloaded, Unreached
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.node.link_faults import Fault, error_of
from cluster.node.link_frames import (
    ANSWERS,
    CALLS,
    FRAME_BYTES,
    MESSAGE_BYTES_MAX,
    Frames,
    Garbled,
    Outbox,
    decoded,
)

log = get_log(__name__)

PATH = "/link"
PROTOCOL = "podium.1"
"""Nodes that speak another version of this do not understand each other: the link is refused."""
NODE_HEADER = "X-Podium-Node"
HEARTBEAT_S = 3.0
CLOSE_S = 1.0

CALLS_MAX = 4_096
"""Calls of one link that wait for an answer; more wait for room."""
BYTES_MAX = 32 << 20
"""What the arguments of these may come to; a single larger call is let through alone."""
WAITING_MAX = 20_000
"""Calls that wait for room; more are refused at once."""

_CONNECT_S = 3.0
_PAUSE_S, _PAUSE_S_MAX = 0.05, 1.0
_OUTCOMES: dict[type[ClusterError], str] = {Unreached: "unreached", OutcomeUnknown: "unknown"}


class LinkCall(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One call. `shard` and `epoch` say for whom it is meant; -1: for the node itself."""

    id: int
    operation: str
    left_ms: int
    """After this time nobody waits for the answer any more."""
    shard: int
    epoch: int
    arguments: msgspec.Raw
    sent_ms: int = 0
    """By the clock of the caller; 0: it does not say."""


class LinkAnswer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    id: int
    value: msgspec.Raw
    fault: Fault | None = None


_decode_answers = msgspec.msgpack.Decoder(list[LinkAnswer]).decode

Serve = Callable[[LinkCall], Awaitable[bytes]]
"""Carries a call out; returns msgpack. Raises ClusterError."""


class Links(Protocol):
    """The way to other nodes."""

    async def call(
        self,
        address: str,
        operation: str,
        arguments: bytes,
        *,
        timeout_ms: int,
        shard: int = -1,
        epoch: int = -1,
    ) -> bytes:
        """Have the node at `address` carry an operation out; arguments and value are msgpack.

        Raises what the operation raises there; Unreached: it never began; OutcomeUnknown: it may
        have been done; Overloaded: too much is on its way to that node.
        """

    async def close(self) -> None:
        """Fail what is under way, and every later call."""


class WebSocketLinks:
    """One connection to each node that this one calls, made when it is needed."""

    def __init__(self, *, node_id: str, token: str, clock: Clock, metrics: Metrics) -> None:
        self._node_id = node_id
        self._token = token
        self.clock = clock
        self.metrics = metrics
        self._links: dict[str, _Link] = {}
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def call(
        self,
        address: str,
        operation: str,
        arguments: bytes,
        *,
        timeout_ms: int,
        shard: int = -1,
        epoch: int = -1,
    ) -> bytes:
        if self._closed:
            raise Unreached("This node is stopping")
        link = self._links.get(address)
        if link is None:
            self._drop_unused()
            link = self._links[address] = _Link(self, address)
        return await link.call(operation, arguments, timeout_ms / 1000, shard, epoch)

    def _drop_unused(self) -> None:
        """Forget addresses at which nobody is any more: a node that begins anew has another."""
        for address in [one for one, link in self._links.items() if link.is_unused]:
            del self._links[address]

    async def connect(self, address: str) -> aiohttp.ClientWebSocketResponse:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return await self._session.ws_connect(
            f"http://{address}{PATH}",
            protocols=(PROTOCOL,),
            headers={hdrs.AUTHORIZATION: f"Bearer {self._token}", NODE_HEADER: self._node_id},
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
            heartbeat=HEARTBEAT_S,
            max_msg_size=MESSAGE_BYTES_MAX,
            compress=0,
        )

    async def close(self) -> None:
        """Fail what is under way, and every later call."""
        self._closed = True
        links, self._links = list(self._links.values()), {}
        await asyncio.gather(*(link.close() for link in links))
        if self._session is not None:
            await self._session.close()


class _InFlight:
    """A call that waits for its answer."""

    __slots__ = ("answer", "arguments", "deadline", "epoch", "operation", "sent", "shard", "timer")

    def __init__(
        self, operation: str, arguments: bytes, shard: int, epoch: int, deadline: float
    ) -> None:
        self.operation = operation
        self.arguments = arguments
        self.shard = shard
        self.epoch = epoch
        self.deadline = deadline
        self.sent = False
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle


class _Link:
    """The connection to one node."""

    def __init__(self, links: WebSocketLinks, address: str) -> None:
        self._links = links
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._ids = count(1)
        self._in_flight: dict[int, _InFlight] = {}
        self._bytes = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._outbox = Outbox(links.metrics)
        self._unsent: list[int] = []
        self._running: asyncio.Task[None] | None = None
        self._pause_s = _PAUSE_S
        self._not_before = 0.0
        self._ended = links.metrics.link_calls
        self._pending = links.metrics.link_pending.of()
        self._duration = links.metrics.link_call.of()

    @property
    def is_unused(self) -> bool:
        """There is no connection, and nobody waits for one."""
        return self._running is None and not self._in_flight and not self._waiting

    async def call(
        self, operation: str, arguments: bytes, timeout_s: float, shard: int, epoch: int
    ) -> bytes:
        deadline = self._loop.time() + timeout_s
        if self._is_full(len(arguments)):
            await self._room(deadline, len(arguments))
        if self._running is None:
            if self._loop.time() < self._not_before:
                raise Unreached(f"Node {self._address} cannot be reached")
            self._running = self._loop.create_task(self._run())
        call = _InFlight(operation, arguments, shard, epoch, deadline)
        number = next(self._ids)
        self._in_flight[number] = call
        self._pending.inc()
        self._bytes += len(arguments)
        call.timer = self._loop.call_at(deadline, self._expire, number)
        self._unsent.append(number)
        self._outbox.news.set()
        began = self._loop.time()
        try:
            value = await call.answer
        except ClusterError as error:
            # A refusal is an answer as well: the link has done its part.
            self._ended.of(operation, _OUTCOMES.get(type(error), "ok")).inc()
            raise
        self._ended.of(operation, "ok").inc()
        self._duration.observe(self._loop.time() - began)
        return value

    def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()

    async def close(self) -> None:
        running = self._running
        self.stop()
        if running is not None:
            await asyncio.gather(running, return_exceptions=True)
        self._fail("This node is stopping")

    # -- room

    def _is_full(self, size: int) -> bool:
        return len(self._in_flight) >= CALLS_MAX or (
            self._bytes > 0 and self._bytes + size > BYTES_MAX
        )

    async def _room(self, deadline: float, size: int) -> None:
        if len(self._waiting) >= WAITING_MAX:
            raise self._overloaded()
        while self._is_full(size):
            turn: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(turn)
            try:
                async with asyncio.timeout_at(deadline):
                    await turn
            except TimeoutError:
                raise self._overloaded() from None
            finally:
                if not turn.done() or turn.cancelled():
                    self._waiting.remove(turn)
                elif not self._is_full(size):
                    # Whoever comes next may fit as well.
                    self._loop.call_soon(self._let_in)

    def _overloaded(self) -> Overloaded:
        return Overloaded(f"Too many calls are on their way to node {self._address}")

    def _let_in(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _end(self, number: int) -> _InFlight | None:
        call = self._in_flight.pop(number, None)
        if call is not None:
            call.timer.cancel()
            self._bytes -= len(call.arguments)
            self._pending.inc(-1)
            if self._waiting:
                self._let_in()
        return call

    def _expire(self, number: int) -> None:
        call = self._end(number)
        if call is not None and not call.answer.done():
            call.answer.set_exception(self._unanswered(call, "did not answer in time"))

    def _unanswered(self, call: _InFlight, why: str) -> ClusterError:
        message = f"Node {self._address} {why}"
        return OutcomeUnknown(message) if call.sent else Unreached(message)

    def _fail(self, why: str) -> None:
        for number in list(self._in_flight):
            call = self._end(number)
            if call is not None and not call.answer.done():
                call.answer.set_exception(self._unanswered(call, why))
        self._unsent.clear()

    # -- the connection

    async def _run(self) -> None:
        why = "broke the link"
        socket: aiohttp.ClientWebSocketResponse | None = None
        try:
            async with asyncio.timeout(_CONNECT_S):
                socket = await self._links.connect(self._address)
            if socket.protocol != PROTOCOL:
                raise Garbled("it speaks another version")
            self._pause_s = _PAUSE_S
            await first_of(self._read(socket), self._write(socket))
        except (aiohttp.ClientError, OSError, TimeoutError, Garbled) as error:
            why = f"cannot be reached: {str(error) or type(error).__name__}"
        except Exception:
            log.exception("a link failed", peer=self._address)
        finally:
            # Before the farewell, which a dead peer does not return.
            self._running = None
            self._not_before = self._loop.time() + self._pause_s
            self._pause_s = min(self._pause_s * 2, _PAUSE_S_MAX)
            self._outbox.clear()
            self._fail(why)
            self._links.metrics.link_lost.of().inc()
            log.info("a link ended", peer=self._address, why=why)
            if socket is not None:
                await socket.close()

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        frames = Frames()
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                raise Garbled("a frame is not binary")
            body = frames.take(message.data, ANSWERS)
            if body is None:
                continue
            for answer in decoded(_decode_answers, body):
                call = self._end(answer.id)
                if call is None or call.answer.done():
                    continue
                if answer.fault is None:
                    call.answer.set_result(bytes(answer.value))
                else:
                    call.answer.set_exception(error_of(answer.fault))

    async def _write(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        outbox = self._outbox
        if self._unsent:
            outbox.news.set()
        while True:
            await outbox.wait()
            self._pack()
            await outbox.send(socket)

    def _pack(self) -> None:
        """Gather all that was called meanwhile into frames."""
        numbers, self._unsent = self._unsent, []
        now, now_ms = self._loop.time(), self._links.clock.now_ms()
        calls: list[LinkCall] = []
        size = 0
        for number in numbers:
            call = self._in_flight.get(number)
            if call is None:
                continue
            call.sent = True
            left_ms = max(1, int((call.deadline - now) * 1000))
            calls.append(
                LinkCall(
                    number,
                    call.operation,
                    left_ms,
                    call.shard,
                    call.epoch,
                    msgspec.Raw(call.arguments),
                    now_ms,
                )
            )
            size += len(call.arguments)
            if size >= FRAME_BYTES:
                self._outbox.put(CALLS, calls)
                calls, size = [], 0
        if calls:
            self._outbox.put(CALLS, calls)


async def first_of(*loops: Any) -> None:
    """Run until the first of these ends; raises what it raised."""
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
