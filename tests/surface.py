"""The matrix: every interface of the corpus (tests/corpus), in every mode.

A row is an interface, a column a mode: started natively, under an offset, or moved. What is moved
is so twice, with the shim and without. The corpus says what it saw; the verdicts are here, for only
here it is known how long it was frozen. A verdict is empty if all was right, else two or three words.

A new interface is one more entry in a file of the corpus; a new family one more file, and its name in
`GROUPS` and `FAMILIES`.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from journey import TIMESHIM, WORLDS, journey
from rich.console import Console
from rich.table import Table

from harness.hosts import HostSpec, network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from journey import Journey

    from harness.hosts import Host

MS = 1_000_000
NSEC = 1_000_000_000
SLACK = 1 * MS  # of clocks that two hosts, or a harness and a program, read
LATE = 50 * MS  # to wake up, beyond what the machine made other threads of the same process wait
RIGHT = ""
ABSENT = "-"  # this libc or kernel does not offer it
NO_END = "no end"

STAY_MS, MOVE_MS = 600, 8000  # how long the waits take
HOST_UP = 200_000  # seconds that a host was up, lest its clocks be negative under an offset
ARRANGE_SECONDS, END_SECONDS = 30.0, 12.0


@dataclass(frozen=True)
class Mode:
    """A column."""

    name: str
    shift: int = 0
    """Seconds, by `timeshim run --monotonic`."""
    hops: int = 0
    """How often it is moved."""
    sign: int = 1
    """Whether the other host's clocks are ahead (1) or behind (-1)."""
    options: tuple[str, ...] = ()
    """Of `timeshim run` or `timeshim migrate`."""


@dataclass(frozen=True)
class Group:
    """Families that run in one process."""

    families: tuple[str, ...]
    ahead: int
    """By how many seconds hosts differ: a wait that goes wrong must end nevertheless."""

    def arguments(self, mode: Mode) -> list[str]:
        """Return what to tell the corpus: how long its waits take, and which families."""
        milliseconds = MOVE_MS * (mode.hops + 1) // 2 if mode.hops else STAY_MS
        return [str(milliseconds), *(name for name in self.families if has(mode, name))]


_WAITS = ("deadlines", "timerfds", "timers", "spans", "sockets", "sysv")
_TO_INTERRUPT = ("deadlines", "spans", "sockets", "sysv")
GROUPS = {
    "waits": Group((*_WAITS, "interrupted", *_TO_INTERRUPT), 3),
    "readings": Group(("reads", "entry", "cputime", "life"), 95_000),
}
FAMILIES = [
    *("reads", "entry", "cputime"),
    *("deadlines", "timerfds", "timers", "spans", "sockets", "sysv", "interrupted"),
    "life",
]

# Families that are not to be moved.
STAYING = {
    "timers": "CRIU lets POSIX timers count on before the task resumes",
}


def has(mode: Mode, family: str) -> bool:
    """Tell whether a mode has a family."""
    return not (mode.hops and family in STAYING)


MODES = [
    Mode("native"),
    *(
        Mode(f"{shift:+} s, {world}", shift=shift, options=options)
        for world, options in WORLDS.items()
        for shift in (95_000, -95_000, 3, -3)
    ),
    *(
        Mode(f"{name}, {world}", hops=hops, sign=sign, options=options)
        for world, options in WORLDS.items()
        for name, hops, sign in (("ahead", 1, 1), ("behind", 1, -1), ("there and back", 2, 1))
    ),
]
MIGRATIONS = [mode for mode in MODES if mode.hops]

# Nothing is wrong with these without the shim either; docs/surface.md says why.
RIGHT_BY_ITSELF = {
    "clock_gettime REALTIME",
    "clock_gettime TAI",
    "clock_getres",
    "vDSO other symbols",
    "clock_nanosleep TIMER_ABSTIME REALTIME",
    "pthread_cond_timedwait REALTIME",
    "pthread_mutex_timedlock",
    "pthread_rwlock_timedrdlock",
    "pthread_rwlock_timedwrlock",
    "timerfd TFD_TIMER_ABSTIME REALTIME",
    "sigwait",
    "clock_nanosleep TIMER_ABSTIME MONOTONIC, interrupted",
    "clock_nanosleep TIMER_ABSTIME BOOTTIME, interrupted",
    "clock_nanosleep TIMER_ABSTIME REALTIME, interrupted",
    "syscall() clock_nanosleep, interrupted",
    "syscall() futex_waitv, interrupted",
    "ppoll, interrupted",
    "pselect, interrupted",
}


# Verdicts ---------------------------------------------------------------------------------------


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


def verdict(record: dict[str, Any], mode: Mode, moves: Moves) -> str:
    """Say in a few words what was wrong with an interface, by what the corpus prints about it."""
    match record["kind"]:
        case "absent":
            return ABSENT
        case "reading":
            return verdict_of_reading(record, mode, moves)
        case "measure":
            return verdict_of_measure(record)
        case "check":
            return f"{record['wrong']} wrong" if record["wrong"] else RIGHT
        case _:
            return verdict_of_wait(record, moves)


def verdict_of_reading(record: dict[str, Any], mode: Mode, moves: Moves) -> str:
    """It may only stand still, and that for as long as the process was frozen."""
    slack = moves.slack
    if record["clock"] == "raw":  # not steered as CLOCK_REALTIME is
        slack += moves.blackout // 1000 + 5 * MS
    if mode.shift and record["clock"] != "realtime":
        expected = shifted_lead(record["clock"], mode)
        low, high = (lead - expected for lead in record["lead_ns"])
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


def shifted_lead(clock: str, mode: Mode) -> int:
    """Return how far ahead of CLOCK_REALTIME a clock must be under an offset."""
    number = {
        "monotonic": time.CLOCK_MONOTONIC,
        "raw": time.CLOCK_MONOTONIC_RAW,
        "boottime": time.CLOCK_BOOTTIME,
    }[clock]
    return time.clock_gettime_ns(number) - time.time_ns() + (HOST_UP + mode.shift) * NSEC


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


# Runs -------------------------------------------------------------------------------------------


class Run:
    """One process of the corpus."""

    def __init__(self, corpus: Path, group: str, mode: Mode, directory: Path) -> None:
        """Prepare it; nothing runs yet."""
        self.group, self.mode = group, mode
        self.go = directory / f"go-{group}"
        self.output = directory / f"output-{group}"
        self.kept: list[dict[str, Any]] = []
        self.moves = Moves()
        self.command = [str(corpus), str(self.go), *GROUPS[group].arguments(mode)]

    def lines(self) -> list[dict[str, Any]]:
        """Return what it has printed so far."""
        printed = self.output.read_text()
        return self.kept + [json.loads(line) for line in printed.split("\n")[:-1]]

    def prints_to(self, output: Path) -> None:
        """Keep what it printed on the host that it was on, and look elsewhere from now on."""
        if self.output.exists():
            self.kept = self.lines()
        self.output = output

    def has_said(self, word: str, seconds: float) -> bool:
        """Tell whether it says a word within some seconds."""
        deadline = time.monotonic() + seconds
        while not any(word in line for line in self.lines()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def arranged(self) -> None:
        """Wait until it has made everything ready."""
        assert self.has_said("ready", ARRANGE_SECONDS), f"{self.command} does not get ready"

    def verdicts(self) -> dict[str, str]:
        """Return its verdicts, by row."""
        return {
            line["row"]: verdict(line, self.mode, self.moves)
            for line in self.lines()
            if "row" in line
        }


def stay(corpus: Path, mode: Mode, directory: Path) -> dict[str, str]:
    """Run the corpus without moving it; natively, or under an offset on a host that is up long."""
    runs = [Run(corpus, group, mode, directory) for group in GROUPS]
    with ExitStack() as stack:
        if mode.shift:
            spec = HostSpec("here", monotonic=HOST_UP)
            (host,) = stack.enter_context(network(spec)).hosts
        for run in runs:
            file = stack.enter_context(run.output.open("w"))
            if mode.shift:
                launch = (TIMESHIM, "run", "--name", run.group, f"--monotonic={mode.shift:+}s")
                process = host.popen(*launch, *mode.options, "--", *run.command, stdout=file)
            else:
                process = subprocess.Popen(run.command, stdout=file, start_new_session=True)
            stack.enter_context(reaped(process))
        for run in runs:
            run.arranged()
            run.go.touch()
        return collect(runs)


@contextmanager
def reaped(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Kill a process if it does not end by itself."""
    try:
        yield
        process.wait(0.5)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()
        process.wait()


def move(corpus: Path, mode: Mode, directory: Path) -> dict[str, dict[str, str]]:
    """Move the corpus, with the shim and without: clocks -> row -> verdict."""
    with ExitStack() as stack:
        trips = {
            ahead: stack.enter_context(journey(mode.sign * ahead))
            for ahead in {group.ahead for group in GROUPS.values()}
        }
        runs: dict[str, list[Run]] = {"shim": [], "none": []}
        for name, group in GROUPS.items():
            for clocks, same_clocks in runs.items():
                room = directory / clocks
                room.mkdir(exist_ok=True)
                run = Run(corpus, name, mode, room)
                same_clocks.append(run)
                travel(trips[group.ahead], run, clocks)
        return {clocks: collect(same_clocks) for clocks, same_clocks in runs.items()}


def travel(trip: Journey, run: Run, clocks: str) -> None:
    """Launch one process of the corpus as a task, and move it."""
    name = f"{run.group}-{clocks}"

    def log(host: Host) -> Path:
        return Path(f"/proc/{host.pid}/root/run/timeshim/output/{name}")

    trip.launch(*run.command, clocks=clocks, name=name)
    run.prints_to(log(trip.here))
    run.arranged()
    for hop in range(run.mode.hops):
        back = hop % 2 == 1
        run.moves.summaries.append(trip.move(*run.mode.options, back=back, name=name))
        run.prints_to(log(trip.here if back else trip.there))
    run.go.touch()


def collect(runs: list[Run]) -> dict[str, str]:
    """Wait until all have ended, or should have, and return their verdicts."""
    deadline = time.monotonic() + END_SECONDS
    verdicts: dict[str, str] = {}
    for run in runs:
        run.has_said("done", deadline - time.monotonic())
        verdicts |= run.verdicts()
    return verdicts


# The matrix -------------------------------------------------------------------------------------


def rows_of(corpus: Path) -> dict[str, list[dict[str, Any]]]:
    """Ask the corpus for its interfaces: family -> rows."""
    names = [family for family in FAMILIES if family != "interrupted"]
    printed = subprocess.check_output([corpus, "list", *names], text=True, timeout=10)
    lines = [json.loads(line) for line in printed.splitlines()]
    rows = {name: list(lines) for name, lines in groupby(lines, lambda line: line["family"])}
    rows["interrupted"] = [
        line | {"row": f"{line['row']}, interrupted"} for line in lines if line["interruptible"]
    ]
    return {family: rows[family] for family in FAMILIES}


class Matrix:
    """What came of every interface in every mode that was run, with the shim and without."""

    def __init__(self, corpus: Path, directory: Path) -> None:
        """Begin with an empty one."""
        self.corpus, self.directory = corpus, directory
        self.rows = rows_of(corpus)
        self.cells: dict[tuple[str, str], dict[str, str]] = {}
        self.failed: dict[str, BaseException] = {}

    def column(self, mode: Mode, clocks: str = "shim") -> dict[str, str]:
        """Return a column: row -> verdict; run the mode if nobody has yet."""
        if mode.name in self.failed:
            raise self.failed[mode.name]
        if (clocks, mode.name) not in self.cells:
            directory = self.directory / mode.name.replace(" ", "-")
            directory.mkdir()
            try:
                if mode.hops:
                    seen = move(self.corpus, mode, directory)
                else:
                    seen = {clocks: stay(self.corpus, mode, directory)}
            except BaseException as error:
                self.failed[mode.name] = error
                raise
            for with_clocks, verdicts in seen.items():
                self.cells[with_clocks, mode.name] = {
                    row["row"]: verdicts.get(row["row"], NO_END)
                    for rows in self.rows.values()
                    for row in rows
                    if has(mode, row["family"])
                }
        return self.cells[clocks, mode.name]

    def wrong(self, mode: Mode, family: str, clocks: str = "shim") -> dict[str, str]:
        """Return what is wrong with a family in a mode."""
        column = self.column(mode, clocks)
        names = {row["row"] for row in self.rows[family]}
        return {
            row: what
            for row, what in column.items()
            if row in names and what not in {RIGHT, ABSENT}
        }

    def seen(self, mode: Mode, clocks: str) -> dict[str, str]:
        """Return a column if it was run."""
        return self.cells.get((clocks, mode.name), {})

    def table(self, clocks: str) -> str:
        """Return the matrix, with the shim or without, as text."""
        modes = [mode for mode in MODES if self.seen(mode, clocks)]
        table = _table("", modes)
        for family, rows in self.rows.items():
            table.add_row(family)
            for row in rows:
                cells = [self.seen(mode, clocks).get(row["row"], " ") or "✓" for mode in modes]
                by_itself = clocks == "none" and row["row"] in RIGHT_BY_ITSELF
                table.add_row("  " + row["row"], *cells, "right by itself" if by_itself else "")
        return _text(table)

    def right(self, mode: Mode, family: str, clocks: str) -> int | None:
        """Return how many interfaces of a family were right in a mode, if it was run."""
        column = self.seen(mode, clocks)
        if not column or not has(mode, family):
            return None
        return sum(column.get(row["row"]) == RIGHT for row in self.rows[family])

    def summary(self) -> str:
        """Return how many interfaces of each family were right, with the shim / without."""
        moved = [mode for mode in MIGRATIONS if self.seen(mode, "shim")]
        table = _table("", [Mode("not moved"), *moved])
        for family in self.rows:
            stayed = [
                count
                for mode in MODES
                for clocks in ("shim", "none")
                if not mode.hops and (count := self.right(mode, family, clocks)) is not None
            ]
            cells = [
                f"{self.right(mode, family, 'shim')} / {self.right(mode, family, 'none')}"
                if has(mode, family)
                else ""
                for mode in moved
            ]
            table.add_row(family, str(min(stayed, default="")), *cells)
        return _text(table)


def _table(title: str, modes: list[Mode]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(title, no_wrap=True)
    for mode in modes:
        table.add_column(
            "\n".join(re.split(", | (?!s|back|only)", mode.name.replace("time ", ""))), no_wrap=True
        )
    return table


def _text(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()
