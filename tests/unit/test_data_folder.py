"""The data folder of a node: one process at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import Unavailable
from cluster.node.data_folder import held

HOLD = """
import sys
from pathlib import Path
from cluster.node.data_folder import held
with held(Path(sys.argv[1]), "one"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_of_the_node_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(Unavailable, match=f"running already, as process {first.pid}"),
            held(tmp_path, "one"),
        ):
            pass
        with held(tmp_path, "another"):
            pass
        first.kill()
    with held(tmp_path, "one"):
        pass
