"""What an HTTP task asks for: its input, read and checked, in Conductor's words."""

from typing import Any
from urllib.parse import urlencode

import msgspec
import orjson

from cluster.engine.text import to_text
from cluster.system_tasks import WorkFailed

_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"
_MISSING_REQUEST = (
    "Missing HTTP request. Task input MUST have a 'http_request' key with HttpTask.Input as "
    "value. See documentation for HttpTask for required input parameters"
)
_MISSING_URI = "Missing HTTP URI.  See documentation for HttpTask for required input parameters"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})
_TIMEOUT_MS = 3000


class OAuth2(msgspec.Struct, frozen=True, rename="camel"):
    """Client credentials (RFC 6749, 4.4) for which a token is asked."""

    token_uri: str
    client_id: str
    client_secret: str
    scope: str = ""
    audience: str = ""
    client_authentication: str = "basic"
    """How the secret travels: `basic` in a header, `post` in the form."""


class HttpRequest(msgspec.Struct, frozen=True):
    method: str
    uri: str
    headers: dict[str, str]
    body: bytes | None
    connect_timeout_ms: int
    read_timeout_ms: int
    oauth2: OAuth2 | None = None
    client_certificate: str | None = None
    """The name under which the operator has put it into the settings."""
    termination_condition: str | None = None
    """JavaScript over {input, output}: the request is repeated until it is true."""
    polling_interval_s: int = 60
    polling_strategy: str = "FIXED"


def read_request(value: dict[str, Any], *, idempotency_key: str) -> HttpRequest:
    """The request of a task with that input. WorkFailed: none can be made out of it."""
    given = value.get("http_request")
    if given is None and value.get("uri") is not None:
        given = value
    if given is None:
        raise WorkFailed(_MISSING_REQUEST)
    if not isinstance(given, dict):
        raise WorkFailed(f"http_request must be an object, not {to_text(given)}")
    if given.get("uri") is None:
        raise WorkFailed(_MISSING_URI)
    if given.get("method") is None:
        raise WorkFailed("No HTTP method specified")
    method = to_text(given["method"]).upper()
    if method not in METHODS:
        raise WorkFailed(f"There is no HTTP method {method}")
    content_type = to_text(given.get("contentType") or _JSON)
    headers = {"Accept": to_text(given.get("accept") or _JSON), "Content-Type": content_type}
    headers["Idempotency-Key"] = idempotency_key
    names = {name.lower(): name for name in headers}
    for name, text in _map(given, "headers").items():
        if text is not None:
            # What the definition says replaces what would be sent by default.
            headers[names.get(name.lower(), name)] = to_text(text)
    return HttpRequest(
        method,
        to_text(given["uri"]),
        headers,
        _body(given.get("body"), content_type),
        _milliseconds(given, "connectionTimeOut"),
        _milliseconds(given, "readTimeOut"),
        oauth2=_oauth2(given),
        client_certificate=_text(given, "clientCertificate"),
        termination_condition=_text(given, "terminationCondition"),
        polling_interval_s=max(1, _number(given, "pollingInterval", 60)),
        polling_strategy=_text(given, "pollingStrategy") or "FIXED",
    )


def _body(value: Any, content_type: str) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and content_type.partition(";")[0].strip().lower() == _FORM:
        return urlencode(
            {
                name: [to_text(one) for one in item] if isinstance(item, list) else to_text(item)
                for name, item in value.items()
            },
            doseq=True,
        ).encode()
    return orjson.dumps(value)


def _oauth2(given: dict[str, Any]) -> OAuth2 | None:
    value = given.get("oauth2")
    if value is None:
        return None
    try:
        return msgspec.convert(value, OAuth2)
    except msgspec.ValidationError as fault:
        raise WorkFailed(f"http_request.oauth2: {fault}") from None


def _map(given: dict[str, Any], name: str) -> dict[str, Any]:
    value = given.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise WorkFailed(f"http_request.{name} must be an object")
    return value


def _text(given: dict[str, Any], name: str) -> str | None:
    value = given.get(name)
    return None if value in (None, "") else to_text(value)


def _milliseconds(given: dict[str, Any], name: str) -> int:
    """0: as long as the node allows."""
    return max(0, _number(given, name, _TIMEOUT_MS))


def _number(given: dict[str, Any], name: str, default: int) -> int:
    value = given.get(name)
    if value is None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise WorkFailed(f"http_request.{name} must be a number") from None
