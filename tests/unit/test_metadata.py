"""Metadata over the memory store: Conductor's answers and times; snapshots are never old."""

import asyncio
import json
from typing import Any

import pytest

from cluster.errors import Conflict, InvalidRequest, NotFound, StoreFault, ValidationFailed
from cluster.node.metadata import Metadata, NoSuchWorkflow
from cluster.store.memory.metadata import MemoryMetadataStore
from cluster.store.ports import Definition
from tests.support.virtual_time import HandClock

pytestmark = pytest.mark.asyncio

STEP = {"name": "t", "taskReferenceName": "a"}


class CountingStore(MemoryMetadataStore):
    """Counts what is read, and can be made to answer late or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.snapshots_written = 0
        self.gate: asyncio.Event | None = None
        self.has_read = asyncio.Event()
        self.fault_after_put = False
        self.faults_of_task_defs = 0

    async def get(self, kind: str, name: str, version: int | None) -> Definition | None:
        self.reads += 1
        if kind == "task" and self.faults_of_task_defs:
            self.faults_of_task_defs -= 1
            raise StoreFault("no answer in time")
        found = await super().get(kind, name, version)
        # As a real store, it lets others run before the answer arrives.
        await asyncio.sleep(0)
        if self.gate is not None:
            self.has_read.set()
            await self.gate.wait()
        return found

    async def put(self, *args: Any, **options: Any) -> Definition:
        written = await super().put(*args, **options)
        await asyncio.sleep(0)
        if self.fault_after_put:
            raise StoreFault("no answer in time")
        return written

    async def put_snapshot(self, content_hash: bytes, body: bytes) -> None:
        self.snapshots_written += 1
        await super().put_snapshot(content_hash, body)


@pytest.fixture
def watch() -> HandClock:
    return HandClock()


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def metadata(store: CountingStore, watch: HandClock) -> Metadata:
    return Metadata(store, watch, check_javascript=lambda _: None)


def flow(name: str = "w", *tasks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": name, "tasks": list(tasks) or [STEP], **fields}


def child_step(**params: Any) -> dict[str, Any]:
    return {**STEP, "type": "SUB_WORKFLOW", "subWorkflowParam": params}


async def times(metadata: Metadata, name: str = "w", version: int | None = None) -> tuple[int, int]:
    body = json.loads(await metadata.workflow(name, version))
    return body["createTime"], body["updateTime"]


async def first_step(metadata: Metadata, name: str = "w") -> dict[str, Any]:
    step: dict[str, Any] = json.loads((await metadata.snapshot(name, None)).snapshot.body)["tasks"][
        0
    ]
    return step


# -- workflow definitions


async def test_a_version_is_registered_once(metadata: Metadata) -> None:
    await metadata.register(flow(description="first"))
    with pytest.raises(Conflict, match=r"^Workflow with w\.1 already exists!$"):
        await metadata.register(flow(description="second"))
    assert json.loads(await metadata.workflow("w", None))["description"] == "first"
    await metadata.register(flow(description="second"), overwrite=True)
    assert json.loads(await metadata.workflow("w", None))["description"] == "second"


async def test_two_registrations_at_once_do_not_both_succeed(metadata: Metadata) -> None:
    outcomes = await asyncio.gather(
        *(metadata.register(flow(description=str(i))) for i in range(5)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [Conflict] * 4


async def test_registrations_at_once_may_overwrite_each_other(metadata: Metadata) -> None:
    await asyncio.gather(*(metadata.register(flow(), overwrite=True) for _ in range(5)))
    assert len(await metadata.workflows()) == 1


async def test_times_are_those_that_conductor_gives(metadata: Metadata, watch: HandClock) -> None:
    await metadata.register(flow(createTime=5, updateTime=7))
    assert await times(metadata) == (1_000, 7)
    watch.ms = 2_000
    await metadata.register(flow(), overwrite=True)
    assert await times(metadata) == (0, 2_000)
    await metadata.update([flow(createTime=77)])
    assert await times(metadata) == (77, 2_000)
    await metadata.register(flow("new", updateTime=6), overwrite=True)
    assert await times(metadata, "new") == (2_000, 6)


async def test_an_update_is_checked_as_a_whole(metadata: Metadata) -> None:
    with pytest.raises(ValidationFailed) as refused:
        await metadata.update([flow("good"), None, {"name": "", "schemaVersion": 1, "tasks": []}])
    assert [(found.path, found.message) for found in refused.value.violations] == [
        ("updateWorkflowDef.arg0[1].<list element>", "WorkflowDef cannot be null"),
        ("updateWorkflowDef.arg0[2].name", "WorkflowDef name cannot be null or empty"),
        ("updateWorkflowDef.arg0[2].tasks", "WorkflowTask list cannot be empty"),
        (
            "updateWorkflowDef.arg0[2].schemaVersion",
            "workflowDef schemaVersion: 2 is only supported",
        ),
    ]
    assert await metadata.workflow_names() == []
    assert await metadata.update([flow("b"), flow("a"), flow("b", description="x")]) == [
        "b",
        "a",
        "b",
    ]
    assert json.loads(await metadata.workflow("b", None))["description"] == "x"


async def test_list_bodies_have_to_be_lists_with_something_in_them(metadata: Metadata) -> None:
    for call, label, what in (
        (metadata.update, "updateWorkflowDef", "WorkflowDef"),
        (metadata.register_task_defs, "registerTaskDef", "TaskDef"),
    ):
        with pytest.raises(ValidationFailed) as refused:
            await call([])
        (violation,) = refused.value.violations
        assert (violation.path, violation.message) == (f"{label}.arg0", f"{what}List is empty")
        with pytest.raises(InvalidRequest, match="expected array"):
            await call({})
        with pytest.raises(InvalidRequest, match=r"^\[1\]: expected object"):
            await call([{"name": "x"}, "x"])


async def test_validation_changes_nothing(metadata: Metadata) -> None:
    metadata.validate(flow())
    with pytest.raises(ValidationFailed) as refused:
        metadata.validate(flow(schemaVersion=1))
    assert refused.value.violations[0].path == "validateWorkflowDef.arg0.schemaVersion"
    assert await metadata.workflows() == []


async def test_registration_names_its_own_paths(metadata: Metadata) -> None:
    with pytest.raises(ValidationFailed) as refused:
        await metadata.register(flow(schemaVersion=1))
    assert refused.value.violations[0].path == "registerWorkflowDef.arg0.schemaVersion"


async def test_lists_of_definitions(metadata: Metadata, watch: HandClock) -> None:
    for version in (10, 2, 3):
        await metadata.register(flow("w", version=version))
    watch.ms = 3_000
    await metadata.update([flow("v", metadata={"classifier": "agent"})])
    assert await metadata.workflow_names() == ["v", "w"]
    assert [json.loads(body)["version"] for body in await metadata.workflows()] == [1, 2, 3, 10]
    assert [json.loads(body)["version"] for body in await metadata.latest_workflows()] == [1, 10]
    assert [json.loads(body)["name"] for body in await metadata.workflows("agent")] == ["v"]
    assert len(await metadata.workflows("workflow")) == 3
    assert await metadata.workflow_versions("w") == [
        {"name": "w", "version": version, "createTime": 1_000} for version in (2, 3, 10)
    ]
    assert await metadata.workflow_versions("nobody") == []
    summaries = await metadata.workflow_names_and_versions()
    assert summaries["v"] == [{"name": "v", "version": 1, "createTime": 0, "updateTime": 3_000}]
    assert [summary["version"] for summary in summaries["w"]] == [2, 3, 10]


async def test_what_is_not_there_is_named(metadata: Metadata) -> None:
    await metadata.register(flow())
    for version, number in ((None, "null"), (0, "0")):
        name = "w" if version == 0 else "nobody"
        with pytest.raises(NoSuchWorkflow) as missing:
            await metadata.workflow(name, version)
        assert missing.value.message == f"No such workflow found by name: {name}, version: {number}"
        with pytest.raises(NoSuchWorkflow) as missing:
            await metadata.snapshot(name, version)
        assert missing.value.start_message == (
            f"No such workflow defined. name={name}, version={number}"
        )
    with pytest.raises(NotFound, match=r"^No such workflow definition: w version: 9$"):
        await metadata.remove_workflow("w", 9)
    await metadata.remove_workflow("w", 1)
    assert await metadata.workflows() == []


# -- task definitions


async def test_times_and_authors_of_task_definitions(metadata: Metadata, watch: HandClock) -> None:
    mine = {"createTime": 5, "updateTime": 6, "createdBy": "c", "updatedBy": "u", "ownerApp": "o"}
    fields = (*mine,)

    async def shown() -> dict[str, Any]:
        body = json.loads(await metadata.task_def("t"))
        return {field: body[field] for field in fields if field in body}

    await metadata.register_task_defs([{"name": "t", **mine}])
    registered = {"createTime": 1_000, "updateTime": 0, "createdBy": "", "ownerApp": "o"}
    assert await shown() == registered
    watch.ms = 2_000
    await metadata.update_task_def({"name": "t", **mine})
    assert await shown() == {**registered, "updateTime": 2_000, "updatedBy": ""}
    watch.ms = 3_000
    await metadata.register_task_defs([{"name": "t", **mine}])
    assert await shown() == {**registered, "createTime": 3_000}


async def test_task_definitions_are_checked_as_a_whole(metadata: Metadata) -> None:
    with pytest.raises(ValidationFailed) as refused:
        await metadata.register_task_defs([{"name": "good"}, {"name": "t", "retryCount": -1}])
    assert refused.value.violations[0].path == "registerTaskDef.arg0[1].retryCount"
    assert await metadata.task_defs() == []
    with pytest.raises(ValidationFailed) as refused:
        await metadata.update_task_def({"name": "nobody", "retryCount": -1})
    assert refused.value.violations[0].path == "updateTaskDef.arg0.retryCount"


async def test_task_definitions_that_are_not_there(metadata: Metadata) -> None:
    with pytest.raises(NotFound, match=r"^No such task by name t$"):
        await metadata.update_task_def({"name": "t"})
    with pytest.raises(NotFound, match=r"^No such taskType found by name: t$"):
        await metadata.task_def("t")
    with pytest.raises(NotFound, match=r"^No such task definition$"):
        await metadata.remove_task_def("t")
    await metadata.register_task_defs([{"name": "t", "description": "1"}, {"name": "t"}])
    assert "description" not in json.loads(await metadata.task_def("t"))
    found = await metadata.registered_task_defs(["t", "nobody", "t"])
    assert [(name, found[name]["retryCount"]) for name in found] == [("t", 3)]
    await metadata.remove_task_def("t")
    assert await metadata.task_defs() == []


# -- snapshots


async def test_a_snapshot_is_durable_and_found_by_its_hash(
    metadata: Metadata, store: CountingStore
) -> None:
    await metadata.register(flow())
    resolved = await metadata.snapshot("w", None)
    assert (resolved.name, resolved.version) == ("w", 1)
    assert await metadata.snapshot_body(resolved.snapshot.hash) == resolved.snapshot.body
    assert await metadata.snapshot_body("00" * 16) is None
    assert len(resolved.snapshot.hash) == 32


async def test_a_snapshot_is_read_and_written_once(
    metadata: Metadata, store: CountingStore
) -> None:
    await metadata.register(flow())
    assert metadata.snapshot_cached("w", None) is None
    store.reads = 0
    crowd = await asyncio.gather(*(metadata.snapshot("w", None) for _ in range(20)))
    assert len({resolved.snapshot.hash for resolved in crowd}) == 1
    assert store.reads == 2, "the workflow and its task"
    assert metadata.snapshot_cached("w", None) == crowd[0]
    # An unrelated change empties the cache; the snapshot is the same and is not written again.
    await metadata.register(flow("other"))
    assert metadata.snapshot_cached("w", None) is None
    assert await metadata.snapshot("w", None) == crowd[0]
    assert store.snapshots_written == 1


@pytest.mark.parametrize(
    "change", ["new version", "overwrite", "update", "remove", "task", "untask"]
)
async def test_every_change_is_seen_by_the_next_start(metadata: Metadata, change: str) -> None:
    await metadata.register(flow())
    await metadata.register(flow(version=2))
    await metadata.register_task_defs([{"name": "t", "retryCount": 7}])
    before = await metadata.snapshot("w", None)
    match change:
        case "new version":
            await metadata.register(flow(version=3))
        case "overwrite":
            await metadata.register(flow(version=2, description="x"), overwrite=True)
        case "update":
            await metadata.update([flow(version=2, description="x")])
        case "remove":
            await metadata.remove_workflow("w", 2)
        case "task":
            await metadata.register_task_defs([{"name": "t", "retryCount": 8}])
        case "untask":
            await metadata.remove_task_def("t")
    assert metadata.snapshot_cached("w", None) is None
    after = await metadata.snapshot("w", None)
    assert after.snapshot.hash != before.snapshot.hash
    assert await metadata.snapshot_body(before.snapshot.hash) == before.snapshot.body


async def test_a_snapshot_read_before_a_change_is_not_kept_after_it(
    metadata: Metadata, store: CountingStore
) -> None:
    await metadata.register(flow(description="old"))
    store.gate = asyncio.Event()
    early = asyncio.create_task(metadata.snapshot("w", None))
    await store.has_read.wait()
    gate, store.gate = store.gate, None
    await metadata.register(flow(description="new"), overwrite=True)
    late = asyncio.create_task(metadata.snapshot("w", None))
    await asyncio.sleep(0)
    gate.set()
    assert json.loads((await early).snapshot.body)["description"] == "old"
    assert json.loads((await late).snapshot.body)["description"] == "new"
    cached = metadata.snapshot_cached("w", None)
    assert cached is not None
    assert json.loads(cached.snapshot.body)["description"] == "new"


async def test_a_store_that_does_not_answer_is_told_as_such(
    metadata: Metadata, store: CountingStore
) -> None:
    await metadata.register(flow())
    store.faults_of_task_defs = 1
    with pytest.raises(StoreFault):
        await metadata.snapshot("w", None)
    await metadata.snapshot("w", None)


async def test_a_write_without_answer_empties_the_cache_too(
    metadata: Metadata, store: CountingStore
) -> None:
    await metadata.register(flow(description="old"))
    await metadata.snapshot("w", None)
    store.fault_after_put = True
    with pytest.raises(StoreFault):
        await metadata.register(flow(description="new"), overwrite=True)
    body = json.loads((await metadata.snapshot("w", None)).snapshot.body)
    assert body["description"] == "new"


async def test_task_definitions_are_at_hand_as_they_were_last_written(metadata: Metadata) -> None:
    assert metadata.task_defs_at_hand(("t0",)) is None
    await metadata.read_task_defs()
    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(metadata.register_task_defs([{"name": f"t{number}"}]))
            group.create_task(metadata.register(flow(f"w{number}")))
    names = ("t0", "t1", "t2", "other")
    assert sorted(metadata.task_defs_at_hand(names) or {}) == ["t0", "t1", "t2"]
    await metadata.register_task_defs([{"name": "t1", "retryCount": 9}])
    await metadata.remove_task_def("t0")
    found = metadata.task_defs_at_hand(names)
    assert found is not None
    assert (sorted(found), found["t1"]["retryCount"]) == (["t1", "t2"], 9)


async def test_a_task_definition_in_doubt_is_looked_up(
    metadata: Metadata, store: CountingStore
) -> None:
    await metadata.read_task_defs()
    store.fault_after_put = True
    with pytest.raises(StoreFault):
        await metadata.register_task_defs([{"name": "t"}])
    assert metadata.task_defs_at_hand(("t",)) is None
    assert metadata.task_defs_at_hand(("u",)) == {}
    store.fault_after_put = False
    await metadata.register_task_defs([{"name": "t"}])
    assert "t" in (metadata.task_defs_at_hand(("t",)) or {})


async def test_sub_workflows_are_pinned_when_their_parent_is_frozen(metadata: Metadata) -> None:
    await metadata.register(flow("w", child_step(name="child")))
    with pytest.raises(NotFound, match="The Task child defined as a sub-workflow"):
        await metadata.snapshot("w", None)
    await metadata.register(flow("child", version=4))
    assert (await first_step(metadata))["subWorkflowParam"] == {"name": "child", "version": 4}
    await metadata.register(flow("child", version=5))
    assert (await first_step(metadata))["subWorkflowParam"] == {"name": "child", "version": 5}


async def test_inline_definitions_are_frozen_without_being_registered(metadata: Metadata) -> None:
    await metadata.register_task_defs([{"name": "t", "retryCount": 7}])
    resolved = await metadata.snapshot_inline(flow("inline", version=6))
    assert (resolved.name, resolved.version) == ("inline", 6)
    body = json.loads(resolved.snapshot.body)
    assert body["tasks"][0]["taskDefinition"]["retryCount"] == 7
    assert await metadata.workflows() == []
    with pytest.raises(ValidationFailed) as refused:
        await metadata.snapshot_inline({"name": "inline", "tasks": []})
    assert refused.value.violations[0].path == "startWorkflow.arg0.workflowDef.tasks"
    empty = await metadata.snapshot_inline({"tasks": []}, violations_path=None)
    assert (empty.name, empty.version) == ("", 1)


async def test_the_cache_is_bounded(store: CountingStore, watch: HandClock) -> None:
    metadata = Metadata(store, watch, check_javascript=lambda _: None, cache_bytes_max=5_000)
    for name in "abcdefgh":
        await metadata.register(flow(name))
    await metadata.snapshot("a", None)
    for name in "bcdefgh":
        await metadata.snapshot(name, None)
        assert metadata.snapshot_cached("a", None) is not None, "it was used a moment ago"
    kept = [name for name in "abcdefgh" if metadata.snapshot_cached(name, None) is not None]
    assert kept[0] == "a"
    assert kept[-1] == "h"
    assert 3 <= len(kept) < 8
