"""The data folder of a node of a cluster: held by one process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import Unavailable


@contextmanager
def held(folder: Path, node_id: str) -> Iterator[None]:
    """Hold the folder for this node; the lock goes with the process, however that ends.

    Whoever holds it knows that no earlier process of the same node writes any more, if that used
    the same folder. Unavailable: such a process is still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{node_id}.lock"
    # A record lock, not flock: a forked child that outlives us must not go on holding it.
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(file, 20).decode().strip()
            raise Unavailable(
                f"node {node_id} is running already, as process {holder}, with the data folder "
                f"{folder}: stop it first, or choose another node_id"
            ) from None
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(file)
