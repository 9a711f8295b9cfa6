"""KAFKA_PUBLISH: one message to a topic of a Kafka cluster."""

import asyncio
from collections import OrderedDict
from typing import Any

from cluster.engine import payloads
from cluster.engine.text import to_text
from cluster.system_tasks import Done, SystemTask, Work, WorkFailed

_MISSING = "Missing Kafka {}. See documentation for KafkaTask for required input parameters"
_MISSING_REQUEST = (
    "Missing Kafka request. Task input MUST have a 'kafka_request' key with KafkaTask.Input as "
    "value. See documentation for KafkaTask for required input parameters"
)
_PRODUCERS_MAX = 20
_TIMEOUT_MS = 5_000
_LONG = "org.apache.kafka.common.serialization.LongSerializer"
_INTEGER = "org.apache.kafka.common.serialization.IntegerSerializer"


class KafkaTask(SystemTask):
    """Conductor's KAFKA_PUBLISH, by aiokafka; a producer for each list of servers is kept."""

    def __init__(self) -> None:
        self._producers: OrderedDict[str, Any] = OrderedDict()
        self._starting: dict[str, asyncio.Lock] = {}

    async def close(self) -> None:
        for producer in self._producers.values():
            await producer.stop()

    async def execute(self, work: Work) -> Done:
        try:
            from aiokafka.errors import KafkaError
        except ImportError:
            reason = "KAFKA_PUBLISH needs its driver: pip install 'podium-cluster[kafka]'"
            raise WorkFailed(reason) from None
        request = work.input_data.get("kafka_request")
        if not isinstance(request, dict):
            raise WorkFailed(_MISSING_REQUEST)
        servers = to_text(request.get("bootStrapServers") or "").strip()
        topic = to_text(request.get("topic") or "").strip()
        if not servers:
            raise WorkFailed("No boot strap servers specified")
        if not topic:
            raise WorkFailed(_MISSING.format("topic"))
        if request.get("value") is None:
            raise WorkFailed(_MISSING.format("value"))
        headers = {"Idempotency-Key": work.task_id, **(request.get("headers") or {})}
        limit_ms = _number(request, "requestTimeoutMs") + _number(request, "maxBlockMs")
        try:
            async with asyncio.timeout(limit_ms / 1000):
                producer = await self._producer(servers)
                sent = await producer.send_and_wait(
                    topic,
                    payloads.dump(request["value"]),
                    key=_key(request),
                    headers=[(name, to_text(text).encode()) for name, text in headers.items()],
                )
        except (KafkaError, OSError, ValueError) as failure:
            # TimeoutError is an OSError.
            text = str(failure) or f"no answer within {limit_ms} ms"
            raise WorkFailed(f"Failed to invoke kafka task due to: {text}") from failure
        return Done({"topic": sent.topic, "partition": sent.partition, "offset": sent.offset})

    async def _producer(self, servers: str) -> Any:
        """The one for these servers; tasks that come while it begins wait for it."""
        from aiokafka import AIOKafkaProducer

        lock = self._starting.setdefault(servers, asyncio.Lock())
        async with lock:
            producer = self._producers.get(servers)
            if producer is None:
                producer = AIOKafkaProducer(
                    bootstrap_servers=[server.strip() for server in servers.split(",")],
                    acks="all",
                    enable_idempotence=True,
                )
                try:
                    await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producers[servers] = producer
            self._producers.move_to_end(servers)
        while len(self._producers) > _PRODUCERS_MAX:
            dropped, producer_of_old = self._producers.popitem(last=False)
            self._starting.pop(dropped, None)
            await producer_of_old.stop()
        return producer


def _key(request: dict[str, Any]) -> bytes | None:
    """None: the message goes to any partition."""
    key = request.get("key")
    if key is None:
        return None
    try:
        match request.get("keySerializer"):
            case serializer if serializer == _LONG:
                return int(key).to_bytes(8, "big", signed=True)
            case serializer if serializer == _INTEGER:
                return int(key).to_bytes(4, "big", signed=True)
    except (TypeError, ValueError, OverflowError) as fault:
        raise WorkFailed(f"Failed to invoke kafka task due to: {fault}") from None
    return to_text(key).encode()


def _number(request: dict[str, Any], name: str) -> int:
    value = request.get(name)
    try:
        return _TIMEOUT_MS if value is None else max(1, int(value))
    except (TypeError, ValueError):
        raise WorkFailed(f"kafka_request.{name} must be a number") from None
