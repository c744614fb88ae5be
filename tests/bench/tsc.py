"""Print what reading the TSC costs: natively, rewritten by the shim, scaled, trapped, and by timeshim.h.

    python tests/bench/tsc.py

The variants take turns, and the fastest batch of all rounds stands for each, as in costs.py. Between
fences is how code is measured; a bare loop is how often a counter can be read at all.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
import tempfile
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROUNDS = 8
PRELOAD = Path(__file__).parents[2] / "preload"
TIMESHIM = str(Path(sysconfig.get_path("scripts")) / "timeshim")
SHIFTED = [TIMESHIM, "run", "--monotonic", "+1d"]

# what is run, and whether the scaled page is used
VARIANTS = {
    "native": ["tsc", "plain"],
    "timeshim.h, no shim": ["tsc", "inline"],
    "shim, --tsc=off": [*SHIFTED, "--tsc=off", "tsc", "plain"],
    "rewritten": [*SHIFTED, "tsc", "plain"],
    "rewritten, scaled": [*SHIFTED, "tsc", "plain", "scaled"],
    "timeshim.h": [*SHIFTED, "tsc", "inline"],
    "timeshim.h, scaled": [*SHIFTED, "tsc", "inline", "scaled"],
    "PR_SET_TSC and a handler": ["tsc", "trapped"],
    "shim, --tsc=trap": [*SHIFTED, "--tsc=trap", "tsc", "few"],
}


def main() -> None:
    """Measure and print."""
    best: dict[str, list[float]] = defaultdict(lambda: [float("inf")] * 2)
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as directory:
        program = str(Path(directory) / "tsc")
        source = Path(__file__).with_suffix(".c")
        subprocess.run(
            [*compiler, "-O2", "-D_GNU_SOURCE", f"-I{PRELOAD}", source, "-o", program],
            check=True,
            timeout=60,
        )
        for _ in range(ROUNDS):
            for name, words in VARIANTS.items():
                if "scaled" in words and os.geteuid():
                    continue  # only root finds the page where tsc.c looks
                argv = [program if word == "tsc" else word for word in words]
                printed = subprocess.check_output(argv, text=True, timeout=60).split()
                best[name] = [
                    min(pair) for pair in zip(best[name], map(float, printed), strict=True)
                ]
    table = Table(box=None, header_style="bold")
    for title in ("ns per read (x native)", "bare loop", "between fences"):
        table.add_column(title, justify="right" if table.columns else "left")
    for name, found in best.items():
        cells = [
            f"{ns:.1f} x{ns / native:.2f}" for ns, native in zip(found, best["native"], strict=True)
        ]
        table.add_row(name, *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
