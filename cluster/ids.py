"""Workflow and task ids: a UUID that says where its workflow lives (docs/design.md section 3).

Layout, high bits first (version 8 of RFC 9562): 48 Unix milliseconds, 4 version, 12 random,
2 variant, 26 random, 16 slot, 20 task number. The task number of a workflow id is zero.
"""

from hashlib import blake2b
from typing import NewType

from cluster.clock import Random
from cluster.errors import NotFound

WorkflowId = NewType("WorkflowId", str)
TaskId = NewType("TaskId", str)
ShardId = NewType("ShardId", int)

SLOT_BITS = 16
NUMBER_BITS = 20
NUMBER_MAX = (1 << NUMBER_BITS) - 1
_NUMBER_MASK = NUMBER_MAX
_VERSION = 8 << 76
_VARIANT = 2 << 62
_MASK_26 = (1 << 26) - 1


def new_workflow_id(*, at_ms: int, slot: int, random: Random) -> WorkflowId:
    """Draw an id for a workflow that starts at `at_ms` and lives in `slot` (0…65,535)."""
    return _workflow_id(at_ms, slot, random.bits(38))


def derived_workflow_id(*, at_ms: int, slot: int, origin: str) -> WorkflowId:
    """The same id for the same (`at_ms`, `slot`, `origin`): used where the engine may not draw."""
    digest = blake2b(origin.encode(), digest_size=8).digest()
    return _workflow_id(at_ms, slot, int.from_bytes(digest, "big") >> 26)


def _workflow_id(at_ms: int, slot: int, entropy: int) -> WorkflowId:
    value = (
        (at_ms & 0xFFFF_FFFF_FFFF) << 80
        | _VERSION
        | (entropy >> 26 & 0xFFF) << 64
        | _VARIANT
        | (entropy & _MASK_26) << 36
        | slot << NUMBER_BITS
    )
    return WorkflowId(_text(value))


def task_id(workflow_id: WorkflowId, number: int) -> TaskId:
    """The id of task `number` (1…1,048,575) of a workflow."""
    # A workflow id ends in five zero digits, which are exactly the 20 bits of the number.
    return TaskId(f"{workflow_id[:31]}{number:05x}")


def workflow_of(task: str) -> WorkflowId:
    """The workflow id inside a task id, without a look-up."""
    return WorkflowId(task[:31] + "00000")


def number_of(task: str) -> int:
    """The task number inside a task id; zero for a workflow id."""
    return int(task[31:], 16)


def slot_of(workflow_or_task: str) -> int:
    """The slot (0…65,535) a workflow or task id carries."""
    return int(workflow_or_task[27:31], 16)


def same_slot(one: str, other: str) -> bool:
    """Whether two ids live together: on one shard, however many shards there are."""
    return one[27:31] == other[27:31]


def time_of(workflow_or_task: str) -> int:
    """The Unix milliseconds an id was drawn at."""
    return int(workflow_or_task[:8] + workflow_or_task[9:13], 16)


def shard_of(workflow_or_task: str, *, shard_count: int) -> ShardId:
    """The shard that owns an id; `shard_count` is a power of two up to 65,536."""
    return ShardId(slot_of(workflow_or_task) * shard_count >> SLOT_BITS)


def slot_of_key(workflow_name: str, key: str) -> int:
    """The slot of a start with an idempotency key: equal keys of a workflow meet on one shard."""
    digest = blake2b(f"{workflow_name}\0{key}".encode(), digest_size=2).digest()
    return int.from_bytes(digest, "big")


def idempotency_id(workflow_name: str, key: str) -> WorkflowId:
    """The id under which the record of an idempotency key is kept; its time is no time."""
    digest = blake2b(f"{workflow_name}\0{key}\0record".encode(), digest_size=16).digest()
    entropy = int.from_bytes(digest, "big")
    return _workflow_id(entropy >> 64, slot_of_key(workflow_name, key), entropy & (1 << 38) - 1)


def schedule_id(name: str) -> WorkflowId:
    """The id of a schedule: made of its name, with a time at which no workflow was started."""
    digest = blake2b(f"{name}\0schedule".encode(), digest_size=16).digest()
    entropy = int.from_bytes(digest, "big")
    # The first minutes of 1970: what stores keep by the time of ids lies in few places.
    at_ms = entropy >> 64 & (1 << 19) - 1
    return _workflow_id(at_ms, entropy >> 100 & (1 << SLOT_BITS) - 1, entropy & (1 << 38) - 1)


def is_schedule(workflow_or_task: str) -> bool:
    """Whether an id is that of a schedule."""
    return workflow_or_task.startswith("0000000")


def derived_text(origin: str) -> str:
    """A UUID, in text form, that is the same for the same `origin`."""
    value = int.from_bytes(blake2b(origin.encode(), digest_size=16).digest(), "big")
    value &= ~(0xF << 76 | 3 << 62)
    return _text(value | _VERSION | _VARIANT)


def parse_workflow_id(text: str) -> WorkflowId:
    """Check that `text` is a workflow id of ours; raises NotFound otherwise."""
    if not _is_ours(text) or text[31:] != "00000" or is_schedule(text):
        raise NotFound(f"No such workflow found by id: {text}")
    return WorkflowId(text.lower())


def parse_task_id(text: str) -> TaskId:
    """Check that `text` is a task id of ours; raises NotFound otherwise."""
    if not _is_ours(text) or text[31:] == "00000" or is_schedule(text):
        raise NotFound(f"Task not found for taskId: {text}")
    return TaskId(text.lower())


_HEX = frozenset("0123456789abcdefABCDEF")


def _is_ours(text: str) -> bool:
    return (
        len(text) == 36
        and text[8] == text[13] == text[18] == text[23] == "-"
        and text.count("-") == 4
        and text[14] == "8"
        and text[19] in "89abAB"
        and _HEX.issuperset(text.replace("-", ""))
    )


def to_bytes(workflow_or_task: str) -> bytes:
    """The 16 bytes of an id; they sort as its text does."""
    return bytes.fromhex(workflow_or_task.replace("-", ""))


def from_bytes(raw: bytes) -> str:
    """The text of an id's 16 bytes."""
    return _text(int.from_bytes(raw, "big"))


def _text(value: int) -> str:
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
