"""Compiled definitions of one node, by the hash of their snapshot, within a byte limit."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable

from cluster.engine.definitions import Snapshot
from cluster.engine.plan import Plan
from cluster.errors import StoreFault


class Plans:
    """Executions hold on to their plan, so one that leaves the cache lives as long as they do."""

    def __init__(
        self,
        snapshot_body: Callable[[str], Awaitable[bytes | None]],
        *,
        bytes_max: int = 256 << 20,
    ) -> None:
        self._snapshot_body = snapshot_body
        self._bytes_max = bytes_max
        self._bytes = 0
        self._plans: OrderedDict[str, Plan] = OrderedDict()

    def get(self, snapshot_hash: str) -> Plan | None:
        """The plan, if it is at hand."""
        plan = self._plans.get(snapshot_hash)
        if plan is not None:
            self._plans.move_to_end(snapshot_hash)
        return plan

    def of(self, snapshot: Snapshot) -> Plan:
        """The plan of a snapshot, compiled on the spot if need be."""
        return self.get(snapshot.hash) or self._keep(Plan(snapshot.hash, snapshot.body))

    async def load(self, snapshot_hash: str) -> Plan:
        """The plan of a stored snapshot; read once however many ask.

        StoreFault: the snapshot that an execution names is not there.
        """
        plan = self.get(snapshot_hash)
        if plan is not None:
            return plan
        body = await self._snapshot_body(snapshot_hash)
        if body is None:
            raise StoreFault(f"the definition {snapshot_hash} of a workflow is missing")
        return self.get(snapshot_hash) or self._keep(Plan(snapshot_hash, body))

    def _keep(self, plan: Plan) -> Plan:
        self._plans[plan.hash] = plan
        self._bytes += plan.size_bytes
        while self._bytes > self._bytes_max and len(self._plans) > 1:
            _, dropped = self._plans.popitem(last=False)
            self._bytes -= dropped.size_bytes
        return plan
