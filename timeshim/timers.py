"""Timer descriptors in flight: found while the task is frozen, set right before it runs again.

CRIU carries over what is left of a timer when it dumps, and the timer counts on from when CRIU
makes it again: both well before the moments of freeze and resume, so it rings too early, or too
late if it is on CLOCK_BOOTTIME, which goes on meanwhile. The supervisor reaches the very same timer
through pidfd_getfd(2) and sets it to the virtual time at which it was due.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timeshim._native import lib
from timeshim.clocks import NSEC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from timeshim.clocks import Clocks, Offsets

_LINK = "anon_inode:[timerfd]"
_FIELDS = re.compile(
    r"clockid: (\d+)\nticks: (\d+)\nsettime flags: 0?(\d+)\n"
    r"it_value: \((\d+), (\d+)\)\nit_interval: \((\d+), (\d+)\)"
)
_ABSTIME = 1  # TFD_TIMER_ABSTIME, in fs/timerfd.c's fdinfo in octal

# clock id -> its index in ts_epoch.offset, and its name in Clocks and Offsets
_SHIFTED = {
    time.CLOCK_MONOTONIC: (lib.TS_MONOTONIC, "monotonic"),
    time.CLOCK_BOOTTIME: (lib.TS_BOOTTIME, "boottime"),
    9: (lib.TS_BOOTTIME, "boottime"),  # CLOCK_BOOTTIME_ALARM
}


@dataclass(frozen=True)
class Timer:
    """A timer descriptor that is set. Times in nanoseconds."""

    pid: int
    """Of a process that holds it, as the capsule numbers it."""
    fd: int
    clock: int
    absolute: bool
    due: int
    """When it rings next: virtual time, or real time if its clock is not shifted."""
    interval: int
    ticks: int
    """How often it rang without anybody reading it."""

    def at_freeze(self, frozen: Clocks) -> Timer:
        """Return it without what it rang between the freeze and being found, on a clock that stood still."""
        if self.clock != time.CLOCK_MONOTONIC or not self.interval:
            return self
        early = max(0, (self.due - frozen.monotonic - 1) // self.interval)
        rung = min(early, self.ticks)
        return replace(self, due=self.due - rung * self.interval, ticks=self.ticks - rung)


def find(pids: Iterable[int], epoch: Any, frame: Offsets) -> list[Timer]:
    """Return the timers of a frozen task.

    Args:
        pids: its processes, as we number them; we are in its pid namespace.
        epoch: the epoch in force, a struct ts_epoch.
        frame: offsets of the task's time namespace to ours.
    """
    found = []
    for pid in pids:
        directory = f"/proc/{pid}/fd"
        for fd in os.listdir(directory):
            with contextlib.suppress(OSError):
                if os.readlink(f"{directory}/{fd}") == _LINK:
                    timer = _read(pid, int(fd), epoch, frame)
                    found += [timer] if timer else []
    return found


def _read(pid: int, fd: int, epoch: Any, frame: Offsets) -> Timer | None:
    borrowed = lib.ts_borrow_descriptor(pid, fd)
    if borrowed >= 0:
        lib.ts_forward_timer(borrowed)
        os.close(borrowed)
    match = _FIELDS.search(Path(f"/proc/{pid}/fdinfo/{fd}").read_text())
    if not match:
        return None
    clock, ticks, flags, sec, nsec, interval_sec, interval_nsec = map(int, match.groups())
    left = sec * NSEC + nsec
    if not left:
        return None  # disarmed, or rang once and for all
    # after the file was read, so that the error makes it late by microseconds and never early
    due = time.clock_gettime_ns(clock) + left
    if clock in _SHIFTED:
        index, name = _SHIFTED[clock]
        due += getattr(frame, name) + lib.ts_to_ns(epoch.offset[index])
    return Timer(
        pid=pid,
        fd=fd,
        clock=clock,
        absolute=bool(flags & _ABSTIME),
        due=due,
        interval=interval_sec * NSEC + interval_nsec,
        ticks=ticks,
    )


def prepare(timers: Iterable[Timer], frame: Offsets) -> Callable[[Any, Clocks], None]:
    """Get hold of the timers of a frozen task, and return what sets them.

    Returns:
        A function of the new epoch and of the virtual clocks at freeze, to be called once.
    """
    held: list[tuple[int, Timer]] = []
    for timer in timers:
        fd = lib.ts_borrow_descriptor(timer.pid, timer.fd)
        if fd >= 0:
            held.append((fd, timer))

    def set_again(epoch: Any, frozen: Clocks) -> None:
        for fd, found in held:
            timer = found.at_freeze(frozen)
            absolute = True
            if timer.clock in _SHIFTED:
                index, name = _SHIFTED[timer.clock]
                value = timer.due - lib.ts_to_ns(epoch.offset[index]) - getattr(frame, name)
            elif timer.absolute:
                value = timer.due
            else:  # a span that happens to be measured on CLOCK_REALTIME: it stood still
                absolute, value = False, timer.due - frozen.realtime
            lib.ts_set_timer(fd, absolute, max(value, 1), timer.interval, timer.ticks)
            os.close(fd)

    return set_again
