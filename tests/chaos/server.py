"""`podium serve` as a process that is killed and started again over one data folder."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from ops.children import free_port

_ENVIRONMENT = {
    # A checkpoint says at this level where it begins and ends.
    "PODIUM_LOG_LEVEL": "debug",
    # As fast as it can, so that what it would find is found before the next kill.
    "PODIUM_AUDIT_INTERVAL_MS": "500",
    "PODIUM_AUDIT_WORKFLOWS_PER_S": "1000",
    "PODIUM_AUDIT_GRACE_MS": "1000",
}
_START_S = 60
_DEATH_S = 90
"""More than all the time that it gives itself to stop in order."""


class Server:
    """One data folder, one port, one process at a time. What it logs is kept, per process.

    A context, so that whatever becomes of the test no process is left behind.
    """

    def __init__(
        self, data: Path, *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.data = data
        self.options = options
        self.environment = environment or {}
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.lines: list[dict[str, Any]] = []
        """What the present process has logged, or the last one where none runs."""
        self.complaints: list[dict[str, Any]] = []
        """Warnings and errors of all processes."""
        self.said: Counter[str] = Counter()
        """How often each event was logged, by all processes."""
        self._process: asyncio.subprocess.Process | None = None
        self._listening = asyncio.Event()
        self._aim: tuple[str, float] | None = None
        self._shot: asyncio.Future[None]
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            await self.kill()

    @property
    def is_running(self) -> bool:
        """Whether there is a process, be it paused."""
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def spawn(self) -> None:
        """Begin a process; returns at once."""
        assert self._process is None, "one at a time"
        self.lines = []
        self._listening.clear()
        podium = Path(sys.executable).parent / "podium"
        self._process = await asyncio.create_subprocess_exec(
            *(str(podium), "serve", "--port", str(self.port), "--data", str(self.data)),
            *self.options,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT, **self.environment},
        )
        stdout, stderr = self._process.stdout, self._process.stderr
        assert stdout is not None
        assert stderr is not None
        self._readers = [
            asyncio.create_task(self._read_log(stderr)),
            asyncio.create_task(self._read_greeting(stdout)),
        ]

    @property
    def was_listening(self) -> bool:
        """Whether the present process, or the last one, came to say that it takes requests."""
        return self._listening.is_set()

    async def listening(self) -> None:
        """Wait until it says that it takes requests."""
        async with asyncio.timeout(_START_S):
            await self._listening.wait()

    async def shot(self, event: str, after_s: float) -> None:
        """SIGKILL so long after the next line of that event; returns when it is sent."""
        self._aim = (event, after_s)
        self._shot = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(_START_S):
            await self._shot

    async def kill(self) -> None:
        """SIGKILL, unless it is sent already; returns when it is gone, its scripts too."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        assert await self._gone() == -signal.SIGKILL

    async def stop(self) -> None:
        """SIGTERM, which it obeys in order."""
        os.kill(self.pid, signal.SIGTERM)
        assert await self._gone() == 0, self.lines[-3:]

    def pause(self) -> None:
        """SIGSTOP: it stands still and knows nothing of it."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    async def _gone(self) -> int:
        assert self._process is not None
        async with asyncio.timeout(_DEATH_S):
            status = await self._process.wait()
            # Its log ends when the last process that holds it has gone: no script outlives it.
            await asyncio.gather(*self._readers)
        self._process = None
        return status

    def was_in(self, phase: str) -> bool:
        """Whether it died between "`phase` begins" and "`phase` ended", as its own log says."""
        marks = [line["event"] for line in self.lines if line["event"].startswith(phase)]
        return bool(marks) and marks[-1] == f"{phase} begins"

    async def _read_log(self, stream: asyncio.StreamReader) -> None:
        async for text in stream:
            with self.data.with_suffix(".log").open("ab") as kept:
                kept.write(text)
            try:
                line: dict[str, Any] = orjson.loads(text)
            except orjson.JSONDecodeError:
                # What is no line of the log is a traceback, or the half of a line at the end.
                line = {"event": text.decode(errors="replace"), "level": "error"}
            self.lines.append(line)
            self.said[line["event"]] += 1
            if self._aim is not None and self._aim[0] == line["event"]:
                # At once, not when the one who waits gets its turn: a replay takes milliseconds.
                asyncio.get_running_loop().call_later(self._aim[1], self._shoot)
                self._aim = None
            if line["level"] not in ("debug", "info"):
                self.complaints.append(line)

    def _shoot(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._shot.set_result(None)

    async def _read_greeting(self, stream: asyncio.StreamReader) -> None:
        async for text in stream:
            if b"listening" in text:
                self._listening.set()
