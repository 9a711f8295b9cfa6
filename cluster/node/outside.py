"""What effects reach for beyond the shards: scripts, definitions, starts of other workflows."""

from typing import Any, Protocol

from cluster.engine import payloads
from cluster.engine.effects import ListSchedule, StartChild, StartScheduled
from cluster.engine.events import Event
from cluster.errors import ClusterError, NotFound
from cluster.ids import WorkflowId
from cluster.node.api.bodies import StartBody, read, reader
from cluster.node.api.starts import start_request
from cluster.node.executors import scripts
from cluster.node.executors.scripts import Language, ScriptPool
from cluster.node.metadata import Metadata, NoSuchWorkflow, Resolved
from cluster.node.router import Router
from cluster.node.schedule_book import ScheduleBook
from cluster.sharding.dispatch import ScriptFailed

_START = reader(StartBody)


class Scripts(Protocol):
    """Evaluates what users wrote, within limits of time and memory."""

    async def evaluate(self, language: str, source: str, input_json: bytes) -> bytes:
        """The JSON a script comes to. ScriptFailed."""


_LANGUAGES = {
    "javascript": Language.JAVASCRIPT,
    "function": Language.FUNCTION,
    "jq": Language.JQ,
}


class PooledScripts:
    """Scripts in processes of their own, as the dispatcher wants to hear of them."""

    def __init__(self, pool: ScriptPool) -> None:
        self._pool = pool

    async def evaluate(self, language: str, source: str, input_json: bytes) -> bytes:
        try:
            return await self._pool.evaluate(_LANGUAGES[language], source, input_json)
        except scripts.ScriptFailed as failure:
            raise ScriptFailed(str(failure), timed_out=failure.timed_out) from None


class OutsideWorld:
    """The Outside of the dispatcher, on this node's own parts."""

    def __init__(
        self,
        scripts: Scripts,
        metadata: Metadata,
        router: Router,
        book: ScheduleBook,
        *,
        input_bytes_max: int,
    ) -> None:
        self._scripts = scripts
        self._metadata = metadata
        self._router = router
        self._book = book
        self._input_bytes_max = input_bytes_max

    async def evaluate(self, language: str, source: str, input_json: bytes) -> bytes:
        return await self._scripts.evaluate(language, source, input_json)

    async def definition(self, name: str, version: int | None) -> Resolved:
        try:
            return await self._metadata.snapshot(name, version)
        except NoSuchWorkflow as missing:
            # The wording of a start, which this is.
            raise NotFound(missing.start_message) from None

    async def inline_definition(self, definition: dict[str, object]) -> Resolved:
        # Given at run time: what Conductor does not check there is not checked here either.
        return await self._metadata.snapshot_inline(definition, violations_path=None)

    async def task_definitions(self, names: tuple[str, ...]) -> dict[str, Any]:
        return await self._metadata.registered_task_defs(names)

    async def launch(self, workflow_id: WorkflowId, request: dict[str, object]) -> None:
        body = read(_START, payloads.dump(request))
        start = start_request(body, input_bytes_max=self._input_bytes_max)
        try:
            await self._router.launch(workflow_id, start)
        except NoSuchWorkflow as missing:
            raise NotFound(missing.start_message) from None

    async def start_scheduled(self, start: StartScheduled) -> None:
        workflow_id = WorkflowId(start.workflow_id)
        try:
            body = read(_START, payloads.dump(start.request))
            request = start_request(body, input_bytes_max=self._input_bytes_max)
            key = request.idempotency_key
            if key is None:
                await self._router.launch(workflow_id, request)
            else:
                workflow_id = await self._router.launch_once(workflow_id, request, key)
        except NoSuchWorkflow as missing:
            await self._book.failed(start, missing.start_message)
        except ClusterError as failure:
            if failure.retryable:
                raise
            await self._book.failed(start, failure.message)
        else:
            await self._book.executed(start, workflow_id)

    async def list_schedule(self, schedule: ListSchedule) -> None:
        await self._book.show(schedule)

    async def deliver(self, workflow_id: WorkflowId, event: Event) -> None:
        await self._router.deliver(workflow_id, event)

    async def start_child(
        self, parent_id: WorkflowId, child: StartChild, *, repeated: bool
    ) -> bool:
        return await self._router.start_child(parent_id, child, repeated=repeated)
