"""Load processes of their own: starts in an open or a closed loop, and a fleet of workers.

rest_load.py waits for completions before it starts more, as a polite client does. Here starts come
at their rate whatever the server answers, and what is late counts from when it was due. Times of
several processes are compared: all of them read the same monotonic clock of the machine, and the
time of a start travels as the workflow's input. The last line of output is one JSON object.

    python -m bench.pressure starts --base-url URL --begin T --end T --rate R --connections N
    python -m bench.pressure workers --base-url URL --begin T --end T
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast
from urllib.parse import urlsplit

import orjson
import uvloop

from bench.rest_load import lat

now_s = time.monotonic
TICK_S = 0.001
POLL_MS = 1_000

NAME, TASK = "pressure", "pressure_step"
DEFINITION = {
    "name": NAME,
    "version": 1,
    "schemaVersion": 2,
    "ownerEmail": "load@example.com",
    "tasks": [
        {
            "name": TASK,
            "taskReferenceName": "t1",
            "type": "SIMPLE",
            "inputParameters": {"n": "${workflow.input.n}"},
        }
    ],
    "outputParameters": {"v": "${t1.output.v}"},
}

Answered = Callable[[int, bytes], None]


class Wire(asyncio.Protocol):
    """One connection, one request under way: the callback gets status and body of its answer."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answered: Answered | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, answered: Answered) -> None:
        self._answered = answered
        self.transport.write(request)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

        def answered(status: int, body: bytes) -> None:
            # Whoever asked may be gone by now.
            if not answer.done():
                answer.set_result((status, body))

        self.send(request, answered)
        return await answer

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data if self._buffer else data
        head = buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = buffer.find(b"Content-Length: ", 0, head)
        length = int(buffer[at + 16 : buffer.find(b"\r\n", at)]) if at >= 0 else 0
        end = head + 4 + length
        if len(buffer) < end:
            return
        self._buffer = b""
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(int(buffer[9:12]), buffer[head + 4 : end])

    def connection_lost(self, exc: Exception | None) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(0, repr(exc).encode())


class Site:
    """Where requests go: one or several nodes in turn."""

    def __init__(self, base_url: str) -> None:
        self._urls = [urlsplit(url) for url in base_url.split(",")]
        self._opened = 0

    async def connect(self) -> Wire:
        url = self._urls[self._opened % len(self._urls)]
        self._opened += 1
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(Wire, url.hostname, url.port)
        return wire

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        url = self._urls[0]
        head = f"{method} {url.path}{path} HTTP/1.1\r\nHost: {url.netloc}\r\n"
        if body is None:
            return f"{head}\r\n".encode()
        kind = "Content-Type: application/json\r\n"
        return f"{head}{kind}Content-Length: {len(body)}\r\n\r\n".encode() + body


def result_of(task: dict[str, Any], worker_id: str) -> bytes:
    """The body of the report that a task was completed."""
    return orjson.dumps(
        {
            "workflowInstanceId": task["workflowInstanceId"],
            "taskId": task["taskId"],
            "workerId": worker_id,
            "status": "COMPLETED",
            "outputData": {"v": 1},
        }
    )


async def register(
    site: Site, definition: dict[str, Any] = DEFINITION, task: str | None = TASK
) -> None:
    """Have the server know the workflow, and its task."""
    wire = await site.connect()
    calls = [("PUT", "/metadata/workflow", [definition])]
    if task is not None:
        known = {"name": task, "retryCount": 0, "ownerEmail": "load@example.com"}
        calls.insert(0, ("POST", "/metadata/taskdefs", [known]))
    for method, path, body in calls:
        status, answer = await wire.ask(site.request(method, path, orjson.dumps(body)))
        if status != 200:
            raise RuntimeError(f"{path}: {status} {answer[:200]!r}")
    wire.transport.close()


class Starts:
    """Producers. With a rate they do not care for answers; without one each waits for its own."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._site = Site(options.base_url)
        self._path = f"/workflow/{NAME}"
        self._free: deque[Wire] = deque()
        self._due: deque[float] = deque()
        self._open = 0
        self._has_ended = asyncio.Event()
        self.offered = self.taken = self.taken_in_window = self.refused_in_window = 0
        self.others: dict[str, int] = {}
        self.taken_s: list[float] = []
        self.refused_s: list[float] = []

    async def run(self) -> dict[str, Any]:
        options = self._options
        for _ in range(options.connections):
            self._free.append(await self._site.connect())
        if options.rate:
            await self._pace()
        else:
            for _ in range(options.connections):
                self._send(now_s())
        await asyncio.sleep(max(0.0, options.end - now_s()))
        if self._open:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_ended.wait(), 10)
        window_s = options.end - options.begin
        return {
            "offered_per_s": self.offered / window_s,
            "taken_per_s": self.taken_in_window / window_s,
            "refused_per_s": self.refused_in_window / window_s,
            "refused": self.refused_in_window,
            "taken": self.taken,
            "unanswered": self._open,
            "never_sent": len(self._due),
            "others": self.others,
            "start_ms": lat(self.taken_s),
            "refusal_ms": lat(self.refused_s),
        }

    async def _pace(self) -> None:
        options = self._options
        due_s, gap_s = now_s(), 1 / options.rate
        while (time_s := now_s()) < options.end:
            while due_s <= time_s:
                self._due.append(due_s)
                self.offered += options.begin <= due_s < options.end
                due_s += gap_s
            while self._due and self._free:
                self._send(self._due.popleft())
            await asyncio.sleep(TICK_S)

    def _send(self, due_s: float) -> None:
        wire = self._free.popleft()
        self._open += 1
        body = b'{"n":%d}' % int(due_s * 1e6)
        wire.send(
            self._site.request("POST", self._path, body),
            lambda status, answer: self._answered(wire, due_s, status, answer),
        )

    def _answered(self, wire: Wire, due_s: float, status: int, answer: bytes) -> None:
        self._open -= 1
        at_s = now_s()
        in_window = self._options.begin <= at_s < self._options.end
        if status == 200:
            self.taken += 1
            self.taken_in_window += in_window
            if in_window:
                self.taken_s.append(at_s - due_s)
        elif status == 429:
            self.refused_in_window += in_window
            if in_window:
                self.refused_s.append(at_s - due_s)
        else:
            key = f"{status} {answer[:100]!r}"
            self.others[key] = self.others.get(key, 0) + 1
            if not status:
                return
        self._free.append(wire)
        if at_s >= self._options.end:
            if not self._open:
                self._has_ended.set()
            return
        if not self._options.rate:
            self._send(at_s)
        elif self._due:
            self._send(self._due.popleft())


class Workers:
    """A fleet: some polls, many results under way."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._site = Site(options.base_url)
        self._tasks: deque[dict[str, Any] | None] = deque()
        self._has_tasks = asyncio.Semaphore(0)
        self.done = self.done_in_window = 0
        self.others: dict[str, int] = {}
        self.end_to_end_s: list[float] = []
        self.results_s: list[float] = []

    async def run(self) -> dict[str, Any]:
        options = self._options
        reporting = [asyncio.ensure_future(self._report()) for _ in range(options.lanes)]
        await asyncio.gather(*(self._poll(number) for number in range(options.pollers)))
        for _ in reporting:
            self._tasks.append(None)
            self._has_tasks.release()
        await asyncio.gather(*reporting)
        return {
            "done": self.done,
            "done_per_s": self.done_in_window / (options.end - options.begin),
            "others": self.others,
            "end_to_end_ms": lat(self.end_to_end_s),
            "result_ms": lat(self.results_s),
        }

    async def _poll(self, number: int) -> None:
        """Until the end, and then until nothing has come for a while."""
        wire = await self._site.connect()
        path = f"/tasks/poll/batch/{TASK}?count={self._options.batch}&timeout={POLL_MS}"
        request = self._site.request("GET", f"{path}&workerid=w{number}")
        empty = 0
        while now_s() < self._options.end or empty < 3:
            if len(self._tasks) > self._options.lanes:
                await asyncio.sleep(0.002)
                continue
            status, answer = await wire.ask(request)
            tasks = orjson.loads(answer) if status == 200 else []
            if status != 200:
                self._note(status, answer)
                await asyncio.sleep(0.1)
            empty = 0 if tasks else empty + 1
            for task in tasks:
                self._tasks.append(task)
                self._has_tasks.release()

    async def _report(self) -> None:
        wire = await self._site.connect()
        while True:
            await self._has_tasks.acquire()
            task = self._tasks.popleft()
            if task is None:
                return
            began_s = now_s()
            request = self._site.request("POST", "/tasks", result_of(task, "w"))
            status, answer = await wire.ask(request)
            if status != 200:
                self._note(status, answer)
                continue
            at_s = now_s()
            self.done += 1
            if self._options.begin <= at_s < self._options.end:
                self.done_in_window += 1
                self.results_s.append(at_s - began_s)
                self.end_to_end_s.append(at_s - task["inputData"]["n"] / 1e6)

    def _note(self, status: int, answer: bytes) -> None:
        key = f"{status} {answer[:100]!r}"
        self.others[key] = self.others.get(key, 0) + 1


class Process:
    """One of these, running beside the benchmark."""

    def __init__(self, role: str, base_url: str, begin: float, end: float, **options: Any) -> None:
        command = [sys.executable, "-m", "bench.pressure", role, "--base-url", base_url]
        command += ["--begin", str(begin), "--end", str(end)]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def result(self) -> dict[str, Any]:
        """What it found, once it has ended."""
        output, _ = self._process.communicate(timeout=300)
        if self._process.returncode:
            raise RuntimeError(f"a load process ended with {self._process.returncode}")
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        return found

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="One load process; see the benchmarks.")
    parser.add_argument("role", choices=("starts", "workers"))
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--begin", type=float, required=True, help="of the window, monotonic")
    parser.add_argument("--end", type=float, required=True)
    parser.add_argument("--rate", type=float, default=0, help="starts per second; 0: closed loop")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--pollers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--lanes", type=int, default=400, help="results under way at most")
    options = parser.parse_args()

    async def run() -> dict[str, Any]:
        return await (Starts if options.role == "starts" else Workers)(options).run()

    print(json.dumps(uvloop.run(run())), flush=True)


if __name__ == "__main__":
    main()
