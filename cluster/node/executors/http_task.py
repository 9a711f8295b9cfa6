"""HTTP and HTTP_POLL: requests to other services."""

import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import orjson
from aiohttp import ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

from cluster.clock import Clock
from cluster.engine import payloads
from cluster.node.executors.http_addresses import AddressPolicy
from cluster.node.executors.http_requests import HttpRequest, read_request
from cluster.node.executors.http_tokens import Tokens
from cluster.sharding.dispatch import ScriptFailed
from cluster.system_tasks import Again, Done, SystemTask, Work, WorkFailed

_REDIRECTS_MAX = 10
_PAUSE_S_MAX = 24 * 3600

Evaluate = Callable[[str, str, bytes], Awaitable[bytes]]
"""Evaluates (language, source, input as JSON) to JSON. ScriptFailed."""


class HttpTask(SystemTask):
    """Conductor's HTTP task; with `terminationCondition` the request is repeated until it holds."""

    def __init__(
        self,
        *,
        addresses: AddressPolicy,
        evaluate: Evaluate,
        certificates: Mapping[str, ssl.SSLContext],
        response_bytes_max: int,
        clock: Clock,
    ) -> None:
        self._addresses = addresses
        self._evaluate = evaluate
        self._certificates = certificates
        self._bytes_max = response_bytes_max
        self._clock = clock
        self._session: ClientSession
        self._tokens: Tokens

    async def open(self) -> None:
        connector = TCPConnector(limit=0, socket_factory=self._addresses.socket_factory())
        # Tasks of all kinds of workflows share the session: no cookie of one may go with another.
        self._session = ClientSession(
            connector=connector,
            cookie_jar=DummyCookieJar(),
            trust_env=False,
            skip_auto_headers=("User-Agent",),
        )
        self._tokens = Tokens(self._session, self._clock)

    async def close(self) -> None:
        await self._session.close()

    async def execute(self, work: Work) -> Done | Again:
        request = read_request(work.input_data, idempotency_key=work.task_id)
        try:
            response = await self._call(request)
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            # TimeoutError is an OSError.
            text = _words(failure)
            reason = f"Failed to invoke {work.task_type} task due to: {text}"
            raise WorkFailed(reason, output={"response": text}) from failure
        output = {"response": response}
        status = response["statusCode"]
        if status >= 400:
            text = _error(request, response)
            reason = f"Failed to invoke {work.task_type} task due to: {text}"
            raise WorkFailed(reason, output={"response": text})
        if not 200 <= status < 300:
            output["response"]["body"] = None
            raise WorkFailed("No response from the remote service", output=output)
        response["body"] = _parsed(response["body"])
        if request.termination_condition is None:
            return Done(output)
        if await self._is_over(request.termination_condition, work, output):
            return Done(output)
        return Again(_pause_s(request, work.poll_count), output)

    async def _call(self, request: HttpRequest) -> dict[str, Any]:
        """The response, its body as text; a token that is not taken is asked for anew, once."""
        if request.oauth2 is None:
            return await self._send(request, request.headers)
        for is_last in (False, True):
            token = await self._tokens.of(request.oauth2)
            headers = {**request.headers, "Authorization": f"Bearer {token}"}
            response = await self._send(request, headers)
            if response["statusCode"] == 401:
                self._tokens.forget(request.oauth2, token)
            if response["statusCode"] != 401 or is_last:
                break
        return response

    async def _send(self, request: HttpRequest, headers: Mapping[str, str]) -> dict[str, Any]:
        timeout = ClientTimeout(
            total=None,
            sock_connect=request.connect_timeout_ms / 1000 or None,
            sock_read=request.read_timeout_ms / 1000 or None,
        )
        async with self._session.request(
            request.method,
            request.uri,
            headers=headers,
            data=request.body,
            timeout=timeout,
            ssl=self._ssl(request.client_certificate),
            # A browser's habit of making a GET of a POST is not for services.
            allow_redirects=request.method in ("GET", "HEAD"),
            max_redirects=_REDIRECTS_MAX,
        ) as response:
            return {
                "headers": _lists(response),
                "statusCode": response.status,
                "body": await self._text(response),
                "reasonPhrase": response.reason or "",
            }

    def _ssl(self, name: str | None) -> ssl.SSLContext | bool:
        if name is None:
            return True
        if name not in self._certificates:
            raise WorkFailed(f"No client certificate {name} is configured", is_final=True)
        return self._certificates[name]

    async def _text(self, response: ClientResponse) -> str | None:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self._bytes_max:
                response.close()
                raise WorkFailed(f"The response is larger than {self._bytes_max} bytes")
        if not body:
            return None
        try:
            return body.decode(response.charset or "utf-8", "replace")
        except LookupError:
            return body.decode("utf-8", "replace")

    async def _is_over(self, condition: str, work: Work, output: dict[str, Any]) -> bool:
        scope = payloads.dump({"input": work.input_data, "output": output})
        try:
            value = orjson.loads(await self._evaluate("javascript", condition, scope))
        except ScriptFailed as failure:
            reason = f"terminationCondition: {failure.message}"
            raise WorkFailed(reason, output=output, is_final=not failure.timed_out) from None
        return value is True or value == "true"


def _words(failure: Exception) -> str:
    if isinstance(failure, aiohttp.ClientConnectorError):
        # By itself it says the address and, of some errors, no more.
        return f"Cannot connect to {failure.host}:{failure.port}: {failure.os_error}"
    return str(failure) or type(failure).__name__


def _lists(response: ClientResponse) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for name, value in response.headers.items():
        headers.setdefault(name, []).append(value)
    return headers


def _error(request: HttpRequest, response: dict[str, Any]) -> str:
    """As Conductor words it; what stands in the query may be a secret."""
    body = "[no body]" if response["body"] is None else f'"{response["body"]}"'
    uri = request.uri.partition("?")[0]
    status = f"{response['statusCode']} {response['reasonPhrase']}"
    return f'{status} on {request.method} request for "{uri}": {body}'


def _parsed(body: str | None) -> Any:
    """JSON objects and arrays as they are, numbers as doubles, all else as text (rule 200)."""
    if body is None:
        return None
    try:
        value = payloads.load(body.encode("utf-8", "replace"))
    except ValueError:
        return body
    if isinstance(value, dict | list):
        return value
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return body.strip()
    return float(value)


def _pause_s(request: HttpRequest, poll_count: int) -> int:
    pause_s = request.polling_interval_s
    match request.polling_strategy.upper():
        case "LINEAR_BACKOFF":
            pause_s *= poll_count
        case "EXPONENTIAL_BACKOFF":
            pause_s *= 1 << min(poll_count - 1, 32)
    return min(pause_s, _PAUSE_S_MAX)


def load_certificates(text: str) -> dict[str, ssl.SSLContext]:
    """`name=CERT:KEY[:CA], ...` with paths of PEM files, as in the setting. ValueError, OSError."""
    contexts = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, paths = entry.partition("=")
        files = paths.split(":")
        if not name or len(files) not in (2, 3):
            raise ValueError(f"{entry!r} is not name=CERT:KEY or name=CERT:KEY:CA")
        context = ssl.create_default_context(cafile=files[2] if len(files) == 3 else None)
        context.load_cert_chain(files[0], files[1])
        contexts[name.strip()] = context
    return contexts
