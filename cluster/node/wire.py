"""Conductor's JSON of workflows and tasks. Users' payloads go in as the bytes they are kept as."""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from cluster.engine import payloads
from cluster.engine.model import Execution, Task
from cluster.engine.plan import Node
from cluster.engine.views import failed_names, output_of, parent_task_id
from cluster.store.queue_ports import QueueItem, queue_name

_dumps = orjson.dumps
_Fragment = orjson.Fragment

_EXECUTION_METADATA = _Fragment(b'{"additionalContext":{},"additionalContextMap":{},"empty":true}')
_EMPTY_MAP = _Fragment(b"{}")
_EMPTY_LIST = _Fragment(b"[]")
_NEVER_VARIES: dict[str, Any] = {
    "callbackFromWorker": True,
    "subworkflowChanged": False,
    "firstStartTime": 0,
    "executionMetadata": _EXECUTION_METADATA,
}

_FRAGMENT_BYTES_MAX = 64 << 20
_WITHOUT_RATE_LIMIT = frozenset(
    {
        "DECISION",
        "DYNAMIC",
        "EVENT",
        "EXCLUSIVE_JOIN",
        "FORK_JOIN",
        "FORK_JOIN_DYNAMIC",
        "HUMAN",
        "INLINE",
        "JOIN",
        "JSON_JQ_TRANSFORM",
        "LAMBDA",
        "NOOP",
        "SET_VARIABLE",
        "START_WORKFLOW",
        "SUB_WORKFLOW",
        "SWITCH",
        "TERMINATE",
        "WAIT",
    }
)
"""Types of steps whose tasks show no rate limit, whatever their definition says."""
_WITH_RESPONSE_TIMEOUT = frozenset({"SIMPLE", "DYNAMIC"})
"""Types of steps whose tasks show their response timeout."""


# -- workflows


def failed_run_json(execution: Execution) -> bytes:
    """A failed run as its failure workflow gets it: without the note of that very start."""
    output = dict(execution.workflow_output())
    output.pop("conductor.failure_workflow", None)
    return workflow_json(execution, include_tasks=True, output=payloads.dump_map(output))


def workflow_json(
    execution: Execution,
    *,
    include_tasks: bool,
    now_ms: int = 0,
    output: bytes | None = None,
    tasks: list[orjson.Fragment] | None = None,
) -> bytes:
    """A whole run; `tasks` is empty without `include_tasks`. `now_ms` is for waiting times.

    `tasks` may be given as `task_fragments` has made them, all in the order of their seq.
    """
    if not include_tasks:
        tasks = []
    elif tasks is None:
        tasks = task_fragments(execution, execution.tasks_by_seq(), now_ms)
    header = execution.header
    failed_refs, failed_tasks = failed_names(execution)
    body: dict[str, Any] = {
        "ownerApp": "",
        "createTime": header.create_ms,
        "updateTime": header.update_ms,
        "status": header.status.value,
        "endTime": header.end_ms,
        "workflowId": execution.id,
        "tasks": tasks,
        "input": _Fragment(execution.input),
        "output": _Fragment(execution.output if output is None else output),
        "taskToDomain": header.task_to_domain or _EMPTY_MAP,
        "failedReferenceTaskNames": failed_refs,
        "workflowDefinition": _Fragment(execution.plan.body),
        "priority": header.priority,
        "variables": _Fragment(execution.variables),
        "lastRetriedTime": header.last_retried_ms,
        "failedTaskNames": failed_tasks,
        "history": _EMPTY_LIST,
        "rateLimited": False,
        "startTime": header.create_ms,
        "workflowName": header.name,
        "workflowVersion": header.version,
    }
    if header.correlation_id is not None:
        body["correlationId"] = header.correlation_id
    if header.reason:
        body["reasonForIncompletion"] = header.reason
    if header.parent_id is not None:
        body["parentWorkflowId"] = header.parent_id
        body["parentWorkflowTaskId"] = parent_task_id(execution)
    if header.created_by:
        body["createdBy"] = header.created_by
    if header.event is not None:
        body["event"] = header.event
    if header.idempotency_key is not None:
        body["idempotencyKey"] = header.idempotency_key
    if header.external_input is not None:
        body["externalInputPayloadStoragePath"] = header.external_input
    return _dumps(body)


def workflow_status_json(
    execution: Execution, *, include_output: bool, include_variables: bool
) -> bytes:
    """The short form: id, status and what was asked for."""
    body: dict[str, Any] = {"workflowId": execution.id, "status": execution.header.status.value}
    if execution.header.correlation_id is not None:
        body["correlationId"] = execution.header.correlation_id
    if include_output:
        body["output"] = _Fragment(execution.output)
    if include_variables:
        body["variables"] = _Fragment(execution.variables)
    return _dumps(body)


class Signalled(NamedTuple):
    """What all shapes of a sync answer begin with: the run that was asked for, and how it went."""

    strategy: str
    target_id: str
    target_status: str
    request_id: str
    timed_out: bool


def workflow_run_json(answer: Signalled, shown: Execution, *, now_ms: int = 0) -> bytes:
    """A WorkflowRun: the state of `shown` (the target or the run that blocks it)."""
    header = shown.header
    body = _signal_response(answer)
    body |= {
        "workflowId": shown.id,
        "input": _Fragment(shown.input),
        "output": _Fragment(shown.output),
        "priority": header.priority,
        "variables": _Fragment(shown.variables),
        "tasks": task_fragments(shown, shown.tasks_by_seq(), now_ms),
        "createTime": header.create_ms,
        "status": header.status.value,
        "updateTime": header.update_ms,
    }
    if header.correlation_id is not None:
        body["correlationId"] = header.correlation_id
    if header.created_by:
        body["createdBy"] = header.created_by
    return _dumps(body)


def task_run_json(answer: Signalled, shown: Execution, task: Task) -> bytes:
    """A TaskRun: the task of `shown` that blocks the target."""
    body = _signal_response(answer)
    body |= {
        "workflowId": shown.id,
        "input": _Fragment(task.input),
        "output": _Fragment(output_of(shown, task)),
        "taskType": task.type,
        "taskId": shown.task_id(task.number),
        "referenceTaskName": task.ref,
        "retryCount": task.retry_count,
        "taskDefName": task.name,
        "workflowType": shown.header.name,
        "priority": shown.header.priority,
        "createTime": task.scheduled_ms,
        "updateTime": task.update_ms,
        "status": task.status.value,
    }
    if shown.header.correlation_id is not None:
        body["correlationId"] = shown.header.correlation_id
    if task.retried_number:
        body["retriedTaskId"] = shown.task_id(task.retried_number)
    if task.reason:
        body["reasonForIncompletion"] = task.reason
    return _dumps(body)


def _signal_response(answer: Signalled) -> dict[str, Any]:
    return {
        "responseType": answer.strategy,
        "targetWorkflowId": answer.target_id,
        "targetWorkflowStatus": answer.target_status,
        "requestId": answer.request_id,
        "signalTimeout": answer.timed_out,
    }


# -- tasks


def task_json(execution: Execution, task: Task, *, now_ms: int = 0) -> bytes:
    """One task as it stands."""
    body = _identity(execution, task)
    body |= {
        "status": task.status.value,
        "outputData": _Fragment(output_of(execution, task)),
        "pollCount": task.poll_count,
        "startTime": task.start_ms,
        "endTime": task.end_ms,
        "updateTime": task.update_ms,
        "retried": task.retried,
        "executed": task.executed,
        "callbackAfterSeconds": task.callback_after_s,
        "queueWaitTime": queue_wait_ms(task, now_ms),
        **_NEVER_VARIES,
        **_step(execution.node_of(task), task),
    }
    if task.worker_id:
        body["workerId"] = task.worker_id
    if task.sub_workflow_id:
        body["subWorkflowId"] = task.sub_workflow_id
    return _dumps(body)


def tasks_json(execution: Execution, tasks: Iterable[Task], *, now_ms: int = 0) -> bytes:
    """A JSON list of tasks."""
    return _dumps(task_fragments(execution, tasks, now_ms))


def poll_payload(execution: Execution, task: Task) -> bytes:
    """What a queue keeps of a task: its JSON object without the closing brace.

    Left out are the fields that a poll sets (status, startTime, updateTime, pollCount, workerId,
    callbackAfterSeconds, queueWaitTime) and what the fragment under `fragment_key` holds.
    """
    node = execution.node_of(task)
    body = _identity(execution, task)
    body["outputData"] = _Fragment(task.output)
    if _is_dynamic(node, task):
        body |= _step(node, task)
    if node.definition is not None and node.definition.runtime_metadata:
        body["runtimeMetadata"] = node.definition.runtime_metadata
    return _dumps(body)[:-1]


def fragment_key(execution: Execution, task: Task) -> str:
    """Names the constant part of a task's poll answer: `snapshot hash/reference name`, or ""."""
    # Steps that a fork made up at run time are as many as there are tasks: nothing is shared.
    if _is_dynamic(execution.node_of(task), task):
        return ""
    return f"{execution.plan.hash}/{task.base_ref}"


def task_fragment(node: Node) -> bytes:
    """What is constant in the polled tasks of a step: `"name":value,…`, kept in `node.fragment`."""
    if node.fragment is None:
        node.fragment = COMMON_FRAGMENT + b"," + _dumps(_step(node, None))[1:-1]
    return node.fragment


COMMON_FRAGMENT = _dumps(_NEVER_VARIES | {"endTime": 0, "retried": False, "executed": False})[1:-1]
"""The fragment of the empty key."""


def needs_completion(execution: Execution, task: Task) -> bool:
    """Its poll payload lacks secrets or runtime metadata: `complete_payload` fills them in."""
    definition = execution.node_of(task).definition
    return _SECRET_MARK in task.input or (
        definition is not None and bool(definition.runtime_metadata)
    )


def complete_payload(
    payload: bytes, *, secrets: Mapping[str, str], environment: Mapping[str, str]
) -> bytes:
    """Put secrets into `inputData`, and values for the names in `runtimeMetadata`."""
    body = payloads.load(payload + b"}")
    body["inputData"] = _with_secrets(body["inputData"], secrets)
    names = body.pop("runtimeMetadata", ())
    known = {
        name: secrets[name] if name in secrets else environment[name]
        for name in names
        if name in secrets or name in environment
    }
    if known:
        body["runtimeMetadata"] = known
    return payloads.dump(body)[:-1]


_SECRET_MARK = b"${workflow.secrets."
_SECRET = re.compile(r"\$\{workflow\.secrets\.([^${}]+)\}")


def _with_secrets(value: Any, secrets: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        whole = _SECRET.fullmatch(value)
        if whole is not None:
            return secrets.get(whole[1])
        return _SECRET.sub(lambda match: secrets.get(match[1], ""), value)
    if isinstance(value, dict):
        return {key: _with_secrets(item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_secrets(item, secrets) for item in value]
    return value


class QueueItems:
    """Makes what queues hold of tasks, and keeps the constant parts of their answers at hand."""

    def __init__(self, *, bytes_max: int = _FRAGMENT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._fragments: OrderedDict[str, bytes] = OrderedDict()

    def item(self, execution: Execution, number: int) -> tuple[str, QueueItem]:
        """(queue, item) of a task that waits for a worker."""
        task = execution.tasks[number]
        key = fragment_key(execution, task)
        if key:
            if key in self._fragments:
                self._fragments.move_to_end(key)
            else:
                self._keep(key, task_fragment(execution.node_of(task)))
        return queue_name(task.type, task.domain), QueueItem(
            task_id=execution.task_id(number),
            delivery=task.delivery,
            priority=execution.header.priority,
            due_ms=task.visible_ms,
            payload=poll_payload(execution, task),
            fragment=key,
            incomplete=needs_completion(execution, task),
        )

    def fragment(self, key: str) -> bytes:
        """The constant part under a key. One that was pushed out of memory by a great many other
        definitions is answered without `workflowTask`: workers do not need it."""
        return self._fragments.get(key, COMMON_FRAGMENT)

    def knows(self, key: str) -> bool:
        """Whether the constant part under a key is at hand."""
        return key in self._fragments

    def learn(self, key: str, node: Node) -> None:
        """Have at hand what other nodes put in place of the constant part of a step."""
        if key not in self._fragments:
            self._keep(key, task_fragment(node))

    def _keep(self, key: str, fragment: bytes) -> None:
        self._fragments[key] = fragment
        self._bytes += len(fragment)
        while self._bytes > self._bytes_max:
            _, dropped = self._fragments.popitem(last=False)
            self._bytes -= len(dropped)


def queue_wait_ms(task: Task, now_ms: int) -> int:
    """How long a task waited for its worker; of a postponed one, how long it has been due."""
    if not task.start_ms or not task.scheduled_ms:
        return 0
    if task.update_ms and task.callback_after_s:
        return max(0, now_ms - task.update_ms - task.callback_after_s * 1000)
    return task.start_ms - task.scheduled_ms


def _identity(execution: Execution, task: Task) -> dict[str, Any]:
    """What neither a poll nor time changes."""
    header = execution.header
    # A loop shows the round it is in, what stands in it shows the round it belongs to.
    iteration = task.rounds if task.type == "DO_WHILE" else task.iteration
    body: dict[str, Any] = {
        "taskType": task.type,
        "inputData": _Fragment(task.input),
        "referenceTaskName": task.ref,
        "retryCount": task.retry_count,
        "seq": task.seq,
        "taskDefName": task.name,
        "scheduledTime": task.scheduled_ms,
        "startDelayInSeconds": task.start_delay_s,
        "workflowInstanceId": execution.id,
        "workflowType": header.name,
        "taskId": execution.task_id(task.number),
        "workflowPriority": header.priority,
        "iteration": iteration,
        "loopOverTask": iteration > 0,
    }
    if header.correlation_id is not None:
        body["correlationId"] = header.correlation_id
    if task.retried_number:
        body["retriedTaskId"] = execution.task_id(task.retried_number)
    if task.reason:
        body["reasonForIncompletion"] = task.reason
    if task.domain:
        body["domain"] = task.domain
    return body


def _step(node: Node, task: Task | None) -> dict[str, Any]:
    """What a step puts on each of its tasks; `task` is None for what holds for all of them."""
    definition = node.definition
    limit = None if node.type in _WITHOUT_RATE_LIMIT else definition
    timeout = definition if node.type in _WITH_RESPONSE_TIMEOUT else None
    body: dict[str, Any] = {
        "responseTimeoutSeconds": 0 if timeout is None else timeout.response_timeout_seconds,
        "rateLimitPerFrequency": 0 if limit is None else limit.rate_limit_per_frequency,
        "rateLimitFrequencyInSeconds": 0
        if limit is None
        else limit.rate_limit_frequency_in_seconds,
    }
    body["workflowTask"], task_definition = _step_fragments(node, task)
    if task_definition is not None:
        body["taskDefinition"] = task_definition
    return body


def _is_dynamic(node: Node, task: Task) -> bool:
    return task.origin != 0 or node.type == "DYNAMIC"


def _step_fragments(
    node: Node, task: Task | None
) -> tuple[orjson.Fragment, orjson.Fragment | None]:
    """(workflowTask, taskDefinition) of a step, encoded once."""
    kept: tuple[orjson.Fragment, orjson.Fragment | None] | None = node.compiled.get("wire")
    if kept is None:
        definition = node.wire.get("taskDefinition")
        kept = (
            _Fragment(payloads.dump(node.wire)),
            None if definition is None else _Fragment(payloads.dump(definition)),
        )
        node.compiled["wire"] = kept
    if node.type == "DYNAMIC" and task is not None and task.name != node.name:
        # A dynamic step shows the name it was resolved to.
        return _Fragment(payloads.dump({**node.wire, "name": task.name})), kept[1]
    return kept


def task_fragments(
    execution: Execution, tasks: Iterable[Task], now_ms: int
) -> list[orjson.Fragment]:
    """Tasks as they stand in the answers that hold several."""
    return [_Fragment(task_json(execution, task, now_ms=now_ms)) for task in tasks]


# -- answers that are no workflow and no task


def bulk_json(succeeded: Sequence[str], errors: dict[str, str]) -> bytes:
    """A BulkResponse."""
    return _dumps({"bulkErrorResults": errors, "bulkSuccessfulResults": succeeded})


def page_json(total: int, results: bytes) -> bytes:
    """A SearchResult around a JSON list."""
    return b'{"totalHits":%d,"results":%b}' % (total, results)


def list_json(items: Iterable[bytes]) -> bytes:
    """A JSON list of encoded items."""
    return b"[" + b",".join(items) + b"]"
