"""The task's own time namespace (time_namespaces(7)): what carries clocks past the shim.

Statically linked programs, inline system calls, /proc/uptime and the start times in /proc/PID/stat
know nothing of the page. In a time namespace of the task's own they all see one and the same time
since boot. Its offsets are set before anything enters it and never again, so they can make BOOTTIME
right to the microsecond, for it goes on in any case; but MONOTONIC, which stands still until the
task runs, only as of when the namespace was made. The page makes up for the difference.

The supervisor makes it, stays outside, and holds it by a descriptor, through which the reaper and
CRIU enter. It does not keep it for its children to be born in: before Linux 6.3 a process that did so
could neither create threads nor vfork (copy_process() in kernel/fork.c).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from timeshim._native import lib
from timeshim.clocks import NSEC, Offsets
from timeshim.errors import Error

CLONE_NEWTIME = 0x80


def supported() -> bool:
    """Tell whether this kernel has time namespaces."""
    return Path("/proc/self/ns/time_for_children").exists()


def make(offsets: Offsets) -> int:
    """Make a time namespace, and return a descriptor for it. The caller must have no threads.

    Args:
        offsets: of its clocks to ours.

    Raises:
        Error: there can be none, or not with these offsets, and why.
    """
    if not supported():
        raise Error("this kernel has no time namespaces")
    ours = os.open("/proc/self/ns/time", os.O_RDONLY | os.O_CLOEXEC)
    total = offsets.on_top_of(Offsets.of_process("self"))
    lines = [
        "{} {} {}\n".format(clock, *divmod(ns, NSEC))
        for clock, ns in (("monotonic", total.monotonic), ("boottime", total.boottime))
    ]
    if error := lib.ts_unshare(CLONE_NEWTIME):
        raise Error(f"cannot make a time namespace: {os.strerror(error)}")
    try:
        # in one write: the kernel takes both or none
        Path("/proc/self/timens_offsets").write_text("".join(lines))
        return os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        # ERANGE: below 0, or above half of what the kernel can count (proc_timens_set_offset())
        raise Error(f"a time namespace cannot have these clocks: {error.strerror}") from None
    finally:
        enter(ours)
        os.close(ours)


def enter(namespace: int) -> None:
    """Enter a time namespace. The caller must have no threads.

    Raises:
        Error: it cannot be entered.
    """
    if error := lib.ts_setns(namespace, CLONE_NEWTIME):
        raise Error(f"cannot enter a time namespace: {os.strerror(error)}")


def held_by(supervisor: int) -> str | None:
    """Return the path of the time namespace that a supervisor holds for its task, if it does."""
    directory = f"/proc/{supervisor}/fd"
    for fd in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(f"{directory}/{fd}").startswith("time:["):
                return f"{directory}/{fd}"
    return None


def reads_clock(pid: int) -> bool:
    """Tell whether a thread of a frozen process is inside the vDSO."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    vdso = next((line for line in maps.splitlines() if line.endswith("[vdso]")), None)
    if not vdso:
        return False
    start, end = (int(address, 16) for address in vdso.split()[0].split("-"))
    for thread in Path(f"/proc/{pid}/task").iterdir():
        # number and arguments of a system call, or -1; then stack pointer and program counter. One
        # that counts as frozen may still be on its way off the CPU.
        while (state := (thread / "syscall").read_text()) == "running\n":
            os.sched_yield()
        if start <= int(state.split()[-1], 16) < end:
            return True
    return False
