"""The HTTP edge: one thin wrapper per route that reads, measures, and answers errors as JSON.

There is no aiohttp middleware: each costs every request, and all of this fits in one function.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import orjson
from aiohttp import hdrs, web

from cluster.errors import ClusterError, InvalidRequest, Overloaded, ValidationFailed
from cluster.logs import get_log
from cluster.metrics import Counter, Metrics

log = get_log(__name__)

JSON = "application/json"
TEXT = "text/plain;charset=UTF-8"

_QUERY_CACHED_LENGTH_MAX = 512
_QUERY_FIELDS_MAX = 1000
_HEADERS = {kind: {hdrs.CONTENT_TYPE: kind} for kind in (JSON, TEXT)}


class Answer(NamedTuple):
    """What a handler answers; an empty body has no content type."""

    body: bytes = b""
    status: int = 200
    content_type: str = JSON


EMPTY = Answer()
NO_CONTENT = Answer(status=204)


def plain(text: str) -> Answer:
    """Plain text: how Conductor answers ids."""
    return Answer(text.encode(), content_type=TEXT)


class Call:
    """One request, as far as a handler needs it; its body has been read."""

    __slots__ = ("_query", "_request", "body", "path")

    def __init__(self, request: web.Request, body: bytes) -> None:
        self._request = request
        self._query: Mapping[str, Sequence[str]] | None = None
        self.path: Mapping[str, str] = request.match_info
        """The parts of the path that the route's pattern names, decoded."""
        self.body = body

    def is_connected(self) -> bool:
        """Whether the client is still there to be answered."""
        transport = self._request.transport
        return transport is not None and not transport.is_closing()

    def all_of(self, name: str) -> Sequence[str]:
        """Every value of a query parameter that may be repeated."""
        query = self._query
        if query is None:
            raw = self._request.raw_path.partition("?")[2]
            # A worker polls with the same query for ever.
            parse = _parse_again if len(raw) <= _QUERY_CACHED_LENGTH_MAX else _parse_query
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


class Edge:
    """Puts handlers behind the routes of an aiohttp application."""

    def __init__(self, metrics: Metrics, *, body_bytes_max: int) -> None:
        self._metrics = metrics
        self._body_bytes_max = body_bytes_max
        self._instance = socket.gethostname()
        self._resources: dict[str, web.Resource] = {}
        self._methods: dict[str, set[str]] = {}

    def add(self, app: web.Application, routes: Sequence[Route]) -> None:
        """Register routes; where two patterns fit a path, the one added first is taken."""
        for route in routes:
            resource = self._resources.get(route.pattern)
            if resource is None:
                resource = app.router.add_resource(route.pattern)
                self._resources[route.pattern] = resource
            self._methods.setdefault(route.pattern, set()).add(route.method)
            resource.add_route(route.method, self._wrap(route))

    def add_fallback(self, app: web.Application) -> None:
        """Answer what no route fits. To be called last: later patterns would never be seen."""
        app.router.add_route("*", "/{path:.*}", self._answer_unknown)

    def _wrap(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        handler = route.handler
        answered: dict[int, Counter] = {}
        duration = self._metrics.http_request_duration.of(route.pattern)
        # Not the Clock: this is the loop's own, it costs nothing and is good to 1 ms.
        now = asyncio.get_running_loop().time

        async def handle(request: web.Request) -> web.StreamResponse:
            started = now()
            try:
                body = await request.read() if request.body_exists else b""
                answer = await handler(Call(request, body))
                response = _response(answer)
            except Exception as error:  # noqa: BLE001 - the HTTP edge: nothing else may answer
                response = self._failed(error, route)
            status = response.status
            counter = answered.get(status)
            if counter is None:
                counter = self._metrics.http_requests.of(route.method, route.pattern, str(status))
                answered[status] = counter
            counter.inc()
            duration.observe(now() - started)
            return response

        return handle

    def _failed(self, error: Exception, route: Route) -> web.Response:
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

    def _refused(self, error: ClusterError) -> web.Response:
        if isinstance(error, ValidationFailed):
            return _json_response(
                error.status,
                {
                    "status": error.status,
                    "message": error.message,
                    "retryable": False,
                    "validationErrors": [_violation(v) for v in error.violations],
                },
            )
        response = self._error(error.status, error.message, retryable=error.retryable)
        if isinstance(error, Overloaded):
            response.headers[hdrs.RETRY_AFTER] = str(error.retry_after_s)
        return response

    def _error(self, status: int, message: str, *, retryable: bool = False) -> web.Response:
        body = {
            "status": status,
            "message": message,
            "instance": self._instance,
            "retryable": retryable,
        }
        return _json_response(status, body)

    async def _answer_unknown(self, request: web.Request) -> web.Response:
        path = request.rel_url.path_safe
        allowed: set[str] = set()
        for pattern, resource in self._resources.items():
            # A resource knows whether it fits a path, but not in public.
            if resource.get_info().get("path") == path or _fits(resource, path):
                allowed |= self._methods[pattern]
        if allowed:
            response = self._error(405, f"Request method '{request.method}' is not supported")
            response.headers[hdrs.ALLOW] = ", ".join(sorted(allowed))
        else:
            response = self._error(404, f"No static resource {request.path.strip('/')}.")
        # One label for all: what nobody serves has no pattern to name.
        self._metrics.http_requests.of("*", "/*", str(response.status)).inc()
        return response


def _fits(resource: web.Resource, path: str) -> bool:
    pattern = resource.get_info().get("pattern")
    return pattern is not None and pattern.fullmatch(path) is not None


def _violation(violation: Any) -> dict[str, str]:
    shown = {"path": violation.path, "message": violation.message}
    if violation.invalid_value is not None:
        shown["invalidValue"] = violation.invalid_value
    return shown


def _response(answer: Answer) -> web.Response:
    if not answer.body:
        return web.Response(status=answer.status)
    return web.Response(
        body=answer.body,
        status=answer.status,
        headers=_HEADERS.get(answer.content_type) or {hdrs.CONTENT_TYPE: answer.content_type},
    )


def _json_response(status: int, body: dict[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, headers=_HEADERS[JSON])
