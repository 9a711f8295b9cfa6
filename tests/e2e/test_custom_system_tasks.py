"""The example package in a served node, as pip would have installed it."""

import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.served import PODIUM, Server, serving

EXAMPLE = Path(__file__).parents[2] / "examples" / "system_task"

Json = dict[str, Any]


def installed(folder: Path, **entries: str) -> dict[str, str]:
    """An environment in which a package with these entry points is installed."""
    info = folder / "podium_example_checksum-1.0.dist-info"
    info.mkdir()
    metadata = "Metadata-Version: 2.1\nName: podium-example-checksum\nVersion: 1.0\n"
    (info / "METADATA").write_text(metadata)
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[podium.system_tasks]", *lines, ""]))
    shutil.copy(EXAMPLE / "checksum_task.py", folder)
    before = os.environ.get("PYTHONPATH")
    path = str(folder) if before is None else f"{folder}{os.pathsep}{before}"
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    entries = project["entry-points"]["podium.system_tasks"]
    env = installed(tmp_path_factory.mktemp("packages"), **entries)
    with serving(tmp_path_factory.mktemp("data"), env=env) as server:
        yield server


def checksum(server: Server, **value: Any) -> Json:
    step = {
        "name": "sum",
        "taskReferenceName": "sum",
        "type": "CHECKSUM",
        "inputParameters": value,
    }
    return server.carry_out(step)


def test_the_example_does_its_work(server: Server) -> None:
    task = checksum(server, text="abc", algorithm="md5")
    assert task["status"] == "COMPLETED"
    assert task["outputData"] == {"checksum": "900150983cd24fb0d6963f7d28e17f72"}


def test_and_says_what_it_cannot_do(server: Server) -> None:
    task = checksum(server, text=3)
    assert task["status"] == "FAILED_WITH_TERMINAL_ERROR"
    assert task["reasonForIncompletion"] == "text is missing"


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("CHECKSUM", "checksum_task:NoSuchTask", "cannot be loaded"),
        ("CHECKSUM", "checksum_task:Done", "makes no SystemTask"),
        ("SWITCH", "checksum_task:ChecksumTask", "there is a task type of that name"),
    ],
)
def test_a_node_does_not_begin_with_a_broken_package(
    tmp_path: Path, name: str, value: str, fault: str
) -> None:
    env = installed(tmp_path, **{name: value})
    command = [str(PODIUM), "serve", "--port", "0", "--data", str(tmp_path / "data")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert f"the system task {name} of podium-example-checksum" in done.stderr
    assert fault in done.stderr
    assert "Traceback" not in done.stderr
