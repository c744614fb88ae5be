"""Tasks whose clocks are virtual: their pages, their clocks, and how they are launched.

Nothing here knows how a task moves to another host; that is the package ``harness``, which
imports this one.

For programs that run in a task, or may: `rdtsc`, `rdtscp` and `tsc_hz`, as in timeshim.h.
"""

from importlib.metadata import version

from timeshim.counter import rdtsc, rdtscp, tsc_hz

__all__ = ["rdtsc", "rdtscp", "tsc_hz"]
__version__ = version("timeshim")
