"""The time since boot, as sysinfo() and times() tell it, agrees with the clocks."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from journey import journey
from test_migration import direction, world

if TYPE_CHECKING:
    from conftest import Program, Timeshim


@pytest.mark.parametrize("span", ["+95000s", "+3s"])
def test_it_agrees_with_shifted_clocks(timeshim: Timeshim, program: Program, span: str) -> None:
    with timeshim.start("run", f"--monotonic={span}", "--", program("uptime")) as process:
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=20)
    assert json.loads(printed) == {"uptime_s": 0, "times_ticks": 0}


@pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")
@world
@direction
@pytest.mark.parametrize("clocks", ["shim", "none"])
def test_it_agrees_after_a_migration(
    program: Program, sign: int, options: tuple[str, ...], clocks: str
) -> None:
    with journey(sign * 95_000) as trip:
        trip.launch(str(program("uptime")), clocks=clocks)
        time.sleep(0.3)
        trip.move(*options)
        time.sleep(0.3)
        trip.terminate(trip.there)
        (seen,) = trip.results(trip.there)
    print(seen)
    if clocks == "shim":
        assert seen == {"uptime_s": 0, "times_ticks": 0}
    else:
        # what the kernel counts in jiffies goes on during the blackout, and in no namespace
        assert seen["times_ticks"] > 0
