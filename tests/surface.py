"""The matrix: every interface of the corpus (tests/corpus), in every mode.

A row is an interface, a column a mode: started natively, under an offset, or moved. What is moved
is so twice, with the shim and without. A cell is a verdict, see verdicts.py.

A new interface is one more entry in a file of the corpus; a new family one more file, and its name in
`GROUPS` and `FAMILIES`.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from journey import TIMESHIM, WORLDS, journey
from rich.console import Console
from rich.table import Table
from verdicts import ABSENT, RIGHT, Moves, verdict

from harness.hosts import HostSpec, network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from journey import Journey

    from harness.hosts import Host

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
        return [str(milliseconds), *self.families]


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
        ahead = HOST_UP + self.mode.shift if self.mode.shift else None
        return {
            line["row"]: verdict(line, self.moves, ahead) for line in self.lines() if "row" in line
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
        if not column:
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
