"""Tasks: poll, update, signal, logs, queues."""

import orjson

from cluster.engine import payloads
from cluster.engine.transitions import OPEN_TASK, TaskStatus
from cluster.errors import InvalidRequest, NotFound
from cluster.ids import (
    TaskId,
    WorkflowId,
    number_of,
    parse_task_id,
    parse_workflow_id,
    workflow_of,
)
from cluster.node import wire
from cluster.node.api.bodies import (
    TaskResultBody,
    as_text,
    json_object,
    read,
    reader,
)
from cluster.node.api.results import report_of, worker_status
from cluster.node.api.services import Services
from cluster.node.api.waiting import stop_answer, strategy_of, wait_for_stop
from cluster.node.middleware import EMPTY, NO_CONTENT, Answer, Call, Route, plain
from cluster.store.ports import TaskLog
from cluster.store.queue_ports import queue_name

POLL_TIMEOUT_MS = 100
SIGNAL_TIMEOUT_MS = 5000
SIGNAL_TIMEOUT_MS_MAX = 3_600_000

_RESULT = reader(TaskResultBody)


def routes(services: Services) -> list[Route]:
    api = TaskApi(services)
    queues = QueueApi(services)
    base = "/api/tasks"
    return [
        Route("GET", f"{base}/poll/batch/{{tasktype}}", api.poll_batch),
        Route("GET", f"{base}/poll/{{tasktype}}", api.poll),
        Route("POST", base, api.update),
        Route("POST", f"{base}/update-v2", api.update_and_poll),
        Route("GET", f"{base}/queue/size", queues.size),
        Route("GET", f"{base}/queue/sizes", queues.sizes),
        Route("GET", f"{base}/queue/all", queues.all),
        Route("GET", f"{base}/queue/all/verbose", queues.all_verbose),
        Route("GET", f"{base}/queue/polldata", queues.poll_data),
        Route("GET", f"{base}/queue/polldata/all", queues.all_poll_data),
        Route("POST", f"{base}/queue/requeue/{{taskType}}", queues.requeue),
        Route("GET", f"{base}/{{taskId}}", api.get),
        Route("POST", f"{base}/{{taskId}}/log", api.add_log),
        Route("GET", f"{base}/{{taskId}}/log", api.logs),
        # Before the paths below, which fit them too.
        Route("POST", f"{base}/{{workflowId}}/{{status}}/signal", api.signal),
        Route("POST", f"{base}/{{workflowId}}/{{status}}/signal/sync", api.signal_and_wait),
        Route("POST", f"{base}/{{workflowId}}/{{ref}}/{{status}}", api.update_by_ref),
        Route("POST", f"{base}/{{workflowId}}/{{ref}}/{{status}}/sync", api.update_by_ref_sync),
    ]


class TaskApi:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._router = services.router
        self._desk = services.desk
        self._clock = services.clock
        self._records = services.records

    # -- poll

    async def poll(self, call: Call) -> Answer:
        tasks = await self._polled(call, count=1, timeout_ms=POLL_TIMEOUT_MS)
        return Answer(tasks[0]) if tasks else NO_CONTENT

    async def poll_batch(self, call: Call) -> Answer:
        count = call.integer("count", 1)
        timeout_ms = call.integer("timeout", POLL_TIMEOUT_MS)
        tasks = await self._polled(call, count=count, timeout_ms=timeout_ms)
        return Answer(b"[" + b",".join(tasks) + b"]")

    async def _polled(self, call: Call, *, count: int, timeout_ms: int) -> list[bytes]:
        polled = await self._desk.poll(
            task_type=call.path["tasktype"],
            domain=call.text("domain"),
            worker_id=call.text("workerid"),
            count=count,
            timeout_ms=timeout_ms,
            connected=call.is_connected,
        )
        if polled.bodies and not call.is_connected():
            # Its worker went away while the tasks were on their way to it.
            await self._desk.hand_back(polled)
        return polled.bodies

    # -- update

    async def update(self, call: Call) -> Answer:
        _, task_id, _ = await self._take_result(call, "updateTask")
        return plain(task_id)

    async def update_and_poll(self, call: Call) -> Answer:
        workflow_id, task_id, result = await self._take_result(call, "updateTaskV2")
        if result.status == "IN_PROGRESS" or result.extend_lease:
            return NO_CONTENT
        execution = await self._router.view(workflow_id)
        task = execution.tasks.get(number_of(task_id))
        if task is None or task.status in OPEN_TASK:
            return NO_CONTENT
        polled = await self._desk.poll(
            task_type=task.type,
            domain=task.domain,
            worker_id=as_text(result.worker_id),
            count=1,
            timeout_ms=0,
            connected=call.is_connected,
        )
        if not polled.bodies:
            return NO_CONTENT
        if not call.is_connected():
            await self._desk.hand_back(polled)
            return NO_CONTENT
        return Answer(polled.bodies[0])

    async def _take_result(
        self, call: Call, method: str
    ) -> tuple[WorkflowId, TaskId, TaskResultBody]:
        result = read(_RESULT, call.body)
        report = report_of(result, method, self._clock.now_ms())
        await self._router.submit(report.workflow_id, report.event)
        if report.logs:
            await self._records.append_task_logs(report.logs)
        return report.workflow_id, report.task_id, result

    async def update_by_ref(self, call: Call) -> Answer:
        status, output = _status_of(call), _output_of(call)
        try:
            task_id = await self._update_by_ref(call, status, output)
        except NotFound:
            # Conductor answers this form with nothing, and 200, when there is nothing to update.
            task_id = None
        return EMPTY if task_id is None else plain(task_id)

    async def update_by_ref_sync(self, call: Call) -> Answer:
        status, output = _status_of(call), _output_of(call)
        ref, workflow_id = call.path["ref"], call.path["workflowId"]
        try:
            task_id = await self._update_by_ref(call, status, output)
        except NotFound:
            task_id = None
        if task_id is None:
            raise NotFound(f"Found no running task {ref} of workflow {workflow_id} to update")
        execution = await self._router.view(workflow_of(task_id))
        return Answer(
            wire.workflow_json(execution, include_tasks=True, now_ms=self._clock.now_ms())
        )

    async def _update_by_ref(self, call: Call, status: TaskStatus, output: bytes) -> TaskId | None:
        return await self._router.update_by_ref(
            parse_workflow_id(call.path["workflowId"]),
            call.path["ref"],
            status,
            output,
            call.text("workerid"),
        )

    async def signal(self, call: Call) -> Answer:
        await self._router.signal(
            parse_workflow_id(call.path["workflowId"]), _status_of(call), _output_of(call)
        )
        return EMPTY

    async def signal_and_wait(self, call: Call) -> Answer:
        strategy = strategy_of(call.text("returnStrategy"))
        timeout_ms = call.integer("timeoutMillis", SIGNAL_TIMEOUT_MS)
        workflow_id = parse_workflow_id(call.path["workflowId"])
        signalled = await self._router.signal(workflow_id, _status_of(call), _output_of(call))
        if signalled is None:
            raise NotFound(f"Found no blocked task in workflow {workflow_id} to signal")
        stop = await wait_for_stop(
            self._services,
            workflow_id,
            refs=frozenset(),
            timeout_ms=min(timeout_ms, SIGNAL_TIMEOUT_MS_MAX),
        )
        return await stop_answer(
            self._services,
            workflow_id,
            stop,
            strategy=strategy,
            request_id=self._services.new_request_id(),
        )

    # -- read

    async def get(self, call: Call) -> Answer:
        task_id = parse_task_id(call.path["taskId"])
        try:
            execution = await self._router.view(workflow_of(task_id))
        except NotFound as error:
            raise NotFound(f"Task not found for taskId: {task_id}") from error
        task = execution.tasks.get(number_of(task_id))
        if task is None:
            raise NotFound(f"Task not found for taskId: {task_id}")
        return Answer(wire.task_json(execution, task, now_ms=self._clock.now_ms()))

    async def add_log(self, call: Call) -> Answer:
        task_id = parse_task_id(call.path["taskId"])
        line = call.body.decode(errors="replace")
        try:
            execution = await self._router.view(workflow_of(task_id))
        except NotFound as error:
            raise NotFound(f"Task not found for taskId: {task_id}") from error
        if number_of(task_id) not in execution.tasks:
            raise NotFound(f"Task not found for taskId: {task_id}")
        await self._records.append_task_logs([TaskLog(task_id, self._clock.now_ms(), line)])
        return EMPTY

    async def logs(self, call: Call) -> Answer:
        lines = await self._records.task_logs(parse_task_id(call.path["taskId"]))
        if not lines:
            return NO_CONTENT
        return Answer(
            orjson.dumps(
                [
                    {"log": line.line, "taskId": line.task_id, "createdTime": line.created_ms}
                    for line in lines
                ]
            )
        )


class QueueApi:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._queues = services.queues

    async def size(self, call: Call) -> Answer:
        name = queue_name(call.required("taskType"), call.text("domain"))
        # Queues of isolated groups and namespaces exist for system tasks only: none is served.
        namespace, group = call.text("executionNamespace"), call.text("isolationGroupId")
        if namespace:
            name += f"@{namespace}"
        if group:
            name += f"-{group}"
        sizes = await self._queues.sizes([name])
        return Answer(b"%d" % (sizes[name].waiting if name in sizes else 0))

    async def sizes(self, call: Call) -> Answer:
        names = list(call.all_of("taskType"))
        if not names:
            raise InvalidRequest("Required query parameter 'taskType' is not present")
        sizes = await self._queues.sizes(names)
        return Answer(
            orjson.dumps({name: sizes[name].waiting if name in sizes else 0 for name in names})
        )

    async def all(self, _call: Call) -> Answer:
        sizes = await self._queues.sizes()
        return Answer(orjson.dumps({name: size.waiting for name, size in sorted(sizes.items())}))

    async def all_verbose(self, _call: Call) -> Answer:
        sizes = await self._queues.sizes()
        # Conductor's queues have shards; this is the name of the only one of an SQL queue.
        shown = {
            name: {"a": {"size": size.waiting, "uacked": size.held}}
            for name, size in sorted(sizes.items())
        }
        return Answer(orjson.dumps(shown))

    async def poll_data(self, call: Call) -> Answer:
        return await self._poll_data(call.required("taskType"))

    async def all_poll_data(self, _call: Call) -> Answer:
        return await self._poll_data(None)

    async def _poll_data(self, task_type: str | None) -> Answer:
        await self._services.save_poll_data()
        shown = []
        for poll in await self._services.records.poll_data(task_type):
            entry: dict[str, str | int] = {"queueName": poll.task_type}
            if poll.domain:
                entry["domain"] = poll.domain
            if poll.worker_id:
                entry["workerId"] = poll.worker_id
            entry["lastPollTime"] = poll.last_poll_ms
            shown.append(entry)
        return Answer(orjson.dumps(shown))

    async def requeue(self, call: Call) -> Answer:
        # The router finds open workflows in the open set, which checkpoints keep.
        await self._services.catch_up()
        return plain(str(await self._services.router.requeue(call.path["taskType"])))


def _status_of(call: Call) -> TaskStatus:
    return worker_status(call.path["status"])


def _output_of(call: Call) -> bytes:
    return json_object(call.body.strip() or payloads.EMPTY, "The body")
