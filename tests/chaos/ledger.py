"""What a client knows for sure: lines on disk, fsynced before an answer counts as received."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson


class Ledger:
    """Append-only JSON lines; those of one turn share an fsync."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lines: list[bytes] = []
        self._durable: asyncio.Future[None] | None = None
        self._news = asyncio.Event()

    def jot(self, kind: str, **fields: Any) -> None:
        """Write a line that need not be on the disk before anything else happens."""
        self._lines.append(orjson.dumps({"kind": kind, **fields}))

    async def note(self, kind: str, **fields: Any) -> None:
        """Write a line; returns when it is on the disk, and all lines before it."""
        self.jot(kind, **fields)
        if self._durable is None:
            self._durable = asyncio.get_running_loop().create_future()
        self._news.set()
        await asyncio.shield(self._durable)

    async def run(self) -> None:
        """Write until cancelled."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                lines, self._lines = self._lines, []
                durable, self._durable = self._durable, None
                await asyncio.to_thread(self._write, lines)
                assert durable is not None
                durable.set_result(None)
        finally:
            self._write(self._lines)
            os.close(self._file)

    def _write(self, lines: list[bytes]) -> None:
        text = b"".join(line + b"\n" for line in lines)
        assert os.write(self._file, text) == len(text)
        os.fsync(self._file)


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a ledger, in order."""
    for line in path.read_bytes().splitlines():
        yield orjson.loads(line)
