"""What was done here with tasks of owners elsewhere: told to them behind it, many at a time."""

import asyncio
from collections import defaultdict

from cluster.clock import Clock
from cluster.engine.events import TaskHandedBack, TaskPolled
from cluster.errors import ClusterError
from cluster.ids import WorkflowId
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.node import remote
from cluster.node.elsewhere import Elsewhere
from cluster.node.remote import Here, pack
from cluster.store.lease_ports import Member

log = get_log(__name__)

Note = tuple[WorkflowId, TaskPolled | TaskHandedBack]

_NOTES_MAX = 20_000
_NOTES_PER_CALL = 500
_CALL_MS = 5_000
_PAUSE_MS, _PAUSE_MS_MAX = 10, 400


class Notes:
    """Nobody waits for these. One that gets lost costs a question: the owner asks the queue about
    a task that has been out for long."""

    def __init__(
        self,
        here: Here,
        elsewhere: Elsewhere | None,
        *,
        clock: Clock,
        metrics: Metrics,
        timeout_ms: int,
    ) -> None:
        self._here = here
        self._elsewhere = elsewhere
        self._clock = clock
        self._dropped = metrics.hand_over_notes_dropped.of()
        self._timeout_ms = timeout_ms
        self._notes: list[Note] = []
        self._news = asyncio.Event()

    def put(self, workflow_id: WorkflowId, event: TaskPolled | TaskHandedBack) -> None:
        """Have the owner told, soon."""
        if len(self._notes) < _NOTES_MAX:
            self._notes.append((workflow_id, event))
            self._news.set()
        else:
            self._dropped.inc()

    async def run(self) -> None:
        """Tell owners until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._news.wait()
                self._news.clear()
                notes, self._notes = self._notes, []
                group.create_task(self._tell(notes))

    async def _tell(self, notes: list[Note]) -> None:
        """All that gathered in a turn, in order for each owner."""
        deadline_ms = self._clock.monotonic_ms() + self._timeout_ms
        pause_ms = _PAUSE_MS
        while notes := await self._tell_once(notes):
            if self._clock.monotonic_ms() >= deadline_ms:
                self._dropped.inc(len(notes))
                log.warning("owners did not hear of hand-overs", tasks=len(notes))
                return
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, _PAUSE_MS_MAX)
            if self._elsewhere is not None:
                await self._elsewhere.refresh()

    async def _tell_once(self, notes: list[Note]) -> list[Note]:
        """Returns those that nobody took."""
        left: list[Note] = []
        members: dict[str, Member] = {}
        found: defaultdict[str, list[Note]] = defaultdict(list)
        for note in notes:
            if self._here.serves(note[0]):
                self._here.owner.note(*note)
                continue
            way = None
            if self._elsewhere is not None:
                way = self._elsewhere.way_to(self._here.shard_of(note[0]))
            if way is None:
                left.append(note)
            else:
                members[way[0].node_id] = way[0]
                found[way[0].node_id].append(note)
        batches = [
            (members[node_id], some[begin : begin + _NOTES_PER_CALL])
            for node_id, some in found.items()
            for begin in range(0, len(some), _NOTES_PER_CALL)
        ]
        for not_taken in await asyncio.gather(*(self._tell_to(*batch) for batch in batches)):
            left += not_taken
        return left

    async def _tell_to(self, member: Member, notes: list[Note]) -> list[Note]:
        assert self._elsewhere is not None
        packed = [(workflow_id, pack(event)) for workflow_id, event in notes]
        try:
            places: list[int] = await self._elsewhere.call(
                member, remote.NOTE, (packed,), timeout_ms=_CALL_MS
            )
        except ClusterError:
            return notes
        return [notes[place] for place in places]
