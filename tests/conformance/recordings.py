"""Answers of the real server kept in files: those it needs long for, and the last live ones.

recorded/<case>.json is written by `make conformance-record` only; the digest in it shows an edit.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.conformance.harness import Json

FOLDER = Path(__file__).parent / "recorded"
SERVER = "Conductor OSS"


def digest(version: str, observation: Json) -> str:
    text = json.dumps([version, observation], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write(case: str, version: str, observation: Json) -> None:
    """Keep what the real server answered."""
    content = {
        "case": case,
        "server": f"{SERVER} {version}",
        "sha256": digest(version, observation),
        "observation": observation,
    }
    (FOLDER / f"{case}.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def read(case: str) -> Json:
    """The recorded observation. AssertionError if there is none or it was edited."""
    path = FOLDER / f"{case}.json"
    assert path.exists(), f"{case} is not recorded yet: make conformance-record"
    content = json.loads(path.read_text())
    version = content["server"].removeprefix(f"{SERVER} ")
    assert content["sha256"] == digest(version, content["observation"]), (
        f"{path} was edited by hand"
    )
    return content["observation"]


def all_names() -> set[str]:
    return {path.stem for path in FOLDER.glob("*.json")}
