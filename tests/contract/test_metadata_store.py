"""The contract of MetadataStore."""

import pytest

from cluster.errors import Conflict
from cluster.store.ports import Definition, DefinitionKey, MetadataStore, Stores

pytestmark = pytest.mark.asyncio


@pytest.fixture
def metadata(stores: Stores) -> MetadataStore:
    return stores.metadata


async def put(
    metadata: MetadataStore,
    name: str,
    version: int,
    body: bytes = b"{}",
    *,
    at_ms: int = 1,
    kind: str = "workflow",
    expected: int | None = None,
) -> Definition:
    return await metadata.put(kind, name, version, body, at_ms=at_ms, expected_revision=expected)


async def test_a_definition_comes_back_as_written(metadata: MetadataStore) -> None:
    body = b'{"name":"orders","unknown":"\xe2\x98\x83"}'
    written = await put(metadata, "orders", 2, body, at_ms=70)
    assert written == Definition(
        kind="workflow",
        name="orders",
        version=2,
        body=body,
        revision=1,
        create_ms=70,
        update_ms=70,
    )
    assert await metadata.get("workflow", "orders", 2) == written
    assert await metadata.get("workflow", "orders", 1) is None
    assert await metadata.get("task", "orders", 2) is None


async def test_each_write_counts(metadata: MetadataStore) -> None:
    await put(metadata, "orders", 1, b"1", at_ms=10)
    second = await put(metadata, "orders", 1, b"2", at_ms=20)
    assert (second.revision, second.create_ms, second.update_ms) == (2, 10, 20)
    assert await metadata.get("workflow", "orders", 1) == second


async def test_a_write_may_expect_a_revision(metadata: MetadataStore) -> None:
    await put(metadata, "orders", 1, b"1", expected=0)
    for expected in (0, 2):
        with pytest.raises(Conflict):
            await put(metadata, "orders", 1, b"2", expected=expected)
    with pytest.raises(Conflict):
        await put(metadata, "absent", 1, b"2", expected=1)
    found = await metadata.get("workflow", "orders", 1)
    assert found is not None
    assert (found.body, found.revision) == (b"1", 1)
    await put(metadata, "orders", 1, b"2", expected=1)


async def test_without_a_version_it_is_the_highest(metadata: MetadataStore) -> None:
    for version in (2, 10, 9):
        await put(metadata, "orders", version)
    found = await metadata.get("workflow", "orders", None)
    assert found is not None
    assert found.version == 10
    assert await metadata.get("workflow", "absent", None) is None


async def test_lists_are_ordered_by_name_and_version(metadata: MetadataStore) -> None:
    for name, version in (("b", 2), ("a", 10), ("a", 9)):
        await put(metadata, name, version, b"[%d]" % version, at_ms=version)
    await put(metadata, "t", 0, kind="task")
    found = await metadata.definitions("workflow", None)
    assert [(one.name, one.version, one.body) for one in found] == [
        ("a", 9, b"[9]"),
        ("a", 10, b"[10]"),
        ("b", 2, b"[2]"),
    ]
    assert [one.version for one in await metadata.definitions("workflow", "a")] == [9, 10]
    assert list(await metadata.keys("workflow", "b")) == [
        DefinitionKey(kind="workflow", name="b", version=2, revision=1, create_ms=2, update_ms=2)
    ]
    assert [one.name for one in await metadata.keys("task", None)] == ["t"]


async def test_remove(metadata: MetadataStore) -> None:
    await put(metadata, "orders", 1)
    await put(metadata, "orders", 2)
    assert await metadata.remove("workflow", "orders", 1)
    assert not await metadata.remove("workflow", "orders", 1)
    assert not await metadata.remove("task", "orders", 2)
    assert [one.version for one in await metadata.keys("workflow", "orders")] == [2]
    assert (await put(metadata, "orders", 1, expected=0)).revision == 1


async def test_snapshots(metadata: MetadataStore) -> None:
    await metadata.put_snapshot(b"hash", b"body")
    await metadata.put_snapshot(b"hash", b"body")
    assert await metadata.snapshot(b"hash") == b"body"
    assert await metadata.snapshot(b"other") is None
