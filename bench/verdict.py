"""The account: every workflow of a ledger is read from the server and compared with it."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from bench.ledger import Ledger
from bench.rest_load import Client, ConnLost
from bench.traffic import Nodes

_TRIES = 240
_PAUSE_S = 0.5
_ANSWER_S = 30.0
_SHOWN_MAX = 10
_ENDED = ("COMPLETED", "FAILED", "TIMED_OUT", "TERMINATED")
_OPEN = ("RUNNING", "PAUSED")


class _Task(msgspec.Struct, rename="camel"):
    status: str
    output_data: dict[str, Any] = {}


class _Workflow(msgspec.Struct, rename="camel"):
    status: str
    input: dict[str, Any] = {}
    output: dict[str, Any] = {}
    tasks: list[_Task] = []


_decode = msgspec.json.Decoder(_Workflow).decode


class Account:
    """What a read of a ledger's workflows has found; they should all have ended, or be open."""

    def __init__(self, ledger: Ledger, *, open_still: bool = False) -> None:
        self._ledger = ledger
        self._wanted = "RUNNING" if open_still else "COMPLETED"
        self.read = 0
        self.tasks = 0
        """More than workflows: some were handed out again after a worker fell silent."""
        self.lost: Counter[str] = Counter()
        self.duplicated: Counter[str] = Counter()
        self.examples: list[str] = []
        for number, second in ledger.doubled:
            self._blame(self.duplicated, "two ids for one key", f"{number}: {second}")

    async def take(
        self,
        urls: Sequence[str],
        *,
        connections: int,
        on_progress: Callable[[int], None],
        only: Sequence[int] | None = None,
    ) -> None:
        """Read every workflow that was started, or `only` some, over so many connections."""
        numbers = iter(range(len(self._ledger)) if only is None else only)
        run = _Requests(urls)

        async def reader() -> None:
            client = Client(run)
            for number in numbers:
                if self._ledger.is_started(number):
                    self._judge(number, await _get(client, self._ledger.id_of(number)))
                    self.read += 1
                    if self.read % 1000 == 0:
                        on_progress(self.read)
            client.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(reader())

    def _judge(self, number: int, found: _Workflow | None) -> None:
        where = f"{number}: {self._ledger.id_of(number)}"
        if found is None:
            self._blame(self.lost, "not there", where)
        elif found.status != self._wanted:
            self._blame(self.lost, f"it is {found.status}", where)
        elif found.input != {"n": number}:
            self._blame(self.lost, "another's input", where)
        elif self._wanted == "COMPLETED":
            self.tasks += len(found.tasks)
            done = [one for one in found.tasks if one.status == "COMPLETED"]
            if len(done) > 1:
                self._blame(self.duplicated, "done twice", where)
            elif not done or not done[0].output_data == found.output == {"v": number}:
                self._blame(self.lost, "its task's result", where)

    def _blame(self, kind: Counter[str], what: str, where: str) -> None:
        kind[what] += 1
        if kind[what] <= _SHOWN_MAX:
            self.examples.append(f"{what}: {where}")

    def strays(self, workflow_ids: Sequence[str], counted: int) -> None:
        """Workflows that the ledger does not know: their tasks came, or the server counts more."""
        for one in workflow_ids:
            self._blame(self.duplicated, "not in the ledger", one)
        surplus = counted - self._ledger.count
        if surplus > len(workflow_ids):
            self.duplicated["counted by the server"] += surplus - len(workflow_ids)

    def figures(self) -> dict[str, Any]:
        return {
            "acknowledged_starts": self._ledger.count,
            "acknowledged_results": self._ledger.done,
            "read": self.read,
            "tasks": self.tasks,
            "lost": dict(self.lost),
            "duplicated": dict(self.duplicated),
            "examples": self.examples,
        }

    @property
    def sums(self) -> tuple[int, int]:
        """How many were lost, how many are there twice."""
        unread = self._ledger.count - self.read
        return self.lost.total() + unread, self.duplicated.total()


class _Requests:
    """What rest_load's connections ask for: where to go, and the lines around a path."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.loop = asyncio.get_running_loop()
        parts = [urlsplit(url) for url in urls]
        self.addresses = itertools.cycle([(part.hostname, part.port or 80) for part in parts])
        self.prefix = parts[0].path.rstrip("/").encode()
        self.tail = f" HTTP/1.1\r\nHost: {parts[0].netloc}\r\nAccept: */*\r\n\r\n".encode()
        self.requests = 0


async def _get(client: Client, workflow_id: str) -> _Workflow | None:
    path = f"/workflow/{workflow_id}?includeTasks=true".encode()
    for _ in range(_TRIES):
        try:
            async with asyncio.timeout(_ANSWER_S):
                status, body = await client.call(b"GET", path)
        except (ConnLost, OSError):
            # An answer that is late must not be taken for that of the next request.
            client.close()
            client.c = None
            status, body = 0, b""
        if status == 200:
            return _decode(body)
        if status == 404:
            return None
        await asyncio.sleep(_PAUSE_S)
    raise RuntimeError(f"workflow {workflow_id} cannot be read: {status} {body[:200]!r}")


async def count(nodes: Nodes, name: str, *, ended: bool, limit_s: float) -> int:
    """How many workflows of a definition the server finds that are open, or have ended."""
    order = {
        "operation": "restart" if ended else "terminate",
        "query": {"name": name, "statuses": _ENDED if ended else _OPEN},
        "dryRun": True,
    }
    job = await nodes.insist("POST", "/workflow/bulk/jobs", order)
    async with asyncio.timeout(limit_s):
        while job["state"] in ("QUEUED", "RUNNING"):
            await asyncio.sleep(_PAUSE_S)
            job = await nodes.insist("GET", f"/workflow/bulk/jobs/{job['id']}")
    if job["state"] != "COMPLETED":
        raise RuntimeError(f"the server could not count: {job}")
    return int(job["matched"])
