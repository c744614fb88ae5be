"""What CRIU cannot move is refused with one sentence, before anything is frozen."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from harness.migrate import CAP_SYS_RESOURCE, has_capability

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Timeshim

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root moves tasks")

IO_URING = """
import ctypes, time
assert ctypes.CDLL(None).syscall(425, 1, ctypes.create_string_buffer(120)) > 0  # io_uring_setup
time.sleep(60)
"""
SETPRIV = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sleep", "60")


def refusal(
    timeshim: Timeshim, name: str, *command: str, host: str = "false", awaited: str = "CRIU"
) -> str:
    """Launch a task, try to move it, and return what is said."""
    name = f"{name}-{os.getpid()}"
    timeshim.output("run", "--detach", "--name", name, "--", *command)
    deadline = time.monotonic() + 10
    while True:
        done = timeshim("migrate", name, host)
        if awaited in done.stderr or time.monotonic() > deadline:  # else it has not got that far
            return str(done.stderr)
        time.sleep(0.1)


def test_io_uring(timeshim: Timeshim) -> None:
    said = refusal(timeshim, "ring", "/usr/bin/python3", "-c", IO_URING)
    assert "python3 uses io_uring, which CRIU cannot move" in said


@pytest.mark.skipif(has_capability(CAP_SYS_RESOURCE), reason="here root may")
def test_another_users_process(timeshim: Timeshim) -> None:
    said = refusal(timeshim, "nobody", *SETPRIV)
    assert "sleep runs as user 65534" in said
    assert "CAP_SYS_RESOURCE" in said


LOCKED = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["lockf", "flock"])
def test_a_file_that_is_locked_here_and_there(timeshim: Timeshim, tmp_path: Path, how: str) -> None:
    """CRIU would wait for ever for the copy at the source, frozen, to let go."""
    file = tmp_path / "locked"
    command = ("/usr/bin/python3", "-c", LOCKED, str(file), how)
    said = refusal(timeshim, how, *command, host="", awaited="locked")
    assert f"the task has locked {file}, which is the same file here" in said
    assert said.count("\n") == 1
