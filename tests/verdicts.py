"""What was wrong with an interface of the corpus (tests/corpus), by what it prints about it.

A verdict is empty if all was right, else two or three words. It cannot be given where the interface
is, for there nobody knows for how long the process was frozen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

MS = 1_000_000
NSEC = 1_000_000_000
SLACK = 1 * MS  # of clocks that two hosts, or a harness and a program, read
LATE = 50 * MS  # to wake up, beyond what the machine made other threads of the same process wait
RIGHT = ""
ABSENT = "-"  # this libc or kernel does not offer it


def span(ns: int) -> str:
    """Return a span of time for people."""
    return f"{ns / NSEC:.1f} s" if abs(ns) >= NSEC else f"{ns / MS:.0f} ms"


@dataclass
class Moves:
    """What is known about the migrations of a process."""

    summaries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def blackout(self) -> int:
        """How long it was frozen in all."""
        return sum(int(summary["blackout_ns"]) for summary in self.summaries)

    @property
    def slack(self) -> int:
        """How far off clocks may be."""
        return SLACK + sum(int(summary["continuity_ns"]) for summary in self.summaries)

    def stood_still(self, clock: str) -> int:
        """How much a clock lost on CLOCK_REALTIME."""
        return 0 if clock in ("boottime", "realtime") else self.blackout

    def within(self, begin: int, end: int) -> bool:
        """Tell whether all of them took place between two times of CLOCK_REALTIME."""
        return all(
            begin < s["virtual"]["realtime"] - s["blackout_ns"] and s["virtual"]["realtime"] < end
            for s in self.summaries
        )


def verdict(record: dict[str, Any], moves: Moves, ahead: int | None = None) -> str:
    """Say in a few words what was wrong with an interface, by what the corpus prints about it.

    Args:
        record: what it prints.
        moves: the migrations meanwhile.
        ahead: by how many seconds its clocks were ahead of ours, if that is known.
    """
    match record["kind"]:
        case "absent":
            return ABSENT
        case "reading":
            return verdict_of_reading(record, moves, ahead)
        case "measure":
            return verdict_of_measure(record)
        case "check":
            return f"{record['wrong']} wrong" if record["wrong"] else RIGHT
        case _:
            return verdict_of_wait(record, moves)


def verdict_of_reading(record: dict[str, Any], moves: Moves, ahead: int | None) -> str:
    """It may only stand still, and that for as long as the process was frozen."""
    slack = moves.slack
    if record["clock"] == "raw":  # not steered as CLOCK_REALTIME is
        slack += moves.blackout // 1000 + 5 * MS
    if ahead is not None and record["clock"] != "realtime":
        expected = lead(record["clock"]) + ahead * NSEC
        low, high = (seen - expected for seen in record["lead_ns"])
        if low > slack or high < -slack:
            return f"off {span((low + high) // 2)}"
    if record["backward"]:
        return "back"
    if record["gained_ns"] > slack:
        return f"jump +{span(record['gained_ns'])}"
    least, most = (lost - moves.stood_still(record["clock"]) for lost in record["lost_ns"])
    if least > slack:
        return f"lost {span(least)}"
    if most < -slack:
        return f"ran on {span(-most)}"
    return RIGHT


def lead(clock: str) -> int:
    """Return how far a clock of ours is ahead of CLOCK_REALTIME."""
    number = {
        "monotonic": time.CLOCK_MONOTONIC,
        "raw": time.CLOCK_MONOTONIC_RAW,
        "boottime": time.CLOCK_BOOTTIME,
    }[clock]
    return time.clock_gettime_ns(number) - time.time_ns()


def verdict_of_measure(record: dict[str, Any]) -> str:
    """CPU time never gets less, nor more than a CPU can give."""
    if record["backward"]:
        return "back"
    # what is counted in ticks is rounded up, user and system time apart
    if record["leap_ns"] > (20 * MS if record["exact"] else 70 * MS):
        return f"jump +{span(record['leap_ns'])}"
    return RIGHT


def verdict_of_wait(record: dict[str, Any], moves: Moves) -> str:
    """It ends when its time has come by its own clock, and in reality; never before."""
    if record["returned"] != record["expected"]:
        return "ended" if record["returned"] == "0" else str(record["returned"])
    if record["kind"] == "ended" and not record["ended_ns"]:
        return f"{record['returned']} early"
    bound = LATE + 2 * record["machine_late_ns"]
    early, late = lateness(record, moves)
    if early > 0:
        return f"early {span(early)}"
    if late > bound:
        return f"late {span(late)}"
    if record["left_ns"] >= 0:
        # said a moment before the clock was read again; sleep() knows whole seconds only
        least = -NSEC if record["row"].startswith("sleep") else -MS
        error = record["left_ns"] - (record["asked_ns"] - record["took_ns"])
        if not least <= error <= bound:
            return f"left {span(error)} off"
    return RIGHT if moves.within(record["begin_ns"], record["end_ns"]) else "over before"


def lateness(record: dict[str, Any], moves: Moves) -> tuple[int, int]:
    """Return by how much a wait was too early, at least, and too late, at most."""
    if record["kind"] == "ended":  # by the corpus
        late = record["end_ns"] - record["ended_ns"]
        return -late, late
    own = record["took_ns"] - record["asked_ns"]
    real = record["end_ns"] - record["begin_ns"] - record["asked_ns"]
    real -= moves.stood_still(record["clock"])
    return max(-own, -real - moves.slack), max(own, real)
