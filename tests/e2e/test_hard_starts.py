"""Idempotency keys: one workflow per key, whoever asks, how often, and what dies in between."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.client import Client, connected, simple
from tests.support.served import Server, serving

pytestmark = pytest.mark.asyncio


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("starts")) as running:
        yield running
        assert [line for line in running.log if "Traceback" in line or '"error"' in line] == []


@pytest_asyncio.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connected(server.url) as client:
        await client.register("once", simple("a", "once"))
        yield client


async def start(
    client: Client, key: str, strategy: str | None = None, *, name: str = "once"
) -> tuple[int, str]:
    """Status, and the workflow id or the message."""
    request = {"name": name, "idempotencyKey": key, "idempotencyStrategy": strategy}
    given = {field: value for field, value in request.items() if value is not None}
    status, answer = await client.call("POST", "/workflow", given)
    return status, answer if status == 200 else answer["message"]


async def test_return_existing_answers_with_the_first(client: Client) -> None:
    first = await start(client, "a-1")
    assert first[0] == 200
    assert await start(client, "a-1") == first
    assert await start(client, "a-1", "RETURN_EXISTING") == first
    await client.ok("DELETE", f"/workflow/{first[1]}")
    assert await start(client, "a-1") == first, "also when it has ended"
    assert await start(client, "a-2") != first


async def test_fail_refuses_every_further_start(client: Client) -> None:
    status, workflow_id = await start(client, "b-1", "FAIL")
    assert status == 200
    status, message = await start(client, "b-1", "FAIL")
    assert (status, workflow_id in message) == (409, True)
    await client.ok("DELETE", f"/workflow/{workflow_id}")
    assert (await start(client, "b-1", "FAIL"))[0] == 409


async def test_fail_on_running_starts_anew_when_it_has_ended(client: Client) -> None:
    status, first = await start(client, "c-1", "FAIL_ON_RUNNING")
    assert status == 200
    assert (await start(client, "c-1", "FAIL_ON_RUNNING"))[0] == 409
    await client.ok("DELETE", f"/workflow/{first}")
    status, second = await start(client, "c-1", "FAIL_ON_RUNNING")
    assert status == 200
    assert second != first
    assert (await start(client, "c-1", "FAIL_ON_RUNNING"))[0] == 409


async def test_a_key_belongs_to_the_name_of_its_workflow(client: Client) -> None:
    await client.register("once_too", simple("a", "once"))
    one, other = await start(client, "d-1"), await start(client, "d-1", name="once_too")
    assert (one[0], other[0]) == (200, 200)
    assert one[1] != other[1]


async def test_a_refused_start_leaves_its_key_free(client: Client) -> None:
    assert (await start(client, "e-1", name="never_registered"))[0] == 404
    await client.register("never_registered", simple("a", "once"))
    assert (await start(client, "e-1", name="never_registered"))[0] == 200


async def test_a_removed_workflow_frees_its_key(client: Client) -> None:
    _, first = await start(client, "f-1")
    await client.ok("DELETE", f"/workflow/{first}")
    await client.ok("DELETE", f"/workflow/{first}/remove", archiveWorkflow="false")
    status, second = await start(client, "f-1", "FAIL")
    assert status == 200
    assert second != first


async def test_starts_at_once_with_one_key_give_one_workflow(client: Client) -> None:
    await client.register("crowd", simple("a", "crowd"))
    for key in range(20):
        answers = await asyncio.gather(
            *(start(client, f"crowd-{key}", name="crowd") for _ in range(20))
        )
        assert {status for status, _ in answers} == {200}
        assert len({workflow_id for _, workflow_id in answers}) == 1
    assert len(await client.ok("GET", "/workflow/running/crowd")) == 20
    answers = await asyncio.gather(
        *(start(client, "crowd-fail", "FAIL", name="crowd") for _ in range(20))
    )
    assert sorted(status for status, _ in answers) == [200] + [409] * 19


@pytest.mark.parametrize("flushed", [False, True], ids=["in the log", "in the store"])
async def test_keys_survive_a_kill(tmp_path: Path, flushed: bool) -> None:
    server = Server(tmp_path)
    try:
        async with connected(server.url) as client:
            await client.register("once", simple("a", "once"))
            keys = [f"k-{n}" for n in range(50)]
            first = await asyncio.gather(*(start(client, key) for key in keys))
            if flushed:
                # What is listed has been written back; keys are, with their workflows.
                assert len(await client.ok("GET", "/workflow/running/once")) == 50
    finally:
        server.stop(kill=True)
    with serving(tmp_path) as again:
        async with connected(again.url) as client:
            assert await asyncio.gather(*(start(client, key) for key in keys)) == first
            status, _ = await start(client, keys[0], "FAIL")
            assert status == 409
            assert len(await client.ok("GET", "/workflow/running/once")) == 50
