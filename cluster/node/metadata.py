"""Workflow and task definitions: registered, served, and frozen into the snapshots of runs."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from cluster.clock import Clock
from cluster.engine import payloads
from cluster.engine.definition_rules import CheckJavascript, check_task_def, check_workflow_def
from cluster.engine.definitions import (
    Snapshot,
    make_snapshot,
    parse_task_def,
    parse_workflow_def,
    task_names_of,
    unpinned_sub_workflows_of,
)
from cluster.errors import (
    ClusterError,
    Conflict,
    InvalidRequest,
    NotFound,
    ValidationFailed,
    Violation,
)
from cluster.logs import get_log
from cluster.store.ports import Definition, MetadataStore

log = get_log(__name__)

WORKFLOW = "workflow"
TASK = "task"
_CHANGES = "changes"
STANDS_MS = 100
"""For this long what was read of the counter counts, so that not every start has to read it. Who
changes a definition waits as long, and a little more as clocks differ, before it answers."""
_UNTIL_ALL_KNOW_S = 0.125
TASK_DEF_VERSION = 0

CACHE_BYTES_MAX = 64 * 1024 * 1024
STORED_HASHES_MAX = 10_000
_CATCH_UP_EVERY_S = 1

Json = dict[str, Any]


class NoSuchWorkflow(NotFound):
    """No definition of that name, or none of that version (None: not even a latest one)."""

    def __init__(self, name: str, version: int | None) -> None:
        number = "null" if version is None else version
        super().__init__(f"No such workflow found by name: {name}, version: {number}")
        self.start_message = f"No such workflow defined. name={name}, version={number}"
        """How Conductor words it when the name came in the body of a start."""


class Resolved(NamedTuple):
    """What a run follows: the snapshot, and the name and version it was made of."""

    snapshot: Snapshot
    name: str
    version: int


class Changes:
    """How often definitions were changed, by whichever node: one row that counts.

    A reading counts for STANDS_MS from when it began, on a clock that also counts while the
    machine is suspended, and is shared by all who ask in that time. A change is answered later
    than that after it was counted: so who asks after a change was answered is never given what
    was read before it was counted.
    """

    def __init__(self, store: MetadataStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._reading: asyncio.Future[int] | None = None
        self._stands_until_ms = 0

    async def announce(self, at_ms: int) -> None:
        """Something was changed; every `latest` that begins after this returned knows it."""
        await self._store.put(_CHANGES, _CHANGES, 0, b"{}", at_ms=at_ms, expected_revision=None)
        await asyncio.sleep(_UNTIL_ALL_KNOW_S)

    async def latest(self) -> int:
        """A number that is another one after each change."""
        now_ms, reading = self._clock.monotonic_ms(), self._reading
        if reading is None or now_ms >= self._stands_until_ms or _has_failed(reading):
            self._stands_until_ms = now_ms + STANDS_MS
            reading = self._reading = asyncio.ensure_future(self._read())
            reading.add_done_callback(_has_failed)
        # Whoever gives up waiting must not stop the reading for the others.
        return await asyncio.shield(reading)

    async def _read(self) -> int:
        found = await self._store.get(_CHANGES, _CHANGES, 0)
        return 0 if found is None else found.revision


def _has_failed(reading: "asyncio.Future[int]") -> bool:
    return reading.done() and (reading.cancelled() or reading.exception() is not None)


class Metadata:
    """Definitions of one node.

    Snapshots are cached by (name, version asked for), up to `cache_bytes_max`; any change of any
    definition empties the cache, so a start that comes after the change was answered sees it.
    Where other nodes write to the store too, every start sees to it that nobody has.
    """

    def __init__(
        self,
        store: MetadataStore,
        clock: Clock,
        *,
        check_javascript: CheckJavascript,
        owner_email_required: bool = False,
        cache_bytes_max: int = CACHE_BYTES_MAX,
        changes: Changes | None = None,
    ) -> None:
        """`changes` None: nobody else writes to the store."""
        self._store = store
        self._shared = changes
        self._as_of: int | None = None
        """The change up to which what is cached is right."""
        self.on_change: Callable[[], Awaitable[None]] | None = None
        """Called when another node has changed definitions."""
        self._clock = clock
        self._check_javascript = check_javascript
        self._owner_email_required = owner_email_required
        self._cache_bytes_max = cache_bytes_max
        self._cache: OrderedDict[tuple[str, int | None], Resolved] = OrderedDict()
        self._cache_bytes = 0
        self._changes = 0
        self._task_defs: dict[str, Json] | None = None
        # Names whose last write failed: it may have been done all the same.
        self._doubtful: set[str] = set()
        self._loading: WeakValueDictionary[tuple[str, int | None], asyncio.Lock] = (
            WeakValueDictionary()
        )
        # Hashes that are durable; to store one again would be harmless but costs a commit.
        self._stored: OrderedDict[str, None] = OrderedDict()

    # -- workflow definitions

    async def register(self, body: Any, *, overwrite: bool = False) -> None:
        """POST /metadata/workflow. Conflict: this version stands already, and not `overwrite`."""
        definition = self._checked(body, "registerWorkflowDef.arg0")
        async with self._changing():
            await self._register(definition, overwrite)

    async def _register(self, definition: Json, overwrite: bool) -> None:
        name, version = definition["name"], definition["version"]
        standing = await self._store.get(WORKFLOW, name, version)
        if standing is not None:
            if not overwrite:
                raise _exists(name, version)
            await self._put_updated(definition)
            return
        now_ms = self._clock.now_ms()
        definition["createTime"] = now_ms
        try:
            await self._put(WORKFLOW, name, version, definition, now_ms, 0)
        except Conflict:
            # Somebody else registered it since we looked.
            if not overwrite:
                raise _exists(name, version) from None
            await self._put_updated(definition)

    async def update(self, bodies: Any) -> list[str]:
        """PUT /metadata/workflow: all bodies are checked first, then each is put in place.

        Returns the names in order. As in Conductor createTime is what the body says, else 0.
        """
        label = "updateWorkflowDef.arg0"
        violations: list[Violation] = []
        definitions: list[Json] = []
        for i, body in enumerate(_list_of(bodies, label, "WorkflowDef")):
            if body is None:
                where = f"{label}[{i}].<list element>"
                violations.append(Violation(where, "WorkflowDef cannot be null"))
                continue
            _, definition = parse_workflow_def(body, path=f"[{i}]")
            violations += self._violations(definition, f"{label}[{i}]")
            definitions.append(definition)
        _raise_if_any(violations)
        async with self._changing():
            for definition in definitions:
                await self._put_updated(definition)
        return [definition["name"] for definition in definitions]

    def validate(self, body: Any) -> None:
        """POST /metadata/workflow/validate: raises what `register` would, changes nothing."""
        self._checked(body, "validateWorkflowDef.arg0")

    async def workflow(self, name: str, version: int | None) -> bytes:
        """One definition as JSON; version None: the highest. NoSuchWorkflow."""
        found = await self._store.get(WORKFLOW, name, version)
        if found is None:
            raise NoSuchWorkflow(name, version)
        return found.body

    async def workflows(self, classifier: str = "") -> list[bytes]:
        """All versions of all definitions as JSON, by name and version.

        With `classifier` only those whose metadata has it; without one of its own a definition
        counts as "workflow".
        """
        found = await self._store.definitions(WORKFLOW, None)
        return [
            definition.body
            for definition in found
            if not classifier or _classifier_of(definition) == classifier
        ]

    async def latest_workflows(self) -> list[bytes]:
        """The highest version of each definition as JSON, by name."""
        latest = {found.name: found.body for found in await self._store.definitions(WORKFLOW, None)}
        return list(latest.values())

    async def workflow_names(self) -> list[str]:
        """Sorted, each once."""
        return sorted({key.name for key in await self._store.keys(WORKFLOW, None)})

    async def workflow_names_and_versions(self) -> dict[str, list[Json]]:
        """Name to its versions {name, version, createTime, updateTime}, ascending."""
        summaries: dict[str, list[Json]] = {}
        for found in await self._store.definitions(WORKFLOW, None):
            summaries.setdefault(found.name, []).append(_summary(found, with_update_time=True))
        return summaries

    async def workflow_versions(self, name: str) -> list[Json]:
        """[{name, version, createTime}], ascending; [] if there is none."""
        found = await self._store.definitions(WORKFLOW, name)
        return [_summary(definition, with_update_time=False) for definition in found]

    async def remove_workflow(self, name: str, version: int) -> None:
        """NotFound: there is none. Runs that were started keep their snapshot."""
        async with self._changing():
            removed = await self._store.remove(WORKFLOW, name, version)
            self._forget()
        if not removed:
            raise NotFound(f"No such workflow definition: {name} version: {version}")

    # -- task definitions

    async def register_task_defs(self, bodies: Any) -> None:
        """POST /metadata/taskdefs: all bodies are checked first, then each replaces what stood."""
        label = "registerTaskDef.arg0"
        violations: list[Violation] = []
        definitions: list[Json] = []
        for i, body in enumerate(_list_of(bodies, label, "TaskDef")):
            _, definition = parse_task_def(body, path=f"[{i}]")
            violations += self._task_def_violations(definition, f"{label}[{i}]")
            definitions.append(definition)
        _raise_if_any(violations)
        now_ms = self._clock.now_ms()
        async with self._changing():
            for definition in definitions:
                definition |= {"createTime": now_ms, "updateTime": 0, "createdBy": ""}
                definition.pop("updatedBy", None)
                name = definition["name"]
                await self._put(TASK, name, TASK_DEF_VERSION, definition, now_ms, None)

    async def update_task_def(self, body: Any) -> None:
        """PUT /metadata/taskdefs. NotFound: there is none of that name."""
        _, definition = parse_task_def(body)
        _raise_if_any(self._task_def_violations(definition, "updateTaskDef.arg0"))
        name = definition["name"]
        standing = await self._store.get(TASK, name, TASK_DEF_VERSION)
        if standing is None:
            raise NotFound(f"No such task by name {name}")
        now_ms = self._clock.now_ms()
        definition |= {
            "createTime": payloads.load(standing.body)["createTime"],
            "updateTime": now_ms,
            "createdBy": "",
            "updatedBy": "",
        }
        async with self._changing():
            await self._put(TASK, name, TASK_DEF_VERSION, definition, now_ms, None)

    async def task_def(self, name: str) -> bytes:
        """One definition as JSON. NotFound."""
        found = await self._store.get(TASK, name, TASK_DEF_VERSION)
        if found is None:
            raise NotFound(f"No such taskType found by name: {name}")
        return found.body

    async def task_defs(self) -> list[bytes]:
        """All as JSON, by name."""
        return [found.body for found in await self._store.definitions(TASK, None)]

    async def remove_task_def(self, name: str) -> None:
        """NotFound: there is none."""
        async with self._changing():
            try:
                removed = await self._store.remove(TASK, name, TASK_DEF_VERSION)
                self._remember_task_def(name, None)
            except BaseException:
                self._doubtful.add(name)
                raise
            finally:
                self._forget()
        if not removed:
            raise NotFound("No such task definition")

    async def read_task_defs(self) -> None:
        """Have all registered task definitions in memory from now on."""
        found = await self._store.definitions(TASK, None)
        self._task_defs = {one.name: payloads.load(one.body) for one in found}

    def task_defs_at_hand(self, names: tuple[str, ...]) -> dict[str, Json] | None:
        """What `registered_task_defs` would return, without a look into the store; None where only
        the store knows: before `read_task_defs`, and for names in doubt."""
        known = self._task_defs
        if known is None or not self._doubtful.isdisjoint(names):
            return None
        return {name: known[name] for name in names if name in known}

    def _remember_task_def(self, name: str, definition: Json | None) -> None:
        self._doubtful.discard(name)
        if self._task_defs is None:
            return
        if definition is None:
            self._task_defs.pop(name, None)
        else:
            self._task_defs[name] = definition

    async def registered_task_defs(self, names: Iterable[str]) -> dict[str, Json]:
        """The registered ones among `names`, parsed: what dynamic steps freeze at run time."""
        wanted = sorted(set(names))
        # No TaskGroup: what it raises is no ClusterError, and would be answered as a defect.
        found = await asyncio.gather(
            *(self._store.get(TASK, name, TASK_DEF_VERSION) for name in wanted)
        )
        return {one.name: payloads.load(one.body) for one in found if one is not None}

    # -- snapshots

    def snapshot_cached(self, name: str, version: int | None) -> Resolved | None:
        """What `snapshot` would return, if that takes no look into the store."""
        return None if self._shared is not None else self._cached((name, version))

    def _cached(self, key: tuple[str, int | None]) -> Resolved | None:
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
        return found

    async def snapshot(self, name: str, version: int | None) -> Resolved:
        """Freeze a registered definition; version None: the highest. Durable when it returns.

        NoSuchWorkflow, or NotFound: a sub-workflow step names a definition that is not there.
        """
        key = (name, version)
        if self._shared is not None:
            await self.catch_up()
            found_here = self._cached(key)
            if found_here is not None:
                return found_here
        # One at a time per definition: a crowd of starts must not read the store once each.
        lock = self._loading.setdefault(key, asyncio.Lock())
        async with lock:
            cached = self._cached(key)
            if cached is not None:
                return cached
            changes = self._changes
            found = await self._store.get(WORKFLOW, name, version)
            if found is None:
                raise NoSuchWorkflow(name, version)
            resolved = await self._frozen(payloads.load(found.body))
            # What was changed while we read may be in it or not: good enough for this start,
            # which came before the change was answered, but not for later ones.
            if changes == self._changes:
                self._remember(key, resolved)
            return resolved

    async def snapshot_inline(
        self, body: Any, *, violations_path: str | None = "startWorkflow.arg0.workflowDef"
    ) -> Resolved:
        """Freeze a definition that came with a request, or out of an expression.

        `violations_path` None: its rules are not checked, as for sub-workflows that are given at
        run time. InvalidRequest, ValidationFailed, NotFound as in `snapshot`.
        """
        _, definition = parse_workflow_def(body)
        if violations_path is not None:
            _raise_if_any(self._violations(definition, violations_path))
        return await self._frozen(definition)

    async def snapshot_body(self, snapshot_hash: str) -> bytes | None:
        """The definition that a run froze, by the hash in its header."""
        return await self._store.snapshot(bytes.fromhex(snapshot_hash))

    async def _frozen(self, definition: Json) -> Resolved:
        task_defs = await self.registered_task_defs(task_names_of(definition))
        latest: dict[str, int] = {}
        for child in unpinned_sub_workflows_of(definition):
            found = await self._store.get(WORKFLOW, child, None)
            if found is not None:
                latest[child] = found.version
        snapshot = make_snapshot(definition, task_defs, latest)
        await self.keep_snapshot(snapshot)
        return Resolved(snapshot, definition.get("name", ""), definition["version"])

    async def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Have a frozen definition in the store. Durable when it returns."""
        if snapshot.hash not in self._stored:
            await self._store.put_snapshot(bytes.fromhex(snapshot.hash), snapshot.body)
            self._stored[snapshot.hash] = None
            if len(self._stored) > STORED_HASHES_MAX:
                self._stored.popitem(last=False)

    def _remember(self, key: tuple[str, int | None], resolved: Resolved) -> None:
        self._cache[key] = resolved
        self._cache_bytes += len(resolved.snapshot.body)
        while self._cache_bytes > self._cache_bytes_max:
            _, dropped = self._cache.popitem(last=False)
            self._cache_bytes -= len(dropped.snapshot.body)

    def _forget(self) -> None:
        self._changes += 1
        self._cache.clear()
        self._cache_bytes = 0

    # -- what other nodes write

    async def catch_up(self) -> None:
        """Know of every change that was answered before this began."""
        if self._shared is None:
            return
        latest = await self._shared.latest()
        if latest != self._as_of:
            # Before anything is read again: what comes of it is as of now, or later.
            self._as_of = latest
            self._forget()
            try:
                await self.read_task_defs()
                if self.on_change is not None:
                    await self.on_change()
            except BaseException:
                self._as_of = None
                raise

    async def run(self) -> None:
        """Hear of changes within a second though nobody asks, until cancelled."""
        while self._shared is not None:
            await asyncio.sleep(_CATCH_UP_EVERY_S)
            try:
                await self.catch_up()
            except ClusterError as error:
                log.warning("changes of definitions were not read", error=error.message)

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """Around writes: the other nodes hear of them before they are answered."""
        try:
            yield
        finally:
            # Also after a fault: the write may have been done all the same.
            if self._shared is not None:
                await self._shared.announce(self._clock.now_ms())

    # -- writing

    def _checked(self, body: Any, label: str) -> Json:
        _, definition = parse_workflow_def(body)
        _raise_if_any(self._violations(definition, label))
        return definition

    def _violations(self, definition: Mapping[str, Any], path: str) -> list[Violation]:
        return check_workflow_def(
            definition,
            path=path,
            check_javascript=self._check_javascript,
            owner_email_required=self._owner_email_required,
        )

    def _task_def_violations(self, definition: Mapping[str, Any], path: str) -> list[Violation]:
        return check_task_def(
            definition, path=path, owner_email_required=self._owner_email_required
        )

    async def _put_updated(self, definition: Json) -> None:
        now_ms = self._clock.now_ms()
        definition["updateTime"] = now_ms
        name, version = definition["name"], definition["version"]
        await self._put(WORKFLOW, name, version, definition, now_ms, None)

    async def _put(
        self,
        kind: str,
        name: str,
        version: int,
        definition: Json,
        now_ms: int,
        expected_revision: int | None,
    ) -> None:
        body = payloads.dump(definition)
        try:
            await self._store.put(
                kind, name, version, body, at_ms=now_ms, expected_revision=expected_revision
            )
            if kind == TASK:
                self._remember_task_def(name, definition)
        except BaseException:
            if kind == TASK:
                self._doubtful.add(name)
            raise
        finally:
            # Also after a fault: the write may have been done all the same.
            self._forget()


def _list_of(bodies: Any, label: str, what: str) -> list[Any]:
    if not isinstance(bodies, list):
        raise InvalidRequest(f"body: expected array of {what}")
    if not bodies:
        raise ValidationFailed([Violation(label, f"{what}List is empty")])
    return bodies


def _raise_if_any(violations: list[Violation]) -> None:
    if violations:
        raise ValidationFailed(violations)


def _exists(name: str, version: int) -> Conflict:
    return Conflict(f"Workflow with {name}.{version} already exists!")


def _summary(found: Definition, *, with_update_time: bool) -> Json:
    # The times are those that the definition shows: Conductor's rules for them are its own.
    body = payloads.load(found.body)
    summary = {"name": found.name, "version": found.version, "createTime": body["createTime"]}
    if with_update_time:
        summary["updateTime"] = body["updateTime"]
    return summary


def _classifier_of(found: Definition) -> str:
    return str(payloads.load(found.body)["metadata"].get("classifier") or "workflow")
