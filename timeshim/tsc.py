"""The frequency of this host's TSC, from the most trustworthy source there is.

Nobody tells a program the frequency that the kernel uses, so several sources are asked, in
order of trust. All of them share one uncertainty that no source knows of: a crystal is only
specified to some tens of parts per million.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from timeshim._native import ffi, lib
from timeshim.errors import Error

if TYPE_CHECKING:
    from collections.abc import Callable

CRYSTAL_PPM = 50
CALIBRATION_SECONDS = 0.1


@dataclass(frozen=True)
class Frequency:
    """A TSC frequency in Hz, how far off it may be, and who says so."""

    hz: int
    uncertainty_hz: int
    source: str

    def matches(self, other: Frequency) -> bool:
        """Tell whether two frequencies may be the same, within their joint uncertainty."""
        return abs(self.hz - other.hz) <= self.uncertainty_hz + other.uncertainty_hz

    def __str__(self) -> str:
        """Return it for people, in MHz."""
        return f"{self.hz / 1e6:.3f} MHz ± {self.uncertainty_hz / 1e6:.3f} ({self.source})"


def _cpuid(leaf: int) -> list[int] | None:
    registers = ffi.new("uint32_t[4]")
    return list(registers) if lib.ts_cpuid(leaf, registers) else None


def _from_environment() -> float:
    given = os.environ.get("TIMESHIM_TSC_HZ", "0")
    if not given.isdigit():
        raise Error(f"TIMESHIM_TSC_HZ is {given!r}: give the TSC frequency as a whole number of Hz")
    return float(given)


def _from_cpuid() -> float:
    """CPUID 0x15: crystal frequency times a ratio (Intel SDM volume 2A)."""
    leaf = _cpuid(0x15)
    if not leaf or not leaf[0] or not leaf[2]:
        return 0
    return leaf[2] * leaf[1] / leaf[0]


def _from_hypervisor() -> float:
    """CPUID 0x40000010: kHz in EAX, a convention of VMware that KVM and others follow."""
    leaf = _cpuid(0x40000010)
    return leaf[0] * 1e3 if leaf else 0


def _from_perf() -> float:
    return float(lib.ts_perf_tsc_hz())


def _calibrate() -> float:
    """Count ticks against CLOCK_MONOTONIC_RAW, which no NTP daemon steers."""

    def sample() -> tuple[int, int]:
        clocks = ffi.new("struct ts_clocks *")
        lib.ts_read_clocks(clocks)
        return clocks.tsc, clocks.time[lib.TS_RAW]

    rates = []
    for _ in range(3):
        tsc, raw = sample()
        time.sleep(CALIBRATION_SECONDS / 3)
        later_tsc, later_raw = sample()
        rates.append((later_tsc - tsc) * 1e9 / (later_raw - raw))
    return median(rates)


# name, how, uncertainty of the method itself in parts per million
_SOURCES: list[tuple[str, Callable[[], float], float]] = [
    ("TIMESHIM_TSC_HZ", _from_environment, 0),
    ("CPUID 0x15", _from_cpuid, CRYSTAL_PPM),
    ("hypervisor", _from_hypervisor, CRYSTAL_PPM),
    ("perf", _from_perf, CRYSTAL_PPM),
    ("calibrated", _calibrate, CRYSTAL_PPM + 10),
]


def measure() -> Frequency:
    """Return the frequency of this host's TSC."""
    for name, read, ppm in _SOURCES:
        hz = read()
        if hz:
            return Frequency(round(hz), round(hz * ppm / 1e6), name)
    raise AssertionError  # calibration always yields something


def measure_once(cache: Path) -> Frequency:
    """Return `measure()`, which takes 0.1 s where it must calibrate, and remember it.

    Args:
        cache: a file that is kept at most until the host boots again.
    """
    if "TIMESHIM_TSC_HZ" in os.environ:
        return measure()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        known = json.loads(cache.read_text())
        if known.pop("boot") == boot:
            return Frequency(**known)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # not there yet, or not ours: measure again
    frequency = measure()
    fresh = cache.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(asdict(frequency) | {"boot": boot}))
    fresh.rename(cache)
    return frequency
