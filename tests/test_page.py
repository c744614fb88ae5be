"""The page: who refuses which, what a writer that dies leaves, and that no read mixes epochs.

No task here, but what a task is made of: a page, the shim beside it, and a program that is
started with that shim preloaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import PRELOAD, Program, compile_c

import timeshim
from preload import build
from timeshim._native import ffi, lib
from timeshim.clocks import begin_epoch, read_clocks
from timeshim.errors import Error
from timeshim.page import TSC_RATIO_ONE, Page

if TYPE_CHECKING:
    from collections.abc import Callable

DAY = 86400 * 10**9
OFFSET = lib.TS_TASK_AREA
MAGIC, ABI, SIZE, TASK = (
    ffi.offsetof("struct ts_clock_area", field) for field in ("magic", "abi", "size", "task")
)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Make a page, with a shim beside it."""
    shutil.copy(Path(timeshim.__file__).parent / "libtimeshim.so", tmp_path)
    Page.create(tmp_path / "page", "mine", 10**9).close()
    return tmp_path / "page"


def preloaded(page: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"LD_PRELOAD": str(page.with_name("libtimeshim.so"))}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def shift(page: Page, ns: int) -> None:
    now = read_clocks()
    later = {name: getattr(now, name) + ns for name in ("monotonic", "raw", "coarse", "boottime")}
    page.publish(begin_epoch(replace(now, **later), now, TSC_RATIO_ONE))


def monotonic(page: Path, program: Program) -> int:
    """Read CLOCK_MONOTONIC in a program of its own."""
    done = preloaded(page, program("clocks"))
    assert (done.returncode, done.stderr) == (0, "")
    return int(dict(line.split() for line in done.stdout.splitlines())["1"])


def test_a_fresh_page_shifts_nothing(page: Path, program: Program) -> None:
    with Page.open(page, "mine") as opened:
        assert (opened.generation, opened.migrations, opened.blackout_ns) == (0, 0, 0)
        assert (opened.tsc_hz, opened.attached, opened.slots_exhausted) == (10**9, 0, 0)
        assert list(opened.task_area()) == []
        before = time.monotonic_ns()
        assert before <= monotonic(page, program) <= time.monotonic_ns()
        assert opened.attached == 1


def test_a_page_is_never_created_over_another(page: Path) -> None:
    with pytest.raises(FileExistsError):
        Page.create(page, "other", 10**9)


def overwrite(offset: int, data: bytes) -> Callable[[Path], None]:
    def damage(page: Path) -> None:
        with page.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return damage


def truncate(size: int) -> Callable[[Path], None]:
    return lambda page: os.truncate(page, size)


DAMAGE = {
    "empty": (truncate(0), "0 bytes instead of", "its size is wrong"),
    "truncated": (truncate(OFFSET), "4096 bytes instead of", "its size is wrong"),
    "too long": (truncate(lib.TS_PAGE_SIZE + 1), "bytes instead of", "its size is wrong"),
    "zeroed": (overwrite(0, bytes(OFFSET)), "is not a page", "not a page"),
    "magic": (overwrite(MAGIC, b"x"), "is not a page", "not a page"),
    "abi": (overwrite(ABI, b"\x63"), "is a page of ABI 99", "another timeshim version"),
    "size": (overwrite(SIZE, bytes(4)), "is a page of ABI", "another timeshim version"),
    "missing": (Path.unlink, "cannot be opened: No such file", "No such file or directory"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_page_is_refused_by_both_sides(page: Path, kind: str) -> None:
    damage, python_says, shim_says = DAMAGE[kind]
    damage(page)
    with pytest.raises(Error, match=python_says) as refusal:
        Page.open(page, "mine")
    assert str(page) in str(refusal.value)
    done = preloaded(page, "/bin/echo", "ran")
    assert (done.returncode, done.stdout) == (126, "")
    assert done.stderr.startswith("timeshim: /bin/echo was not started: ")
    assert done.stderr.count("\n") == 1
    assert shim_says in done.stderr


def test_another_tasks_page_is_refused(page: Path) -> None:
    with pytest.raises(Error, match="is not the page of task other"):
        Page.open(page, "other")


def test_a_writer_that_dies_half_way_leaves_the_old_epoch(page: Path, program: Program) -> None:
    with Page.open(page, "mine") as opened:
        shift(opened, DAY)
        unused = (opened.generation + 1) & 1
        copy = ffi.buffer(ffi.addressof(opened._clocks.epoch[unused]))
        copy[:] = b"\xa5" * len(copy)
        before = time.monotonic_ns()
        assert 0 <= monotonic(page, program) - DAY - before < 10 * 10**9
        # and the next writer is not disturbed by it
        shift(opened, 2 * DAY)
        assert 0 <= monotonic(page, program) - 2 * DAY - before < 20 * 10**9


def race(page: Path, program: Program, milliseconds: int, *first: str) -> list[int]:
    """Read the clock while epochs are published; return the readings of each, and mixed ones."""
    # both halves matter: a mix of the two is off by half a second or by ten thousand days
    offset = ["864000000", "500000000"]
    publish = program("publish", "-U_GNU_SOURCE", f"-I{PRELOAD}", str(PRELOAD / "supervise.c"))
    writer = subprocess.Popen([publish, page, *offset])
    try:
        done = preloaded(page, program("spin"), str(milliseconds), *offset, *first)
    finally:
        writer.kill()
        writer.wait(10)
    assert (done.returncode, done.stderr) == (0, "")
    return [int(count) for count in done.stdout.split()]


def test_no_reading_mixes_two_epochs(page: Path, program: Program) -> None:
    plain, shifted, mixed = race(page, program, 3000)
    assert min(plain, shifted) > 1000
    assert mixed == 0


def test_without_the_recheck_readings_are_mixed(page: Path, program: Program) -> None:
    """Shows that the test above can fail."""
    unchecked = page.with_name("unchecked.h")
    unchecked.write_text('#include "shim.h"\n#define still(seen) ((void)(seen), true)\n')
    compile_c(
        page.with_name("libtimeshim.so"),
        *build.SHIM_FLAGS,
        *("-include", unchecked, f"-I{PRELOAD}"),
        *(PRELOAD / name for name in build.SHIM_SOURCES),
        *build.SHIM_LINK,
        f"-Wl,--version-script={PRELOAD / 'libtimeshim.map'}",
    )
    assert race(page, program, 30_000, "first")[2] > 0


def test_waits_without_a_slot_are_counted_and_end_on_time(page: Path, program: Program) -> None:
    with Page.open(page, "mine") as opened:
        shift(opened, DAY)
        slots = opened._task.slot
        for i in range(lib.TS_SLOTS):
            slots[i].owner = 1  # who lives: slots of the dead would be taken over
        done = preloaded(page, program("deadlines"))
        lines = [line.rsplit(" ", 2) for line in done.stdout.splitlines()]
        assert done.returncode == 0
        assert all(0 <= int(late) < 2 * 10**9 for _, _, late in lines), done.stdout
        shifted_clocks = [name for name, _, _ in lines if "REALTIME" not in name]
        assert opened.slots_exhausted == len(shifted_clocks)
        # nobody took what is not theirs
        assert all(slots[i].owner == 1 and not slots[i].armed for i in range(lib.TS_SLOTS))
