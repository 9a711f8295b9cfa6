"""Users' JSON as the engine keeps it."""

import tracemalloc

import pytest

from cluster.engine import payloads


@pytest.mark.parametrize("value", [{"n": 1}, {"text": "x" * 5_000}, [1 << 70], None])
def test_what_is_kept_takes_its_length(value: object) -> None:
    """A million open workflows keep their payloads, not the buffers of an encoder."""
    kept = payloads.dump(value)
    tracemalloc.start()
    try:
        many = [payloads.dump(value) for _ in range(100)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < len(many) * (len(kept) + 100)
