"""Request bodies: JSON to structs. Users' payloads stay the bytes they came as, but checked.

What gets past this module can be decoded again by the engine at any time: it is UTF-8, no deeper
than `DEPTH_MAX`, and holds no number that Python's decoders refuse.
"""

from typing import Any, TypeVar

import msgspec
import orjson

from cluster.engine import payloads
from cluster.errors import InvalidRequest, ValidationFailed, Violation

DEPTH_MAX = 254
"""Levels of nesting in a payload: what orjson encodes."""

Text = str | int | float | bool | None
"""Where Conductor's JSON reader takes any scalar as text."""

T = TypeVar("T")


class _Body(msgspec.Struct, rename="camel"):
    pass


class StartBody(_Body):
    """StartWorkflowRequest."""

    name: Text = None
    version: int | None = None
    correlation_id: Text = None
    input: msgspec.Raw = msgspec.Raw(payloads.EMPTY)
    task_to_domain: dict[str, str | None] | None = None
    workflow_def: msgspec.Raw = msgspec.Raw(b"null")
    external_input_payload_storage_path: str | None = None
    priority: int | None = 0
    created_by: Text = None
    idempotency_key: Text = None
    idempotency_strategy: str | None = None


class LogBody(_Body):
    """TaskExecLog."""

    log: Text = None
    created_time: int | None = None


class TaskResultBody(_Body):
    """TaskResult."""

    workflow_instance_id: str | None = None
    task_id: str | None = None
    status: str | None = None
    output_data: msgspec.Raw = msgspec.Raw(b"null")
    reason_for_incompletion: Text = None
    worker_id: Text = None
    callback_after_seconds: int | None = 0
    logs: list[LogBody | None] | None = None
    external_output_payload_storage_path: str | None = None
    sub_workflow_id: str | None = None
    extend_lease: bool | None = False


class RerunBody(_Body):
    """RerunWorkflowRequest."""

    re_run_from_task_id: str | None = None
    workflow_input: msgspec.Raw = msgspec.Raw(b"null")
    task_input: msgspec.Raw = msgspec.Raw(b"null")
    correlation_id: Text = None


class SkipBody(_Body):
    """SkipTaskRequest."""

    task_input: msgspec.Raw = msgspec.Raw(b"null")
    task_output: msgspec.Raw = msgspec.Raw(b"null")


def reader(kind: type[T]) -> "msgspec.json.Decoder[T]":
    """A decoder that takes "5" for 5 and "true" for true, as Conductor does."""
    return msgspec.json.Decoder(kind, strict=False)


def read(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    """Decode a body; raises InvalidRequest that says where it went wrong."""
    try:
        if not body.isascii():
            # What the decoder skips it does not look into.
            body.decode()
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The body does not fit: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(body, error) from error


def read_optional(decoder: "msgspec.json.Decoder[T]", body: bytes, default: T) -> T:
    """The same where the body may be left out."""
    return read(decoder, body) if body.strip() else default


def json_object(raw: bytes | memoryview, what: str) -> bytes:
    """Check that `raw` is a JSON object that may be kept; returns its bytes.

    Raises InvalidRequest; `what` names the place in its message.
    """
    encoded = bytes(raw)
    if encoded == payloads.EMPTY:
        return payloads.EMPTY
    value = _loaded(encoded, what)
    if type(value) is not dict:
        raise InvalidRequest(f"{what} must be a JSON object, not {_kind_of(value)}")
    return encoded if value else payloads.EMPTY


def optional_object(raw: bytes | memoryview, what: str) -> bytes | None:
    """The same, None for `null`."""
    return None if bytes(raw) == b"null" else json_object(raw, what)


def json_body(body: bytes) -> Any:
    """Decode a body whose form is checked elsewhere: a definition, or a list of them."""
    if not body.strip():
        raise InvalidRequest("Required request body is missing")
    return _loaded(body, "The body")


def as_text(value: Text) -> str | None:
    """A lenient text field as text."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def invalid(*violations: Violation) -> ValidationFailed:
    return ValidationFailed(violations)


def _loaded(encoded: bytes, what: str) -> Any:
    try:
        value = orjson.loads(encoded)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{what} is no JSON that can be kept: {error}") from error
    if encoded.count(b"{") + encoded.count(b"[") > DEPTH_MAX and _is_too_deep(value):
        raise InvalidRequest(f"{what} is nested deeper than {DEPTH_MAX} levels")
    return value


def _is_too_deep(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:
        return True
    return False


def _malformed(body: bytes, error: Exception) -> InvalidRequest:
    if not body.strip():
        return InvalidRequest("Required request body is missing")
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest(f"The body is no JSON: byte {error.start + 1} is not UTF-8")
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as found:
        # orjson names line and column, msgspec only the byte.
        return InvalidRequest(f"The body is no JSON: {found}")
    return InvalidRequest(f"The body is no JSON that can be read: {error}")


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "a number"
