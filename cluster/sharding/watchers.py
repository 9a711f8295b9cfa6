"""Those who wait for the next change of a workflow."""

import asyncio

from cluster.ids import WorkflowId


class Watchers:
    """Woken by the commit of a change, which says nothing of what it was."""

    def __init__(self) -> None:
        self.watched: dict[str, list[asyncio.Future[None]]] = {}
        """Workflows that somebody waits for."""

    async def change(self, workflow_id: WorkflowId, timeout_ms: int) -> None:
        """Wait for the next change, or until the time is up."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.watched.setdefault(workflow_id, []).append(waiter)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await waiter
        except TimeoutError:
            pass
        finally:
            waiters = self.watched.get(workflow_id)
            if waiters is not None and waiter in waiters:
                waiters.remove(waiter)
                if not waiters:
                    del self.watched[workflow_id]

    def changed(self, workflow_id: WorkflowId) -> None:
        """A change of this workflow has been committed: whoever waits for it looks again."""
        for waiter in self.watched.pop(workflow_id, ()):
            if not waiter.done():
                waiter.set_result(None)
