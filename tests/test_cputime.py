"""CPU time goes on counting over migrations, by every measure that Linux has of it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journey import journey

from timeshim.cputime import TICK_NS, Used

if TYPE_CHECKING:
    from conftest import Program

WORLDS = {"time namespace": (), "page only": ("--no-time-namespace",)}
BURNT_US = 150_000  # what each of the two threads and the child used before the first look
ROUNDING_US = 25_000  # user and system time are carried in ticks, rounded up


@given(st.integers(0, 10**15), st.floats(0, 1))
def test_rounding_up_is_never_below_what_was_read(total: int, share: float) -> None:
    """Whatever user and system were, given that they add up to the total."""
    user = min(int(total * share), total)
    system = total - user
    up = Used.rounded_up(total, user // TICK_NS, system // TICK_NS)
    assert up.total == total
    assert user <= up.user <= user + TICK_NS
    assert system <= up.system <= system + TICK_NS


@pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")
@pytest.mark.parametrize("options", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("clocks", ["shim", "none"])
def test_cpu_time_over_three_hosts(program: Program, options: tuple[str, ...], clocks: str) -> None:
    with journey(95_000) as trip:
        trip.launch(str(program("cputime")), clocks=clocks)
        time.sleep(0.8)
        trip.move(*options)
        time.sleep(0.1)
        trip.move(*options, back=True)
        time.sleep(0.1)
        trip.terminate(trip.here)
        (measures,) = trip.results(trip.here)
    wrong = wrong_measures(measures)
    print(wrong or "all went on")
    if clocks == "shim":
        assert wrong == []
    else:
        assert len(wrong) >= 12


def wrong_measures(measures: dict[str, Any]) -> list[str]:
    """Say which measures went back, jumped, or lost what was used before."""
    wrong = []
    for name, seen in measures.items():
        exact = name in (
            "process clock",
            "thread clock",
            "clock()",
            "helper's clock",
            "getcpuclockid",
        )
        least = BURNT_US if exact else 0
        if seen["backward"]:
            wrong.append(f"{name} went back")
        if seen["us"] < least:
            wrong.append(f"{name} reads {seen['us']} us only")
        if seen["largest_step_us"] > (20_000 if exact else 20_000 + 2 * ROUNDING_US):
            wrong.append(f"{name} jumped by {seen['largest_step_us']} us")
    return wrong
