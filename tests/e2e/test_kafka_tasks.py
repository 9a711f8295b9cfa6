"""KAFKA_PUBLISH tasks against a real Kafka."""

import asyncio
import atexit
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from ops.kafka_up import Broker
from tests.support.served import Server, serving

Json = dict[str, Any]

LONG = "org.apache.kafka.common.serialization.LongSerializer"
INTEGER = "org.apache.kafka.common.serialization.IntegerSerializer"


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    made = Broker(Path(tempfile.mkdtemp(prefix="podium-kafka-")))
    atexit.register(made.stop)
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data"), env=dict(os.environ)) as server:
        yield server


def publish(server: Server, request: Json | None) -> Json:
    """The task of a workflow of one step, when that has ended."""
    step = {
        "name": "publish",
        "taskReferenceName": "publish",
        "type": "KAFKA_PUBLISH",
        "inputParameters": {"kafka_request": request},
    }
    return server.carry_out(step, patience_s=120)


def message(broker: Broker, task: Json) -> Any:
    """What stands where a task says that it has published."""
    assert task["status"] == "COMPLETED", task.get("reasonForIncompletion")
    output = task["outputData"]

    async def read() -> Any:
        consumer = AIOKafkaConsumer(bootstrap_servers=broker.address)
        await consumer.start()
        try:
            place = TopicPartition(output["topic"], output["partition"])
            consumer.assign([place])
            consumer.seek(place, output["offset"])
            async with asyncio.timeout(60):
                return await consumer.getone(place)
        finally:
            await consumer.stop()

    return asyncio.run(read())


def request_to(broker: Broker, **fields: Any) -> Json:
    return {
        "bootStrapServers": broker.address,
        "topic": "news",
        "value": {"n": 1},
        "requestTimeoutMs": 60_000,
        **fields,
    }


def test_a_value_is_published_as_json(server: Server, broker: Broker) -> None:
    task = publish(server, request_to(broker, key="k", headers={"a": 1}))
    got = message(broker, task)
    assert (got.key, got.value) == (b"k", b'{"n":1}')
    headers = [("Idempotency-Key", task["taskId"].encode()), ("a", b"1")]
    assert list(got.headers) == headers


@pytest.mark.parametrize(
    ("fields", "key", "value"),
    [
        ({"value": "text"}, None, b'"text"'),
        ({"key": 7, "keySerializer": LONG}, b"\0\0\0\0\0\0\0\7", b'{"n":1}'),
        ({"key": "-1", "keySerializer": INTEGER}, b"\xff\xff\xff\xff", b'{"n":1}'),
    ],
)
def test_keys_and_values(
    server: Server, broker: Broker, fields: Json, key: bytes | None, value: bytes
) -> None:
    got = message(broker, publish(server, request_to(broker, **fields)))
    assert (got.key, got.value) == (key, value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"bootStrapServers": " "}, "No boot strap servers specified"),
        ({"topic": None}, "Missing Kafka topic."),
        ({"value": None}, "Missing Kafka value."),
        ({"key": "x", "keySerializer": LONG}, "Failed to invoke kafka task due to: "),
        (
            {"bootStrapServers": "127.0.0.1:1", "requestTimeoutMs": 300, "maxBlockMs": 300},
            "Failed to invoke kafka task due to: ",
        ),
    ],
)
def test_what_cannot_be_published_fails(
    server: Server, broker: Broker, fields: Json, reason: str
) -> None:
    task = publish(server, request_to(broker, **fields))
    assert task["status"] == "FAILED"
    assert task["reasonForIncompletion"].startswith(reason)
