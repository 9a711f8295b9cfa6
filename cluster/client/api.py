"""Conductor's REST API with Podium's extensions, over one pool of connections."""

import asyncio
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlencode

import aiohttp
import msgspec

from cluster.client.backoff import Backoff
from cluster.client.errors import ApiError, Unreachable
from cluster.client.models import ItemResult, Start, Task, TaskResult

ITEMS_MAX = 1_000
BYTES_MAX = 4 * 1024 * 1024
"""Of one request; the server takes twice as much."""
_PIECE_BYTES = 1024 * 1024
_BUSY, _UNAVAILABLE = 429, 503
_ANSWER_S = 30.0
_PATIENCE_S = 60.0

T = TypeVar("T")


class Exchanged(NamedTuple):
    """What became of results, and the next tasks."""

    results: list[ItemResult]
    tasks: list[Task]


class _Results(msgspec.Struct):
    results: list[ItemResult]


class _PollError(msgspec.Struct):
    status: int
    message: str


class _Exchanged(msgspec.Struct, rename="camel"):
    results: list[ItemResult]
    tasks: list[Task]
    poll_error: _PollError | None = None


class _Refusal(msgspec.Struct):
    message: str = ""
    retryable: bool = False


_encode = msgspec.json.Encoder().encode
_decode_results = msgspec.json.Decoder(_Results).decode
_decode_tasks = msgspec.json.Decoder(list[Task]).decode
_decode_exchanged = msgspec.json.Decoder(_Exchanged).decode
_decode_run = msgspec.json.Decoder(dict[str, Any]).decode
_decode_refusal = msgspec.json.Decoder(_Refusal).decode


class Client:
    """To be made inside an event loop; `async with` closes its connections."""

    def __init__(
        self, url: str, *, connections: int = 100, headers: Mapping[str, str] | None = None
    ) -> None:
        """`url` is where the server listens, with or without `/api`."""
        self._url = url.rstrip("/").removesuffix("/api") + "/api"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections), headers=headers
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._session.close()

    # -- producers

    async def bulk_start(
        self, starts: Iterable[Start], *, patience_s: float = _PATIENCE_S
    ) -> list[ItemResult]:
        """Start workflows, 1,000 in a request; returns what became of each, in order.

        What the server was too busy for is tried again for `patience_s`. What may have happened
        although no answer came is tried again only with an idempotency key; without one its
        result has status 0 or 503.
        """
        all_starts = list(starts)
        results = [ItemResult(index, 0) for index in range(len(all_starts))]
        left: Sequence[int] = range(len(all_starts))
        backoff = Backoff()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        while left:
            again: list[int] = []
            pause_s: float | None = None
            for part in _parts(left, lambda index: _encode(all_starts[index])):
                try:
                    found = await self._bulk("/workflow/bulk/start", part.encoded)
                except ApiError as error:
                    pause_s = error.retry_after_s
                    for index in part.indexes:
                        results[index] = ItemResult(index, error.status, message=error.message)
                        if _may_repeat(error, has_key=bool(all_starts[index].idempotency_key)):
                            again.append(index)
                    continue
                for index, result in zip(part.indexes, found, strict=True):
                    result.index = index
                    results[index] = result
                    if result.status == _BUSY or (
                        result.status == _UNAVAILABLE and all_starts[index].idempotency_key
                    ):
                        again.append(index)
            left = again
            if left:
                wait_s = backoff.next_s(pause_s)
                if loop.time() + wait_s > deadline:
                    break
                await asyncio.sleep(wait_s)
        return results

    async def workflow(self, workflow_id: str, *, include_tasks: bool = True) -> dict[str, Any]:
        """A run as it stands."""
        flag = "true" if include_tasks else "false"
        path = f"/workflow/{workflow_id}?includeTasks={flag}"
        return _read(_decode_run, await self.call("GET", path))

    # -- workers

    async def update_many(self, results: Iterable[TaskResult]) -> list[ItemResult]:
        """Report tasks, 1,000 in a request; returns what became of each, in order. ApiError: of
        those that were not sent before nothing is known; to report them again is harmless."""
        all_results = list(results)
        outcomes: list[ItemResult] = []
        for part in _parts(range(len(all_results)), lambda index: _encode(all_results[index])):
            found = await self._bulk("/tasks/bulk/update", part.encoded)
            for index, outcome in zip(part.indexes, found, strict=True):
                outcome.index = index
                outcomes.append(outcome)
        return outcomes

    async def poll(
        self,
        *types: str,
        count: int = 1,
        timeout_ms: int = 5_000,
        worker_id: str | None = None,
        domain: str | None = None,
    ) -> list[Task]:
        """Up to `count` tasks of these types, as soon as there is one. ApiError."""
        query = [("type", one) for one in types]
        query += [("count", str(count)), ("timeout", str(timeout_ms))]
        query += [("workerid", worker_id)] if worker_id else []
        query += [("domain", domain)] if domain else []
        path = f"/tasks/poll/batch?{urlencode(query)}"
        return _read(_decode_tasks, await self.call("GET", path, wait_s=timeout_ms / 1000))

    async def exchange(
        self,
        results: Sequence[TaskResult],
        *types: str,
        count: int = 1,
        timeout_ms: int = 0,
        worker_id: str | None = None,
        domain: str | None = None,
    ) -> Exchanged:
        """Report results, at most 1,000, and take the next tasks in the same round trip.

        ApiError: nothing is known of the results; to report them again is harmless.
        """
        body: dict[str, Any] = {"results": results}
        if count > 0 and types:
            body["poll"] = {
                "types": types,
                "count": count,
                "timeout": timeout_ms,
                "workerId": worker_id,
                "domain": domain,
            }
        answer = await self.call("POST", "/tasks/exchange", _encode(body), wait_s=timeout_ms / 1000)
        found = _read(_decode_exchanged, answer)
        if found.poll_error is not None and not results:
            status, message = found.poll_error.status, found.poll_error.message
            raise ApiError(status, message, retryable=status in (_BUSY, _UNAVAILABLE))
        return Exchanged(found.results, found.tasks)

    # -- everything

    async def call(
        self, method: str, path: str, body: bytes | None = None, *, wait_s: float = 0.0
    ) -> bytes:
        """One request below `/api`; returns the body of the answer. ApiError, Unreachable.

        `wait_s` is how long the server may take its time on purpose.
        """
        try:
            async with self._session.request(
                method,
                self._url + path,
                # A large one is written piece by piece.
                data=io.BytesIO(body) if body and len(body) > _PIECE_BYTES else body,
                headers=None if body is None else {"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=wait_s + _ANSWER_S),
            ) as response:
                answer = await response.read()
                if response.status < 300:
                    return answer
                raise _refusal(response.status, response.headers.get("Retry-After"), answer)
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(f"{self._url}: {error}", was_sent=False) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(f"{self._url}: {reason}", was_sent=True) from error

    async def _bulk(self, path: str, encoded: list[bytes]) -> list[ItemResult]:
        body = b"[" + b",".join(encoded) + b"]"
        return _read(_decode_results, await self.call("POST", path, body)).results


class _Part(NamedTuple):
    """What travels together."""

    indexes: list[int]
    encoded: list[bytes]


def _parts(indexes: Iterable[int], encode: Callable[[int], bytes]) -> Iterator[_Part]:
    part, size = _Part([], []), 0
    for index in indexes:
        encoded = encode(index)
        if part.indexes and (len(part.indexes) >= ITEMS_MAX or size + len(encoded) > BYTES_MAX):
            yield part
            part, size = _Part([], []), 0
        part.indexes.append(index)
        part.encoded.append(encoded)
        size += len(encoded) + 1
    if part.indexes:
        yield part


def _may_repeat(error: ApiError, *, has_key: bool) -> bool:
    if isinstance(error, Unreachable) and not error.was_sent:
        return True
    return error.status == _BUSY or (error.retryable and has_key)


def _read(decode: Callable[[bytes], T], answer: bytes) -> T:
    try:
        return decode(answer)
    except msgspec.DecodeError as error:
        # Whatever answered, it was no Podium.
        raise Unreachable(f"The answer cannot be read: {error}", was_sent=True) from error


def _refusal(status: int, retry_after: str | None, answer: bytes) -> ApiError:
    try:
        refusal = _decode_refusal(answer)
    except msgspec.DecodeError:
        # Of a proxy, perhaps.
        refusal = _Refusal(answer[:200].decode(errors="replace"))
    return ApiError(
        status,
        refusal.message,
        retryable=refusal.retryable or status in (_BUSY, 502, _UNAVAILABLE, 504),
        retry_after_s=float(retry_after) if retry_after and retry_after.isdigit() else None,
    )
