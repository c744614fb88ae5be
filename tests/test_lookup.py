"""The many ways to look for libc's functions: the shim is found on all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Program, Timeshim

DAY = 86400
SHIFTED = ("run", "--monotonic=+1d", "--no-time-namespace", "--")  # what the shim alone does


@pytest.fixture
def lookup(program: Program) -> Path:
    """Build the program, and the library that it is linked with."""
    library = program("lookup_library", "-shared", "-fPIC")
    return program("lookup", str(library), f"-Wl,-rpath,{library.parent}")


def test_natively(lookup: Path) -> None:
    """What must be as natively is so."""
    done = subprocess.run([lookup], check=True, capture_output=True, text=True, timeout=30)
    seen = json.loads(done.stdout)
    assert [what for what, right in seen.items() if what[0] == "=" and not right] == []
    assert {shift for what, shift in seen.items() if what[0] != "="} <= {0, 1}


@pytest.mark.parametrize("overlay", [False, True], ids=["plain", "overlay"])
def test_in_a_task(timeshim: Timeshim, program: Program, lookup: Path, overlay: bool) -> None:
    environment = timeshim.env
    if overlay:
        preload = program("lookup_overlay", "-shared", "-fPIC")
        environment = environment | {"LD_PRELOAD": str(preload)}
    seen = json.loads(timeshim.output(*SHIFTED, lookup, env=environment))
    assert [what for what, right in seen.items() if what[0] == "=" and not right] == []
    shifts = {what: shift for what, shift in seen.items() if what[0] != "="}
    assert len(shifts) == 13
    assert {what: shift for what, shift in shifts.items() if not 0 <= shift - DAY <= 1} == {}


READ = """
import ctypes, time
ts = (ctypes.c_long * 2)()
for name in ("libc.so.6", None):
    ctypes.CDLL(name).clock_gettime(time.CLOCK_MONOTONIC, ts)
    print(ts[0] - time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 10**9)
"""


def test_ctypes(timeshim: Timeshim) -> None:
    printed = timeshim.output(*SHIFTED, sys.executable, "-c", READ)
    assert set(printed.split()) <= {"0", "-1"}


EXEC = """
import ctypes, os
strings = ctypes.c_char_p * 2
arguments, environment = strings(b"env", None), strings(b"CLEAN=1", None)
ctypes.CDLL(None).syscall(59, b"/usr/bin/env", arguments, environment)  # execve
"""


def test_execve_by_syscall_keeps_the_shim(timeshim: Timeshim) -> None:
    printed = timeshim.output("run", "--", sys.executable, "-c", EXEC)
    assert printed.splitlines() == ["CLEAN=1", "LD_PRELOAD=/run/timeshim-task/libtimeshim.so"]
