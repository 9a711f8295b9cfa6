"""Runs scripts in processes of their own, so that no script can stall or crash the node.

Well-behaved scripts share a few *steady* processes, many requests to a round trip. A script that
runs longer than SLOW_MS makes its process a *suspect*: what waited behind it goes to another
process at once, and from then on it runs among the suspects, one at a time and at low priority,
until it proves quick again. Both kinds of process are bounded, so a flood of endless scripts takes
the suspects' share of the machine and nothing else.
"""

import asyncio
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

from cluster.node.executors import script_worker
from cluster.node.executors.javascript_syntax import check_javascript
from cluster.node.executors.script_process import SLOW_MS, Process, Request, ScriptFailed

__all__ = ["Language", "ScriptFailed", "ScriptPool", "check_javascript"]

GRACE_MS = 300
WAIT_MS_MAX = 30_000
WAITING_MAX = 10_000
DOUBTFUL_WAITING_MAX = 1_000
RESTART_DELAY_S = 1.0
START_S_MAX = 30
_TICK_S = 0.025
_REMEMBERED_SOURCES = 4_096
_WORKER_FILE = str(Path(script_worker.__file__).resolve())


class Language(IntEnum):
    """javascript: the completion value counts; function: a function body; jq: all results."""

    JAVASCRIPT = script_worker.JAVASCRIPT
    FUNCTION = script_worker.FUNCTION
    JQ = script_worker.JQ


class ScriptPool:
    """`workers` steady processes and at most as many suspects.

    `time_limit_ms` and `memory_bytes` bound one evaluation. A result is at most 5 MiB.
    """

    def __init__(self, *, workers: int, time_limit_ms: int, memory_bytes: int) -> None:
        self.workers = max(1, workers)
        self.time_limit_ms = time_limit_ms
        self.memory_bytes = memory_bytes
        self._steady: list[Process] = []
        self._suspects: list[Process] = []
        self._starting = {False: 0, True: 0}
        # Sources seen to be quick go first: a flood of new ones does not hold them up.
        self._trusted: deque[Request] = deque()
        self._unknown: deque[Request] = deque()
        self._doubtful: deque[Request] = deque()
        self._quick: OrderedDict[tuple[int, str], bool] = OrderedDict()
        self._next_number = 0
        self._dispatch_planned = False
        self._ticking: asyncio.TimerHandle | None = None
        self._tick_due = 0.0
        self._was_late = False
        self._closed = True
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop

    async def start(self) -> None:
        """Start the steady processes; returns when all of them can take work."""
        self._loop = asyncio.get_running_loop()
        self._closed = False
        started = await asyncio.gather(
            *(self._spawn(is_suspect=False) for _ in range(self.workers))
        )
        async with asyncio.timeout(START_S_MAX):
            await asyncio.gather(*(process.ready for process in started))

    async def close(self) -> None:
        """Kill all processes; what is still waiting fails."""
        self._closed = True
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        processes = [*self._steady, *self._suspects]
        for request in self._everything(processes):
            request.fail("The node is stopping")
        for process in processes:
            process.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for process in processes:
            await process.gone

    async def evaluate(self, language: Language, source: str, input_json: bytes) -> bytes:
        """The result as JSON. For jq that is the list of all results. Raises ScriptFailed."""
        if self._closed:
            raise ScriptFailed("The node is stopping")
        self._next_number = self._next_number % 0xFFFFFFFF + 1
        text = source.encode("utf-8", "replace")
        header = script_worker.REQUEST.pack(self._next_number, language, len(text), len(input_json))
        outcome: asyncio.Future[bytes] = self._loop.create_future()
        request = Request(
            self._next_number, (language, source), b"".join((header, text, input_json)), outcome
        )
        self._enqueue(request)
        self._plan_dispatch()
        return await outcome

    def on_answer(
        self, process: Process, number: int, status: int, cpu_ms: int, payload: bytes
    ) -> None:
        if status == script_worker.READY:
            process.is_ready = True
            process.ready.set_result(None)
        elif status == script_worker.DROPPED:
            process.is_dropping = False
        elif process.sent and process.sent[0].number == number:
            request = process.sent.popleft()
            process.sent_bytes -= len(request.frame)
            self._remember(request.key, is_quick=cpu_ms <= SLOW_MS)
            process.head_since = self._loop.time()
            self._finish(request, status, payload)
        # Any other number was taken from this process after it had begun: the answer is not used.
        if not process.sent or self._trusted or self._unknown or self._doubtful:
            self._plan_dispatch()

    def on_exit(self, process: Process) -> None:
        """The process is gone: its first request may be why, the others only waited there."""
        if not process.ready.done():
            process.ready.set_exception(ScriptFailed("The process for scripts does not start"))
            # Nobody waits for a process that was started later.
            process.ready.exception()
        processes = self._suspects if process.is_suspect else self._steady
        if process in processes:
            processes.remove(process)
        if self._closed:
            return
        if process.sent and not process.is_dying:
            head = process.sent.popleft()
            self._remember(head.key, is_quick=False)
            head.attempts += 1
            if head.attempts > 1:
                head.fail("The script used too much memory or crashed its process")
            else:
                # Once more where it can harm nobody: it may have died of what ran before it.
                self._enqueue(head)
        self._requeue(process.sent)
        process.sent.clear()
        if not process.is_ready:
            self._spawn_later(is_suspect=process.is_suspect, delay_s=RESTART_DELAY_S)
        elif not process.is_suspect:
            self._spawn_later(is_suspect=False, delay_s=0.0)
        self._plan_dispatch()

    def _finish(self, request: Request, status: int, payload: bytes) -> None:
        if request.outcome.done():
            return
        if status == script_worker.DONE:
            request.outcome.set_result(payload)
        else:
            request.fail(
                payload.decode("utf-8", "replace"), timed_out=status == script_worker.TIMED_OUT
            )

    def _enqueue(self, request: Request) -> None:
        request.queued_at = self._loop.time()
        is_quick = self._quick.get(request.key)
        queue = self._unknown if is_quick is None else self._trusted
        limit = WAITING_MAX
        if is_quick is False:
            queue, limit = self._doubtful, DOUBTFUL_WAITING_MAX
        if len(queue) >= limit:
            request.fail("Too many scripts are waiting to be evaluated", timed_out=True)
        else:
            queue.append(request)

    def _requeue(self, requests: Iterable[Request]) -> None:
        """Back to the front, in the order they came."""
        for request in reversed(list(requests)):
            is_quick = self._quick.get(request.key)
            if is_quick is False:
                self._doubtful.appendleft(request)
            else:
                (self._unknown if is_quick is None else self._trusted).appendleft(request)

    def _remember(self, key: tuple[int, str], *, is_quick: bool) -> None:
        self._quick[key] = is_quick
        self._quick.move_to_end(key)
        if len(self._quick) > _REMEMBERED_SOURCES:
            self._quick.popitem(last=False)

    def _everything(self, processes: list[Process]) -> list[Request]:
        sent = [request for process in processes for request in process.sent]
        return [*sent, *self._trusted, *self._unknown, *self._doubtful]

    def _plan_dispatch(self) -> None:
        # One write per process and tick of the loop carries all that came up meanwhile.
        if not self._dispatch_planned:
            self._dispatch_planned = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_planned = False
        if self._closed:
            return
        now = self._loop.time()
        self._hand_out(self._trusted, self._steady, now)
        # While there are suspects, one steady process stays for sources that are known to be quick.
        is_reserved = len(self._steady) > 1 and any(suspect.sent for suspect in self._suspects)
        self._hand_out(self._unknown, self._steady[1:] if is_reserved else self._steady, now)
        self._hand_out(self._doubtful, self._suspects, now)
        if self._doubtful and len(self._suspects) + self._starting[True] < self.workers:
            self._spawn_later(is_suspect=True, delay_s=0.0)
        busy = False
        for process in (*self._steady, *self._suspects):
            process.flush()
            busy = busy or bool(process.sent) or process.is_dropping
        if (busy or self._trusted or self._unknown or self._doubtful) and self._ticking is None:
            self._plan_tick()

    def _hand_out(self, queue: deque[Request], processes: list[Process], now: float) -> None:
        while queue:
            if queue[0].outcome.done():
                queue.popleft()
                continue
            free = [process for process in processes if process.has_room()]
            if not free:
                return
            min(free, key=lambda process: len(process.sent)).send(queue.popleft(), now)

    def _plan_tick(self) -> None:
        self._tick_due = self._loop.time() + _TICK_S
        self._ticking = self._loop.call_at(self._tick_due, self._tick)

    def _tick(self) -> None:
        """Look for scripts that run too long and requests that wait too long."""
        self._ticking = None
        now = self._loop.time()
        # After a late tick answers may lie unread: nobody is blamed before they are read.
        is_late = now - self._tick_due > _TICK_S
        if self._was_late or not is_late:
            limit_s = (self.time_limit_ms + GRACE_MS) / 1000
            for process in [*self._steady, *self._suspects]:
                age_s = now - process.head_since
                if process.is_dying or not process.is_ready:
                    continue
                if (process.sent or process.is_dropping) and age_s > limit_s:
                    self._stop_overdue(process)
                elif process.sent and not process.is_suspect and process.is_burning(now):
                    self._suspect(process)
        self._was_late = is_late and not self._was_late
        for queue in (self._trusted, self._unknown, self._doubtful):
            while queue and (now - queue[0].queued_at) * 1000 > WAIT_MS_MAX:
                queue.popleft().fail("Script not evaluated: too many are waiting", timed_out=True)
        self._dispatch()

    def _stop_overdue(self, process: Process) -> None:
        if process.sent:
            request = process.sent.popleft()
            self._remember(request.key, is_quick=False)
            request.fail(script_worker.timeout_message(self.time_limit_ms), timed_out=True)
        process.kill()

    def _suspect(self, process: Process) -> None:
        """Move a steady process with a slow script aside; what waits behind the script goes on."""
        self._remember(process.sent[0].key, is_quick=False)
        waiting = process.take_all_but_head()
        busy = sum(1 for suspect in self._suspects if not suspect.has_room())
        if busy + self._starting[True] >= self.workers:
            # No room among the suspects: the script starts again when there is.
            self._doubtful.append(process.sent.popleft())
            self._requeue(waiting)
            process.kill()
            return
        self._steady.remove(process)
        idle = [one for one in self._suspects if one.has_room()]
        if idle and len(self._suspects) >= self.workers:
            idle[0].kill()
        self._suspects.append(process)
        process.is_suspect = True
        process.lower_priority()
        if waiting:
            process.is_dropping = True
            process.outgoing.append(script_worker.REQUEST.pack(0, script_worker.DROP, 0, 0))
            self._requeue(waiting)
        self._spawn_later(is_suspect=False, delay_s=0.0)

    def _spawn_later(self, *, is_suspect: bool, delay_s: float) -> None:
        async def spawn() -> None:
            try:
                await asyncio.sleep(delay_s)
                while not self._closed:
                    try:
                        await self._spawn(is_suspect=is_suspect)
                        return
                    except OSError:
                        # Out of processes or memory: what is queued waits until one can start.
                        await asyncio.sleep(RESTART_DELAY_S)
            finally:
                self._starting[is_suspect] -= 1

        self._starting[is_suspect] += 1
        task = self._loop.create_task(spawn())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _spawn(self, *, is_suspect: bool) -> Process:
        # No environment, and no folder of ours on the path: scripts see nothing of this process.
        limits = (str(self.time_limit_ms), str(self.memory_bytes))
        _, process = await self._loop.subprocess_exec(
            lambda: Process(self, is_suspect=is_suspect),
            *(sys.executable, "-E", "-P", _WORKER_FILE, *limits),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
        )
        if is_suspect:
            process.lower_priority()
        if self._closed:
            process.kill()
            await process.gone
        elif process.gone.done():
            self._spawn_later(is_suspect=is_suspect, delay_s=RESTART_DELAY_S)
        else:
            (self._suspects if is_suspect else self._steady).append(process)
            self._plan_dispatch()
        return process
