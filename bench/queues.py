"""CPU of the task queues on a real Redis: what a task costs from its push to its acknowledgement.

    python -m bench.queues [--kind standalone|cluster] [--seconds 3]

Starts servers of its own. Microseconds are CPU of this process and of the servers per task, so a
busy machine does not change them much. `apart`: pushes, pops and acknowledgements are calls of
their own; `together`: what many owners and polls ask for in a turn travels in one call, as in a
node under load.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from cluster.clock import SystemClock, SystemRandom
from cluster.ids import TaskId, new_workflow_id, task_id
from cluster.store.queue_ports import QueueItem
from cluster.store.redis import RedisStores, open_redis
from ops.redis_up import Servers

CLOCK, RANDOM = SystemClock(), SystemRandom()
PAYLOAD = b'{"taskType":"mail","inputData":{"text":"' + b"x" * 250 + b'"}'
TYPES = 4


def items(count: int) -> list[QueueItem]:
    now_ms = CLOCK.now_ms()
    return [
        QueueItem(
            task_id(new_workflow_id(at_ms=now_ms, slot=RANDOM.bits(16), random=RANDOM), 1),
            1,
            0,
            now_ms,
            PAYLOAD,
            "6f1c5b7a9d/mail",
        )
        for _ in range(count)
    ]


async def apart(stores: RedisStores, size: int, tasks: list[QueueItem]) -> int:
    queues = stores.queues
    await queues.push({"mail": tasks}, now_ms=CLOCK.now_ms())
    popped = await queues.pop("mail", count=size, now_ms=CLOCK.now_ms())
    await queues.acknowledge({"mail": [one.task_id for one in popped.items]})
    return len(popped.items)


async def together(stores: RedisStores, size: int, tasks: list[QueueItem]) -> int:
    """Each of `size` tasks is pushed, popped and acknowledged by calls of its own."""
    queues = stores.queues
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        queue = f"mail{number % TYPES}"
        await queues.push({queue: [tasks[number]]}, now_ms=CLOCK.now_ms())
        popped = await queues.pop(queue, count=1, now_ms=CLOCK.now_ms())
        ids: list[TaskId] = [item.task_id for item in popped.items]
        await queues.acknowledge({queue: ids})
        done += len(ids)

    await asyncio.gather(*(one(number) for number in range(size)))
    return done


Round = Callable[[RedisStores, int, list[QueueItem]], Awaitable[int]]


async def measure(
    servers: Servers, stores: RedisStores, work: Round, size: int, seconds: float
) -> str:
    await work(stores, size, items(size))
    made = [items(size) for _ in range(64)]
    count = rounds = 0
    own, theirs, began = time.process_time(), server_cpu_s(servers), time.monotonic()
    made_s = 0.0
    while time.monotonic() - began < seconds:
        if not made:
            before = time.process_time()
            made = [items(size) for _ in range(64)]
            made_s += time.process_time() - before
        count += await work(stores, size, made.pop())
        rounds += 1
    took = time.monotonic() - began
    own, theirs = time.process_time() - own - made_s, server_cpu_s(servers) - theirs
    return (
        f"| {servers.kind} | {work.__name__} | {size} | {count / took:,.0f} "
        f"| {own / count * 1e6:.1f} | {theirs / count * 1e6:.1f} | {took / rounds * 1e3:.2f} |"
    )


def server_cpu_s(servers: Servers) -> float:
    """CPU of all server processes so far."""
    total = 0
    for server in servers.data:
        fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / 100


async def main(kind: str, seconds: float) -> None:
    servers = Servers(kind, Path(tempfile.mkdtemp()), die_with_starter=True)
    servers.start()
    try:
        async with open_redis(servers.url, shard_count=0, clock=CLOCK, random=RANDOM) as stores:
            print("| Redis | calls | tasks a turn | tasks/s | client µs | server µs | turn ms |")
            print("|---|---|---|---|---|---|---|")
            for work in (apart, together):
                for size in (1, 10, 100, 500):
                    print(await measure(servers, stores, work, size, seconds), flush=True)
    finally:
        servers.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["standalone", "cluster"], default="standalone")
    parser.add_argument("--seconds", type=float, default=3)
    asked = parser.parse_args()
    uvloop.run(main(asked.kind, asked.seconds))
