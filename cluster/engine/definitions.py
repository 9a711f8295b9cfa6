"""WorkflowDef, WorkflowTask, TaskDef: how definitions are read, and frozen for the runs."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from cluster.engine import payloads
from cluster.engine.definition_json import (
    Boxed,
    Long,
    Model,
    Read,
    Reader,
    Unreadable,
    read_body,
    read_text,
)
from cluster.errors import NotFound

# The fields stand in the order in which Conductor writes them; the defaults are Conductor's. What
# the structs say in Python, the JSON form beside them says as clients read it back: both come out
# of one reading, so they cannot differ. Fields that Conductor stores and ignores are kept here too.


class _Auditable(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    owner_app: str | None = None
    create_time: Long = 0
    update_time: Long = 0
    created_by: str | None = None
    updated_by: str | None = None


class SchemaDef(_Auditable, frozen=True, kw_only=True):
    name: str | None = None
    version: int = 1
    type: Literal["JSON", "AVRO", "PROTOBUF"] | None = None
    data: dict[str, Any] | None = None
    external_ref: str | None = None


class CacheConfig(msgspec.Struct, frozen=True, rename="camel"):
    key: str | None = None
    ttl_in_second: int = 0


class RateLimitConfig(msgspec.Struct, frozen=True, rename="camel"):
    rate_limit_key: str | None = None
    concurrent_exec_limit: int = 0
    policy: Literal["QUEUE", "REJECT"] = "QUEUE"


class StateChangeEvent(msgspec.Struct, frozen=True):
    type: str | None = None
    payload: dict[str, Any] | None = None


class TaskDef(_Auditable, frozen=True, kw_only=True):
    """How attempts of a task are retried, timed out and limited. Delays and timeouts in seconds."""

    name: str = ""
    description: str | None = None
    retry_count: int = 3
    timeout_seconds: Long = 0
    input_keys: tuple[str, ...] = ()
    output_keys: tuple[str, ...] = ()
    runtime_metadata: tuple[str, ...] = ()
    timeout_policy: Literal["RETRY", "TIME_OUT_WF", "ALERT_ONLY"] = "TIME_OUT_WF"
    retry_logic: Literal["FIXED", "EXPONENTIAL_BACKOFF", "LINEAR_BACKOFF"] = "FIXED"
    retry_delay_seconds: int = 60
    response_timeout_seconds: Long = 3600
    concurrent_exec_limit: int | None = None
    input_template: dict[str, Any] = {}
    rate_limit_per_frequency: int = 0
    rate_limit_frequency_in_seconds: Boxed = 1
    isolation_group_id: str | None = None
    execution_name_space: str | None = None
    owner_email: str | None = None
    poll_timeout_seconds: int | None = None
    backoff_scale_factor: Boxed = 1
    max_retry_delay_seconds: int = 0
    backoff_jitter_ms: int = 0
    total_timeout_seconds: Long = 0
    task_status_listener_enabled: bool = True
    base_type: str | None = None
    input_schema: SchemaDef | None = None
    output_schema: SchemaDef | None = None
    enforce_schema: bool = False


class SubWorkflowParams(msgspec.Struct, frozen=True, rename="camel"):
    """Which workflow a SUB_WORKFLOW step starts; an inline one stands as its JSON form."""

    name: str | None = None
    version: int | None = None
    task_to_domain: dict[str, str] | None = None
    idempotency_key: str | None = None
    idempotency_strategy: Literal["FAIL_ON_RUNNING", "RETURN_EXISTING", "FAIL"] | None = None
    priority: Any = None
    workflow_definition: dict[str, Any] | str | None = None
    placement: str | None = None
    """Not Conductor's: "spread" starts the child on a shard of its own choice."""


class WorkflowTask(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One step. `name` and `task_reference_name` are "" if the definition leaves them out."""

    name: str = ""
    task_reference_name: str = ""
    description: str | None = None
    input_parameters: dict[str, Any] = {}
    type: str = "SIMPLE"
    dynamic_task_name_param: str | None = None
    case_value_param: str | None = None
    case_expression: str | None = None
    script_expression: str | None = None
    decision_cases: dict[str, tuple["WorkflowTask", ...]] = {}
    dynamic_fork_join_tasks_param: str | None = None
    dynamic_fork_tasks_param: str | None = None
    dynamic_fork_tasks_input_param_name: str | None = None
    default_case: tuple["WorkflowTask", ...] = ()
    fork_tasks: tuple[tuple["WorkflowTask", ...], ...] = ()
    start_delay: int = 0
    sub_workflow_param: SubWorkflowParams | None = None
    join_on: tuple[str, ...] = ()
    sink: str | None = None
    optional: bool = False
    task_definition: TaskDef | None = None
    rate_limited: bool | None = None
    default_exclusive_join_task: tuple[str, ...] = ()
    async_complete: bool = False
    loop_condition: str | None = None
    loop_over: tuple["WorkflowTask", ...] = ()
    items: str | None = None
    retry_count: int | None = None
    evaluator_type: str | None = None
    expression: str | None = None
    on_state_change: dict[str, tuple[StateChangeEvent, ...]] = {}
    join_status: str | None = None
    cache_config: CacheConfig | None = None
    permissive: bool = False
    join_mode: Literal["SYNC", "ASYNC"] | None = None
    metadata: dict[str, Any] = {}


class WorkflowDef(_Auditable, frozen=True, kw_only=True):
    """A workflow. `name` is "" if the definition leaves it out; `timeout_seconds` 0 = none."""

    name: str = ""
    description: str | None = None
    version: int = 1
    tasks: tuple[WorkflowTask, ...] = ()
    input_parameters: tuple[str, ...] = ()
    output_parameters: dict[str, Any] = {}
    failure_workflow: str | None = None
    schema_version: int = 2
    restartable: bool = True
    workflow_status_listener_enabled: bool = False
    owner_email: str | None = None
    timeout_policy: Literal["TIME_OUT_WF", "ALERT_ONLY"] = "ALERT_ONLY"
    timeout_seconds: Long = 0
    variables: dict[str, Any] = {}
    input_template: dict[str, Any] = {}
    failure_workflow_version: int | None = None
    workflow_status_listener_sink: str | None = None
    rate_limit_config: RateLimitConfig | None = None
    input_schema: SchemaDef | None = None
    output_schema: SchemaDef | None = None
    enforce_schema: bool = True
    metadata: dict[str, Any] = {}
    cache_config: CacheConfig | None = None
    masked_fields: tuple[str, ...] = ()


def parse_workflow_def(body: Any, *, path: str = "") -> tuple[WorkflowDef, dict[str, Any]]:
    """A definition typed, and its JSON form: defaults filled, unknown fields kept, no nulls.

    The nulls inside users' own maps stay. `definition_rules` finds what is readable but wrong.
    InvalidRequest: a field is unreadable ("tasks[0].startDelay: expected integer").
    """
    return read_body(_WORKFLOW_DEF, WorkflowDef, body, path)


def parse_workflow_task(body: Any, *, path: str = "") -> tuple[WorkflowTask, dict[str, Any]]:
    """One step, read like `parse_workflow_def` does; dynamic forks define theirs at run time."""
    return read_body(_WORKFLOW_TASK, WorkflowTask, body, path)


class StepReader:
    """Reads steps that are mostly alike, as the branches of a dynamic fork are: what they share is
    read once, then only what tells them apart."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[WorkflowTask, dict[str, Any]]] = {}

    def read(self, body: dict[str, Any]) -> tuple[WorkflowTask, dict[str, Any]]:
        """The same as `parse_workflow_task`."""
        ref, parameters = body.get("taskReferenceName"), body.get("inputParameters")
        if not ref or type(ref) is not str or type(parameters) is not dict:
            return parse_workflow_task(body)
        rest = {key: body[key] for key in body if key not in _OWN_FIELDS}
        kind = payloads.dump(rest)
        known = self._known.get(kind)
        if known is None:
            known = self._known[kind] = parse_workflow_task(body)
            return known
        step, wire = known
        own = {"taskReferenceName": ref, "inputParameters": parameters}
        return replace(step, task_reference_name=ref, input_parameters=parameters), {**wire, **own}


_OWN_FIELDS = frozenset({"taskReferenceName", "inputParameters"})


def parse_task_def(body: Any, *, path: str = "") -> tuple[TaskDef, dict[str, Any]]:
    """A task definition, read like `parse_workflow_def` does."""
    return read_body(_TASK_DEF, TaskDef, body, path)


def _read_task_def(value: Any, depth: int) -> Read:
    # Conductor takes a text for the name of a definition that is otherwise as by default.
    return _TASK_DEF.read({"name": value} if isinstance(value, str) else value, depth)


def _read_step(value: Any, depth: int) -> Read:
    return _WORKFLOW_TASK.read(value, depth)


def _read_type(value: Any, depth: int) -> Read:
    if value is None:
        raise Unreadable("string, or leave it out for SIMPLE")
    return read_text(value, depth)


def _read_inline_workflow(value: Any, depth: int) -> Read:
    if value is None:
        return None, None
    if isinstance(value, str):
        if value.startswith("${") and value.endswith("}"):
            return value, value
        raise Unreadable("a workflow definition, or an expression ${...} that yields one")
    _, wire = _WORKFLOW_DEF.read(value, depth)
    return wire, wire


def _name_by_inline_workflow(arguments: dict[str, Any], wire: dict[str, Any]) -> None:
    inline = wire["workflowDefinition"]
    if isinstance(inline, dict):
        for key in ("name", "version"):
            arguments[key] = wire[key] = inline.get(key)


def _optional(read: Reader) -> Reader:
    return lambda value, depth: (None, None) if value is None else read(value, depth)


_PARTS: dict[Any, Reader] = {}
for _struct in (SchemaDef, CacheConfig, RateLimitConfig, StateChangeEvent):
    _PARTS[_struct] = _optional(Model(_struct, {}).read)
_PARTS[TaskDef] = _optional(_read_task_def)
_PARTS[WorkflowTask] = _read_step
_PARTS[SubWorkflowParams] = _optional(
    Model(
        SubWorkflowParams,
        {},
        special={"workflowDefinition": _read_inline_workflow},
        finish=_name_by_inline_workflow,
    ).read
)
_TASK_DEF = Model(TaskDef, _PARTS)
_WORKFLOW_TASK = Model(WorkflowTask, _PARTS, special={"type": _read_type})
_WORKFLOW_DEF = Model(WorkflowDef, _PARTS)


def inner_steps(task: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """The sequences of steps (JSON form) that a step of this type runs inside the same workflow.

    Steps that stand in a field which the type does not use never run, and belong to nothing.
    """
    match task["type"]:
        case "SWITCH" | "DECISION":
            yield from task["decisionCases"].values()
            yield task["defaultCase"]
        case "FORK_JOIN":
            yield from task["forkTasks"]
        case "DO_WHILE":
            yield task["loopOver"]


def steps_of(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All steps that may run, nested ones behind the step that holds them."""
    for task in tasks:
        yield task
        for sequence in inner_steps(task):
            yield from steps_of(sequence)


class Snapshot(msgspec.Struct, frozen=True):
    """A definition as a run follows it for life; `hash` (hex) names its content `body` (JSON)."""

    hash: str
    body: bytes


def task_names_of(definition: Mapping[str, Any]) -> set[str]:
    """Names whose registered TaskDef goes into the snapshot of a definition (JSON form)."""
    return {
        task.get("name", "")
        for task in steps_of(definition["tasks"])
        if "taskDefinition" not in task
    }


def unpinned_sub_workflows_of(definition: Mapping[str, Any]) -> set[str]:
    """Names of sub-workflows whose latest version goes into the snapshot."""
    return {task["subWorkflowParam"].get("name", "") for task in _unpinned(definition["tasks"])}


def make_snapshot(
    definition: Mapping[str, Any],
    task_defs: Mapping[str, dict[str, Any]],
    latest_versions: Mapping[str, int],
) -> Snapshot:
    """Freeze a definition (JSON form) with what it uses, as Conductor shows it in an execution.

    Every step that may run carries a taskDefinition: its own, else the one of its name in
    `task_defs`, else an ad-hoc one. A sub-workflow without version gets its `latest_versions`.
    NotFound: there is none. The steps of inline sub-workflows get theirs when those start.
    """
    tasks = [_frozen_step(task, task_defs, latest_versions) for task in definition["tasks"]]
    body = payloads.dump({**definition, "tasks": tasks})
    return Snapshot(hashlib.blake2b(body, digest_size=16).hexdigest(), body)


def ad_hoc_task_def(task_type: str, name: str) -> dict[str, Any]:
    """The TaskDef (JSON form) of a step for whose name none is registered."""
    if task_type == "SIMPLE":
        return _TASK_DEF.read({"name": name}, 0)[1]  # type: ignore[no-any-return]
    body = {"name": name, "retryCount": 0, "responseTimeoutSeconds": 0}
    return _TASK_DEF.read(body, 0)[1]  # type: ignore[no-any-return]


def _frozen_step(
    task: dict[str, Any],
    task_defs: Mapping[str, dict[str, Any]],
    latest_versions: Mapping[str, int],
) -> dict[str, Any]:
    name = task.get("name", "")
    frozen = dict(task)
    if "taskDefinition" not in task:
        frozen["taskDefinition"] = task_defs.get(name) or ad_hoc_task_def(task["type"], name)
    if _is_unpinned(task):
        child = task["subWorkflowParam"].get("name")
        if child not in latest_versions:
            raise NotFound(
                f"The Task {child or 'null'} defined as a sub-workflow"
                " has no workflow definition available "
            )
        frozen["subWorkflowParam"] = {**task["subWorkflowParam"], "version": latest_versions[child]}

    def freeze(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [_frozen_step(step, task_defs, latest_versions) for step in steps]

    match task["type"]:
        case "SWITCH" | "DECISION":
            frozen["decisionCases"] = {
                case: freeze(steps) for case, steps in task["decisionCases"].items()
            }
            frozen["defaultCase"] = freeze(task["defaultCase"])
        case "FORK_JOIN":
            frozen["forkTasks"] = [freeze(steps) for steps in task["forkTasks"]]
        case "DO_WHILE":
            frozen["loopOver"] = freeze(task["loopOver"])
    return frozen


def _unpinned(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (task for task in steps_of(tasks) if _is_unpinned(task))


def _is_unpinned(task: Mapping[str, Any]) -> bool:
    """An inline definition given as an expression does not count: Conductor pins the name."""
    if task["type"] != "SUB_WORKFLOW":
        return False
    params = task.get("subWorkflowParam", {})
    return "version" not in params and not isinstance(params.get("workflowDefinition"), dict)
