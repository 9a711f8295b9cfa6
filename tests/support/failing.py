"""Stores that fail on purpose: the calls of the real ones, with faults and crashes in between."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Any, cast

from cluster.errors import StoreFault
from cluster.store.memory.log import MemoryLogStore
from cluster.store.ports import LogId, Stores


class Crash(BaseException):
    """The process ends here."""


class Faults:
    """What happens to the calls of a store: `before` runs ahead of each, `after` behind it."""

    def __init__(
        self,
        before: Callable[[str], None] = lambda _: None,
        after: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.before = before
        self.after = after

    def wrapped(self, stores: Stores) -> Stores:
        """The same stores, every call of every port passing through here."""
        ports = {field.name: getattr(stores, field.name) for field in fields(Stores)}
        return Stores(**{name: cast(Any, _Port(port, self)) for name, port in ports.items()})


class _Port:
    def __init__(self, port: object, faults: Faults) -> None:
        self._port = port
        self._faults = faults

    def __getattr__(self, name: str) -> Callable[..., Awaitable[object]]:
        method = getattr(self._port, name)

        async def call(*args: object, **options: object) -> object:
            self._faults.before(name)
            answer = await method(*args, **options)
            self._faults.after(name)
            return answer

        return call


def crash_at(call_number: int, *, is_applied: bool) -> Faults:
    """Crash in the call of that number, from 0: before it reached the store, or after."""
    calls = 0

    def count(_: str) -> None:
        nonlocal calls
        calls += 1
        if calls > call_number:
            raise Crash

    return Faults(after=count) if is_applied else Faults(before=count)


def lose_every_second_answer() -> Faults:
    """Half of the calls reach the store, but the caller hears of a fault."""
    calls = 0

    def lose(_: str) -> None:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise StoreFault("the answer was lost")

    return Faults(after=lose)


class HeldLogStore(MemoryLogStore):
    """Appends wait until they are let through; what reached the store is in `tried`."""

    def __init__(self) -> None:
        super().__init__()
        self.tried: list[tuple[int, bytes]] = []
        self._passes = asyncio.Semaphore(0)
        self._outcomes: list[BaseException | None] = []

    def let_through(self, *, outcome: BaseException | None = None) -> None:
        """Let one append through; it is applied, then raises `outcome`."""
        self._outcomes.append(outcome)
        self._passes.release()

    async def append(self, log: LogId, position: int, entry: bytes) -> None:
        self.tried.append((position, entry))
        await self._passes.acquire()
        outcome = self._outcomes.pop(0)
        await super().append(log, position, entry)
        if outcome is not None:
            raise outcome
