"""What a task has used, CPU time above all, carried from host to host.

Read twice: at freeze on the source, and when the restored task is about to run. What lies between
is the kernel's new beginning and the work of restoring; the page makes up for both.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import astuple, dataclass, field, replace
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


_IO = re.compile(rb"^(?:read|write)_bytes: (\d+)", re.MULTILINE)
_SWITCHES = re.compile(rb"^(?:non)?voluntary_ctxt_switches:\t(\d+)", re.MULTILINE)
_PEAK = re.compile(rb"^VmHWM:\s*(\d+)", re.MULTILINE)


def _read(path: str) -> bytes:
    """Return what a file of /proc says; there are some for each thread, while the task stands."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _count_blocks(used: Used, directory: str) -> None:
    with contextlib.suppress(OSError):  # a kernel that does not count them
        used.blocks_in, used.blocks_out = (
            int(count) >> 9 for count in _IO.findall(_read(f"{directory}/io"))
        )


def _stat(directory: str) -> list[bytes]:
    """Return the fields of proc_pid_stat(5) from the third on."""
    return _read(f"{directory}/stat").rpartition(b")")[2].split()


def _read_thread(directory: str, tid: int, *, up: bool) -> Thread:
    fields = _stat(directory)
    thread = Thread(tid, int(fields[1]), lib.ts_robust_list(tid), int(fields[19]) * TICK_NS)
    total = int(_read(f"{directory}/schedstat").split()[0])
    _fill(thread.own, total, fields, up=up)
    _count_blocks(thread.own, directory)
    status = _read(f"{directory}/status")
    voluntary, involuntary = _SWITCHES.findall(status)
    thread.own.voluntary_switches, thread.own.involuntary_switches = (
        int(voluntary),
        int(involuntary),
    )
    peak = _PEAK.search(status)  # a zombie has no memory any more
    thread.own.peak_kb = int(peak[1]) if peak else 0
    return thread


def _fill(used: Used, total: int, fields: list[bytes], *, up: bool) -> None:
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
        process = f"/proc/{pid}"
        here = []
        for tid in map(int, os.listdir(f"{process}/task")):
            with contextlib.suppress(OSError):  # a thread that is a zombie
                here.append(_read_thread(f"{process}/task/{tid}", tid, up=up))
        for thread in here:
            if thread.thread == pid:
                _read_process(thread, here, up=up)
            else:
                thread.parent = 0
        threads += here
    return threads


def _read_process(first: Thread, threads: list[Thread], *, up: bool) -> None:
    """Fill in what the process of a first thread used, and its children."""
    pid = first.thread
    fields = _stat(f"/proc/{pid}")
    _fill(first.process, time.clock_gettime_ns((~pid << 3) | _SCHEDULED), fields, up=up)
    _count_blocks(first.process, f"/proc/{pid}")
    first.process.peak_kb = first.own.peak_kb
    # of threads that have ended nobody but the process itself is told
    for thread in threads:
        first.process.voluntary_switches += thread.own.voluntary_switches
        first.process.involuntary_switches += thread.own.involuntary_switches
    both = (int(fields[13]) + int(fields[14])) * TICK_NS
    if up and both:
        both += 2 * TICK_NS
    _fill(first.children, both, [*fields[:11], *fields[13:15]], up=up)
    first.children.minor_faults, first.children.major_faults = int(fields[8]), int(fields[10])
