"""One incarnation of a node after the other: begun, lost, handed over to other nodes."""

import asyncio
from collections.abc import Sequence

from cluster.clock import Random
from cluster.errors import ClusterError, Fenced
from cluster.logs import get_log
from cluster.node.incarnation import Front, Home, Incarnation
from cluster.node.poll_book import PollBook
from cluster.node.summaries import describe_replayed
from cluster.sharding.takeover import restart
from cluster.store.ports import LogId, ShardRow

log = get_log(__name__)

_LAST_WRITES_S = 30
_PAUSE_S = 1
"""Before a new log is tried again."""


class Succession:
    """Sees to it that a node has an incarnation, from its first log until it stops."""

    def __init__(
        self,
        home: Home,
        front: Front,
        poll_book: PollBook,
        *,
        is_alone: bool,
        holds_folder: bool,
        random: Random,
    ) -> None:
        """`is_alone` and `holds_folder` as in `Node`."""
        self._home = home
        self._front = front
        self._node_id = front.settings.node_id
        self._poll_book = poll_book
        self._is_alone = is_alone
        self._holds_folder = holds_folder
        self._random = random
        self._past: set[LogId] = set()
        """The logs that this process has had."""
        self.lost: Fenced | None = None
        """Why this process cannot go on."""
        self.is_closing = False
        self._draining: asyncio.Future[None] | None = None
        self._stopped = asyncio.Event()

    async def begin(self) -> Incarnation:
        """Open a log of this node's own, and take over what its earlier logs held.

        ClusterError: the stores do not let it.
        """
        own = LogId(f"{self._node_id}/{self._random.bits(64):016x}")
        rows = await restart(
            self._front.stores,
            own,
            is_predecessor=self._is_predecessor,
            takes_unowned=self._is_alone,
            describe=describe_replayed,
            clock=self._front.clock,
        )
        incarnation = Incarnation(own, self._front, on_lost=self._lose)
        incarnation.serve(rows)
        if self.is_closing:
            incarnation.controller.drain()
        self._past.add(own)
        self._home.incarnation = incarnation
        return incarnation

    async def live(self, incarnation: Incarnation) -> None:
        """Be one incarnation after the other; alone, the first one that is lost is the last."""
        while True:
            await incarnation.run()
            if self._is_alone:
                # Somebody wrote here in spite of the lock: there is nothing to go on with.
                self.lost = incarnation.lost
                self._stopped.set()
                return
            incarnation = await self._begin_again()

    async def until(self, stop: asyncio.Event) -> None:
        """Wait for `stop`. Fenced: the log was lost, this process may not go on."""
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, self._stopped)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.lost is not None:
            raise self.lost

    def hear_of(self, rows: Sequence[ShardRow]) -> None:
        """Another node tells of shards that have another owner now."""
        incarnation = self._home.incarnation
        if incarnation is not None:
            incarnation.controller.hear_of(rows)

    async def hand_over(self) -> None:
        """Answer polls with nothing; in a cluster, have the other nodes take the shards, while
        this one answers still."""
        self.is_closing = True
        self._front.desk.close()
        incarnation = self._home.incarnation
        if self._is_alone or incarnation is None:
            return
        await self._front.presence.beat()
        # The others look for released shards often once they have heard of it.
        await asyncio.sleep(self._front.settings.heartbeat_ms / 1000)
        incarnation.controller.drain()
        try:
            async with asyncio.timeout(self._front.settings.drain_timeout_ms / 1000):
                await incarnation.until_empty()
        except TimeoutError:
            log.warning("not all shards were handed over, the others take them over")

    async def drain(self) -> None:
        """Begin to hand the shards over; the process stays, and takes no new ones."""
        if not self.is_closing:
            self.is_closing = True
            self._draining = asyncio.ensure_future(self.hand_over())

    async def finish(self) -> None:
        """Write down what is committed."""
        incarnation = self._home.incarnation
        if self.lost is not None or incarnation is None:
            return
        try:
            async with asyncio.timeout(_LAST_WRITES_S):
                await incarnation.finish()
                await self._poll_book.save()
                if not self._is_alone:
                    await self._leave(incarnation)
        except (ClusterError, TimeoutError) as error:
            # All of it is in the log: the next process replays it.
            log.warning("stopped before the last checkpoint was written", error=str(error))

    async def _leave(self, incarnation: Incarnation) -> None:
        """Take this node's log and name out of the cluster, as far as nothing needs them."""
        await self._front.presence.leave()
        await self._front.leases.drop(incarnation.own)
        logs = self._front.stores.logs
        # Sealed, it is up for claim at once: what could not be handed over waits for no lease.
        await logs.seal(incarnation.own)
        if incarnation.controller.is_empty.is_set():
            await logs.delete(incarnation.own)

    def _is_predecessor(self, earlier: LogId) -> bool:
        """Whether nobody writes that log any more: this process did, or none but this one can."""
        if self._is_alone or earlier in self._past:
            return True
        # Only when the process begins: two that are called the same by mistake would go on
        # sealing each other's logs for ever.
        is_first = not self._past
        return is_first and self._holds_folder and earlier.startswith(f"{self._node_id}/")

    async def _begin_again(self) -> Incarnation:
        while True:
            try:
                return await self.begin()
            except ClusterError as failure:
                log.warning("no new log can be opened yet", error=failure.message)
                await asyncio.sleep(_PAUSE_S)

    def _lose(self, lost: Fenced) -> None:
        log.error("the commit log is lost", error=lost.message)
        self._front.metrics.lease_lost.of().inc()
        self._home.incarnation = None
