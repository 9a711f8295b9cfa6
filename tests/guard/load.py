"""Drives a node in lock-step: every request of a wave is written before the first is read.

The client lives in the node's own event loop, so that what arrives together does not depend on
the machine. It is small, because nothing else may be counted as the node's.
"""

import argparse
import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import orjson

from bench.rest_load import definitions

Json = dict[str, Any]
Request = tuple[str, str, Any]
"""Method, path below /api, body or None."""

_QUIET_LOOKS = 2


class _Connection(asyncio.Protocol):
    """One HTTP connection, one request in flight."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, bytes]]
        self.transport: Any = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if len(body) >= length:
            self._received = b""
            self.answer.set_result((int(head[9:12]), body))


class Client:
    """So many connections to one node."""

    def __init__(self, url: str, *, activity: Callable[[], int], quiet_s: float) -> None:
        """`activity` is a number that changes while the node does anything; when it stood still
        for `quiet_s` twice, there is nothing left to do."""
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 0
        self._activity = activity
        self._quiet_s = quiet_s
        self._loop = asyncio.get_running_loop()
        self._connections: list[_Connection] = []

    async def connect(self, count: int) -> None:
        for _ in range(count):
            _, connection = await self._loop.create_connection(_Connection, self._host, self._port)
            self._connections.append(connection)

    def close(self) -> None:
        for connection in self._connections:
            connection.transport.close()

    async def wave(self, requests: Sequence[Request]) -> list[Any]:
        """Send them, at most one per connection at a time; what was answered, in order."""
        answers: list[Any] = []
        width = len(self._connections)
        for at in range(0, len(requests), width):
            waiting = []
            for connection, request in zip(
                self._connections, requests[at : at + width], strict=False
            ):
                connection.answer = self._loop.create_future()
                connection.transport.write(_encoded(request))
                waiting.append((request, connection.answer))
            for request, answer in waiting:
                status, body = await answer
                if status not in (200, 204):
                    raise RuntimeError(f"{request[:2]} got {status}: {body[:300]!r}")
                answers.append(body)
            await self.quiet()
        return answers

    async def quiet(self) -> None:
        """Wait until the node does nothing any more."""
        looks, seen = 0, self._activity()
        while looks < _QUIET_LOOKS:
            later = self._loop.create_future()
            self._loop.call_later(self._quiet_s, later.set_result, None)
            await later
            now = self._activity()
            looks, seen = (looks + 1, seen) if now == seen else (0, now)


def _encoded(request: Request) -> bytes:
    method, path, body = request
    head = f"{method} /api{path} HTTP/1.1\r\nHost: guard\r\nAccept: */*\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    data = orjson.dumps(body)
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


class Load:
    """One scenario of bench/rest_load.py."""

    def __init__(self, client: Client, scenario: str, *, starter: Client | None = None) -> None:
        """`starter` starts what `client` does the work of."""
        self._client = client
        self._starter = starter or client
        options = argparse.Namespace(
            tag="guard", scenario=scenario, payload_bytes=0, one_type=False
        )
        self._types, self._definition, self._tasks = definitions(options)  # type: ignore[no-untyped-call]

    async def register(self) -> None:
        tasks = [
            {"name": one, "retryCount": 3, "ownerEmail": "g@example.com"} for one in self._types
        ]
        await self._client.wave([("POST", "/metadata/taskdefs", tasks)])
        await self._client.wave([("PUT", "/metadata/workflow", [self._definition])])

    async def single(self, count: int) -> None:
        """`count` workflows from start to end, a request for each start and each result."""
        path = f"/workflow/{self._definition['name']}"
        await self._starter.wave([("POST", path, {"n": number}) for number in range(count)])
        done = 0
        while done < count * self._tasks:
            for task_type in self._types:
                poll = f"/tasks/poll/batch/{task_type}?count=100&timeout=100&workerid=w"
                (found,) = await self._client.wave([("GET", poll, None)])
                results = [("POST", "/tasks", _result(task)) for task in orjson.loads(found)]
                await self._client.wave(results)
                done += len(results)

    async def bulk(self, count: int) -> None:
        """The same by bulk start and exchanges."""
        starts = [{"name": self._definition["name"], "input": {"n": n}} for n in range(count)]
        await self._client.wave([("POST", "/workflow/bulk/start", starts)])
        poll = {"types": self._types, "count": 100, "timeout": 100, "workerId": "w"}
        results: list[Json] = []
        done = 0
        while done < count * self._tasks:
            body: Json = {"results": results}
            if done + len(results) < count * self._tasks:
                body["poll"] = poll
            (answer,) = await self._client.wave([("POST", "/tasks/exchange", body)])
            done += len(results)
            results = [_result(task) for task in orjson.loads(answer).get("tasks", ())]


def _result(task: Json) -> Json:
    return {
        "workflowInstanceId": task["workflowInstanceId"],
        "taskId": task["taskId"],
        "workerId": "w",
        "status": "COMPLETED",
        "outputData": {"v": task["inputData"].get("n"), "by": "w"},
    }
