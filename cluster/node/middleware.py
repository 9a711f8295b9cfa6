"""The HTTP edge: finds the handler, reads, measures, and answers errors in Conductor's JSON.

Requests come in two ways: the usual ones as bytes (connections.py), all others through aiohttp's
bare server. An Application, with its own routes, middlewares and signals, would cost more, and all
of what is needed here fits in one function.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

import orjson
from aiohttp import StreamReader, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from cluster.errors import ClusterError, InvalidRequest, Overloaded, ValidationFailed
from cluster.logs import get_log
from cluster.metrics import Counter, Histogram, Metrics
from cluster.node.admission import Admission, Gate, Pass
from cluster.node.connections import Server
from cluster.node.plain_http import PlainRequest
from cluster.node.reply import Refusal, Reply, error_body, reply

log = get_log(__name__)

JSON = "application/json"
TEXT = "text/plain;charset=UTF-8"

_CACHED_LENGTH_MAX = 512
_QUERY_FIELDS_MAX = 1000
_PLACES_CACHED = 2048


class Answer(NamedTuple):
    """What a handler answers; an empty body has no content type."""

    body: bytes = b""
    status: int = 200
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


EMPTY = Answer()
NO_CONTENT = Answer(status=204)


def plain(text: str) -> Answer:
    """Plain text: how Conductor answers ids."""
    return Answer(text.encode(), content_type=TEXT)


class Call:
    """One request, as far as a handler needs it; its body has been read."""

    __slots__ = (
        "_content_type",
        "_query",
        "_raw_query",
        "_transport",
        "admitted",
        "body",
        "path",
    )

    def __init__(
        self,
        path: Mapping[str, str],
        raw_query: str,
        body: bytes,
        content_type: str,
        transport: asyncio.BaseTransport | None,
    ) -> None:
        self._raw_query = raw_query
        self._query: Mapping[str, Sequence[str]] | None = None
        self._content_type = content_type
        self._transport = transport
        self.admitted: Pass | None = None
        self.path = path
        """The parts of the path that the route's pattern names, decoded."""
        self.body = body

    @property
    def content_type(self) -> str:
        """The media type of the body, without its parameters."""
        return self._content_type.partition(";")[0].strip().lower()

    def weigh(self, items: int) -> None:
        """It is a request of many items: they count where the work under way is bounded."""
        if self.admitted is not None:
            self.admitted.weigh(items)

    def is_taken(self) -> None:
        """What it was let in for is done; what follows is waiting."""
        if self.admitted is not None:
            self.admitted.leave(done=True)

    def is_connected(self) -> bool:
        """Whether the client is still there to be answered."""
        return self._transport is not None and not self._transport.is_closing()

    def all_of(self, name: str) -> Sequence[str]:
        """Every value of a query parameter that may be repeated."""
        query = self._query
        if query is None:
            raw = self._raw_query
            # A worker polls with the same query for ever.
            parse = _parse_again if len(raw) <= _CACHED_LENGTH_MAX else _parse_query
            query = self._query = parse(raw)
        return query.get(name, ())

    def text(self, name: str) -> str | None:
        """A query parameter; of a repeated one the last, None for an absent one."""
        values = self.all_of(name)
        return values[-1] if values else None

    def required(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise InvalidRequest(f"Required query parameter '{name}' is not present")
        return value

    def integer(self, name: str, default: int) -> int:
        value = self.text(name)
        return parse_integer(value, f"Query parameter '{name}'") if value else default

    def optional_integer(self, name: str) -> int | None:
        value = self.text(name)
        return parse_integer(value, f"Query parameter '{name}'") if value else None

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.text(name)
        if not value:
            return default
        known = _FLAGS.get(value.lower())
        if known is None:
            raise InvalidRequest(
                f"Query parameter '{name}' must be true or false, not '{value[:100]}'"
            )
        return known


_FLAGS = {
    **dict.fromkeys(("true", "on", "yes", "1"), True),
    **dict.fromkeys(("false", "off", "no", "0"), False),
}
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")


def parse_integer(text: str, what: str) -> int:
    """A whole number of at most 64 bits; raises InvalidRequest, whose message begins `what`."""
    number = int(text) if _INTEGER.fullmatch(text) else None
    if number is None or not -(1 << 63) <= number < 1 << 63:
        raise InvalidRequest(f"{what} must be a whole number, not '{text[:100]}'")
    return number


def _parse_query(raw: str) -> Mapping[str, Sequence[str]]:
    try:
        return parse_qs(raw, keep_blank_values=True, max_num_fields=_QUERY_FIELDS_MAX)
    except ValueError as error:
        raise InvalidRequest(f"The query string cannot be read: {error}") from error


_parse_again = lru_cache(maxsize=2048)(_parse_query)

Handler = Callable[[Call], Awaitable[Answer]]


class Route(NamedTuple):
    """A handler and its place; `pattern` is the path with `{names}`."""

    method: str
    pattern: str
    handler: Handler


class _Bound:
    """A route with its meters."""

    __slots__ = ("answered", "duration", "gate", "handler", "names", "route")

    def __init__(self, route: Route, duration: Histogram, gate: Gate | None) -> None:
        self.route = route
        self.gate = gate
        self.handler = route.handler
        self.names = tuple(_VARIABLE.findall(route.pattern))
        self.duration = duration
        self.answered: dict[int, Counter] = {}


_VARIABLE = re.compile(r"\{(\w+)\}")


class _Place:
    """What stands behind one part of a path: the parts that may follow, and who answers here."""

    __slots__ = ("any_part", "bound", "parts")

    def __init__(self) -> None:
        self.parts: dict[str, _Place] = {}
        self.any_part: _Place | None = None
        self.bound: dict[str, _Bound] = {}

    def add(self, parts: Sequence[str]) -> "_Place":
        place = self
        for part in parts:
            if part.startswith("{"):
                if place.any_part is None:
                    place.any_part = _Place()
                place = place.any_part
            else:
                place = place.parts.setdefault(part, _Place())
        return place

    def find(self, method: str, parts: Sequence[str], at: int, values: list[str]) -> _Bound | None:
        """The handler of a path; a part that is spelled out beats a variable one."""
        if at == len(parts):
            return self.bound.get(method)
        part = parts[at]
        place = self.parts.get(part)
        if place is not None:
            found = place.find(method, parts, at + 1, values)
            if found is not None:
                return found
        if self.any_part is not None and part:
            values.append(part)
            found = self.any_part.find(method, parts, at + 1, values)
            if found is not None:
                return found
            values.pop()
        return None

    def methods(self, parts: Sequence[str], at: int = 0) -> set[str]:
        """All methods that a path is served for."""
        if at == len(parts):
            return set(self.bound)
        place = self.parts.get(parts[at])
        found = place.methods(parts, at + 1) if place is not None else set()
        if self.any_part is not None and parts[at]:
            found |= self.any_part.methods(parts, at + 1)
        return found


class _Found(NamedTuple):
    """Where a path leads, with what it says."""

    bound: _Bound
    named: Mapping[str, str]
    raw_query: str


class Edge:
    """All routes of a node. To be made inside the event loop that serves them."""

    def __init__(
        self, metrics: Metrics, *, body_bytes_max: int, admission: Admission | None = None
    ) -> None:
        """`admission` None: whoever comes is let in."""
        self._metrics = metrics
        self._admission = admission
        self._body_bytes_max = body_bytes_max
        self._instance = socket.gethostname()
        self._root = _Place()
        self._find_again = lru_cache(maxsize=_PLACES_CACHED)(self._find)
        # Not the Clock: a duration only, and the loop's own time costs nothing; good to 1 ms.
        self._loop = asyncio.get_running_loop()
        self.closing = False
        """Ask every client to come back on another connection."""

    def add(self, routes: Sequence[Route]) -> None:
        for route in routes:
            place = self._root.add(route.pattern.split("/"))
            duration = self._metrics.http_request_duration.of(route.pattern)
            gate = None
            if self._admission is not None:
                gate = self._admission.gate(route.method, route.pattern)
            place.bound[route.method] = _Bound(route, duration, gate)
        self._find_again.cache_clear()

    def server(
        self, handle: Callable[[web.BaseRequest], Awaitable[Any]] | None = None
    ) -> web.Server:
        """What a runner of aiohttp serves; `handle` stands in front of this edge's own, for all
        that is no plain request."""
        return Server(
            handle or self.handle,
            request_factory=self._request,
            refuse=lambda status, message: _response(self._error(status, message)),
            serve=self.serve,
        )

    def serve(
        self, request: PlainRequest, transport: asyncio.Transport
    ) -> Coroutine[Any, Any, Reply] | None:
        """Begin to answer a plain request; None if there is a reason to refuse it unread."""
        if len(request.body) > self._body_bytes_max:
            return None
        target = request.target
        find = self._find_again if len(target) <= _CACHED_LENGTH_MAX else self._find
        found = find(request.method, target)
        if found is None:
            return None
        bound, named, raw_query = found
        call = Call(named, raw_query, request.body, request.content_type, transport)
        return self._reply(bound, call)

    async def _reply(self, bound: _Bound, call: Call) -> Reply:
        answer = await self._answer(bound, call)
        return reply(
            answer.status,
            answer.body,
            answer.content_type,
            at_s=int(self._loop.time()),
            headers=answer.headers,
            closes=self.closing,
        )

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Answer one request that aiohttp has read."""
        target = request.raw_path
        if not target.startswith("/"):
            # A proxy asks for the whole address.
            target = request.rel_url.raw_path_qs
        found = self._find(request.method, target)
        if found is None:
            answer = self._answer_unknown(request.method, target.partition("?")[0])
        else:
            bound, named, raw_query = found
            content_type = request.headers.get(hdrs.CONTENT_TYPE, "")
            call = Call(named, raw_query, b"", content_type, request.transport)
            answer = await self._answer(bound, call, request)
        response = _response(answer)
        if self.closing:
            response.force_close()
        return response

    def _find(self, method: str, target: str) -> _Found | None:
        path, _, raw_query = target.partition("?")
        values: list[str] = []
        bound = self._root.find(method, path.split("/"), 0, values)
        if bound is None:
            return None
        return _Found(bound, dict(zip(bound.names, map(_decoded, values), strict=True)), raw_query)

    async def _answer(
        self, bound: _Bound, call: Call, request: web.BaseRequest | None = None
    ) -> Answer:
        """Have a handler answer, whatever happens; of a `request` the body is read first."""
        gate = bound.gate
        if gate is not None:
            refusal = gate.refusal()
            if refusal is not None:
                return self._turned_away(bound, refusal)
        started = self._loop.time()
        admitted: Pass | None = None
        status = 0
        try:
            if request is not None and request.body_exists:
                call.body = await self._body(request)
            if gate is not None:
                admitted = call.admitted = gate.enter()
            answer = await bound.handler(call)
            status = answer.status
        except Exception as error:  # noqa: BLE001 - the HTTP edge: nothing else may answer
            answer = self._failed(error, bound.route)
        finally:
            if admitted is not None:
                admitted.leave(done=status == 200)
        self._count(bound, answer.status)
        bound.duration.observe(self._loop.time() - started)
        return answer

    def _count(self, bound: _Bound, status: int) -> None:
        counter = bound.answered.get(status)
        if counter is None:
            counter = bound.answered[status] = self._metrics.http_requests.of(
                bound.route.method, bound.route.pattern, str(status)
            )
        counter.inc()

    def _turned_away(self, bound: _Bound, refusal: Refusal) -> Answer:
        """At the door, before anything is read."""
        self._count(bound, refusal.status)
        retry_after = (hdrs.RETRY_AFTER, str(refusal.retry_after_s))
        return Answer(refusal.body, refusal.status, headers=(retry_after,))

    def _failed(self, error: Exception, route: Route) -> Answer:
        if isinstance(error, ClusterError):
            return self._refused(error)
        if isinstance(error, web.HTTPRequestEntityTooLarge):
            return self._error(413, f"The body is larger than {self._body_bytes_max} bytes")
        if isinstance(error, web.HTTPException):
            return self._error(error.status, error.reason)
        if isinstance(error, web.RequestPayloadError):
            return self._error(400, f"The body cannot be read: {error}")
        if isinstance(error, ConnectionError):
            # The client left in the middle of its body: there is nobody to answer.
            return self._error(400, "The connection was closed before the body was complete")
        self._metrics.workflow_server_error.of(type(error).__name__, route.pattern).inc()
        log.error("request failed", method=route.method, route=route.pattern, exc_info=error)
        return self._error(500, f"{type(error).__name__} while answering; see the server's log")

    def _refused(self, error: ClusterError) -> Answer:
        if isinstance(error, ValidationFailed):
            body = {
                "status": error.status,
                "message": error.message,
                "retryable": False,
                "validationErrors": [_violation(v) for v in error.violations],
            }
            return Answer(orjson.dumps(body), error.status)
        if isinstance(error, Overloaded):
            answer = self._error(
                error.status, error.message, retryable=True, retryAfterMs=1000 * error.retry_after_s
            )
            return answer._replace(headers=((hdrs.RETRY_AFTER, str(error.retry_after_s)),))
        return self._error(error.status, error.message, retryable=error.retryable)

    def _error(self, status: int, message: str, *, retryable: bool = False, **more: Any) -> Answer:
        body = error_body(status, message, self._instance, retryable=retryable, **more)
        return Answer(body, status)

    def _answer_unknown(self, method: str, path: str) -> Answer:
        allowed = self._root.methods(path.split("/"))
        if allowed:
            answer = self._error(405, f"Request method '{method}' is not supported")
            answer = answer._replace(headers=((hdrs.ALLOW, ", ".join(sorted(allowed))),))
        else:
            answer = self._error(404, f"No static resource {_decoded(path).strip('/')}.")
        # One label for all: what nobody serves has no pattern to name.
        self._metrics.http_requests.of("*", "/*", str(answer.status)).inc()
        return answer

    async def _body(self, request: web.BaseRequest) -> bytes:
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # Not yet the answer: an error may still be answered in full.
            request.writer.output_size = 0
        content = request.content
        if content.is_eof() and content.total_bytes <= self._body_bytes_max:
            # All of it came with the headers, as small bodies do.
            return content.read_nowait()
        return await request.read()

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        return web.BaseRequest(
            message,
            payload,
            protocol,
            writer,
            task,
            self._loop,
            client_max_size=self._body_bytes_max,
        )


def _decoded(part: str) -> str:
    return unquote(part) if "%" in part else part


def _violation(violation: Any) -> dict[str, str]:
    shown = {"path": violation.path, "message": violation.message}
    if violation.invalid_value is not None:
        shown["invalidValue"] = violation.invalid_value
    return shown


def _response(answer: Answer) -> web.Response:
    headers = dict(answer.headers)
    if answer.body:
        headers[hdrs.CONTENT_TYPE] = answer.content_type
    return web.Response(body=answer.body or None, status=answer.status, headers=headers)
