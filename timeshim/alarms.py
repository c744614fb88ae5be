"""POSIX timers and interval timers in flight: stopped at freeze, set again when the task runs.

They belong to their process, so only it can read and set them: the supervisor has it make the
system calls (preload/inject.h). CRIU finds timers that are not set, so none of them rings
while the task is dumped, moved and restored, nor early because CRIU's count from some tens of
milliseconds before the task does.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timeshim._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable

    from timeshim.cgroup import Cgroup
    from timeshim.clocks import Offsets
    from timeshim.page import Page

# fs/proc/base.c, show_timer; CPU clocks have negative numbers
_LISTED = re.compile(
    r"ID: (\d+)\nsignal: \d+/\w+\nnotify: (\w+)/(pid|tid)\.(\d+)\nClockID: (-?\d+)\n"
)
_BOOTTIME_ALARM, _REALTIME_ALARM = 9, 8
_ITIMER_REAL, _ITIMER_VIRTUAL, _ITIMER_PROF = range(3)


@dataclass(frozen=True)
class Alarm:
    """A timer that rings by a signal, or by none. Times in nanoseconds."""

    pid: int
    """Of its process, as the capsule numbers it."""
    id: int
    """The kernel's; which of the three for an interval timer."""
    interval_timer: bool
    clock: int
    by: int
    """What it goes by, preload/hold.h."""
    rung: bool
    """Its signal is pending: only CRIU has to be made up for."""
    due: int
    """When it rings next: virtual time, or real time, or what is left of CPU time."""
    interval: int


def _posix_timers(pid: int, page: Page) -> list[dict[str, Any]]:
    """Return the POSIX timers of a process as fields of struct ts_timer."""
    try:
        text = Path(f"/proc/{pid}/timers").read_text()
    except OSError:  # it ended; or this kernel knows no checkpoints
        return []
    timers = []
    for number, notify, to, thread, clock_id in _LISTED.findall(text):
        clock = int(clock_id)
        by = lib.TS_BY_CPU if clock < 0 else lib.TS_BY_REALTIME
        if clock == time.CLOCK_MONOTONIC:
            by = lib.TS_BY_MONOTONIC
        elif clock in (time.CLOCK_BOOTTIME, _BOOTTIME_ALARM):
            clock, by = time.CLOCK_BOOTTIME, lib.TS_BY_BOOTTIME
        elif clock == _REALTIME_ALARM:
            clock = time.CLOCK_REALTIME
        elif clock == time.CLOCK_REALTIME and not page.is_absolute(pid, int(number)):
            # then the kernel counts it on MONOTONIC, too (common_hrtimer_arm)
            clock, by = time.CLOCK_MONOTONIC, lib.TS_BY_SPAN
        timers.append(
            {
                "id": int(number),
                "clock": clock,
                "by": by,
                "signals": notify != "none",
                "thread": int(thread) if to == "tid" else 0,
            }
        )
    return timers


_INTERVAL_TIMERS = [
    {"id": number, "interval_timer": 1, "clock": time.CLOCK_MONOTONIC, "by": by, "signals": 1}
    for number, by in (
        (_ITIMER_REAL, lib.TS_BY_SPAN),
        (_ITIMER_VIRTUAL, lib.TS_BY_CPU),
        (_ITIMER_PROF, lib.TS_BY_CPU),
    )
]


_PR_GET_TSC, _PR_SET_TSC, _PR_TSC_SIGSEGV = 25, 26, 2  # linux/prctl.h
_SYS_PRCTL = 157


def hold(
    cgroup: Cgroup, page: Page, frame: Offsets, *, every: bool
) -> tuple[list[Alarm], list[int]] | None:
    """Stop the timers of a frozen task and return those that were set, and the threads that trap.

    None if it has no timers, and no thread can.

    Its processes are stopped in another way for as long as the cgroup is thawed, so the
    task does not run; but whatever rings until this returns has rung before the freeze.

    Args:
        cgroup: the task's.
        page: its page.
        frame: offsets of the task's time namespace to ours.
        every: whether to look for interval timers although no shim says that there are any.
    """
    pids = cgroup.pids()
    timers = {pid: _posix_timers(pid, page) for pid in pids}
    if every or page.interval_timers:
        timers = {pid: [*found, *_INTERVAL_TIMERS] for pid, found in timers.items()}
    if not any(timers.values()) and not page.traps_tsc:
        return None
    ahead = _ahead(page.epoch, frame)
    alarms, trapping = [], []
    # all of them, also those without timers, for they could run too and set some
    traced = {pid: process for pid in pids if (process := lib.ts_trace(pid))}
    cgroup.thaw()
    try:
        if page.traps_tsc:
            for pid, process in traced.items():
                lib.ts_begin_handlers(process)
                trapping += _trapping(pid, process)
        for pid, found in timers.items():
            if found and pid in traced:
                held = ffi.new("struct ts_timer[]", found)
                lib.ts_hold(traced[pid], held, len(found))
                alarms += [_alarm(pid, timer, ahead) for timer in held if timer.state]
    finally:
        cgroup.begin_freeze()
        for process in traced.values():
            lib.ts_let_go(process, ffi.NULL)
    cgroup.await_frozen()
    return alarms, trapping


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:  # it ended
        return []


def _prctl(process: Any, thread: int, option: int, argument: int) -> bool:
    return bool(
        lib.ts_inject(process, thread, _SYS_PRCTL, [option, argument, 0, 0, 0, 0]) == 0,
    )


def _trapping(pid: int, process: Any) -> list[int]:
    """Return the threads in which reading the TSC traps: the kernel says it to themselves only.

    Not all of a task: a thread does without while it starts a program, or handles a trap.
    """
    setting = ffi.new("int *")
    scratch = lib.ts_scratch(process, lib.ts_traced_thread(process))
    found = [
        thread
        for thread in _threads(pid)
        if scratch
        and _prctl(process, thread, _PR_GET_TSC, scratch)
        and lib.ts_read_scratch(process, 0, setting, ffi.sizeof("int"))
        and setting[0] == _PR_TSC_SIGSEGV
    ]
    if scratch:
        lib.ts_return_scratch(process)
    return found


def _ahead(epoch: Any, frame: Offsets) -> list[int]:
    """Return how much what timers go by is ahead of our clocks."""
    ahead = [0] * lib.TS_BYS
    ahead[lib.TS_BY_MONOTONIC] = lib.ts_to_ns(epoch.offset[lib.TS_MONOTONIC]) + frame.monotonic
    ahead[lib.TS_BY_BOOTTIME] = lib.ts_to_ns(epoch.offset[lib.TS_BOOTTIME]) + frame.boottime
    ahead[lib.TS_BY_SPAN] = ahead[lib.TS_BY_MONOTONIC]
    return ahead


def _alarm(pid: int, timer: Any, ahead: list[int]) -> Alarm:
    return Alarm(
        pid=pid,
        id=timer.id,
        interval_timer=bool(timer.interval_timer),
        clock=timer.clock,
        by=timer.by,
        rung=timer.state == lib.TS_RUNG,
        due=timer.read + timer.left + ahead[timer.by],
        interval=timer.interval,
    )


class Held:
    """The timers of a frozen task, and its processes stopped so that they can be set.

    So can the trap, which CRIU does not restore.
    """

    def __init__(self, alarms: Iterable[Alarm], trapping: Iterable[int], frame: Offsets) -> None:
        """Stop the processes; they run on when `set_again` is called, and not before."""
        self.frame = frame
        self.lost = 0
        """How many timers could not be set again."""
        self.untrapped = 0
        """How many threads could not be made to trap again."""
        self._processes: list[tuple[Any, Any, list[int]]] = []
        timers: dict[int, list[Alarm]] = {}
        for alarm in alarms:
            timers.setdefault(alarm.pid, []).append(alarm)
        threads: dict[int, list[int]] = {}
        for thread in trapping:
            threads.setdefault(_process_of(thread), []).append(thread)
        for pid in timers.keys() | threads.keys():
            own, trap = timers.get(pid, []), threads.get(pid, [])
            if process := lib.ts_trace(pid):
                held = ffi.new("struct ts_timer[]", [*map(_timer, own)])
                self._processes.append((process, held, trap))
            else:
                self.lost += len(own)
                self.untrapped += len(trap)

    def set_again(self, epoch: Any, signalled: Any, *, moved: bool) -> None:
        """Set the timers and let their processes run, whose cgroup has just been thawed.

        Args:
            epoch: the one that has begun.
            signalled: which threads have to wait for a signal to be taken (`Page.find_signalled`).
            moved: whether this is another host.
        """
        ahead = _ahead(epoch, self.frame)
        # in the task's own frame, for it is the task that sets them
        ahead[lib.TS_BY_MONOTONIC] -= self.frame.monotonic
        ahead[lib.TS_BY_BOOTTIME] -= self.frame.boottime
        for process, timers, threads in self._processes:
            self.untrapped += sum(
                not _prctl(process, thread, _PR_SET_TSC, _PR_TSC_SIGSEGV) for thread in threads
            )
            if len(timers):
                self.lost += lib.ts_set_again(process, timers, len(timers), moved, ahead)
            lib.ts_let_go(process, signalled)


def _process_of(thread: int) -> int:
    try:
        status = Path(f"/proc/{thread}/status").read_text()
    except OSError:  # it is gone, and nobody can be made to trap
        return thread
    return int(status.partition("\nTgid:")[2].split()[0])


def _timer(alarm: Alarm) -> dict[str, int]:
    return {
        "id": alarm.id,
        "interval_timer": alarm.interval_timer,
        "clock": alarm.clock,
        "by": alarm.by,
        "state": lib.TS_RUNG if alarm.rung else lib.TS_HELD,
        "due": alarm.due,
        "interval": alarm.interval,
    }
