"""CHECKSUM: an example of a system task (docs/system-tasks.md).

Input `text`, and `algorithm` (sha256 if it is missing); output `checksum`.
"""

import asyncio
import hashlib

from cluster.system_tasks import Done, SystemTask, Work, WorkFailed


class ChecksumTask(SystemTask):
    async def execute(self, work: Work) -> Done:
        text = work.input_data.get("text")
        if not isinstance(text, str):
            # The same input would fail again: no retries.
            raise WorkFailed("text is missing", is_final=True)
        algorithm = work.input_data.get("algorithm") or "sha256"
        if algorithm not in hashlib.algorithms_guaranteed:
            raise WorkFailed(f"there is no algorithm {algorithm}", is_final=True)
        # What takes the processor does not belong into the event loop.
        digest = await asyncio.to_thread(_checksum, algorithm, text.encode())
        return Done({"checksum": digest})


def _checksum(algorithm: str, data: bytes) -> str:
    made = hashlib.new(algorithm, data)
    return made.hexdigest(32) if algorithm.startswith("shake") else made.hexdigest()
