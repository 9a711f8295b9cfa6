"""What a case is written with: the @rule mark, the Server it talks to, small builders of tasks."""

from __future__ import annotations

import importlib
import json
import pkgutil
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

import httpx

from tests.conformance.normalise import Normaliser

Json: TypeAlias = Any
Case: TypeAlias = "Callable[[Server], Json]"
T = TypeVar("T")

TERMINAL = frozenset({"COMPLETED", "FAILED", "TIMED_OUT", "TERMINATED"})
WAIT_S = 15.0
OUR_PATIENCE = 4
"""How many times as long ours may take: the real server is asked again, ours is not, and beside a
JVM that warms up a chain of thirty commits takes as long as the machine likes."""


class Overdue(AssertionError):
    """What a case waits for did not come."""


@dataclass(frozen=True)
class Mark:
    """What @rule says about a case."""

    case: Case
    name: str
    rules: tuple[int, ...]
    recorded: bool
    difference: str | None


MARKS: dict[str, Mark] = {}


def rule(
    *rules: int, recorded: bool = False, difference: str | None = None
) -> Callable[[Case], Case]:
    """Mark a function as a case of these numbered rules of docs/conductor/semantics.md.

    recorded: the real server needs more than 2 s (or a special environment) for it, so its answer
    is taken from recorded/<case>.json. difference: why ours answers otherwise on purpose; the case
    then asserts both answers by `server.is_ours`, and what it returns has to differ.
    """

    def mark(case: Case) -> Case:
        name = case.__name__
        if name in MARKS:
            raise ValueError(f"two cases are called {name}")
        MARKS[name] = Mark(case, name, rules, recorded, difference)
        return case

    return mark


def load_cases() -> dict[str, Mark]:
    """All cases by name."""
    package = importlib.import_module(f"{__package__}.cases")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return MARKS


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; the body is parsed if it is JSON, else text ("" = empty)."""

    status: int
    content_type: str
    body: Json

    def shown(self) -> Json:
        return {"status": self.status, "type": self.content_type, "body": self.body}

    @property
    def message(self) -> str:
        """The text of an error."""
        return str(self.body["message"])


@dataclass(frozen=True)
class Endpoint:
    """One of the two servers; `base` ends with /api."""

    kind: Literal["conductor", "podium"]
    base: str
    client: httpx.Client


@dataclass
class Server:
    """A server as one case sees it.

    In everything sent `~` stands for a prefix that is new for each case and run, and in everything
    received that prefix becomes `~` again. So a case calls its definitions, task types and domains
    "~order", "~mail" and never meets those of another case.
    """

    endpoint: Endpoint
    prefix: str = field(default_factory=lambda: f"k{secrets.token_hex(5)}_")
    started: list[str] = field(default_factory=list)

    @property
    def is_ours(self) -> bool:
        return self.endpoint.kind == "podium"

    # --- requests ---

    def request(
        self,
        method: str,
        path: str,
        body: Json = None,
        *,
        raw: str | bytes | None = None,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
        **query: Any,
    ) -> Answer:
        """path is below /api, or below the root if it starts with "//". raw: sent as it is."""
        base = self.endpoint.base
        url = base.removesuffix("/api") + path[1:] if path.startswith("//") else base + path
        sent = dict(headers or {})
        content: bytes | None = None
        if raw is not None or body is not None:
            text = raw if raw is not None else json.dumps(body)
            content = text if isinstance(text, bytes) else self.outward(text).encode()
            sent["Content-Type"] = content_type
        params = {key: self.outward_value(value) for key, value in query.items()}
        answer = self.endpoint.client.request(
            method, self.outward(url), content=content, headers=sent, params=params or None
        )
        text = answer.text.replace(self.prefix, "~")
        kind = answer.headers.get("Content-Type", "").partition(";")[0]
        is_json = kind.endswith("json") and text != ""
        return Answer(answer.status_code, kind, json.loads(text) if is_json else text)

    def outward(self, text: str) -> str:
        return text.replace("~", self.prefix)

    def outward_value(self, value: Any) -> Any:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, list | tuple):
            return [self.outward_value(item) for item in value]
        return self.outward(value) if isinstance(value, str) else value

    def get(self, path: str, **query: Any) -> Answer:
        return self.request("GET", path, **query)

    def post(self, path: str, body: Json = None, **query: Any) -> Answer:
        return self.request("POST", path, body, **query)

    def put(self, path: str, body: Json = None, **query: Any) -> Answer:
        return self.request("PUT", path, body, **query)

    def delete(self, path: str, body: Json = None, **query: Any) -> Answer:
        return self.request("DELETE", path, body, **query)

    # --- definitions and runs ---

    def register(self, *definitions: Json) -> None:
        """Register workflow definitions (those with `tasks`) and task definitions."""
        for definition in definitions:
            if "tasks" in definition:
                ok(self.put("/metadata/workflow", [definition]))
            else:
                ok(self.post("/metadata/taskdefs", [definition]))

    def start(self, name: str = "~w", input: Json = None, **request: Json) -> str:
        """Start a registered workflow; the workflow id."""
        body = {"name": name, "input": {} if input is None else input, **request}
        workflow_id = str(ok(self.post("/workflow", body)).body)
        self.started.append(workflow_id)
        return workflow_id

    def launch(
        self,
        tasks: list[Json],
        input: Json = None,
        *,
        name: str = "~w",
        request: Json = None,
        **definition: Json,
    ) -> str:
        """Register a workflow of these tasks and start it; the workflow id."""
        self.register(workflow(tasks, name, **definition))
        return self.start(name, input, **(request or {}))

    def run(self, workflow_id: str, **query: Any) -> Json:
        """The execution with its tasks."""
        return ok(self.get(f"/workflow/{workflow_id}", **query)).body

    def ended(self, workflow_id: str, seconds: float = WAIT_S) -> Json:
        """The execution once it is terminal."""
        return self.run_when(workflow_id, lambda run: run["status"] in TERMINAL, seconds)

    def run_when(
        self, workflow_id: str, condition: Callable[[Json], bool], seconds: float = WAIT_S
    ) -> Json:
        """The execution once it meets a condition."""

        def look() -> Json:
            run = self.run(workflow_id)
            return run if condition(run) else None

        return self.until(look, seconds, nudge=lambda: self.put(f"/workflow/decide/{workflow_id}"))

    def task(self, workflow_id: str, reference: str) -> Json:
        """The newest task with that reference name."""
        return last_task(self.run(workflow_id), reference)

    def task_when(
        self, workflow_id: str, reference: str, *statuses: str, seconds: float = WAIT_S
    ) -> Json:
        """The newest task with that reference name once it has one of the statuses (or exists)."""

        def met(run: Json) -> bool:
            found = [task for task in run["tasks"] if task["referenceTaskName"] == reference]
            return bool(found) and (not statuses or found[-1]["status"] in statuses)

        return last_task(self.run_when(workflow_id, met, seconds), reference)

    # --- workers ---

    def poll(self, task_type: str, **query: Any) -> Json:
        """One poll: the task or None."""
        answer = self.get(f"/tasks/poll/{task_type}", **{"workerid": "worker", **query})
        assert answer.status in (200, 204), answer
        return answer.body or None

    def take(self, task_type: str, seconds: float = WAIT_S, **query: Any) -> Json:
        """Poll until there is a task."""

        def nudge() -> None:
            self.post(f"/tasks/queue/requeue/{task_type}")
            for workflow_id in self.started:
                self.put(f"/workflow/decide/{workflow_id}")

        return self.until(lambda: self.poll(task_type, **query), seconds, nudge=nudge)

    def update(
        self, task: Json, status: str = "COMPLETED", output: Json = None, **result: Json
    ) -> Answer:
        """Report the result of a task that was polled or read."""
        body = {
            "taskId": task["taskId"],
            "workflowInstanceId": task["workflowInstanceId"],
            "status": status,
            "outputData": {} if output is None else output,
            **result,
        }
        return ok(self.post("/tasks", body))

    def work(
        self, task_type: str, output: Json = None, status: str = "COMPLETED", **result: Json
    ) -> Json:
        """Take a task and report its result; the task as it was polled."""
        task = self.take(task_type)
        self.update(task, status, output, **result)
        return task

    # --- waiting ---

    def until(
        self,
        look: Callable[[], T | None],
        seconds: float = WAIT_S,
        *,
        nudge: Callable[[], object] | None = None,
    ) -> T:
        """What `look` returns once that is neither None nor False; Overdue after the deadline.

        On a busy SQLite the real server drops a push to a queue now and then (rule 19), and repairs
        it 30 s later. So it, and only it, is nudged after 3 s.
        """
        began = time.monotonic()
        nudge_at = began + 3
        if self.is_ours:
            seconds *= OUR_PATIENCE
        for pause in pauses():
            found = look()
            if found is not None and found is not False:
                return found
            now = time.monotonic()
            if now > began + seconds:
                raise Overdue(f"nothing within {seconds} s: {look}")
            if nudge is not None and not self.is_ours and now > nudge_at:
                nudge()
                nudge_at = now + 3
            time.sleep(pause)
        raise AssertionError("unreachable")


def pauses() -> Iterator[float]:
    pause = 0.01
    while True:
        yield pause
        pause = min(pause * 1.5, 0.2)


def ok(answer: Answer) -> Answer:
    assert 200 <= answer.status < 300, answer
    return answer


# --- builders of definitions ---


def workflow(tasks: list[Json], name: str = "~w", **fields: Json) -> Json:
    """A workflow definition."""
    return {"name": name, "version": 1, "schemaVersion": 2, "tasks": tasks, **fields}


def step(kind: str, reference: str, input: Json = None, **fields: Json) -> Json:
    """A step of any type."""
    made = {"name": reference, "taskReferenceName": reference, "type": kind, **fields}
    return made if input is None else {**made, "inputParameters": input}


def simple(reference: str, input: Json = None, **fields: Json) -> Json:
    """A SIMPLE step; its task type is "~" + reference unless `name` is given."""
    return step("SIMPLE", reference, input, **{"name": f"~{reference}", **fields})


def task_def(name: str, **fields: Json) -> Json:
    """A task definition."""
    return {"name": name, **fields}


# --- parts of answers worth comparing ---


def last_task(run: Json, reference: str) -> Json:
    """The newest task of a run with that reference name."""
    found = [task for task in run["tasks"] if task["referenceTaskName"] == reference]
    assert found, (reference, [task["referenceTaskName"] for task in run["tasks"]])
    return found[-1]


def pick(source: Json, *fields: str) -> Json:
    """Some fields of an object; absent ones are left out."""
    return {name: source[name] for name in fields if name in source}


def statuses(run: Json) -> Json:
    """{reference: status} of the newest task of each reference name."""
    return {task["referenceTaskName"]: task["status"] for task in run["tasks"]}


def summary(run: Json) -> Json:
    """Status, reason, output and the tasks of a run in short, in the order they are listed."""
    fields = ("referenceTaskName", "taskType", "status", "retryCount", "reasonForIncompletion")
    return {
        **pick(run, "status", "reasonForIncompletion", "output"),
        "tasks": [pick(task, *fields) for task in run["tasks"]],
    }


def jsonable(value: Json) -> Json:
    """An observation with its Answers written out."""
    if isinstance(value, Answer):
        return jsonable(value.shown())
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def observe(mark: Mark, endpoint: Endpoint) -> Json:
    """Run a case on one server; the normalised observation."""
    server = Server(endpoint)
    try:
        return Normaliser().value(jsonable(mark.case(server)))
    finally:
        # The real server decides each open workflow again every 30 s and slows down with them.
        if server.started and not server.is_ours:
            server.post("/workflow/bulk/terminate", server.started)
