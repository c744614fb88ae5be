"""Print what a clock read costs: native, under the shim, and under what else shifts clocks.

    python tests/bench/reads.py

On a machine that is shared, a difference of 10 % drowns in noise unless all variants meet the
same noise. So they take turns, in many rounds of some milliseconds each; the fastest batch of all
rounds stands for a variant; and the ratio of two such minima is the result. Absolute times are
printed for orientation only.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROUNDS = 30
DAY = 86400
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
CLOCKS = {
    time.CLOCK_MONOTONIC: "MONOTONIC",
    time.CLOCK_MONOTONIC_RAW: "MONOTONIC_RAW",
    6: "MONOTONIC_COARSE",
    time.CLOCK_BOOTTIME: "BOOTTIME",
    time.CLOCK_REALTIME: "REALTIME",
}

# Each of them is to shift the clocks by a day, if it can.
VARIANTS = {
    "native": ["reads", "call"],
    "shim": [
        str(Path(sysconfig.get_path("scripts")) / "timeshim"),
        # else it would be measured on top of a time namespace
        *("run", "--monotonic", "+1d", "--no-time-namespace", "--", "reads", "call"),
    ],
    "time namespace": [
        *("unshare", "--time", "--monotonic", str(DAY), "--boottime", str(DAY), "--fork"),
        *("reads", "call"),
    ],
    "libfaketime": ["env", f"LD_PRELOAD={FAKETIME}", "FAKETIME=+1d", "reads", "call"],
    "system call": ["reads", "syscall"],
}


class Readings:
    """What all rounds of one variant found."""

    def __init__(self) -> None:
        self.ns: dict[int, float] = {}
        self.shifted: set[int] = set()

    def add(self, output: str) -> None:
        """Take what one run of reads.c printed."""
        for line in output.splitlines():
            clock, ns, reading = line.split()
            number = int(clock)
            self.ns[number] = min(float(ns), self.ns.get(number, float("inf")))
            if int(reading) - time.clock_gettime_ns(number) > DAY * 5e8:
                self.shifted.add(number)


def unavailable() -> dict[str, str]:
    """Return the variants that cannot be measured here, and why."""
    reasons = {}
    if os.geteuid():
        reasons["time namespace"] = "making one takes root"
    if not Path("/proc/self/ns/time").exists():
        reasons["time namespace"] = "this kernel has none"
    if not FAKETIME.exists():
        reasons["libfaketime"] = "not installed"
    return reasons


def measure(variants: dict[str, list[str]]) -> dict[str, Readings]:
    """Let the variants take turns."""
    found: dict[str, Readings] = defaultdict(Readings)
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as directory:
        source = Path(__file__).with_suffix(".c")
        reads = Path(directory) / "reads"
        subprocess.run([*compiler, "-O2", source, "-o", reads], check=True, timeout=60)
        for _ in track(range(ROUNDS), "measuring", transient=True):
            for name, command in variants.items():
                argv = [str(reads) if word == "reads" else word for word in command]
                found[name].add(subprocess.check_output(argv, text=True, timeout=30))
    return found


def table(found: dict[str, Readings]) -> Table:
    """Lay the result out; a dagger marks what shifts nothing."""
    result = Table(box=None, header_style="bold", padding=(0, 1))
    result.add_column("ns per read (x native)")
    for name in found:
        result.add_column(name, justify="right")
    for clock, title in CLOCKS.items():
        cells = []
        for name, readings in found.items():
            ns = readings.ns[clock]
            ratio = f" x{ns / found['native'].ns[clock]:.2f}" if name != "native" else ""
            moves = clock in readings.shifted or name in {"native", "system call"}
            cells.append(f"{ns:.1f}{ratio}{' ' if moves else '†'}")
        result.add_row(title, *cells)
    return result


def main() -> None:
    """Measure and print."""
    missing = unavailable()
    found = measure({name: argv for name, argv in VARIANTS.items() if name not in missing})
    Console(width=110).print(table(found))
    print(f"{ROUNDS} rounds, the variants taking turns; fastest batch of each.")
    print("† this clock is not shifted there: the cost of passing it through.")
    for name, reason in missing.items():
        print(f"{name}: not measured, {reason}.")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
