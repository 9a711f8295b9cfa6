"""The driver's connections, served by the event loop of their session instead of a thread.

The driver's own reactors live in a thread, so each request wakes it, it fights for the interpreter
lock, and its answer wakes the event loop again. Here a request is one `send` where it is made, and
an answer is read where it is awaited. What the driver does in the background (connecting,
preparing) stays in its threads, and none of it may be waited for on the loop.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from math import ceil
from threading import Lock, get_ident
from typing import Any, ClassVar

from cassandra.connection import Connection, ConnectionShutdown

_PIECE_BYTES = 64 * 1024


def connection_on(loop: asyncio.AbstractEventLoop) -> type[Connection]:
    """The class of the connections of one session. To be called on the loop's thread."""
    own = {"loop": loop, "thread": get_ident(), "timers": _Timers(loop)}
    return type("_OnThisLoop", (_OnLoop,), own)


class _OnLoop(Connection):  # type: ignore[misc]
    """A connection whose socket a loop looks after; it is written to from any thread."""

    loop: ClassVar[asyncio.AbstractEventLoop]
    thread: ClassVar[int]
    timers: "ClassVar[_Timers]"
    is_closed: bool

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unsent = bytearray()
        self._out = Lock()
        self._connect_socket()
        self._socket.setblocking(False)
        self._on_loop(self._begin)
        self._send_options_message()

    @classmethod
    def create_timer(cls, timeout: float, callback: Callable[[], object]) -> "_Timer":
        timer = _Timer(callback)
        cls._on_loop(cls.timers.add, timeout, timer)
        return timer

    def close(self) -> None:
        with self.lock:
            if self.is_closed:
                return
            self.is_closed = True
        self._on_loop(self._end)
        if not self.is_defunct:
            self.error_all_requests(ConnectionShutdown(f"Connection to {self.endpoint} was closed"))
            self.connected_event.set()

    def push(self, data: bytes) -> None:
        """Send a message, or what the socket takes of it; the loop sends the rest."""
        with self._out:
            if self._unsent:
                self._unsent += data
                return
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                sent = 0
            except OSError as error:
                # Not now: its requests are told, and some of them are just being made.
                self._soon(self.defunct, error)
                return
            if sent < len(data):
                self._unsent += memoryview(data)[sent:]
                self._on_loop(self._await_room)

    @classmethod
    def _on_loop(cls, callback: Callable[..., object], *arguments: object) -> None:
        if get_ident() == cls.thread:
            callback(*arguments)
        else:
            cls._soon(callback, *arguments)

    @classmethod
    def _soon(cls, callback: Callable[..., object], *arguments: object) -> None:
        try:
            cls.loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            pass  # The loop is closed, and this connection with it.

    # -- on the loop

    def _begin(self) -> None:
        if not self.is_closed:
            self.loop.add_reader(self._socket.fileno(), self._read)

    def _end(self) -> None:
        number = self._socket.fileno()
        if number >= 0:
            self.loop.remove_reader(number)
            self.loop.remove_writer(number)
            self._socket.close()

    def _await_room(self) -> None:
        if not self.is_closed:
            self.loop.add_writer(self._socket.fileno(), self._write)

    def _write(self) -> None:
        with self._out:
            try:
                while self._unsent:
                    sent = self._socket.send(self._unsent)
                    del self._unsent[:sent]
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                failed: OSError | None = error
            else:
                failed = None
                self.loop.remove_writer(self._socket.fileno())
        if failed is not None:
            self.defunct(failed)

    def _read(self) -> None:
        try:
            while True:
                received = self._socket.recv(_PIECE_BYTES)
                self._iobuf.write(received)
                if len(received) < _PIECE_BYTES:
                    break
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            received = b"later"
        except OSError as error:
            self.defunct(error)
            return
        if self._iobuf.tell():
            self.process_io_buffer()
        if not received:
            self.close()


class _Timer:
    """Calls back on the loop, unless it is cancelled before."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class _Timers:
    """Timers that are nearly all of one length and nearly all cancelled: a line for each length,
    with one timer of the loop for its head. Lengths are rounded up to seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lines: dict[int, deque[tuple[float, _Timer]]] = {}

    def add(self, timeout_s: float, timer: _Timer) -> None:
        """To be called on the loop."""
        length_s = ceil(timeout_s)
        line = self._lines.get(length_s)
        if line is None:
            line = self._lines[length_s] = deque()
            self._loop.call_later(length_s, self._fire, length_s)
        # Answers come about in the order of requests: the line stays short.
        while line and line[0][1].callback is None:
            line.popleft()
        line.append((self._loop.time() + length_s, timer))

    def _fire(self, length_s: int) -> None:
        line, now_s = self._lines[length_s], self._loop.time()
        while line and (line[0][0] <= now_s or line[0][1].callback is None):
            callback = line.popleft()[1].callback
            if callback is not None:
                # Not here: one that fails must not take the others along.
                self._loop.call_soon(callback)
        if line:
            self._loop.call_at(line[0][0], self._fire, length_s)
        else:
            del self._lines[length_s]
