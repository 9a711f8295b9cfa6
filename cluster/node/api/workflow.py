"""Workflows: start, read, control."""

import asyncio

import orjson

from cluster.engine.events import (
    CallbacksReset,
    Paused,
    Resumed,
    TaskSkipped,
    Terminated,
    TimerFired,
)
from cluster.engine.model import Execution
from cluster.errors import ClusterError, InvalidRequest, NotFound, Violation
from cluster.ids import TaskId, WorkflowId, parse_task_id, parse_workflow_id
from cluster.node import wire
from cluster.node.api.bodies import (
    RerunBody,
    SkipBody,
    StartBody,
    as_text,
    invalid,
    json_object,
    optional_object,
    read,
    read_optional,
    reader,
)
from cluster.node.api.services import Services
from cluster.node.api.starts import PRIORITY_MAX, check_input_size, start_request
from cluster.node.api.waiting import stop_answer, strategy_of, wait_for_stop
from cluster.node.metadata import NoSuchWorkflow
from cluster.node.middleware import (
    EMPTY,
    NO_CONTENT,
    Answer,
    Call,
    Route,
    parse_integer,
    plain,
)
from cluster.node.router import RerunRequest, StartWorkflow

_START = reader(StartBody)
_RERUN = reader(RerunBody)
_SKIP = reader(SkipBody)
_IDS = reader(list[str])

_WAIT_S = 10
_WAIT_S_MAX = 3600
_RUNS_MAX = 10_000
_FOREVER_MS = (1 << 63) - 1
_SLICE = 250
_SLICED_TRIES = 3


def routes(services: Services) -> list[Route]:
    api = WorkflowApi(services)
    base = "/api/workflow"
    return [
        Route("POST", base, api.start),
        Route("GET", f"{base}/running/{{name}}", api.running),
        Route("PUT", f"{base}/decide/{{workflowId}}", api.decide),
        Route("POST", f"{base}/execute/{{name}}/{{version}}", api.execute),
        Route("POST", f"{base}/{{name}}", api.start_by_name),
        Route("GET", f"{base}/{{name}}", api.get),
        Route("DELETE", f"{base}/{{name}}", api.terminate),
        Route("GET", f"{base}/{{workflowId}}/status", api.status),
        Route("GET", f"{base}/{{workflowId}}/tasks", api.tasks),
        Route("PUT", f"{base}/{{workflowId}}/pause", api.pause),
        Route("PUT", f"{base}/{{workflowId}}/resume", api.resume),
        Route("PUT", f"{base}/{{workflowId}}/skiptask/{{ref}}", api.skip),
        Route("POST", f"{base}/{{workflowId}}/rerun", api.rerun),
        Route("POST", f"{base}/{{workflowId}}/restart", api.restart),
        Route("POST", f"{base}/{{workflowId}}/retry", api.retry),
        Route("POST", f"{base}/{{workflowId}}/resetcallbacks", api.reset_callbacks),
        Route("DELETE", f"{base}/{{workflowId}}/remove", api.remove),
        Route("DELETE", f"{base}/{{workflowId}}/terminate-remove", api.terminate_and_remove),
        Route("GET", f"{base}/{{name}}/correlated/{{correlationId}}", api.correlated),
        Route("POST", f"{base}/{{name}}/correlated", api.correlated_many),
    ]


class WorkflowApi:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._router = services.router
        self._clock = services.clock
        self._input_bytes_max = services.settings.workflow_payload_bytes_max

    # -- start

    async def start(self, call: Call) -> Answer:
        request = start_request(read(_START, call.body), input_bytes_max=self._input_bytes_max)
        return plain(await self._start_named_in_body(request))

    async def start_by_name(self, call: Call) -> Answer:
        name, version = call.path["name"], call.optional_integer("version")
        priority = call.integer("priority", 0)
        if not 0 <= priority <= PRIORITY_MAX:
            bound = "99 is the maximum" if priority > PRIORITY_MAX else "0 is the minimum"
            raise invalid(Violation("startWorkflow.arg3", f"{bound} priority value", str(priority)))
        body = json_object(call.body.strip() or b"{}", "The body")
        request = StartWorkflow(
            name=name,
            version=version,
            input=check_input_size(body, self._input_bytes_max),
            correlation_id=call.text("correlationId"),
            priority=priority,
        )
        return plain(await self._start(request))

    async def execute(self, call: Call) -> Answer:
        strategy = strategy_of(call.text("returnStrategy"))
        wait_s = min(call.integer("waitForSeconds", _WAIT_S) or _WAIT_S, _WAIT_S_MAX)
        refs = frozenset(
            ref.strip() for ref in (call.text("waitUntilTaskRef") or "").split(",") if ref.strip()
        )
        version = parse_integer(call.path["version"], "The version in the path")
        request = start_request(
            read(_START, call.body),
            input_bytes_max=self._input_bytes_max,
            # Here, as for sub-workflows, version 0 means the latest.
            named=(call.path["name"], version or None),
        )
        workflow_id = await self._start_named_in_body(request)
        call.is_taken()
        stop = await wait_for_stop(self._services, workflow_id, refs=refs, timeout_ms=wait_s * 1000)
        return await stop_answer(
            self._services,
            workflow_id,
            stop,
            strategy=strategy,
            request_id=call.text("requestId") or self._services.new_request_id(),
        )

    async def _start(self, request: StartWorkflow) -> WorkflowId:
        metrics, name = self._services.metrics, request.name
        try:
            workflow_id = await self._router.start(request)
        except ClusterError:
            metrics.workflow_start_error.of(name, "").inc()
            raise
        # The version that was asked for; "" is the latest.
        version = "" if request.version is None else str(request.version)
        metrics.workflow_start_success.of(name, version, "").inc()
        return workflow_id

    async def _start_named_in_body(self, request: StartWorkflow) -> WorkflowId:
        try:
            return await self._start(request)
        except NoSuchWorkflow as error:
            # Conductor words it differently there.
            raise NotFound(error.start_message) from error

    # -- read

    async def get(self, call: Call) -> Answer:
        include_tasks = call.flag("includeTasks", default=True)
        workflow_id = parse_workflow_id(call.path["name"])
        execution = await self._router.view(workflow_id)
        tasks = None
        if include_tasks and len(execution.tasks) > _SLICE:
            execution, tasks = await self._in_slices(workflow_id)
        now_ms = self._clock.now_ms()
        return Answer(
            wire.workflow_json(execution, include_tasks=include_tasks, now_ms=now_ms, tasks=tasks)
        )

    async def _in_slices(
        self, workflow_id: WorkflowId
    ) -> tuple[Execution, list[orjson.Fragment] | None]:
        """A large run, its tasks rendered a slice at a time so that nobody waits for all of it.

        Begins again when the run has changed meanwhile; a run that does so every time is left to
        be rendered in one go.
        """
        for _ in range(_SLICED_TRIES):
            execution = await self._router.view(workflow_id)
            entry, now_ms = execution.last_entry, self._clock.now_ms()
            tasks = execution.tasks_by_seq()
            fragments: list[orjson.Fragment] = []
            for begin in range(0, len(tasks), _SLICE):
                fragments += wire.task_fragments(execution, tasks[begin : begin + _SLICE], now_ms)
                await asyncio.sleep(0)
                if execution.last_entry != entry:
                    break
            else:
                return execution, fragments
        return await self._router.view(workflow_id), None

    async def status(self, call: Call) -> Answer:
        execution = await self._router.view(self._id(call))
        return Answer(
            wire.workflow_status_json(
                execution,
                include_output=call.flag("includeOutput", default=False),
                include_variables=call.flag("includeVariables", default=False),
            )
        )

    async def tasks(self, call: Call) -> Answer:
        start, count = call.integer("start", 0), call.integer("count", 15)
        if start < 0 or count < 0:
            raise InvalidRequest("start and count must not be negative")
        wanted = {status for value in call.all_of("status") for status in value.split(",")}
        execution = await self._router.view(self._id(call))
        found = [
            task for task in execution.tasks_by_seq() if not wanted or task.status.value in wanted
        ]
        page = found[start : start + count]
        results = wire.tasks_json(execution, page, now_ms=self._clock.now_ms())
        return Answer(wire.page_json(len(found), results))

    async def running(self, call: Call) -> Answer:
        # Conductor takes a version and does not look at it.
        call.optional_integer("version")
        start_ms = call.optional_integer("startTime")
        end_ms = call.optional_integer("endTime")
        if not start_ms or not end_ms:
            start_ms, end_ms = 0, _FOREVER_MS
        await self._services.catch_up()
        found = await self._services.search.running(
            call.path["name"], version=None, start_ms=start_ms, end_ms=end_ms, limit=_RUNS_MAX
        )
        return Answer(orjson.dumps(list(found)))

    async def correlated(self, call: Call) -> Answer:
        await self._services.catch_up()
        return Answer(await self._correlated(call, call.path["correlationId"]))

    async def correlated_many(self, call: Call) -> Answer:
        correlation_ids = read(_IDS, call.body)
        await self._services.catch_up()
        found = {
            correlation_id: orjson.Fragment(await self._correlated(call, correlation_id))
            for correlation_id in correlation_ids
        }
        return Answer(orjson.dumps(found))

    async def _correlated(self, call: Call, correlation_id: str) -> bytes:
        include_closed = call.flag("includeClosed", default=False)
        include_tasks = call.flag("includeTasks", default=False)
        found = await self._services.search.correlated(
            call.path["name"], correlation_id, include_closed=include_closed, limit=_RUNS_MAX
        )
        runs = []
        for workflow_id in found:
            try:
                execution = await self._router.view(workflow_id)
            except NotFound:
                continue
            # The index lags behind: the run itself has the last word.
            if include_closed or execution.header.status.value == "RUNNING":
                runs.append(
                    wire.workflow_json(
                        execution, include_tasks=include_tasks, now_ms=self._clock.now_ms()
                    )
                )
        return wire.list_json(runs)

    # -- control

    async def decide(self, call: Call) -> Answer:
        await self._router.submit(self._id(call), TimerFired(self._clock.now_ms()))
        return EMPTY

    async def pause(self, call: Call) -> Answer:
        await self._router.submit(self._id(call), Paused(self._clock.now_ms()))
        return EMPTY

    async def resume(self, call: Call) -> Answer:
        await self._router.submit(self._id(call), Resumed(self._clock.now_ms()))
        return EMPTY

    async def skip(self, call: Call) -> Answer:
        body = read_optional(_SKIP, call.body, SkipBody())
        event = TaskSkipped(
            self._clock.now_ms(),
            call.path["ref"],
            input=optional_object(body.task_input, "taskInput"),
            output=optional_object(body.task_output, "taskOutput"),
        )
        await self._router.submit(self._id(call), event)
        return EMPTY

    async def rerun(self, call: Call) -> Answer:
        workflow_id = self._id(call)
        body = read(_RERUN, call.body)
        workflow_input = optional_object(body.workflow_input, "workflowInput")
        if workflow_input is not None:
            check_input_size(workflow_input, self._input_bytes_max)
        request = RerunRequest(
            task_id=self._task_of(body.re_run_from_task_id),
            workflow_input=workflow_input,
            task_input=optional_object(body.task_input, "taskInput"),
            correlation_id=as_text(body.correlation_id),
        )
        return plain(await self._router.rerun(workflow_id, request))

    async def restart(self, call: Call) -> Answer:
        use_latest = call.flag("useLatestDefinitions", default=False)
        await self._router.restart(self._id(call), use_latest)
        return NO_CONTENT

    async def retry(self, call: Call) -> Answer:
        resume = call.flag("resumeSubworkflowTasks", default=False)
        await self._router.retry(self._id(call), resume_sub_workflows=resume)
        return NO_CONTENT

    async def reset_callbacks(self, call: Call) -> Answer:
        await self._router.submit(self._id(call), CallbacksReset(self._clock.now_ms()))
        return NO_CONTENT

    async def terminate(self, call: Call) -> Answer:
        workflow_id = parse_workflow_id(call.path["name"])
        await self._terminate(workflow_id, call.text("reason"))
        return EMPTY

    async def remove(self, call: Call) -> Answer:
        archive = call.flag("archiveWorkflow", default=True)
        await self._router.remove(self._id(call), archive)
        return EMPTY

    async def terminate_and_remove(self, call: Call) -> Answer:
        workflow_id, archive = self._id(call), call.flag("archiveWorkflow", default=True)
        await self._terminate(workflow_id, call.text("reason"))
        await self._router.remove(workflow_id, archive)
        return EMPTY

    async def _terminate(self, workflow_id: WorkflowId, reason: str | None) -> None:
        await self._router.submit(workflow_id, Terminated(self._clock.now_ms(), reason or ""))

    def _id(self, call: Call) -> WorkflowId:
        return parse_workflow_id(call.path["workflowId"])

    def _task_of(self, text: str | None) -> TaskId | None:
        if not text:
            return None
        try:
            return parse_task_id(text)
        except NotFound as error:
            raise InvalidRequest(f"Task {text} not found") from error
