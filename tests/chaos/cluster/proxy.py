"""A TCP proxy in front of the links of one node, which can be cut and mended."""

import asyncio
from contextlib import suppress

_CHUNK = 65_536


class Proxy:
    """Carries bytes both ways. Cut, it keeps them: as with a dead cable nobody is told, and what
    was on its way arrives late, when the cut is mended."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._is_whole = asyncio.Event()
        self._is_whole.set()
        self._server: asyncio.Server
        self._running: set[asyncio.Task[None]] = set()
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def cut(self) -> None:
        """From now on nothing passes."""
        self._is_whole.clear()

    def mend(self) -> None:
        """What was kept passes, and all that comes after."""
        self._is_whole.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            await self._is_whole.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        except OSError:
            pass
        finally:
            writer.close()
            self._running.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(_CHUNK):
                await self._is_whole.wait()
                writer.write(chunk)
                await writer.drain()
            await self._is_whole.wait()
        except ConnectionError:
            pass
        finally:
            with suppress(OSError):
                writer.close()
