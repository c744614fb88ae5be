"""What a program that was moved wrote down of its clocks and waits, and what was wrong with it.

The programs in tests/programs/real wait in all the ways that their language has, each kind again
and again in a thread of its own, while another thread reads the clocks without pause. They know
nothing of being moved. They append JSON objects to a file, a line each; a *moment* is a pair of
readings in nanoseconds, of the program's own clock and of CLOCK_REALTIME:

    {"wait": KIND, "began": MOMENT, "due": OWN, "ended": MOMENT}
    {"step": [MOMENT, MOMENT]}     between these two the clocks moved apart by more than 1 ms
    {"error": WORDS}
    {"end": MOMENT, "reads": NUMBER, "backward": NUMBER}     the last line that counts

A wait is right if it ends when it is due by its own clock, and also by CLOCK_REALTIME less the
blackouts that it spans: so no clock can vouch for itself.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MS = 1_000_000
EARLY_NS = 2 * MS  # Node's wall clock and the timers of its event loop count whole milliseconds
# Beyond twice what waits without a migration were late by. What is wrong is wrong in every move, by a
# blackout at least; what is only late has met a machine that is busy with the move itself.
LATE_NS = 60 * MS  # the median of a kind's waits in moves
VERY_LATE_NS = 500 * MS  # any wait
STEP_NS = 3 * MS
LONGEST_NS = 1000 * MS  # no program asks for more


@dataclass(frozen=True)
class Hop:
    """One migration, on CLOCK_REALTIME."""

    frozen: int
    resumed: int

    @classmethod
    def of(cls, summary: dict[str, Any]) -> Self:
        """Take it from what `migrate --json` printed."""
        resumed = summary["virtual"]["realtime"]
        return cls(resumed - summary["blackout_ns"], resumed)

    @property
    def blackout(self) -> int:
        """How long it took, to the program."""
        return self.resumed - self.frozen

    def within(self, began: int, ended: int) -> bool:
        """Tell whether it took place between two moments at which the program ran."""
        return began < (self.frozen + self.resumed) // 2 < ended


@dataclass
class Verdict:
    """How right the waits and clocks of a program were. In nanoseconds."""

    waits: int = 0
    crossings: int = 0
    """Waits that a migration took place in."""
    early: int = 0
    """The most that any wait was early by."""
    late: int = 0
    """The most that a wait was late by that had a migration in it."""
    usual: int = 0
    """And one that had none."""
    reads: int = 0
    backward: int = 0
    step: int = 0
    """The largest difference between a step of the clock and the blackout that explains it."""
    wrong: list[str] = field(default_factory=list)


class _Kind:
    """All waits of one kind."""

    def __init__(self) -> None:
        self.low = self.high = 0
        self.spanned = 0
        self.lates: list[int] = []
        """Of those waits that had a migration in them."""
        self.ended: int | None = None


def judge(log: Path, hops: list[Hop], until: int) -> Verdict:
    """Judge what a program wrote down.

    Args:
        log: its file.
        hops: its migrations.
        until: when it was told to end, on CLOCK_REALTIME.
    """
    verdict = Verdict()
    kinds: dict[str, _Kind] = defaultdict(_Kind)
    for line in lines(log):
        if "wait" in line:
            _judge_wait(verdict, line, kinds[line["wait"]], hops)
        elif "step" in line:
            _judge_step(verdict, line["step"], hops)
        elif "error" in line:
            verdict.wrong.append(line["error"])
        else:
            verdict.reads, verdict.backward = line["reads"], line["backward"]
            if verdict.backward:
                verdict.wrong.append(f"the clock went back {verdict.backward} times")
            _judge_end(verdict, line["end"][1], kinds, hops)
            return verdict
    verdict.wrong.append("it did not end when told to")
    _judge_end(verdict, until, kinds, hops)
    return verdict


def lines(log: Path) -> Iterable[dict[str, Any]]:
    """Yield the lines that are complete."""
    for line in log.read_text().split("\n")[:-1]:
        yield json.loads(line)


def _blackout(hops: list[Hop], began: int, ended: int) -> int:
    return sum(hop.blackout for hop in hops if hop.within(began, ended))


def _judge_step(verdict: Verdict, step: list[list[int]], hops: list[Hop]) -> None:
    (before, before_real), (after, after_real) = step
    explained = _blackout(hops, before_real, after_real)
    error = after - before - (after_real - before_real - explained)
    verdict.step = max(verdict.step, abs(error))
    if abs(error) > STEP_NS:
        verdict.wrong.append(f"the clock jumped by {error / MS:.1f} ms")


def _judge_wait(verdict: Verdict, line: dict[str, Any], kind: _Kind, hops: list[Hop]) -> None:
    (began, began_real), (ended, ended_real) = line["began"], line["ended"]
    blackout = _blackout(hops, began_real, ended_real)
    errors = ended - line["due"], ended_real - began_real - blackout - (line["due"] - began)
    kind.low, kind.high = min(kind.low, *errors), max(kind.high, *errors)
    # a periodic timer has only one beginning, but is waited for since it last rang
    since = max(began_real, kind.ended or 0)
    spanned = sum(hop.within(since, ended_real) for hop in hops)
    kind.spanned += spanned
    kind.ended = ended_real
    verdict.waits += 1
    verdict.early = max(verdict.early, -min(errors))
    if spanned:
        kind.lates.append(max(errors))
        verdict.crossings += 1
        verdict.late = max(verdict.late, *errors)
    else:
        verdict.usual = max(verdict.usual, *errors)


def _judge_end(verdict: Verdict, end: int, kinds: dict[str, _Kind], hops: list[Hop]) -> None:
    limit = VERY_LATE_NS + 2 * verdict.usual
    for name, kind in kinds.items():
        assert kind.ended is not None
        silence = end - kind.ended - _blackout(hops, kind.ended, end)
        if kind.low < -EARLY_NS:
            verdict.wrong.append(f"{name} ended early by {-kind.low / MS:.1f} ms")
        if kind.high > limit:
            verdict.wrong.append(f"{name} ended late by {kind.high / MS:.1f} ms")
        elif kind.lates and median(kind.lates) > LATE_NS + 2 * verdict.usual:
            verdict.wrong.append(
                f"{name} ended late by {median(kind.lates) / MS:.1f} ms in most moves"
            )
        if kind.spanned < len(hops):
            verdict.wrong.append(f"{name} spanned {kind.spanned} of {len(hops)} migrations")
        if silence > LONGEST_NS + limit:
            verdict.wrong.append(f"{name} had not ended after {silence / MS:.1f} ms")
