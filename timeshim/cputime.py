"""What a task has used, CPU time above all, carried from host to host.

Read twice: at freeze on the source, and when the restored task is about to run. What lies between
is the kernel's new beginning and the work of restoring; the page makes up for both.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from timeshim._native import lib

if TYPE_CHECKING:
    from collections.abc import Iterable

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_SCHEDULED = 2  # CPUCLOCK_SCHED, include/linux/posix-timers_types.h


@dataclass
class Used:
    """In the order of preload/page.h's TS_CPU kinds; times in nanoseconds."""

    total: int = 0
    user: int = 0
    system: int = 0
    minor_faults: int = 0
    major_faults: int = 0
    blocks_in: int = 0
    blocks_out: int = 0
    voluntary_switches: int = 0
    involuntary_switches: int = 0
    peak_kb: int = 0
    """The most memory that was resident: the one that does not add up."""

    def set_rounded_up(self, total: int, user_ticks: int, system_ticks: int) -> None:
        """Take times from an exact total and from ticks, such that nobody can have read more."""
        user, system = user_ticks * TICK_NS, system_ticks * TICK_NS
        self.total = total
        self.user = max(user, min(user + TICK_NS, total - system))
        self.system = max(system, min(system + TICK_NS, total - user))

    def set_rounded_down(self, total: int, user_ticks: int, system_ticks: int) -> None:
        """Take times such that nobody can have read less."""
        self.total, self.user, self.system = total, user_ticks * TICK_NS, system_ticks * TICK_NS

    def __add__(self, other: Used) -> Used:
        """Add kind by kind."""
        sums = (a + b for a, b in zip(astuple(self), astuple(other), strict=True))
        return replace(Used(*sums), peak_kb=max(self.peak_kb, other.peak_kb))

    def __sub__(self, other: Used) -> Used:
        """Subtract kind by kind, but for the peak."""
        differences = (a - b for a, b in zip(astuple(self), astuple(other), strict=True))
        return replace(Used(*differences), peak_kb=self.peak_kb)


@dataclass
class Thread:
    """What a thread used and, if it is its process's first, the process."""

    thread: int
    parent: int
    """Its process's, if it is its first."""
    robust_list: int
    started: int
    """In nanoseconds of our CLOCK_BOOTTIME, rounded down to a tick."""
    own: Used = field(default_factory=Used)
    process: Used = field(default_factory=Used)
    children: Used = field(default_factory=Used)


def _words(directory: Path, file: str) -> dict[str, int]:
    """Return the lines ``name: number`` of a file, or nothing of one that is not there."""
    found = {}
    with contextlib.suppress(OSError):  # a zombie has no io
        for line in (directory / file).read_text().splitlines():
            name, _, value = line.partition(":")
            with contextlib.suppress(ValueError, IndexError):
                found[name] = int(value.split()[0])
    return found


def _count(used: Used, directory: Path) -> None:
    """Fill in what /proc tells in other files than stat; of a process, what is known of a thread."""
    io, status = _words(directory, "io"), _words(directory, "status")
    used.blocks_in = io.get("read_bytes", 0) >> 9
    used.blocks_out = io.get("write_bytes", 0) >> 9
    used.voluntary_switches = status.get("voluntary_ctxt_switches", 0)
    used.involuntary_switches = status.get("nonvoluntary_ctxt_switches", 0)
    used.peak_kb = status.get("VmHWM", 0)


def _stat(directory: Path) -> list[str]:
    """Return the fields of proc_pid_stat(5) from the third on."""
    return (directory / "stat").read_text().rpartition(")")[2].split()


def _read_thread(directory: Path, *, up: bool) -> Thread:
    tid = int(directory.name)
    fields = _stat(directory)
    thread = Thread(tid, int(fields[1]), lib.ts_robust_list(tid), int(fields[19]) * TICK_NS)
    total = int((directory / "schedstat").read_text().split()[0])
    _fill(thread.own, total, fields, up=up)
    _count(thread.own, directory)
    return thread


def _fill(used: Used, total: int, fields: list[str], *, up: bool) -> None:
    user, system = int(fields[11]), int(fields[12])
    if up:
        used.set_rounded_up(total, user, system)
    else:
        used.set_rounded_down(total, user, system)
    used.minor_faults, used.major_faults = int(fields[7]), int(fields[9])


def read(pids: Iterable[int], *, up: bool) -> list[Thread]:
    """Return what the kernel says of all threads of these frozen processes.

    Args:
        pids: the processes, zombies included, as we number them; we are in their pid namespace.
        up: whether user and system time, which it tells in ticks, are to be rounded up.
    """
    threads = []
    for pid in pids:
        process, first, switches = Path(f"/proc/{pid}"), None, [0, 0]
        for directory in (process / "task").iterdir():
            with contextlib.suppress(OSError):  # a thread that is a zombie
                thread = _read_thread(directory, up=up)
                threads.append(thread)
                switches[0] += thread.own.voluntary_switches
                switches[1] += thread.own.involuntary_switches
                if thread.thread == pid:
                    first = thread
                else:
                    thread.parent = 0
        if not first:
            continue
        fields = _stat(process)
        _fill(first.process, time.clock_gettime_ns((~pid << 3) | _SCHEDULED), fields, up=up)
        _count(first.process, process)
        # of threads that have ended nobody but the process itself is told
        first.process.voluntary_switches, first.process.involuntary_switches = switches
        both = (int(fields[13]) + int(fields[14])) * TICK_NS
        if up and both:
            both += 2 * TICK_NS
        children = [*fields[:11], *fields[13:15]]
        _fill(first.children, both, children, up=up)
        first.children.minor_faults, first.children.major_faults = int(fields[8]), int(fields[10])
    return threads
