"""Frames of links: msgpack behind a byte that tells their kind; large ones go in pieces."""

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import count
from typing import Any, Protocol

import msgspec

from cluster.metrics import Metrics

FRAME_BYTES = 128 << 10
"""Messages gather in a frame up to this."""
PIECE_BYTES = 256 << 10
MESSAGE_BYTES_MAX = 4 * PIECE_BYTES
"""What a websocket takes at a time."""
WHOLE_BYTES_MAX = 256 << 20
"""Largest frame that is put together from pieces."""
STREAMS_MAX = 4_096
"""Frames in pieces that are under way at a time."""

CALLS, ANSWERS, _PIECE = b"\x01", b"\x02", b"\x03"


class Garbled(Exception):
    """The peer sent what is no frame."""


class _Piece(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A part of a frame."""

    stream: int
    is_last: bool
    data: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_piece = msgspec.msgpack.Decoder(_Piece).decode


class Sender(Protocol):
    async def send_bytes(self, data: bytes) -> None: ...


class Outbox:
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

    def put(self, kind: bytes, messages: Sequence[msgspec.Struct]) -> None:
        frame = kind + _encode(messages)
        self._per_frame.observe(len(messages))
        self.bytes += len(frame)
        if len(frame) <= PIECE_BYTES:
            self._frames.append(frame)
        else:
            self._large.append((next(self._streams), memoryview(frame)))

    async def send(self, socket: Sender) -> None:
        """Send all small frames and one piece of the first large one."""
        frames, self._frames = self._frames, []
        for frame in frames:
            await self._send(socket, frame, len(frame))
        if self._large:
            stream, rest = self._large.popleft()
            piece, rest = rest[:PIECE_BYTES], rest[PIECE_BYTES:]
            encoded = _encode(_Piece(stream, not rest, bytes(piece)))
            if rest:
                # To the end of the line: several large frames take turns.
                self._large.append((stream, rest))
            await self._send(socket, _PIECE + encoded, len(piece))

    async def _send(self, socket: Sender, message: bytes, size: int) -> None:
        await socket.send_bytes(message)
        self.bytes -= size
        self._frame_count.inc()
        self._byte_count.inc(len(message))

    def clear(self) -> None:
        self._frames.clear()
        self._large.clear()
        self.bytes = 0


class Frames:
    """Messages put together to frames."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[bytes]] = {}
        self._bytes = 0

    def take(self, message: bytes, kind: bytes) -> memoryview | None:
        """The body of a frame of that kind once it is whole; Garbled for anything else."""
        if message[:1] == _PIECE:
            whole = self._join(decoded(_decode_piece, memoryview(message)[1:]))
            if whole is None:
                return None
            message = whole
        if message[:1] != kind:
            raise Garbled("a frame of an unknown kind")
        return memoryview(message)[1:]

    def _join(self, piece: _Piece) -> bytes | None:
        pieces = self._pieces.setdefault(piece.stream, [])
        pieces.append(piece.data)
        self._bytes += len(piece.data)
        if self._bytes > 2 * WHOLE_BYTES_MAX or len(self._pieces) > STREAMS_MAX:
            raise Garbled("frames in pieces that are too large")
        if not piece.is_last:
            return None
        whole = b"".join(self._pieces.pop(piece.stream))
        self._bytes -= len(whole)
        return whole


class Decode(Protocol):
    def __call__(self, body: memoryview, /) -> Any: ...


def decoded(decode: Decode, body: memoryview) -> Any:
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Garbled(f"a frame that cannot be read: {error}") from None
