"""An event loop on which waiting costs nothing: time jumps to the next timer."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")
START_MS = 1_800_000_000_000


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's loop with a clock that stands still while anything can run."""

    def __init__(self) -> None:
        self._selector_of_time = _VirtualSelector()
        super().__init__(self._selector_of_time)

    def time(self) -> float:
        return self._selector_of_time.now


class _VirtualSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everything waits for something that no timer will bring")
        if not ready and timeout is not None:
            self.now += max(timeout, 0)
        return ready


class HandClock:
    """The Clock port on a time that the test sets."""

    def __init__(self) -> None:
        self.ms = 1_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


class VirtualClock:
    """The Clock port on the time of the running VirtualLoop."""

    def now_ms(self) -> int:
        return START_MS + self.monotonic_ms()

    def monotonic_ms(self) -> int:
        # Sums of fractions end a little below the whole millisecond they mean.
        return int(asyncio.get_running_loop().time() * 1000 + 1e-3)


def run_virtual(main: Coroutine[Any, Any, Result]) -> Result:
    """Run `main` to its end on virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
