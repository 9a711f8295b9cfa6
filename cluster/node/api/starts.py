"""From a StartWorkflowRequest to what the router takes."""

from typing import Any

from cluster.engine import payloads
from cluster.errors import InvalidRequest, NotSupported, TooLarge, Violation
from cluster.node.api.bodies import StartBody, as_text, invalid, json_object
from cluster.node.router import StartWorkflow

PRIORITY_MAX = 99
_PATH = "startWorkflow.arg0"
"""How violations name the body, whichever way the start came."""
_STRATEGIES = ("FAIL", "RETURN_EXISTING", "FAIL_ON_RUNNING")


def start_request(
    body: StartBody,
    *,
    input_bytes_max: int,
    named: tuple[str, int | None] | None = None,
) -> StartWorkflow:
    """Check a body. Name and version of a path (`named`) beat its own."""
    name, version = (as_text(body.name), body.version) if named is None else named
    _check(body, name)
    if not name:
        raise InvalidRequest("Workflow name must be specified when searching for a definition")
    if body.external_input_payload_storage_path:
        raise NotSupported("externalInputPayloadStoragePath is not served by this version yet")
    return StartWorkflow(
        name=name,
        version=version,
        input=_input_of(body, input_bytes_max),
        correlation_id=as_text(body.correlation_id),
        priority=body.priority or 0,
        task_to_domain=_domains_of(body),
        definition=_definition_of(body),
        created_by="",
        idempotency_key=as_text(body.idempotency_key) or None,
        idempotency_strategy=body.idempotency_strategy or None,
    )


def check_input_size(encoded: bytes, input_bytes_max: int) -> bytes:
    """Raises TooLarge."""
    if len(encoded) > input_bytes_max:
        raise TooLarge(
            f"The workflow input has {len(encoded)} bytes; at most {input_bytes_max} are taken"
        )
    return encoded


def _check(body: StartBody, name: str | None) -> None:
    violations = []
    if name is None:
        violations.append(Violation(f"{_PATH}.name", "Workflow name cannot be null or empty"))
    priority = body.priority or 0
    if priority > PRIORITY_MAX:
        text = f"priority: {priority} should be maximum {PRIORITY_MAX}"
        violations.append(Violation(f"{_PATH}.priority", text, str(priority)))
    if priority < 0:
        text = f"priority: {priority} should be minimum 0"
        violations.append(Violation(f"{_PATH}.priority", text, str(priority)))
    if violations:
        raise invalid(*violations)
    if body.idempotency_strategy and body.idempotency_strategy not in _STRATEGIES:
        raise InvalidRequest(
            f"idempotencyStrategy must be one of {', '.join(_STRATEGIES)},"
            f" not '{body.idempotency_strategy[:100]}'"
        )


def _input_of(body: StartBody, input_bytes_max: int) -> bytes:
    raw = bytes(body.input)
    if raw == b"null":
        raise InvalidRequest("NULL input passed when starting workflow")
    return check_input_size(json_object(raw, "input"), input_bytes_max)


def _domains_of(body: StartBody) -> dict[str, str] | None:
    domains = body.task_to_domain or {}
    return {task: domain for task, domain in domains.items() if domain is not None} or None


def _definition_of(body: StartBody) -> dict[str, Any] | None:
    raw = bytes(body.workflow_def)
    if raw == b"null":
        return None
    json_object(raw, "workflowDef")
    definition: dict[str, Any] = payloads.load(raw)
    return definition
