"""The driver's connections, served by the event loop of their session instead of a thread.

The driver's own reactors live in a thread, so each request wakes it, it fights for the interpreter
lock, and its answer wakes the event loop again. Here a request is one `send` where it is made, and
an answer is read where it is awaited. What the driver does in the background (connecting,
preparing) stays in its threads, and none of it may be waited for on the loop.
"""

import asyncio
import ssl
from collections.abc import Callable
from threading import Lock, get_ident
from typing import Any, ClassVar

from cassandra.connection import Connection, ConnectionShutdown

_PIECE_BYTES = 64 * 1024


def connection_on(loop: asyncio.AbstractEventLoop) -> type[Connection]:
    """The class of the connections of one session. To be called on the loop's thread."""
    return type("_OnThisLoop", (_OnLoop,), {"loop": loop, "thread": get_ident()})


class _OnLoop(Connection):  # type: ignore[misc]
    """A connection whose socket a loop looks after; it is written to from any thread."""

    loop: ClassVar[asyncio.AbstractEventLoop]
    thread: ClassVar[int]
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
        return _Timer(cls, timeout, callback)

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

    def __init__(
        self, connection: type[_OnLoop], timeout_s: float, callback: Callable[[], object]
    ) -> None:
        self._connection = connection
        self._handle: asyncio.TimerHandle | None = None
        self._is_cancelled = False
        connection._on_loop(self._begin, timeout_s, callback)

    def cancel(self) -> None:
        self._is_cancelled = True
        self._connection._on_loop(self._end)

    def _begin(self, timeout_s: float, callback: Callable[[], object]) -> None:
        if not self._is_cancelled:
            self._handle = self._connection.loop.call_later(timeout_s, callback)

    def _end(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
