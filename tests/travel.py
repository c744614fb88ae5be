"""Moving a program there and back again while it works, and what that came to."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from timed import MS, Hop

if TYPE_CHECKING:
    from journey import Journey

AHEAD = 95_000  # seconds by which the second host's clocks are ahead
HOPS = pytest.mark.parametrize(
    "hops",
    [
        pytest.param(4, id="4 hops"),
        pytest.param(20, id="20 hops", marks=[pytest.mark.long, pytest.mark.timeout(400)]),
    ],
)
PAGE_ONLY = ("--no-time-namespace",)
SHIFTED = ("--monotonic", "+95000s")


class Between(Protocol):
    """What is done after each hop."""

    def __call__(self, *, back: bool) -> None:
        """Do it; `back`: the task is on the first host again."""


def world(hop: int) -> tuple[str, ...]:
    """Return the options for a hop: two in each world in turn.

    So a task is also dumped from a time namespace that CRIU made and restored without one, and the
    other way round.
    """
    return PAGE_ONLY if hop % 4 >= 2 else ()


def there_and_back(trip: Journey, hops: int, between: Between) -> list[dict[str, Any]]:
    """Move a task so many times, and return the summaries.

    Args:
        trip: hosts, and the task.
        hops: how often.
        between: called after each hop.
    """
    summaries = []
    for hop in range(hops):
        back = hop % 2 == 1
        summaries.append(trip.move(*world(hop), back=back))
        between(back=back)
    return summaries


def ends(trip: Journey, hops: int, seconds: float = 10) -> None:
    """Terminate the task where it is now, and wait until it has ended."""
    host = trip.there if hops % 2 else trip.here
    trip.terminate(host)
    deadline = time.monotonic() + seconds
    while trip.tasks(host):
        assert time.monotonic() < deadline, "it does not end"
        time.sleep(0.05)


def blackouts(summaries: list[dict[str, Any]]) -> str:
    """Write how long the task stood still: the median and the most, in milliseconds."""
    all_of_them = [Hop.of(summary).blackout / MS for summary in summaries]
    return f"{median(all_of_them):.0f} / {max(all_of_them):.0f}"
