"""The side of a link that is called: takes links of other nodes and has their calls done."""

import asyncio
import hmac

import msgspec
from aiohttp import WSMsgType, hdrs, web

from cluster.errors import ClusterError, OutcomeUnknown, Overloaded, TooLarge
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.node.link import (
    CALLS_MAX,
    CLOSE_S,
    HEARTBEAT_S,
    NODE_HEADER,
    PATH,
    PROTOCOL,
    LinkAnswer,
    LinkCall,
    Serve,
    first_of,
)
from cluster.node.link_faults import fault_of
from cluster.node.link_frames import (
    ANSWERS,
    CALLS,
    FRAME_BYTES,
    MESSAGE_BYTES_MAX,
    WHOLE_BYTES_MAX,
    Frames,
    Garbled,
    Outbox,
    decoded,
)

log = get_log(__name__)

BACKLOG_BYTES_MAX = 64 << 20
"""Answers a slow peer has not taken; beyond it its calls are refused unheard."""

_decode_calls = msgspec.msgpack.Decoder(list[LinkCall]).decode
_NOTHING = msgspec.Raw(msgspec.msgpack.encode(None))


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
            heartbeat=HEARTBEAT_S,
            timeout=CLOSE_S,
            max_msg_size=MESSAGE_BYTES_MAX,
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
        self._answers: list[tuple[LinkAnswer, int]] = []
        self._answer_bytes = 0
        self._outbox = Outbox(server.metrics)
        self._ended = False

    async def run(self) -> None:
        why = "closed"
        try:
            await first_of(self._read(), self._write())
        except (ConnectionError, Garbled) as error:
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
        frames = Frames()
        async for message in self._socket:
            if message.type is not WSMsgType.BINARY:
                raise Garbled("a frame is not binary")
            body = frames.take(message.data, CALLS)
            if body is None or self._ended:
                continue
            calls = decoded(_decode_calls, body)
            if len(self._calls) + len(calls) > 2 * CALLS_MAX:
                raise Garbled("it has far more calls under way than are allowed")
            for call in calls:
                task = self._loop.create_task(self._carry_out(call))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)

    async def _carry_out(self, call: LinkCall) -> None:
        """Answer one call, whatever happens."""
        if self._answer_bytes + self._outbox.bytes > BACKLOG_BYTES_MAX:
            refusal = Overloaded("The answers of this node are not taken fast enough")
            self._answer(LinkAnswer(call.id, _NOTHING, fault_of(refusal)))
            return
        try:
            async with asyncio.timeout(call.left_ms / 1000):
                value = await self._server.serve(call)
            if len(value) > WHOLE_BYTES_MAX - FRAME_BYTES:
                raise TooLarge(f"The answer has {len(value)} bytes, too many for a link")
            answer = LinkAnswer(call.id, msgspec.Raw(value))
        except ClusterError as error:
            answer = LinkAnswer(call.id, _NOTHING, fault_of(error))
        except TimeoutError:
            answer = LinkAnswer(
                call.id, _NOTHING, fault_of(OutcomeUnknown("There was no time left"))
            )
        except Exception:
            log.exception("a call of another node failed", operation=call.operation)
            defect = ClusterError(f"{call.operation} failed on another node; see its log")
            answer = LinkAnswer(call.id, _NOTHING, fault_of(defect))
        self._answer(answer)

    def _answer(self, answer: LinkAnswer) -> None:
        size = memoryview(answer.value).nbytes
        self._answers.append((answer, size))
        self._answer_bytes += size
        self._outbox.news.set()

    async def _write(self) -> None:
        while True:
            await self._outbox.wait()
            answers, self._answers, self._answer_bytes = self._answers, [], 0
            batch: list[LinkAnswer] = []
            size = 0
            for answer, answer_bytes in answers:
                batch.append(answer)
                size += answer_bytes
                if size >= FRAME_BYTES:
                    self._outbox.put(ANSWERS, batch)
                    batch, size = [], 0
            if batch:
                self._outbox.put(ANSWERS, batch)
            await self._outbox.send(self._socket)


def is_link(request: web.BaseRequest) -> bool:
    """Whether a request asks for a link."""
    return request.raw_path.partition("?")[0] == PATH
