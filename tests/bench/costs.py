"""Print what clock reads and waits cost: native, under the shim, and under what else shifts clocks.

    python tests/bench/costs.py

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
    "MONOTONIC": time.CLOCK_MONOTONIC,
    "MONOTONIC_RAW": time.CLOCK_MONOTONIC_RAW,
    "MONOTONIC_COARSE": 6,
    "BOOTTIME": time.CLOCK_BOOTTIME,
    "REALTIME": time.CLOCK_REALTIME,
}
COMPILER = shlex.split(sysconfig.get_config_var("CC") or "cc")

# Each of them is to shift the clocks by a day, if it can.
TIMESHIM = [str(Path(sysconfig.get_path("scripts")) / "timeshim"), "run", "--monotonic", "+1d"]
TIME_NAMESPACE = [
    *("unshare", "--time", "--monotonic", str(DAY), "--boottime", str(DAY), "--fork"),
]
VARIANTS = {
    "native": ["costs", "call"],
    "shim": [*TIMESHIM, "--no-time-namespace", "--", "costs", "call"],
    # where a task is after a migration
    "shim, migrated": [*TIMESHIM, "--", "costs", "call"],
    "time namespace": [*TIME_NAMESPACE, "costs", "call"],
    "libfaketime": ["env", f"LD_PRELOAD={FAKETIME}", "FAKETIME=+1d", "costs", "call"],
    "system call": ["costs", "syscall"],
}


class Costs:
    """What all rounds of one variant found."""

    def __init__(self) -> None:
        self.ns: dict[str, float] = {}
        self.unshifted: set[str] = set()

    def add(self, output: str) -> None:
        """Take what one run of costs.c printed."""
        for line in output.splitlines():
            ns, reading, name = line.split(maxsplit=2)
            self.ns[name] = min(float(ns), self.ns.get(name, float("inf")))
            if reading != "-" and int(reading) - time.clock_gettime(CLOCKS[name]) < DAY / 2:
                self.unshifted.add(name)


def unavailable() -> dict[str, str]:
    """Return the variants that cannot be measured here, and why."""
    reasons = {}
    for name in ("time namespace", "shim, migrated"):
        if os.geteuid():
            reasons[name] = "making one takes root"
        if not Path("/proc/self/ns/time").exists():
            reasons[name] = "this kernel has none"
    if not FAKETIME.exists():
        reasons["libfaketime"] = "not installed"
    return reasons


def measure(variants: dict[str, list[str]]) -> dict[str, Costs]:
    """Let the variants take turns."""
    found: dict[str, Costs] = defaultdict(Costs)
    with tempfile.TemporaryDirectory() as directory:
        costs = Path(directory) / "costs"
        source = Path(__file__).with_suffix(".c")
        flags = ["-O2", "-D_GNU_SOURCE", "-pthread"]
        subprocess.run([*COMPILER, *flags, source, "-o", costs], check=True, timeout=60)
        for _ in track(range(ROUNDS), "measuring", transient=True):
            for name, command in variants.items():
                argv = [str(costs) if word == "costs" else word for word in command]
                found[name].add(subprocess.check_output(argv, text=True, timeout=30))
    return found


def table(found: dict[str, Costs]) -> Table:
    """Lay the result out; a dagger marks a clock that is not shifted where it could be."""
    result = Table(box=None, header_style="bold", padding=(0, 1))
    result.add_column("ns per call (x native)")
    for name in found:
        result.add_column(name, justify="right")
    native = found["native"]
    for call, natively in native.ns.items():
        cells = []
        for name, costs in found.items():
            ns = costs.ns.get(call)
            ratio = f" x{ns / natively:.2f}" if ns and name != "native" else ""
            same = call in costs.unshifted and name not in {"native", "system call"}
            failed = "fails " if ns == 0 else ""
            cells.append(f"{ns:.1f}{ratio}{'†' if same else ' '}" if ns else failed)
        result.add_row(call, *cells)
    return result


def main() -> None:
    """Measure and print."""
    missing = unavailable()
    found = measure({name: argv for name, argv in VARIANTS.items() if name not in missing})
    Console(width=140).print(table(found))
    print(f"{ROUNDS} rounds, the variants taking turns; fastest batch of each.")
    print("† this clock is not shifted there: the cost of passing it through.")
    for name, reason in missing.items():
        print(f"{name}: not measured, {reason}.")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
