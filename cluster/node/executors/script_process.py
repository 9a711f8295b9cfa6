"""One worker process as its owner sees it: what was sent, in order, and what came back."""

import asyncio
import os
from collections import deque
from pathlib import Path
from typing import Protocol, cast

from cluster.node.executors import script_worker

SLOW_MS = 50
WINDOW = 32
WINDOW_BYTES = 1024 * 1024
_SUSPECT_NICENESS = 10
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class ScriptFailed(Exception):
    """The script has no result; the message is meant for the workflow's author."""

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.timed_out = timed_out


class Owner(Protocol):
    """Who is told what a process answers."""

    def on_answer(
        self, process: "Process", number: int, status: int, cpu_ms: int, payload: bytes
    ) -> None: ...

    def on_exit(self, process: "Process") -> None: ...


class Request:
    __slots__ = ("attempts", "frame", "key", "number", "outcome", "queued_at")

    def __init__(
        self, number: int, key: tuple[int, str], frame: bytes, outcome: asyncio.Future[bytes]
    ) -> None:
        self.number = number
        self.key = key
        self.frame = frame
        self.outcome = outcome
        self.attempts = 0
        self.queued_at = 0.0

    def fail(self, message: str, *, timed_out: bool = False) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(ScriptFailed(message, timed_out=timed_out))


class Process(asyncio.SubprocessProtocol):
    """One worker process: what was sent to it, in order, and the answers read so far."""

    def __init__(self, owner: "Owner", *, is_suspect: bool) -> None:
        self.owner = owner
        self.is_suspect = is_suspect
        self.is_ready = False
        # Between a DROP and its answer the process may still run something already taken away.
        self.is_dropping = False
        # Killed on purpose: nothing that was sent to it is to blame.
        self.is_dying = False
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.sent: deque[Request] = deque()
        self.sent_bytes = 0
        self.head_since = 0.0
        self.seen_head = 0
        self.seen_cpu_ms = 0
        self.outgoing: list[bytes] = []
        self.received = bytearray()
        self.transport: asyncio.SubprocessTransport | None = None
        self.stdin: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have these methods but are not of asyncio's classes.
        self.transport = cast(asyncio.SubprocessTransport, transport)
        self.stdin = cast(asyncio.WriteTransport, self.transport.get_pipe_transport(0))

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        assert isinstance(data, bytes)
        self.received += data
        received, at = self.received, 0
        answer = script_worker.ANSWER
        while len(received) - at >= answer.size:
            number, status, cpu_ms, size = answer.unpack_from(received, at)
            end = at + answer.size + size
            if end > len(received):
                break
            payload = bytes(received[at + answer.size : end])
            at = end
            self.owner.on_answer(self, number, status, cpu_ms, payload)
        del received[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is not None:
            self.transport.close()
        self.gone.set_result(None)
        self.owner.on_exit(self)

    def has_room(self) -> bool:
        if not self.is_ready or self.is_dropping or self.is_dying:
            return False
        if self.is_suspect:
            return not self.sent
        return len(self.sent) < WINDOW and self.sent_bytes < WINDOW_BYTES

    def send(self, request: Request, now: float) -> None:
        if not self.sent:
            self.head_since = now
        self.sent.append(request)
        self.sent_bytes += len(request.frame)
        self.outgoing.append(request.frame)

    def flush(self) -> None:
        if self.outgoing and self.stdin is not None:
            self.stdin.write(b"".join(self.outgoing))
            self.outgoing.clear()

    def take_all_but_head(self) -> list[Request]:
        taken = list(self.sent)[1:]
        for request in taken:
            self.sent_bytes -= len(request.frame)
        while len(self.sent) > 1:
            self.sent.pop()
        return taken

    def is_burning(self, now: float) -> bool:
        """Whether the script at the head has used the CPU for long, seen over several ticks.

        A machine with too much to do makes every script take long; such a script uses little CPU.
        """
        head = self.sent[0].number
        if self.seen_head != head:
            self.seen_head, self.seen_cpu_ms = head, self._cpu_ms()
            return False
        age_ms = (now - self.head_since) * 1000
        if age_ms <= SLOW_MS:
            return False
        return age_ms > 10 * SLOW_MS or self._cpu_ms() - self.seen_cpu_ms >= SLOW_MS / 2

    def _cpu_ms(self) -> int:
        assert self.transport is not None
        try:
            stat = Path(f"/proc/{self.transport.get_pid()}/stat").read_text()
        except OSError:
            return 0
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) * 1000 // _CLOCK_TICKS

    def kill(self) -> None:
        self.is_dying = True
        if self.transport is not None:
            try:
                self.transport.kill()
            except ProcessLookupError:
                pass

    def lower_priority(self) -> None:
        if self.transport is not None:
            try:
                os.setpriority(os.PRIO_PROCESS, self.transport.get_pid(), _SUSPECT_NICENESS)
            except OSError:
                pass
