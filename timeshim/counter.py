"""The time stamp counter, for programs that read it themselves: timeshim.h in Python.

In a task the count goes on over migrations; elsewhere it is the hardware's.
"""

from __future__ import annotations

from timeshim._native import ffi, lib


def rdtsc() -> int:
    """Return the time stamp counter."""
    return int(lib.timeshim_rdtsc())


def rdtscp() -> tuple[int, int]:
    """Return the counter and IA32_TSC_AUX, which holds the processor's number in bits 0 to 11."""
    aux = ffi.new("uint32_t *")
    return int(lib.timeshim_rdtscp(aux)), int(aux[0])


def tsc_hz() -> int:
    """Return the counter's frequency in Hz: the task's for life; 0 if nobody tells."""
    return int(lib.timeshim_tsc_hz())
