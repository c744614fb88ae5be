"""Kernel clocks and virtual clocks.

Frames (docs/clocks.md): the *host* clock is what this process's kernel interface reports; the
*kernel* clock is what the task's own does, its time namespace included; the *virtual* clock is
what the application sees. Offsets of the page are always between the last two, so a time
namespace of the task's own is never counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from timeshim._native import ffi, lib

NSEC = 1_000_000_000


@dataclass(frozen=True)
class Clocks:
    """All the clocks at one moment, in nanoseconds; the TSC in ticks."""

    monotonic: int
    raw: int
    coarse: int
    boottime: int
    realtime: int
    tsc: int
    spread: int
    """All of them were read within this many nanoseconds."""

    @classmethod
    def of(cls, c: Any) -> Self:
        """Take over a struct ts_clocks."""
        return cls(
            monotonic=c.time[lib.TS_MONOTONIC],
            raw=c.time[lib.TS_RAW],
            boottime=c.time[lib.TS_BOOTTIME],
            coarse=c.coarse,
            realtime=c.realtime,
            tsc=c.tsc,
            spread=c.spread,
        )

    def to_c(self) -> Any:
        """Make a struct ts_clocks of it."""
        c = ffi.new("struct ts_clocks *")
        c.time[lib.TS_MONOTONIC] = self.monotonic
        c.time[lib.TS_RAW] = self.raw
        c.time[lib.TS_BOOTTIME] = self.boottime
        c.coarse, c.realtime, c.tsc, c.spread = self.coarse, self.realtime, self.tsc, self.spread
        return c

    def in_namespace(self, offsets: Offsets) -> Self:
        """Return what a process whose time namespace has these offsets would have read."""
        return replace(
            self,
            monotonic=self.monotonic + offsets.monotonic,
            raw=self.raw + offsets.monotonic,
            coarse=self.coarse + offsets.monotonic,
            boottime=self.boottime + offsets.boottime,
        )

    def virtual(self, epoch: Any) -> Self:
        """Return what an application would have read, given the epoch in force."""
        c = self.to_c()
        lib.ts_to_virtual(c, ffi.addressof(epoch))
        return self.of(c)

    def after_blackout(self, real_ns: int) -> Self:
        """Return the virtual clocks at resume, given those at freeze.

        BOOTTIME counts the blackout, the others stand still: that is what separates them over
        a suspend too (clock_gettime(2)).
        """
        return replace(self, boottime=self.boottime + real_ns, realtime=self.realtime + real_ns)


@dataclass(frozen=True)
class Offsets:
    """Offsets of one time namespace to another, in nanoseconds (time_namespaces(7)).

    CLOCK_MONOTONIC_RAW and _COARSE share the offset of CLOCK_MONOTONIC.
    """

    monotonic: int = 0
    boottime: int = 0

    @classmethod
    def of_process(cls, pid: int | str) -> Self:
        """Read the offsets of a process's time namespace to the initial one.

        A kernel without time namespaces has no such file and only one frame.
        """
        try:
            text = Path(f"/proc/{pid}/timens_offsets").read_text()
        except FileNotFoundError:
            return cls()
        found = {}
        for line in text.splitlines():
            name, sec, nsec = line.split()
            found[name] = int(sec) * NSEC + int(nsec)
        return cls(found["monotonic"], found["boottime"])

    def relative_to(self, other: Offsets) -> Offsets:
        """Return the offsets of this namespace as seen from another one."""
        return Offsets(self.monotonic - other.monotonic, self.boottime - other.boottime)

    def on_top_of(self, other: Offsets) -> Offsets:
        """Return the offsets of this namespace, given as seen from another one, to its origin."""
        return Offsets(self.monotonic + other.monotonic, self.boottime + other.boottime)


def frame_of(pid: int | str) -> Offsets:
    """Return what to add to this process's clocks to get those that another one reads."""
    return Offsets.of_process(pid).relative_to(Offsets.of_process("self"))


def read_clocks() -> Clocks:
    """Read the clocks of this process's kernel interface, all at once."""
    c = ffi.new("struct ts_clocks *")
    lib.ts_read_clocks(c)
    return Clocks.of(c)


def begin_epoch(resume: Clocks, kernel: Clocks, tsc_ratio: int) -> Any:
    """Return the struct ts_epoch * in which virtual clocks go on from `resume`.

    Args:
        resume: the virtual clocks as they shall be read at the moment of `kernel`.
        kernel: the task's kernel clocks at that moment.
        tsc_ratio: virtual to hardware TSC frequency, Q4.60 (preload/arith.h).
    """
    epoch = ffi.new("struct ts_epoch *")
    lib.ts_begin_epoch(epoch, resume.to_c(), kernel.to_c(), tsc_ratio)
    return epoch
