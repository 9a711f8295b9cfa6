"""A world of processes on one virtual clock: what happens, and in which order, follows from a seed.

Every process has an event loop of its own, so it can stop in the middle of anything: paused, none
of its callbacks runs while time goes on for the others; crashed, none ever runs again, and nobody
tidies up behind it. Nothing here takes time but waiting.
"""

import asyncio
import contextvars
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any, TypeVar, cast
from zlib import crc32

Result = TypeVar("Result")

START_MS = 1_800_000_000_000


_TURNS_MAX = 20_000
"""Of event loops, without any time passing."""


class Standstill(Exception):
    """Something goes on and on and waits for nothing: on a real machine it burns a core."""


class NumberedTask(asyncio.Task):  # type: ignore[type-arg]  # it is no generic at run time
    """A task that stands in sets where its number puts it, not where its address does."""

    def __init__(self, work: Coroutine[Any, Any, Any], process: "Process", **options: Any) -> None:
        # First: asyncio puts it into a set at once.
        self.number = next(process.world.numbers)
        super().__init__(work, loop=process.loop, **options)

    def __hash__(self) -> int:
        return self.number


class NumberedFuture(asyncio.Future):  # type: ignore[type-arg]
    """A future with a place of its own in a set."""

    number: int

    def __hash__(self) -> int:
        return self.number


class World:
    """Time, chance, and what is still to happen."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        """Seconds since the world began."""
        self.counts: dict[str, int] = {}
        """How often everything that is counted has happened."""
        self.lines: list[str] | None = None
        """What happened, for people who look at one seed."""
        self.on_error: Callable[[str], None] = lambda _: None
        self._coming: list[tuple[float, int, Any]] = []
        self._order = count()
        self._ready: deque[Process] = deque()
        self._digest = 0
        self.numbers = count(1)
        self.running: Process | None = None
        """Whose loop asyncio takes for the running one."""
        self.processes: list[Process] = []
        """Dead ones too: what is freed runs its clean-up, which a killed process never does."""

    def at(self, delay_s: float, happen: Callable[[], None]) -> None:
        """Have something happen after a while."""
        heappush(self._coming, (self.now + max(delay_s, 0.0), next(self._order), happen))

    def count(self, what: str, times: int = 1) -> None:
        """Take note that something happened."""
        self.counts[what] = self.counts.get(what, 0) + times

    def note(self, line: str) -> None:
        """Make something part of the trace by which two runs of a seed are compared."""
        self._digest = crc32(f"{self.now:.6f} {line}".encode(), self._digest)
        if self.lines is not None:
            self.lines.append(f"{self.now:10.4f} {line}")

    @property
    def digest(self) -> int:
        """The same for two runs in which the same happened at the same time."""
        return self._digest

    def run(self, is_over: Callable[[], bool], *, until_s: float) -> bool:
        """Let time pass until something is so; False if it is not by then."""
        turns = 0
        while not is_over():
            if self._ready:
                process = self._ready.popleft()
                process.run_ready()
                turns += 1
                if turns > _TURNS_MAX:
                    raise Standstill(f"{process.name} runs without end: {process.work()}")
                continue
            turns = 0
            if not self._coming or self._coming[0][0] > until_s:
                self.now = until_s
                return is_over()
            when, _, what = heappop(self._coming)
            self.now = max(self.now, when)
            if isinstance(what, ProcessTimer):
                if not what.cancelled():
                    what.process.wake(what)
            else:
                what()
        return True

    def end(self) -> None:
        """Nothing happens any more; asyncio may run other loops again."""
        for process in self.processes:
            process.is_dead = True
        self.running = None
        events._set_running_loop(None)

    def schedule(self, timer: "ProcessTimer", when: float) -> None:
        """A timer of a process; `when` is in this world's time."""
        heappush(self._coming, (max(when, self.now), next(self._order), timer))

    def make_ready(self, process: "Process") -> None:
        """It has callbacks to run at this very moment."""
        self._ready.append(process)


class ProcessTimer(asyncio.TimerHandle):
    """A timer that knows whose it is."""

    process: "Process"


class Process:
    """One operating system process: an event loop, a monotonic clock and a wall clock.

    Of asyncio's loop it has what timers, futures and tasks ask for, and no sockets.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.loop = cast(asyncio.AbstractEventLoop, self)
        world.processes.append(self)
        self.name = name
        self.is_dead = False
        self.is_paused = False
        self.boot_s = world.random.uniform(0, 1_000)
        """Monotonic clocks of different processes have nothing to do with each other."""
        self.wall_offset_ms = 0
        self.random = Random(world.random.getrandbits(64))
        self._callbacks: deque[asyncio.Handle] = deque()
        self._inbox: dict[str, list[asyncio.Handle]] = {}
        """What came in during a pause, by connection."""
        self._due: list[asyncio.Handle] = []
        """Timers that fell due during a pause."""
        self._is_ready = False
        self._tasks: dict[asyncio.Task[Any], None] = {}
        """All that are not done, so that none of them is freed."""
        self.on_crash: list[Callable[[], None]] = []
        self._struck_in: int | None = None
        self._strike: Callable[[], None] = lambda: None

    # -- life

    def work(self) -> list[str]:
        """Where its tasks stand."""
        return [str(task.get_stack(limit=1)) for task in self._tasks][-12:]

    def crash(self) -> None:
        """From now on nothing of it happens any more; its kernel closes what it had open."""
        self.is_dead = True
        for closed in self.on_crash:
            closed()

    def strike_in(self, callbacks: int, strike: Callable[[], None]) -> None:
        """Have something happen to it between two of its callbacks, in the midst of a turn."""
        self._struck_in, self._strike = callbacks, strike

    def pause(self) -> None:
        """Stand still, as after SIGSTOP."""
        self.is_paused = True

    def resume(self) -> None:
        """Go on: first what came in meanwhile, one connection after the other, then the timers."""
        if not self.is_paused:
            return
        self.is_paused = False
        inbox, self._inbox = list(self._inbox.values()), {}
        self.world.random.shuffle(inbox)
        for came in inbox:
            self._callbacks.extend(came)
        due, self._due = self._due, []
        self._callbacks.extend(due)
        if self._callbacks and not self.is_dead:
            self._make_ready()

    def spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run a coroutine in this process, from outside of it."""
        return self.create_task(work)

    def deliver(self, what: Callable[[], None], connection: str) -> None:
        """Something comes in from outside, on a connection that keeps its order."""
        if self.is_paused and not self.is_dead:
            handle = asyncio.Handle(what, (), self.loop)
            self._inbox.setdefault(connection, []).append(handle)
        else:
            self.call_soon(what)

    def is_stopped(self) -> bool:
        """Nothing of it runs at present."""
        return self.is_dead or self.is_paused

    def run_ready(self) -> None:
        """One turn of the loop: what is ready now."""
        self._is_ready = False
        if self.is_stopped():
            return
        callbacks = self._callbacks
        if self.world.running is not self:
            self.world.running = self
            events._set_running_loop(self.loop)
        for _ in range(len(callbacks)):
            if self._struck_in is not None:
                self._struck_in -= 1
                if self._struck_in < 0:
                    self._struck_in = None
                    self._strike()
                    if self.is_stopped():
                        return
            handle = callbacks.popleft()
            if not handle.cancelled():
                handle._run()
        if callbacks:
            self._make_ready()

    def wake(self, timer: asyncio.Handle) -> None:
        """A timer is due."""
        if self.is_dead:
            return
        if self.is_paused:
            self._due.append(timer)
        else:
            self._callbacks.append(timer)
            self._make_ready()

    def _make_ready(self) -> None:
        if not self._is_ready and not self.is_paused:
            self._is_ready = True
            self.world.make_ready(self)

    # -- clocks (the Clock and Random ports)

    def now_ms(self) -> int:
        """The wall clock: it may be set, and jumps then."""
        return START_MS + int(self.world.now * 1000 + 1e-3) + self.wall_offset_ms

    def monotonic_ms(self) -> int:
        return int((self.world.now + self.boot_s) * 1000 + 1e-3)

    def bits(self, number: int) -> int:
        return self.random.getrandbits(number)

    # -- what asyncio asks of a loop

    def time(self) -> float:
        return self.world.now + self.boot_s

    def call_soon(
        self,
        callback: Callable[..., object],
        *arguments: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, arguments, self.loop, context)
        if not self.is_dead:
            self._callbacks.append(handle)
            self._make_ready()
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *arguments: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *arguments, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *arguments: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = ProcessTimer(when, callback, arguments, self.loop, context)
        timer.process = self
        if not self.is_dead:
            self.world.schedule(timer, when - self.boot_s)
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        future = NumberedFuture(loop=self.loop)
        future.number = next(self.world.numbers)
        return future

    def create_task(
        self,
        coro: Coroutine[Any, Any, Result],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Result]:
        task = NumberedTask(coro, self, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.is_dead

    def is_closed(self) -> bool:
        return False

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.is_dead:
            return
        self.world.on_error(f"{self.name}: {context.get('message')}: {context.get('exception')!r}")
