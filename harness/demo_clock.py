"""The program that `timeshim demo` moves: it writes down its clocks, and waits when told to.

    demo_clock.py DIRECTORY

It knows nothing of being moved, and needs nothing but Python. In the directory it writes `clocks`,
a line of readings every 2 ms, and for each file wait-N that appears there, whose text is a number
of seconds, waits that long in two ways and says so in `waits`. It does not end by itself.
"""

import select
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

EVERY = 0.002


def read_clocks(directory: Path) -> None:
    """Write readings for ever; REALTIME first and last, so that a line has a width."""
    with (directory / "clocks").open("w", buffering=1) as log:
        while True:
            line = (
                time.clock_gettime_ns(time.CLOCK_REALTIME),
                time.monotonic_ns(),
                time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW),
                time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                time.clock_gettime_ns(time.CLOCK_REALTIME),
            )
            print(*line, file=log)
            # A sleep until a moment could last for months once the clock has jumped back; select
            # is told how long, and is the kernel's business.
            select.select([], [], [], EVERY)


def wait_for(seconds: float) -> None:
    """Wait for something that does not happen."""
    threading.Event().wait(seconds)


def sleep_until(seconds: float) -> None:
    """Sleep until a deadline; in the C library this is an absolute clock_nanosleep."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(left)


def wait(directory: Path, name: str, how: Callable[[float], None]) -> None:
    """Wait as often as told to, and write down when each wait began and ended."""
    with (directory / "waits").open("a", buffering=1) as log:
        for number in (1, 2):
            order = directory / f"wait-{number}"
            while not order.exists():
                select.select([], [], [], EVERY)
            print(number, name, "begins", time.monotonic_ns(), time.time_ns(), file=log)
            how(float(order.read_text()))
            print(number, name, "ends", time.monotonic_ns(), time.time_ns(), file=log)


def main() -> None:
    """Run both kinds of waits beside the readings."""
    directory = Path(sys.argv[1])
    for name, how in (("Event.wait", wait_for), ("time.sleep", sleep_until)):
        threading.Thread(target=wait, args=(directory, name, how), daemon=True).start()
    read_clocks(directory)


if __name__ == "__main__":
    main()
