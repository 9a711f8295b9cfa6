"""One control operation on up to 1,000 workflows: always 200, with what failed and why."""

import asyncio
from collections.abc import Awaitable, Callable

from cluster.engine.events import Paused, Resumed, Terminated
from cluster.errors import ClusterError, Conflict, Violation
from cluster.ids import WorkflowId, parse_workflow_id
from cluster.node import wire
from cluster.node.api.bodies import invalid, read, reader
from cluster.node.api.services import Services
from cluster.node.middleware import Answer, Call, Route

IDS_MAX = 1000
_IDS = reader(list[str])

Operation = Callable[[WorkflowId], Awaitable[str | None]]
"""Does its work; returns what went wrong on the way although it succeeded."""


def routes(services: Services) -> list[Route]:
    api = BulkApi(services)
    base = "/api/workflow/bulk"
    return [
        Route("PUT", f"{base}/pause", api.pause),
        Route("PUT", f"{base}/resume", api.resume),
        Route("POST", f"{base}/restart", api.restart),
        Route("POST", f"{base}/retry", api.retry),
        Route("POST", f"{base}/terminate", api.terminate),
        Route("DELETE", f"{base}/remove", api.remove),
        Route("DELETE", f"{base}/terminate-remove", api.terminate_and_remove),
    ]


class BulkApi:
    def __init__(self, services: Services) -> None:
        self._router = services.router
        self._clock = services.clock

    async def pause(self, call: Call) -> Answer:
        async def operate(workflow_id: WorkflowId) -> str | None:
            await self._router.submit(workflow_id, Paused(self._clock.now_ms()))
            return None

        return await self._for_each(call, "pauseWorkflow", operate)

    async def resume(self, call: Call) -> Answer:
        async def operate(workflow_id: WorkflowId) -> str | None:
            await self._router.submit(workflow_id, Resumed(self._clock.now_ms()))
            return None

        return await self._for_each(call, "resumeWorkflow", operate)

    async def restart(self, call: Call) -> Answer:
        use_latest = call.flag("useLatestDefinitions", default=False)

        async def operate(workflow_id: WorkflowId) -> str | None:
            await self._router.restart(workflow_id, use_latest)
            return None

        return await self._for_each(call, "restart", operate)

    async def retry(self, call: Call) -> Answer:
        async def operate(workflow_id: WorkflowId) -> str | None:
            await self._router.retry(workflow_id, resume_sub_workflows=False)
            return None

        return await self._for_each(call, "retry", operate)

    async def terminate(self, call: Call) -> Answer:
        reason = call.text("reason") or ""

        async def operate(workflow_id: WorkflowId) -> str | None:
            await self._router.submit(workflow_id, Terminated(self._clock.now_ms(), reason))
            return None

        return await self._for_each(call, "terminate", operate)

    async def remove(self, call: Call) -> Answer:
        archive = call.flag("archiveWorkflow", default=True)

        async def operate(workflow_id: WorkflowId) -> str | None:
            await self._router.remove(workflow_id, archive)
            return None

        return await self._for_each(call, "deleteWorkflow", operate)

    async def terminate_and_remove(self, call: Call) -> Answer:
        reason = call.text("reason") or ""
        archive = call.flag("archiveWorkflow", default=True)

        async def operate(workflow_id: WorkflowId) -> str | None:
            went_wrong = None
            try:
                await self._router.submit(workflow_id, Terminated(self._clock.now_ms(), reason))
            except Conflict as error:
                # One that completed is removed all the same, and told as both.
                went_wrong = error.message
            await self._router.remove(workflow_id, archive)
            return went_wrong

        return await self._for_each(call, "terminateRemove", operate)

    async def _for_each(self, call: Call, method: str, operate: Operation) -> Answer:
        """Run `operate` on every id at once: what they change shares few commits."""
        ids = checked_ids(read(_IDS, call.body), method)
        errors: dict[str, str] = {}
        failed: set[str] = set()

        async def attempt(text: str) -> None:
            try:
                went_wrong = await operate(parse_workflow_id(text))
            except ClusterError as error:
                went_wrong = error.message
                failed.add(text)
            if went_wrong is not None:
                errors[text] = went_wrong

        await asyncio.gather(*map(attempt, ids))
        return Answer(wire.bulk_json([text for text in ids if text not in failed], errors))


def checked_ids(ids: list[str], method: str) -> list[str]:
    """Every id once; raises ValidationFailed for none and for too many."""
    if not ids:
        raise invalid(Violation(f"{method}.arg0", "WorkflowIds list cannot be null."))
    if len(ids) > IDS_MAX:
        text = f"Cannot process more than {IDS_MAX} workflows. Please use multiple requests."
        raise invalid(Violation(f"{method}.arg0", text))
    return list(dict.fromkeys(ids))
