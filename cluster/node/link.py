"""Links between nodes: calls from one node to another, many to a frame, on one websocket.

Each direction has a connection of its own: a node dials those it wants something of, and gets its
answers on the same connection. All calls that are made in one turn of the event loop travel in one
frame, and so do answers. A frame that is too large for one message is cut into pieces, between
which other frames pass.
"""

import asyncio
import hmac
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any, NamedTuple, Protocol, cast

import aiohttp
import msgspec
from aiohttp import WSMsgType, hdrs, web

from cluster.clock import Clock
from cluster.errors import (
    ClusterError,
    OutcomeUnknown,
    Overloaded,
    TooLarge,
    Unreached,
    ValidationFailed,
    Violation,
)
from cluster.logs import get_log
from cluster.metrics import Metrics

log = get_log(__name__)

PATH = "/link"
PROTOCOL = "podium.1"
"""Nodes that speak another version of this do not understand each other: the link is refused."""
NODE_HEADER = "X-Podium-Node"

CALLS_MAX = 4_096
"""Calls of one link that wait for an answer; more wait for room."""
BYTES_MAX = 32 << 20
"""What the arguments of these may come to; a single larger call is let through alone."""
WAITING_MAX = 20_000
"""Calls that wait for room; more are refused at once."""
BACKLOG_BYTES_MAX = 64 << 20
"""Answers a slow peer has not taken; beyond it its calls are refused unheard."""

_FRAME_BYTES = 128 << 10
_PIECE_BYTES = 256 << 10
_MESSAGE_BYTES_MAX = 4 * _PIECE_BYTES
_WHOLE_BYTES_MAX = 256 << 20
_STREAMS_MAX = CALLS_MAX
_HEARTBEAT_S = 3.0
_CONNECT_S = 3.0
_CLOSE_S = 1.0
_PAUSE_S, _PAUSE_S_MAX = 0.05, 1.0

_CALLS, _ANSWERS, _PIECE = b"\x01", b"\x02", b"\x03"
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


class _Fault(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A ClusterError on its way."""

    kind: str
    message: str
    status: int
    retryable: bool
    violations: tuple[tuple[str, str, str | None], ...] = ()
    details: dict[str, str | int] = {}


class _Answer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    id: int
    value: msgspec.Raw
    fault: _Fault | None = None


class _Piece(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A part of a frame."""

    stream: int
    is_last: bool
    data: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_calls = msgspec.msgpack.Decoder(list[LinkCall]).decode
_decode_answers = msgspec.msgpack.Decoder(list[_Answer]).decode
_decode_piece = msgspec.msgpack.Decoder(_Piece).decode
_NOTHING = msgspec.Raw(_encode(None))

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


class _Garbled(Exception):
    """The peer sent what is no frame."""


# -- the side that calls


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
            timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
            heartbeat=_HEARTBEAT_S,
            max_msg_size=_MESSAGE_BYTES_MAX,
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
        self._outbox = _Outbox(links.metrics)
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
                raise _Garbled("it speaks another version")
            self._pause_s = _PAUSE_S
            await _first_of(self._read(socket), self._write(socket))
        except (aiohttp.ClientError, OSError, TimeoutError, _Garbled) as error:
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
        frames = _Frames()
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                raise _Garbled("a frame is not binary")
            body = frames.take(message.data, _ANSWERS)
            if body is None:
                continue
            for answer in _decoded(_decode_answers, body):
                call = self._end(answer.id)
                if call is None or call.answer.done():
                    continue
                if answer.fault is None:
                    call.answer.set_result(bytes(answer.value))
                else:
                    call.answer.set_exception(_error_of(answer.fault))

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
            if size >= _FRAME_BYTES:
                self._outbox.put(_CALLS, calls)
                calls, size = [], 0
        if calls:
            self._outbox.put(_CALLS, calls)


async def _first_of(*loops: Any) -> None:
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


# -- the side that is called


class LinkServer:
    """Takes links of other nodes and has their calls carried out."""

    def __init__(self, serve: Serve, *, token: str, metrics: Metrics) -> None:
        self.serve = serve
        self._token = token.encode()
        self.metrics = metrics
        self._peers: dict[str, _Peer] = {}

    async def accept(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one link until it ends."""
        name = request.headers.get(NODE_HEADER, "")
        given = request.headers.get(hdrs.AUTHORIZATION, "").removeprefix("Bearer ")
        # A browser says where its page comes from; no node does.
        if (
            not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token)
            or hdrs.ORIGIN in request.headers
            or not name
        ):
            log.warning("a link was refused", peer=name[:100], remote=request.remote)
            self.metrics.link_refused.of().inc()
            return web.Response(status=401, text="This is for nodes of this cluster only\n")
        if PROTOCOL not in request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, ""):
            return web.Response(status=426, text=f"This node speaks {PROTOCOL}\n")
        # What an earlier link of that node still has under way must not come after what this one
        # brings: nobody waits for it, and a start among it may be repeated here.
        earlier = self._peers.get(name)
        if earlier is not None:
            await earlier.end()
        socket = web.WebSocketResponse(
            protocols=(PROTOCOL,),
            heartbeat=_HEARTBEAT_S,
            timeout=_CLOSE_S,
            max_msg_size=_MESSAGE_BYTES_MAX,
            compress=False,
        )
        await socket.prepare(request)
        peer = self._peers[name] = _Peer(self, name, socket)
        try:
            await peer.run()
        finally:
            if self._peers.get(name) is peer:
                del self._peers[name]
        return socket

    async def close(self) -> None:
        """End all links."""
        await asyncio.gather(*(peer.end() for peer in list(self._peers.values())))


class _Peer:
    """One link of another node to this one."""

    def __init__(self, server: LinkServer, name: str, socket: web.WebSocketResponse) -> None:
        self._server = server
        self._name = name
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._calls: set[asyncio.Task[None]] = set()
        self._answers: list[tuple[_Answer, int]] = []
        self._answer_bytes = 0
        self._outbox = _Outbox(server.metrics)
        self._ended = False

    async def run(self) -> None:
        why = "closed"
        try:
            await _first_of(self._read(), self._write())
        except (ConnectionError, _Garbled) as error:
            why = str(error)
        finally:
            log.info("a link of another node ended", peer=self._name, why=why)
            await self.end()

    async def end(self) -> None:
        """Take nothing more, and drop what is under way."""
        self._ended = True
        calls = [call for call in self._calls if call is not asyncio.current_task()]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._socket.close()

    async def _read(self) -> None:
        frames = _Frames()
        async for message in self._socket:
            if message.type is not WSMsgType.BINARY:
                raise _Garbled("a frame is not binary")
            body = frames.take(message.data, _CALLS)
            if body is None or self._ended:
                continue
            calls = _decoded(_decode_calls, body)
            if len(self._calls) + len(calls) > 2 * CALLS_MAX:
                raise _Garbled("it has far more calls under way than are allowed")
            for call in calls:
                task = self._loop.create_task(self._carry_out(call))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)

    async def _carry_out(self, call: LinkCall) -> None:
        """Answer one call, whatever happens."""
        if self._answer_bytes + self._outbox.bytes > BACKLOG_BYTES_MAX:
            refusal = Overloaded("The answers of this node are not taken fast enough")
            self._answer(_Answer(call.id, _NOTHING, _fault_of(refusal)))
            return
        try:
            async with asyncio.timeout(call.left_ms / 1000):
                value = await self._server.serve(call)
            if len(value) > _WHOLE_BYTES_MAX - _FRAME_BYTES:
                raise TooLarge(f"The answer has {len(value)} bytes, too many for a link")
            answer = _Answer(call.id, msgspec.Raw(value))
        except ClusterError as error:
            answer = _Answer(call.id, _NOTHING, _fault_of(error))
        except TimeoutError:
            answer = _Answer(call.id, _NOTHING, _fault_of(OutcomeUnknown("There was no time left")))
        except Exception:
            log.exception("a call of another node failed", operation=call.operation)
            defect = ClusterError(f"{call.operation} failed on another node; see its log")
            answer = _Answer(call.id, _NOTHING, _fault_of(defect))
        self._answer(answer)

    def _answer(self, answer: _Answer) -> None:
        size = memoryview(answer.value).nbytes
        self._answers.append((answer, size))
        self._answer_bytes += size
        self._outbox.news.set()

    async def _write(self) -> None:
        while True:
            await self._outbox.wait()
            answers, self._answers, self._answer_bytes = self._answers, [], 0
            batch: list[_Answer] = []
            size = 0
            for answer, answer_bytes in answers:
                batch.append(answer)
                size += answer_bytes
                if size >= _FRAME_BYTES:
                    self._outbox.put(_ANSWERS, batch)
                    batch, size = [], 0
            if batch:
                self._outbox.put(_ANSWERS, batch)
            await self._outbox.send(self._socket)


# -- frames


class _Sender(Protocol):
    async def send_bytes(self, data: bytes) -> None: ...


class _Outbox:
    """Frames on their way out. Large ones leave a piece at a time, with the small ones between."""

    def __init__(self, metrics: Metrics) -> None:
        self.news = asyncio.Event()
        self.bytes = 0
        self._frames: list[bytes] = []
        self._large: deque[tuple[int, memoryview]] = deque()
        self._streams = count()
        self._frame_count = metrics.link_frames.of()
        self._byte_count = metrics.link_bytes.of()
        self._per_frame = metrics.link_messages.of()

    async def wait(self) -> None:
        """Until there is something to pack or to send."""
        if not self._large:
            await self.news.wait()
        self.news.clear()

    def put(self, kind: bytes, messages: "list[LinkCall] | list[_Answer]") -> None:
        frame = kind + _encode(messages)
        self._per_frame.observe(len(messages))
        self.bytes += len(frame)
        if len(frame) <= _PIECE_BYTES:
            self._frames.append(frame)
        else:
            self._large.append((next(self._streams), memoryview(frame)))

    async def send(self, socket: _Sender) -> None:
        """Send all small frames and one piece of the first large one."""
        frames, self._frames = self._frames, []
        for frame in frames:
            await self._send(socket, frame, len(frame))
        if self._large:
            stream, rest = self._large.popleft()
            piece, rest = rest[:_PIECE_BYTES], rest[_PIECE_BYTES:]
            encoded = _encode(_Piece(stream, not rest, bytes(piece)))
            if rest:
                # To the end of the line: several large frames take turns.
                self._large.append((stream, rest))
            await self._send(socket, _PIECE + encoded, len(piece))

    async def _send(self, socket: _Sender, message: bytes, size: int) -> None:
        await socket.send_bytes(message)
        self.bytes -= size
        self._frame_count.inc()
        self._byte_count.inc(len(message))

    def clear(self) -> None:
        self._frames.clear()
        self._large.clear()
        self.bytes = 0


class _Frames:
    """Messages put together to frames."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[bytes]] = {}
        self._bytes = 0

    def take(self, message: bytes, kind: bytes) -> memoryview | None:
        """The body of a frame of that kind once it is whole; _Garbled for anything else."""
        if message[:1] == _PIECE:
            whole = self._join(_decoded(_decode_piece, memoryview(message)[1:]))
            if whole is None:
                return None
            message = whole
        if message[:1] != kind:
            raise _Garbled("a frame of an unknown kind")
        return memoryview(message)[1:]

    def _join(self, piece: _Piece) -> bytes | None:
        pieces = self._pieces.setdefault(piece.stream, [])
        pieces.append(piece.data)
        self._bytes += len(piece.data)
        if self._bytes > 2 * _WHOLE_BYTES_MAX or len(self._pieces) > _STREAMS_MAX:
            raise _Garbled("frames in pieces that are too large")
        if not piece.is_last:
            return None
        whole = b"".join(self._pieces.pop(piece.stream))
        self._bytes -= len(whole)
        return whole


class _Decode(Protocol):
    def __call__(self, body: memoryview, /) -> Any: ...


def _decoded(decode: _Decode, body: memoryview) -> Any:
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Garbled(f"a frame that cannot be read: {error}") from None


# -- errors


class _Kinds(NamedTuple):
    """Classes of errors by name, looked up when one is needed: modules bring their own."""

    known: dict[str, type[ClusterError]]

    def of(self, name: str) -> type[ClusterError]:
        if name not in self.known:
            self._gather(ClusterError)
        return self.known.get(name, ClusterError)

    def _gather(self, kind: type[ClusterError]) -> None:
        self.known[kind.__name__] = kind
        for narrower in kind.__subclasses__():
            self._gather(narrower)


_kinds = _Kinds({})


def _fault_of(error: ClusterError) -> _Fault:
    violations = error.violations if isinstance(error, ValidationFailed) else ()
    return _Fault(
        type(error).__name__,
        error.message,
        error.status,
        error.retryable,
        tuple((one.path, one.message, one.invalid_value) for one in violations),
        {
            name: value
            for name, value in vars(error).items()
            if name != "message" and isinstance(value, str | int)
        },
    )


def _error_of(fault: _Fault) -> ClusterError:
    """The error as it was raised there, without running its constructor again."""
    kind = _kinds.of(fault.kind)
    error = kind.__new__(kind)
    ClusterError.__init__(error, fault.message)
    vars(error).update(cast(Mapping[str, Any], fault.details))
    if isinstance(error, ValidationFailed):
        error.violations = tuple(Violation(*one) for one in fault.violations)
    if (kind.status, kind.retryable) != (fault.status, fault.retryable):
        error.status, error.retryable = fault.status, fault.retryable
    return error


def is_link(request: web.BaseRequest) -> bool:
    """Whether a request asks for a link."""
    return request.raw_path.partition("?")[0] == PATH
