"""The official Python SDK, unmodified, against a served node: every call that is served."""

import inspect
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conductor.client.configuration.configuration import Configuration
from conductor.client.http.api.task_resource_api import TaskResourceApi
from conductor.client.http.api.workflow_bulk_resource_api import WorkflowBulkResourceApi
from conductor.client.http.api.workflow_resource_api import WorkflowResourceApi
from conductor.client.http.models.correlation_ids_search_request import CorrelationIdsSearchRequest
from conductor.client.http.models.rerun_workflow_request import RerunWorkflowRequest
from conductor.client.http.models.skip_task_request import SkipTaskRequest
from conductor.client.http.models.start_workflow_request import StartWorkflowRequest
from conductor.client.http.models.task import Task
from conductor.client.http.models.task_def import TaskDef
from conductor.client.http.models.task_result import TaskResult
from conductor.client.http.models.task_result_status import TaskResultStatus
from conductor.client.http.models.workflow_def import WorkflowDef
from conductor.client.http.models.workflow_state_update import WorkflowStateUpdate
from conductor.client.http.models.workflow_test_request import WorkflowTestRequest
from conductor.client.http.rest import ApiException
from conductor.client.metadata_client import MetadataClient
from conductor.client.orkes.models.metadata_tag import MetadataTag
from conductor.client.orkes.orkes_metadata_client import OrkesMetadataClient
from conductor.client.orkes.orkes_task_client import OrkesTaskClient
from conductor.client.orkes.orkes_workflow_client import OrkesWorkflowClient
from conductor.client.task_client import TaskClient
from conductor.client.workflow.conductor_workflow import ConductorWorkflow
from conductor.client.workflow.executor.workflow_executor import WorkflowExecutor
from conductor.client.workflow.task.fork_task import ForkTask
from conductor.client.workflow.task.inline import InlineTask
from conductor.client.workflow.task.join_task import JoinTask
from conductor.client.workflow.task.set_variable_task import SetVariableTask
from conductor.client.workflow.task.simple_task import SimpleTask
from conductor.client.workflow.task.switch_task import SwitchTask
from conductor.client.workflow_client import WorkflowClient

from tests.support.served import Server, serving

ROOT = Path(__file__).parents[2]
# The SDK calls what it has itself marked as deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")
ENDED = ("COMPLETED", "FAILED", "TIMED_OUT", "TERMINATED")


class Sdk:
    """The clients of the SDK, for one server."""

    def __init__(self, url: str) -> None:
        self.configuration = Configuration(server_api_url=f"{url}/api")
        self.workflows = OrkesWorkflowClient(self.configuration)
        self.tasks = OrkesTaskClient(self.configuration)
        self.metadata = OrkesMetadataClient(self.configuration)
        self.executor = WorkflowExecutor(self.configuration)
        api_client = self.workflows.api_client
        self.bulk = WorkflowBulkResourceApi(api_client)
        self.workflow_api = WorkflowResourceApi(api_client)
        self.task_api = TaskResourceApi(api_client)

    def register(self, name: str, *tasks: dict[str, Any], **fields: Any) -> None:
        definition = {"name": name, "version": 1, "schemaVersion": 2, "tasks": list(tasks)}
        self.metadata.update_workflow_def(definition | fields)

    def start(self, name: str, **fields: Any) -> str:
        fields = {"version": 1, "input": {}} | fields
        workflow_id: str = self.workflows.start_workflow(StartWorkflowRequest(name=name, **fields))
        return workflow_id

    def poll(self, task_type: str) -> Task:
        """The one task that must be there."""
        [task] = self.tasks.batch_poll_tasks(task_type, count=10, timeout_in_millisecond=5000)
        assert isinstance(task, Task)
        return task

    def report(self, task: Task, status: str = "COMPLETED", **output: Any) -> None:
        result = task.to_task_result(TaskResultStatus[status])
        result.output_data = output
        assert self.tasks.update_task(result) == task.task_id

    def status_of(self, workflow_id: str) -> str:
        return str(self.workflows.get_workflow_status(workflow_id).status)

    def statuses(self, workflow_id: str) -> dict[str, str]:
        """The last status of each reference name."""
        tasks = self.workflows.get_workflow(workflow_id, include_tasks=True).tasks
        return {task.reference_task_name: task.status for task in tasks}

    def ended(self, workflow_id: str) -> Any:
        wait_until(lambda: self.status_of(workflow_id) in ENDED)
        return self.workflows.get_workflow(workflow_id, include_tasks=True)


def wait_until(is_true: Callable[[], bool], *, deadline_s: float = 30) -> None:
    deadline = time.monotonic() + deadline_s
    while not is_true():
        assert time.monotonic() < deadline, "this did not come true in time"
        time.sleep(0.02)


def simple(ref: str, task_type: str, **fields: Any) -> dict[str, Any]:
    return {"name": task_type, "taskReferenceName": ref, "type": "SIMPLE"} | fields


def wait_task(ref: str) -> dict[str, Any]:
    return {"name": ref, "taskReferenceName": ref, "type": "WAIT"}


@contextmanager
def refused(status: int, text: str) -> Iterator[None]:
    """The SDK raises its own exception, with the server's words in it."""
    with pytest.raises(ApiException) as caught:
        yield
    assert caught.value.status == status
    assert text in f"{caught.value}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("sdk")) as running:
        yield running
        assert [line for line in running.log if "Traceback" in line or '"error"' in line] == []


@pytest.fixture(scope="module")
def sdk(server: Server) -> Sdk:
    return Sdk(server.url)


# -- metadata


def test_workflow_definitions(sdk: Sdk) -> None:
    definition = WorkflowDef(
        name="sdk_defs", version=1, description="first", tasks=[simple("a", "sdk_a")]
    )
    sdk.metadata.register_workflow_def(definition, overwrite=False)
    with refused(409, "already exists"):
        sdk.metadata.register_workflow_def(definition, overwrite=False)
    definition.version, definition.description = 2, "second"
    sdk.metadata.update_workflow_def(definition, overwrite=True)
    assert sdk.metadata.get_workflow_def("sdk_defs").description == "second"
    first = sdk.metadata.get_workflow_def("sdk_defs", 1)
    assert (first.version, first.tasks[0].task_reference_name) == (1, "a")
    kept = [each for each in sdk.metadata.get_all_workflow_defs() if each.name == "sdk_defs"]
    assert sorted(each.version for each in kept) == [1, 2]
    sdk.metadata.unregister_workflow_def("sdk_defs", 2)
    assert sdk.metadata.get_workflow_def("sdk_defs").version == 1
    with refused(404, "sdk_none"):
        sdk.metadata.get_workflow_def("sdk_none")


def test_task_definitions(sdk: Sdk) -> None:
    definition = TaskDef(name="sdk_task", retry_count=7, timeout_seconds=60)
    definition.response_timeout_seconds = 30
    sdk.metadata.register_task_def(definition)
    assert sdk.metadata.get_task_def("sdk_task").retry_count == 7
    definition.retry_count = 2
    sdk.metadata.update_task_def(definition)
    [kept] = [each for each in sdk.metadata.get_all_task_defs() if each.name == "sdk_task"]
    assert (kept.retry_count, kept.response_timeout_seconds) == (2, 30)
    sdk.metadata.unregister_task_def("sdk_task")
    with refused(404, "No such taskType found by name: sdk_task"):
        sdk.metadata.get_task_def("sdk_task")


def test_a_bad_definition_is_refused_in_words(sdk: Sdk) -> None:
    with refused(400, "taskReferenceName: a should be unique"):
        sdk.register("sdk_bad", simple("a", "sdk_a"), simple("a", "sdk_a"))


# -- workflows


def test_start_get_and_status(sdk: Sdk) -> None:
    sdk.register("sdk_run", simple("a", "sdk_run_a"), outputParameters={"got": "${a.output.n}"})
    by_name = sdk.workflows.start_workflow_by_name(
        "sdk_run", {"k": 1}, version=1, correlationId="c-1", priority=5
    )
    shown = sdk.workflows.get_workflow(by_name, include_tasks=True)
    assert (shown.workflow_name, shown.workflow_version, shown.status) == ("sdk_run", 1, "RUNNING")
    assert (shown.correlation_id, shown.priority, shown.input) == ("c-1", 5, {"k": 1})
    assert [task.status for task in shown.tasks] == ["SCHEDULED"]
    assert sdk.workflow_api.get_running_workflow("sdk_run") == [by_name]
    sdk.report(sdk.poll("sdk_run_a"), n=3)
    status = sdk.workflows.get_workflow_status(by_name, include_output=True, include_variables=True)
    assert (status.status, status.output, status.variables) == ("COMPLETED", {"got": 3}, {})
    assert sdk.workflows.get_workflow(by_name, include_tasks=False).output == {"got": 3}
    with refused(404, "sdk_none"):
        sdk.start("sdk_none")
    with refused(404, "No such workflow found by id: nope"):
        sdk.workflows.get_workflow("nope")


def test_idempotency_keys(sdk: Sdk) -> None:
    sdk.register("sdk_once", simple("a", "sdk_once_a"))
    first = sdk.start("sdk_once", idempotency_key="k-1")
    again = sdk.start("sdk_once", idempotency_key="k-1", idempotency_strategy="RETURN_EXISTING")
    assert again == first
    with refused(409, "k-1"):
        sdk.start("sdk_once", idempotency_key="k-1", idempotency_strategy="FAIL")


def test_execute_waits_for_the_end(sdk: Sdk) -> None:
    sdk.register(
        "sdk_sync",
        {
            "name": "i",
            "taskReferenceName": "i",
            "type": "INLINE",
            "inputParameters": {
                "evaluatorType": "graaljs",
                "expression": "$.n * 2",
                "n": "${workflow.input.n}",
            },
        },
        outputParameters={"twice": "${i.output.result}"},
    )
    request = StartWorkflowRequest(name="sdk_sync", version=1, input={"n": 21})
    run = sdk.workflows.execute_workflow(request, request_id="r-1", wait_for_seconds=5)
    assert (run.status, run.output, run.request_id) == ("COMPLETED", {"twice": 42}, "r-1")
    answer = sdk.workflows.execute_workflow_with_return_strategy(request, wait_for_seconds=5)
    assert (answer.status.value, answer.output) == ("COMPLETED", {"twice": 42})
    assert answer.response_type == "TARGET_WORKFLOW"


def test_execute_stops_at_a_reference_name_and_signals_go_on(sdk: Sdk) -> None:
    sdk.register("sdk_signal", wait_task("first"), wait_task("second"), simple("a", "sdk_signal_a"))
    request = StartWorkflowRequest(name="sdk_signal", version=1, input={})
    answer = sdk.workflows.execute_workflow_with_return_strategy(
        request, wait_for_seconds=5, return_strategy="BLOCKING_TASK"
    )
    assert (answer.reference_task_name, answer.task_type) == ("first", "WAIT")
    workflow_id = answer.target_workflow_id
    signalled = sdk.task_api.signal_workflow_task_sync(
        workflow_id, "COMPLETED", {"s": 1}, return_strategy="BLOCKING_TASK"
    )
    assert signalled.reference_task_name == "second"
    sdk.task_api.signal_workflow_task_async(workflow_id, "COMPLETED", {"s": 2})
    assert sdk.statuses(workflow_id) == {
        "first": "COMPLETED",
        "second": "COMPLETED",
        "a": "SCHEDULED",
    }
    with refused(404, "Found no blocked task"):
        sdk.task_api.signal_workflow_task_sync(workflow_id, "COMPLETED", {})


def test_pause_and_resume(sdk: Sdk) -> None:
    sdk.register("sdk_pause", simple("a", "sdk_pause_a"), simple("b", "sdk_pause_b"))
    workflow_id = sdk.start("sdk_pause")
    sdk.workflows.pause_workflow(workflow_id)
    assert sdk.status_of(workflow_id) == "PAUSED"
    sdk.report(sdk.poll("sdk_pause_a"))
    assert sdk.statuses(workflow_id) == {"a": "COMPLETED"}
    sdk.workflows.resume_workflow(workflow_id)
    assert sdk.statuses(workflow_id) == {"a": "COMPLETED", "b": "SCHEDULED"}
    sdk.workflow_api.decide(workflow_id)
    sdk.report(sdk.poll("sdk_pause_b"))
    assert sdk.status_of(workflow_id) == "COMPLETED"


def test_terminate_restart_and_remove(sdk: Sdk) -> None:
    sdk.register("sdk_stop", simple("a", "sdk_stop_a"))
    workflow_id = sdk.start("sdk_stop")
    sdk.workflows.terminate_workflow(workflow_id, reason="enough", trigger_failure_workflow=False)
    shown = sdk.workflows.get_workflow(workflow_id)
    assert (shown.status, shown.reason_for_incompletion) == ("TERMINATED", "enough")
    sdk.workflows.restart_workflow(workflow_id, use_latest_def=True)
    assert sdk.statuses(workflow_id) == {"a": "SCHEDULED"}
    sdk.report(sdk.poll("sdk_stop_a"))
    assert sdk.status_of(workflow_id) == "COMPLETED"
    sdk.workflows.delete_workflow(workflow_id, archive_workflow=False)
    with refused(404, "No such workflow found by id"):
        sdk.workflows.get_workflow(workflow_id)
    other = sdk.start("sdk_stop")
    sdk.workflows.terminate_workflow(other)
    sdk.workflows.remove_workflow(other)
    assert sdk.status_of(other) == "TERMINATED", "archived, which keeps it readable"


def test_retry_and_rerun(sdk: Sdk) -> None:
    sdk.metadata.register_task_def(TaskDef(name="sdk_again_b", retry_count=0))
    sdk.register("sdk_again", simple("a", "sdk_again_a"), simple("b", "sdk_again_b"))
    workflow_id = sdk.start("sdk_again")
    sdk.report(sdk.poll("sdk_again_a"), n=1)
    sdk.report(sdk.poll("sdk_again_b"), "FAILED")
    assert sdk.status_of(workflow_id) == "FAILED"
    sdk.workflows.retry_workflow(workflow_id, resume_subworkflow_tasks=True)
    retried = sdk.poll("sdk_again_b")
    assert retried.retry_count == 1
    sdk.report(retried)
    assert sdk.status_of(workflow_id) == "COMPLETED"
    [first, *_] = sdk.workflows.get_workflow(workflow_id).tasks
    request = RerunWorkflowRequest(re_run_from_task_id=first.task_id, task_input={"again": True})
    assert sdk.workflows.rerun_workflow(workflow_id, request) == workflow_id
    again = sdk.poll("sdk_again_a")
    assert (again.task_id, again.input_data) == (first.task_id, {"again": True})
    sdk.report(again)
    sdk.report(sdk.poll("sdk_again_b"))
    assert sdk.status_of(workflow_id) == "COMPLETED"


def test_skip(sdk: Sdk) -> None:
    sdk.register("sdk_skip", simple("a", "sdk_skip_a"), simple("b", "sdk_skip_b"))
    workflow_id = sdk.start("sdk_skip")
    sdk.workflows.skip_task_from_workflow(
        workflow_id, "b", SkipTaskRequest(task_output={"skipped": True})
    )
    sdk.report(sdk.poll("sdk_skip_a"))
    shown = sdk.workflows.get_workflow(workflow_id)
    assert shown.status == "COMPLETED"
    assert {task.reference_task_name: task.status for task in shown.tasks}["b"] == "SKIPPED"


def test_reset_callbacks(sdk: Sdk) -> None:
    sdk.register("sdk_later", simple("a", "sdk_later_a"))
    workflow_id = sdk.start("sdk_later")
    result = sdk.poll("sdk_later_a").to_task_result(TaskResultStatus.IN_PROGRESS)
    result.callback_after_seconds = 3600
    sdk.tasks.update_task(result)
    assert sdk.tasks.batch_poll_tasks("sdk_later_a", timeout_in_millisecond=50) == []
    sdk.workflow_api.reset_workflow(workflow_id)
    sdk.report(sdk.poll("sdk_later_a"))
    assert sdk.status_of(workflow_id) == "COMPLETED"


def test_correlated_runs(sdk: Sdk) -> None:
    sdk.register("sdk_pair", simple("a", "sdk_pair_a"))
    ids = {name: sdk.start("sdk_pair", correlation_id=name) for name in ("x", "y")}
    found = sdk.workflows.get_by_correlation_ids("sdk_pair", ["x", "y", "z"], include_tasks=True)
    shown = {name: [run.workflow_id for run in runs] for name, runs in found.items()}
    assert shown == {"x": [ids["x"]], "y": [ids["y"]], "z": []}
    sdk.workflows.terminate_workflow(ids["x"])
    [open_run] = sdk.workflow_api.get_workflows2("sdk_pair", "y")
    assert open_run.workflow_id == ids["y"]
    assert sdk.workflow_api.get_workflows2("sdk_pair", "x") == []
    [closed] = sdk.workflow_api.get_workflows2("sdk_pair", "x", include_closed=True)
    assert closed.status == "TERMINATED"


def test_bulk(sdk: Sdk) -> None:
    sdk.register("sdk_bulk", simple("a", "sdk_bulk_a"))
    ids = [sdk.start("sdk_bulk") for _ in range(3)]

    def check(answer: Any, *, unknown: bool = True) -> None:
        assert sorted(answer.bulk_successful_results) == sorted(ids)
        assert list(answer.bulk_error_results) == (["nope"] if unknown else [])

    check(sdk.bulk.pause_workflow([*ids, "nope"]))
    assert [sdk.status_of(one) for one in ids] == ["PAUSED"] * 3
    check(sdk.bulk.resume_workflow([*ids, "nope"]))
    check(sdk.bulk.terminate([*ids, "nope"], reason="all of them"))
    assert [sdk.status_of(one) for one in ids] == ["TERMINATED"] * 3
    check(sdk.bulk.restart([*ids, "nope"]))
    assert [sdk.status_of(one) for one in ids] == ["RUNNING"] * 3
    check(sdk.bulk.terminate(ids), unknown=False)
    check(sdk.bulk.retry(ids), unknown=False)
    assert [sdk.status_of(one) for one in ids] == ["RUNNING"] * 3


# -- tasks


def test_poll_update_and_logs(sdk: Sdk) -> None:
    sdk.register("sdk_poll", simple("a", "sdk_poll_a"))
    workflow_id = sdk.start("sdk_poll")
    task = sdk.tasks.poll_task("sdk_poll_a", worker_id="me")
    assert (task.workflow_instance_id, task.worker_id) == (workflow_id, "me")
    assert sdk.tasks.poll_task("sdk_poll_a").task_id is None, "the SDK makes a task of nothing"
    shown = sdk.tasks.get_task(task.task_id)
    assert (shown.status, shown.poll_count) == ("IN_PROGRESS", 1)
    sdk.tasks.add_task_log(task.task_id, "half way")
    assert [line.log for line in sdk.tasks.get_task_logs(task.task_id)] == ["half way"]
    sdk.report(task, "IN_PROGRESS", progress=50)
    assert sdk.tasks.get_task(task.task_id).output_data == {"progress": 50}
    again = sdk.poll("sdk_poll_a")
    assert again.task_id == task.task_id
    sdk.report(again, done=True)
    shown = sdk.workflows.get_workflow(workflow_id)
    assert (shown.status, shown.output) == ("COMPLETED", {"done": True})
    with refused(404, "Task not found for taskId: nope"):
        sdk.tasks.get_task("nope")
    result = TaskResult(task_id="nope", workflow_instance_id=workflow_id, status="COMPLETED")
    with refused(404, "No such task found by id: nope"):
        sdk.tasks.update_task(result)


def test_update_v2_answers_with_the_next_task(sdk: Sdk) -> None:
    sdk.register("sdk_next", simple("a", "sdk_next_a"))
    ids = [sdk.start("sdk_next") for _ in range(3)]
    task = sdk.tasks.poll_task("sdk_next_a")
    seen = []
    while task is not None and task.task_id:
        seen.append(task.workflow_instance_id)
        task = sdk.task_api.update_task_v2(task.to_task_result(TaskResultStatus.COMPLETED))
    assert seen == ids
    assert [sdk.status_of(one) for one in ids] == ["COMPLETED"] * 3


def test_update_by_reference_name(sdk: Sdk) -> None:
    sdk.register("sdk_by_ref", wait_task("w"), simple("a", "sdk_by_ref_a"))
    workflow_id = sdk.start("sdk_by_ref")
    task_id = sdk.tasks.update_task_by_ref_name(workflow_id, "w", "COMPLETED", {"x": 1})
    assert sdk.tasks.get_task(task_id).output_data == {"result": {"x": 1}}
    run = sdk.tasks.update_task_sync(workflow_id, "a", "COMPLETED", {"y": 2})
    assert (run.status, run.output) == ("COMPLETED", {"y": 2})
    with refused(404, "Found no running task a"):
        sdk.tasks.update_task_sync(workflow_id, "a", "COMPLETED", {})


def test_queues(sdk: Sdk) -> None:
    sdk.register("sdk_queue", simple("a", "sdk_queue_a"))
    for _ in range(3):
        sdk.start("sdk_queue")
    assert sdk.tasks.get_queue_size_for_task("sdk_queue_a") == 3
    assert sdk.task_api.all()["sdk_queue_a"] == 3
    [task, _] = sdk.tasks.batch_poll_tasks("sdk_queue_a", "me", 2, 1000)
    [lane] = sdk.task_api.all_verbose()["sdk_queue_a"].values()
    assert lane == {"size": 1, "uacked": 2}
    [poll] = sdk.tasks.get_task_poll_data("sdk_queue_a")
    assert (poll.queue_name, poll.worker_id) == ("sdk_queue_a", "me")
    assert "sdk_queue_a" in {each.queue_name for each in sdk.task_api.get_all_poll_data()}
    assert sdk.task_api.requeue_pending_task("sdk_queue_a") == "3"
    assert sdk.tasks.get_task(task.task_id).workflow_type == "sdk_queue"
    sdk.start("sdk_queue", task_to_domain={"*": "blue"})
    found = sdk.tasks.batch_poll_tasks("sdk_queue_a", domain="blue", timeout_in_millisecond=500)
    assert [each.domain for each in found] == ["blue"]


# -- the worker loop


@pytest.fixture(scope="module")
def workers(server: Server, sdk: Sdk) -> Iterator[None]:
    """`TaskHandler` as a program of its own, asking for work."""
    command = [sys.executable, "-m", "tests.support.sdk_workers", "--server", f"{server.url}/api"]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        wait_until(
            lambda: (
                len(sdk.task_api.get_all_poll_data() or []) > 0
                and all(sdk.tasks.get_task_poll_data(f"sdk_{one}") for one in WORKERS)
            ),
            deadline_s=90,
        )
        yield
    finally:
        process.terminate()
        assert process.wait(30) == 0


WORKERS = ("add", "twice", "never", "whole", "domain")


def test_workers_results_retries_and_terminal_errors(sdk: Sdk, workers: None) -> None:
    sdk.metadata.register_task_def(
        TaskDef(name="sdk_twice", retry_count=3, retry_delay_seconds=0, retry_logic="FIXED")
    )
    sdk.register(
        "sdk_worked",
        simple("add", "sdk_add", inputParameters={"left": "${workflow.input.n}", "right": 2}),
        simple("twice", "sdk_twice", inputParameters={"what": "the bank"}),
        simple("whole", "sdk_whole", inputParameters={"sum": "${add.output.sum}"}),
    )
    run = sdk.ended(sdk.start("sdk_worked", input={"n": 40}))
    assert (run.status, run.output) == ("COMPLETED", {"seen": {"sum": 42}})
    attempts = [task for task in run.tasks if task.reference_task_name == "twice"]
    assert [task.status for task in attempts] == ["FAILED", "FAILED", "COMPLETED"]
    assert attempts[0].reason_for_incompletion == "the bank is away"
    assert attempts[-1].output_data == {"attempt": 2}
    lines = sdk.tasks.get_task_logs(run.tasks[-1].task_id)
    assert "one line from the worker" in [line.log for line in lines]

    sdk.register("sdk_lost", simple("a", "sdk_never", inputParameters={"why": "no use"}))
    run = sdk.ended(sdk.start("sdk_lost"))
    assert run.status == "FAILED"
    assert [task.status for task in run.tasks] == ["FAILED_WITH_TERMINAL_ERROR"]
    assert run.tasks[0].reason_for_incompletion == "no use"


def test_a_worker_in_a_domain(sdk: Sdk, workers: None) -> None:
    sdk.register("sdk_domains", simple("a", "sdk_domain"))
    run = sdk.ended(sdk.start("sdk_domains", task_to_domain={"sdk_domain": "green"}))
    assert (run.status, run.output) == ("COMPLETED", {"domain": "green"})


def test_a_workflow_made_in_code(sdk: Sdk, workers: None) -> None:
    flow = ConductorWorkflow(executor=sdk.executor, name="sdk_code", version=1)
    left, right = SimpleTask("sdk_add", "left"), SimpleTask("sdk_add", "right")
    left.input_parameters.update({"left": 1, "right": 1})
    right.input_parameters.update({"left": 10, "right": 10})
    total = InlineTask(
        "total",
        "$.a + $.b",
        {"a": left.output("sum"), "b": right.output("sum")},
    )
    choice = SwitchTask("choice", total.output("result"))
    found = SetVariableTask("found")
    found.input_parameters.update({"sum": "twenty-two"})
    choice.switch_case("22", found)
    fork = ForkTask("fork", [[left], [right]])
    flow >> fork >> JoinTask("join", join_on=["left", "right"]) >> total >> choice
    flow.output_parameters({"total": total.output("result"), "sum": "${workflow.variables.sum}"})
    flow.register(overwrite=True)
    run = flow.execute(workflow_input={}, wait_for_seconds=20)
    assert (run.status, run.output) == ("COMPLETED", {"total": 22, "sum": "twenty-two"})


def test_runs_are_searched_for(sdk: Sdk) -> None:
    sdk.register("sdk_search", simple("a", "sdk_search_a"))
    started = sdk.start("sdk_search")
    query = "workflowType = 'sdk_search' AND status IN (RUNNING)"
    found = sdk.workflows.search(query=query, free_text="*", size=10)
    assert [one.workflow_id for one in found.results] == [started]


# -- what is not served


NOT_SERVED: dict[str, Callable[[Sdk], Any]] = {
    "WorkflowClient.test_workflow": lambda sdk: sdk.workflows.test_workflow(
        WorkflowTestRequest(name="sdk_run", version=1)
    ),
    "WorkflowClient.send_message": lambda sdk: sdk.workflows.send_message("x", {"a": 1}),
    # Not in Conductor OSS either: paths of a commercial server.
    "WorkflowClient.update_variables": lambda sdk: sdk.workflows.update_variables("x", {"a": 1}),
    "WorkflowClient.update_state": lambda sdk: sdk.workflows.update_state(
        "x", WorkflowStateUpdate()
    ),
    "WorkflowClient.get_by_correlation_ids_in_batch": lambda sdk: (
        sdk.workflows.get_by_correlation_ids_in_batch(
            CorrelationIdsSearchRequest(correlation_ids=["x"], workflow_names=["sdk_run"])
        )
    ),
    "MetadataClient.add_workflow_tag": lambda sdk: sdk.metadata.add_workflow_tag(
        MetadataTag("k", "v"), "sdk_run"
    ),
    "MetadataClient.get_workflow_tags": lambda sdk: sdk.metadata.get_workflow_tags("sdk_run"),
    "MetadataClient.set_workflow_tags": lambda sdk: sdk.metadata.set_workflow_tags(
        [MetadataTag("k", "v")], "sdk_run"
    ),
    "MetadataClient.delete_workflow_tag": lambda sdk: sdk.metadata.delete_workflow_tag(
        MetadataTag("k", "v"), "sdk_run"
    ),
}


@pytest.mark.parametrize("call", NOT_SERVED)
def test_what_is_not_served_is_refused_in_words(sdk: Sdk, call: str) -> None:
    with pytest.raises(ApiException) as caught:
        NOT_SERVED[call](sdk)
    assert caught.value.status in (400, 404, 405, 501)
    assert caught.value.body, "there is a message"


@pytest.mark.parametrize("interface", [WorkflowClient, TaskClient, MetadataClient])
def test_every_call_of_the_clients_is_tried(interface: type) -> None:
    source = Path(__file__).read_text()
    calls = {
        name
        for name, _ in inspect.getmembers(interface, inspect.isfunction)
        if not name.startswith("_")
    }
    assert len(calls) > 5
    assert {name for name in calls if not re.search(rf"\.{name}\(", source)} == set()
