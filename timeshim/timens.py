"""The task's own time namespace (time_namespaces(7)): what carries clocks past the shim.

Statically linked programs, inline system calls, /proc/uptime and the start times in /proc/PID/stat
know nothing of the page. In a time namespace of the task's own they all see one and the same time
since boot. Its offsets are set before anything enters it and never again, so they can make BOOTTIME
right to the microsecond, for it goes on in any case; but MONOTONIC, which stands still until the
task runs, only as of when the namespace was made. The page makes up for the difference.

The supervisor makes it and stays outside: only the processes that it starts, and CRIU, which enters
by ``/proc/SUPERVISOR/ns/time_for_children``, are in it.
"""

from __future__ import annotations

import os
from pathlib import Path

from timeshim._native import lib
from timeshim.clocks import NSEC, OURS, Offsets
from timeshim.errors import Error

CLONE_NEWTIME = 0x80


def supported() -> bool:
    """Tell whether this kernel has time namespaces."""
    return Path("/proc/self/ns/time_for_children").exists()


def make(offsets: Offsets) -> None:
    """Have all processes that this one starts from now on live in a time namespace of their own.

    Args:
        offsets: of its clocks to ours.

    Raises:
        Error: there can be none, or not with these offsets, and why; clocks are then as before.
    """
    if not supported():
        raise Error("this kernel has no time namespaces")
    if error := lib.ts_unshare(CLONE_NEWTIME):
        raise Error(f"cannot make a time namespace: {os.strerror(error)}")
    total = offsets.on_top_of(OURS)
    lines = [
        "{} {} {}\n".format(clock, *divmod(ns, NSEC))
        for clock, ns in (("monotonic", total.monotonic), ("boottime", total.boottime))
    ]
    try:
        # in one write: the kernel takes both or none, and then the new one is like the old one
        Path("/proc/self/timens_offsets").write_text("".join(lines))
    except OSError as error:
        # ERANGE: below 0, or above half of what the kernel can count (proc_timens_set_offset())
        raise Error(f"a time namespace cannot have these clocks: {error.strerror}") from None


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
