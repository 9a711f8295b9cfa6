"""What all chaos tests have."""

import sys

import pytest

from tests.chaos.waiting import Say


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Writes a line for whoever watches, though pytest keeps the output of tests to itself."""

    def write(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    return write
