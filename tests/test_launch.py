"""Starting a supervisor on a machine that is too busy to do it in the usual order."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Timeshim

# The process that starts the supervisor, and would say which pid it has, is delayed right after.
SLOW = """
import os, time
from harness.cli import main
launcher, fork = os.getpid(), os.fork
def slow_fork():
    pid = fork()
    if pid and os.getppid() == launcher:
        time.sleep(1)
    return pid
os.fork = slow_fork
main(prog_name="timeshim")
"""


def test_a_supervisor_that_is_ahead_of_its_starter(timeshim: Timeshim) -> None:
    timeshim.command = (sys.executable, "-c", SLOW)
    try:
        assert timeshim.output("run", "--", "echo", "there", timeout=15) == "there\n"
    except subprocess.TimeoutExpired:
        pytest.fail("what the supervisor said was lost")
