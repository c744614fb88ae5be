"""The CPU time that a task has used, carried from host to host.

Read twice: at freeze on the source, and when the restored task is about to run. What lies between
is the kernel's new beginning and the work of restoring; the page makes up for both.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from timeshim._native import lib

if TYPE_CHECKING:
    from collections.abc import Iterable

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_SCHEDULED = 2  # CPUCLOCK_SCHED, include/linux/posix-timers_types.h


@dataclass
class Used:
    """CPU time in nanoseconds, in the order of preload/page.h's TS_CPU kinds."""

    total: int = 0
    user: int = 0
    system: int = 0

    @classmethod
    def rounded_up(cls, total: int, user_ticks: int, system_ticks: int) -> Used:
        """Make it of an exact total and of ticks, such that nobody can have read more."""
        user, system = user_ticks * TICK_NS, system_ticks * TICK_NS
        return cls(
            total,
            max(user, min(user + TICK_NS, total - system)),
            max(system, min(system + TICK_NS, total - user)),
        )

    def __add__(self, other: Used) -> Used:
        """Add kind by kind."""
        return Used(self.total + other.total, self.user + other.user, self.system + other.system)

    def __sub__(self, other: Used) -> Used:
        """Subtract kind by kind."""
        return Used(self.total - other.total, self.user - other.user, self.system - other.system)


@dataclass
class Thread:
    """A thread's CPU time and, if it is its process's first, the process's."""

    thread: int
    robust_list: int
    own: Used
    process: Used = field(default_factory=Used)
    children: Used = field(default_factory=Used)


def _ticks(path: Path) -> list[int]:
    """Return utime, stime, cutime, cstime (proc_pid_stat(5))."""
    return [int(value) for value in path.read_text().rpartition(")")[2].split()[11:15]]


def read(pids: Iterable[int], *, up: bool) -> list[Thread]:
    """Return what the kernel says of all threads of these frozen processes.

    Args:
        pids: the processes, as we number them; we are in their pid namespace.
        up: whether user and system time, which it tells in ticks, are to be rounded up.
    """

    def used(total: int, user: int, system: int) -> Used:
        if up:
            return Used.rounded_up(total, user, system)
        return Used(total, user * TICK_NS, system * TICK_NS)

    threads = []
    for pid in pids:
        for directory in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that is a zombie
                tid = int(directory.name)
                total = int((directory / "schedstat").read_text().split()[0])
                user, system, *_ = _ticks(directory / "stat")
                thread = Thread(tid, lib.ts_robust_list(tid), used(total, user, system))
                if tid == pid:
                    user, system, child_user, child_system = _ticks(Path(f"/proc/{pid}/stat"))
                    total = time.clock_gettime_ns((~pid << 3) | _SCHEDULED)
                    thread.process = used(total, user, system)
                    both = (child_user + child_system) * TICK_NS
                    thread.children = used(
                        both + (2 * TICK_NS if both else 0), child_user, child_system
                    )
                threads.append(thread)
    return threads
