"""`timeshim demo`: a server and a program cross between hosts whose clocks differ by days.

Two namespace hosts, a migration there and one back, and a judgement from the outside: the program
that moves (demo_clock.py) only writes down what its clocks say, the server's client
(demo_client.py) what the server acknowledged, and all comparing is done here. Two more copies of
the program make the same journey with plain CRIU, for without the jump there is nothing to heal.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from harness.hostlink import SCRIPTS, link
from harness.hosts import Host, HostSpec, network
from timeshim.errors import Error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, JustifyMethod

DAY = 86400
NSEC = 1_000_000_000
UP = 2, 400  # days that the hosts claim to be up
WAYS = "there", "back"

TIMESHIM = str(Path(SCRIPTS) / "timeshim")
PROGRAM = Path(__file__).with_name("demo_clock.py")
CLIENT = Path(__file__).with_name("demo_client.py")
REDIS = ("--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no")  # noqa: S104 - the host's own network
VOLATILE = ("--save", "", "--appendonly", "no")  # so what survives has been moved in memory

WAIT = 3.0  # seconds a timed wait asks for: longer than the migration in its middle
PATIENCE = 10.0  # seconds for what takes less than one

WIDTH_NS = 50_000  # readings taken within this time are compared; others were interrupted
CONTINUITY_NS = 1_000_000  # how far a clock may be from one that pauses for just the blackout
EARLY_NS = 1_000_000  # waits never end early, but for the resolution of their clock
LATE_NS = 250 * 1_000_000  # a busy machine wakes nobody in time, moved or not


@dataclass(frozen=True)
class Variant:
    """A way to make the journey."""

    name: str
    title: str
    remark: str
    run: tuple[str, ...] = ()
    migrate: tuple[str, ...] = ()


SHIM = Variant("shim", "with timeshim", "its clocks come from the page")
NAMESPACE = Variant(
    "criu", "CRIU alone, as root", "it makes a time namespace there", ("--clocks=none",)
)
PLAIN = Variant(
    "plain",
    "CRIU in a container",
    "it cannot make a time namespace",
    ("--clocks=none",),
    ("--no-time-namespace",),
)
VARIANTS = SHIM, NAMESPACE, PLAIN


@dataclass(frozen=True)
class Reading:
    """What the program read at one moment, in nanoseconds."""

    real: int
    monotonic: int
    raw: int
    boottime: int
    width: int
    """All of it was read within this time."""

    @classmethod
    def of(cls, first: int, monotonic: int, raw: int, boottime: int, last: int) -> Reading:
        """Take a line of the program's log."""
        return cls((first + last) // 2, monotonic, raw, boottime, last - first)


PAUSING = ("monotonic", "raw")  # BOOTTIME counts a blackout as it counts a suspend
CLOCKS = (*PAUSING, "boottime")
TITLES = {
    "monotonic": "MONOTONIC",
    "raw": "MONOTONIC_RAW",
    "boottime": "BOOTTIME",
    "real": "REALTIME",
}


@dataclass(frozen=True)
class Crossing:
    """One migration, as the program saw it."""

    before: Reading
    after: Reading
    blackout: int

    def step(self, clock: str) -> int:
        """Return how far a clock moved from the last reading before to the first one after."""
        return int(getattr(self.after, clock) - getattr(self.before, clock))

    def error(self, clock: str) -> int:
        """Return how far a clock is from where it should be, given that real time passed."""
        pause = self.blackout if clock in PAUSING else 0
        return self.step(clock) - (self.step("real") - pause)

    @property
    def worst(self) -> int:
        """The largest error of any clock."""
        return max((self.error(clock) for clock in CLOCKS), key=abs)


@dataclass(frozen=True)
class Wait:
    """One timed wait, with a migration in its middle."""

    number: int
    """That of the migration."""
    how: str
    began: tuple[int, int]
    """MONOTONIC, as the program saw it, and REALTIME."""
    ended: tuple[int, int] | None
    """None: not yet."""
    left: int
    """By the program's clock, how much there is still to wait."""
    blackout: int

    @property
    def virtual(self) -> int | None:
        """How long it took by the program's own clock."""
        return self.ended and self.ended[0] - self.began[0]

    @property
    def real(self) -> int | None:
        """How long it took."""
        return self.ended and self.ended[1] - self.began[1]

    @property
    def late(self) -> int | None:
        """How much later it ended than one that pauses for the blackout."""
        return None if self.real is None else self.real - self.blackout - round(WAIT * NSEC)


@dataclass(frozen=True)
class Journey:
    """There and back of one copy of the program."""

    crossings: list[Crossing]
    waits: list[Wait]
    """For each crossing, one of each kind."""
    backward: int
    """Readings below the one before."""

    @property
    def worst(self) -> int:
        """The largest error of any clock."""
        return max((crossing.worst for crossing in self.crossings), key=abs)


@dataclass(frozen=True)
class Redis:
    """What the server and its client went through."""

    acknowledged: int
    lost: int
    connections: int
    silence: float
    """The longest that the client waited for an acknowledgement, in seconds."""
    blackouts: list[int]


@dataclass(frozen=True)
class Outcome:
    """What was seen."""

    journeys: dict[Variant, Journey]
    redis: Redis

    def failures(self) -> list[str]:
        """Return what the shim failed to do, and what keeps this from proving anything."""
        found = []
        shim = self.journeys[SHIM]
        for way, crossing in zip(WAYS, shim.crossings, strict=True):
            found += [
                f"{clock.upper()} was off by {span(crossing.error(clock))} on the way {way}"
                for clock in CLOCKS
                if abs(crossing.error(clock)) > CONTINUITY_NS
            ]
        if shim.backward:
            found.append(f"clocks went back {shim.backward} times")
        for wait in shim.waits:
            if wait.late is None:
                found.append(f"{wait.how} did not end")
            elif not -EARLY_NS <= wait.late <= LATE_NS:
                found.append(f"{wait.how} ended {lateness(wait.late)}")
        if self.redis.lost or not self.redis.acknowledged:
            found.append(f"{self.redis.lost} acknowledged writes were lost")
        if self.redis.connections < 3:  # one on each leg
            found.append("the client was not connected on all three legs")
        if any(abs(crossing.worst) < DAY * NSEC for crossing in self.journeys[PLAIN].crossings):
            found.append("the clocks did not jump without the shim, so this shows nothing")
        return found


def demo(console: Console) -> Outcome:
    """Show it all, and return what was seen.

    Raises:
        Error: something is missing here, or a migration failed.
    """
    server = shutil.which("redis-server")
    if not server:
        raise Error("redis-server is not installed: install Debian's package redis-server")
    console.print(
        f"A redis server and a Python program will move from host a, up {UP[0]} days, to host b, "
        f"up {UP[1]} days, and back; then you see what the program's clocks did, beside two "
        "copies of it that moved without timeshim's clocks."
    )
    with ExitStack() as stack:
        # the hosts end before it, and with them all that writes there
        room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="timeshim-demo-")))
        uptime = int(time.clock_gettime(time.CLOCK_MONOTONIC))
        net = stack.enter_context(
            network(*(HostSpec(name, up * DAY - uptime) for name, up in zip("ab", UP, strict=True)))
        )
        # Not before: pyroute2 forks, and ends its child with a SIGTERM that must not unwind this.
        stack.enter_context(orderly_end())
        a, b = net.hosts
        to_b, to_a = stack.enter_context(link(a, b)), stack.enter_context(link(b, a))
        status = stack.enter_context(console.status("starting everything on host a"))

        launch(a, "redis", (), server, *REDIS, *VOLATILE, "--dir", str(room))
        rooms = {variant.name: room / variant.name for variant in VARIANTS}
        for variant in VARIANTS:
            rooms[variant.name].mkdir()
            program = (sys.executable, str(PROGRAM), str(rooms[variant.name]))
            launch(a, variant.name, variant.run, *program)
        client = stack.enter_context(
            running(*net.client_prefix, sys.executable, str(CLIENT), a.address, b.address)
        )

        moves: dict[str, list[Move]] = {name: [] for name in ("redis", *rooms)}
        for number, (source, host) in enumerate(((a, to_b), (b, to_a)), start=1):
            for variant in VARIANTS:
                status.update(f"moving the program from {source.name}, {variant.title}")
                begin_waits(rooms[variant.name], number)
                moves[variant.name].append(migrate(source, variant.name, host, *variant.migrate))
            status.update(f"moving redis-server from {source.name}")
            moves["redis"].append(migrate(source, "redis", host))
            status.update("letting the program's timed waits end")
            for variant in (SHIM, NAMESPACE):  # without either they may not end for a year
                await_waits(rooms[variant.name], number, "ends")

        status.update("reading everything back from redis-server")
        told, _ = client.communicate(timeout=60)
        if client.returncode:
            raise Error("redis-server does not answer its client any more")
        return Outcome(
            {variant: examine(rooms[variant.name], moves[variant.name]) for variant in VARIANTS},
            Redis(**json.loads(told), blackouts=[move.blackout for move in moves["redis"]]),
        )


@contextmanager
def orderly_end() -> Iterator[None]:
    """Have SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that nothing stays behind."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command beside us, until the context ends at the latest."""
    with subprocess.Popen(
        command, text=True, process_group=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def timeshim(host: Host, *arguments: str) -> str:
    """Run timeshim on a host and return what it prints.

    Raises:
        Error: it failed, and what it said; or it does not end.
    """
    try:
        done = host.run(TIMESHIM, *arguments, check=False, timeout=3 * PATIENCE)
    except subprocess.TimeoutExpired:
        raise Error(f"`timeshim {arguments[0]}` does not end on host {host.name}") from None
    if done.returncode:
        said = (
            done.stderr.strip().rpartition("\n")[2].removeprefix("timeshim: ")
            or f"exit status {done.returncode}"
        )
        raise Error(f"`timeshim {arguments[0]}` failed on host {host.name}: {said}")
    return str(done.stdout)


def launch(host: Host, name: str, options: tuple[str, ...], *command: str) -> None:
    """Launch a task on a host."""
    timeshim(host, "run", "--detach", "--name", name, *options, "--", *command)


@dataclass(frozen=True)
class Move:
    """One migration, as the harness saw it."""

    began: int
    """REALTIME."""
    ended: int
    blackout: int


def migrate(source: Host, task: str, host: str, *options: str) -> Move:
    """Move a task from a host."""
    began = time.time_ns()
    summary = json.loads(timeshim(source, "migrate", "--json", *options, task, host))
    return Move(began, time.time_ns(), summary["blackout_ns"])


def begin_waits(room: Path, number: int) -> None:
    """Have the program begin its timed waits.

    Raises:
        Error: it did not.
    """
    order = room / f"wait-{number}"
    order.with_suffix(".new").write_text(str(WAIT))
    order.with_suffix(".new").rename(order)
    if not await_waits(room, number, "begins"):
        raise Error(f"the program {room.name} does not run any more")


def await_waits(room: Path, number: int, what: str) -> bool:
    """Wait until both waits have begun or ended, and tell whether they did."""
    deadline = time.monotonic() + PATIENCE
    while sum((int(n), did) == (number, what) for n, _, did, *_ in lines(room / "waits")) < 2:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def lines(log: Path) -> list[list[str]]:
    """Return the words of the lines that are complete."""
    try:
        return [line.split() for line in log.read_text().split("\n")[:-1]]
    except FileNotFoundError:
        return []


def examine(room: Path, moves: list[Move]) -> Journey:
    """Make out what the program saw of its migrations."""
    readings = [Reading.of(*map(int, line)) for line in lines(room / "clocks")]
    crossings = [cross(readings, move) for move in moves]
    began: dict[tuple[int, str], tuple[int, int]] = {}
    ended: dict[tuple[int, str], tuple[int, int]] = {}
    for number, how, did, monotonic, real in lines(room / "waits"):
        times = began if did == "begins" else ended
        times[int(number), how] = int(monotonic), int(real)
    waits = [
        Wait(
            number,
            how,
            at,
            ended.get((number, how)),
            at[0] + round(WAIT * NSEC) - readings[-1].monotonic,
            moves[number - 1].blackout,
        )
        for (number, how), at in sorted(began.items())
    ]
    backward = sum(
        getattr(later, clock) < getattr(earlier, clock)
        for earlier, later in pairwise(readings)
        for clock in CLOCKS
    )
    return Journey(crossings, waits, backward)


def cross(readings: list[Reading], move: Move) -> Crossing:
    """Find the readings before and after a migration: between them real time passed alone.

    Raises:
        Error: there are none.
    """
    near = [
        reading
        for reading in readings
        if reading.width < WIDTH_NS and move.began < reading.real < move.ended + NSEC // 2
    ]
    if len(near) < 2:
        raise Error("the program read its clocks too rarely: this machine is too busy")

    def discord(pair: tuple[Reading, Reading]) -> int:
        before, after = pair
        return abs((after.real - before.real) - (after.monotonic - before.monotonic))

    before, after = max(pairwise(near), key=discord)
    return Crossing(before, after, move.blackout)


def span(ns: int) -> str:
    """Write a span of time, signed, in the unit that suits it."""
    for unit, length in (("d", DAY * NSEC), ("s", NSEC), ("ms", 10**6), ("us", 10**3)):
        if abs(ns) >= length:
            return f"{ns / length:+.1f} {unit}"
    return f"{ns:+} ns"


def duration(ns: int) -> str:
    """Write how long something took."""
    return f"{ns / NSEC / DAY:.1f} d" if ns > DAY * NSEC else f"{ns / NSEC:.3f} s"


def size(ns: int) -> str:
    """Write a span of time without a sign."""
    return span(abs(ns)).lstrip("+")


def lateness(ns: int) -> str:
    """Write how late, or early, something was."""
    return f"{size(ns)} {'late' if ns >= 0 else 'early'}"


def moment(ns: int) -> str:
    """Write what a clock reads that counts from the start of a machine."""
    days, rest = divmod(ns, DAY * NSEC)
    return f"{days}d {time_of_day(rest)}"


def time_of_day(ns: int) -> str:
    """Write the time of a day."""
    seconds, rest = divmod(ns % (DAY * NSEC), NSEC)
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}.{rest // 10**8}"


def show(outcome: Outcome, console: Console) -> None:
    """Print the tables and the verdict."""
    show_clocks(outcome, console)
    show_waits(outcome, console)
    show_migrations(outcome, console)
    redis = outcome.redis
    console.print(
        f"\nredis-server: {redis.acknowledged} writes acknowledged, {redis.lost} of them lost; its "
        f"client connected {redis.connections} times and waited {redis.silence:.2f} s at most."
    )
    failures = outcome.failures()
    if failures:
        console.print(f"[red]timeshim did not hold: {'; '.join(failures)}.")
        return
    worst = outcome.journeys[SHIM].worst
    jumps = [span(crossing.worst) for crossing in outcome.journeys[PLAIN].crossings]
    console.print(
        f"[green]With timeshim no clock was off by more than {size(worst)} and none went back; "
        f"without it and without a time namespace they jumped by {' and '.join(jumps)}."
    )


def show_clocks(outcome: Outcome, console: Console) -> None:
    """Print the program's clocks around each migration."""
    columns = {"": 13, "on a": 13, "on b": 15, "step": 9, "on a again": 13, "step ": 9}
    heading(
        console,
        "The program's clocks, read last before and first after each migration",
        "MONOTONIC stands still during a blackout and BOOTTIME goes on, as in a suspend.",
    )
    for variant in VARIANTS:
        there, back = outcome.journeys[variant].crossings
        table = section(console, variant, columns)
        for clock in (*CLOCKS, "real"):
            write = time_of_day if clock == "real" else moment
            on_a, on_b, again = (
                write(getattr(reading, clock))
                for reading in (there.before, there.after, back.after)
            )
            to_b, to_a = span(there.step(clock)), span(back.step(clock))
            table.add_row(TITLES[clock], on_a, on_b, to_b, again, to_a)
        console.print(table)


def show_waits(outcome: Outcome, console: Console) -> None:
    """Print the timed waits: what was asked for, and what was got."""
    columns = {"": 10, "way": 5, "its clock": 10, "real time": 10, "blackout": 9, "ended": 24}
    heading(
        console,
        f"Waits of {WAIT:.0f} s in the program, with a migration in their middle",
        "Late or early: by a clock that stands still during the blackout.",
    )
    for variant in VARIANTS:
        table = section(console, variant, columns)
        for wait in outcome.journeys[variant].waits:
            took, ended = ("", ""), f"not yet: {duration(wait.left)} to go"
            if wait.virtual is not None and wait.real is not None and wait.late is not None:
                took, ended = (duration(wait.virtual), duration(wait.real)), lateness(wait.late)
            way = WAYS[wait.number - 1]
            table.add_row(wait.how, way, *took, duration(wait.blackout), ended)
        console.print(table)


def show_migrations(outcome: Outcome, console: Console) -> None:
    """Print what the migrations cost, and how exact the clocks were over them."""
    heading(
        console,
        "Migrations",
        "Error: the clock's distance from where the blackout should have left it.",
    )
    columns = ("", 20), ("there", 9), ("back", 9), ("largest error", 14), ("backward steps", 14)
    table = table_of(dict(columns))
    for variant in VARIANTS:
        journey = outcome.journeys[variant]
        blackouts = (duration(crossing.blackout) for crossing in journey.crossings)
        table.add_row(variant.title, *blackouts, span(journey.worst), str(journey.backward))
    table.add_row("redis-server", *map(duration, outcome.redis.blackouts))
    console.print(table)


def heading(console: Console, title: str, remark: str) -> None:
    """Print what stands above a table."""
    console.print(f"\n[bold]{title}\n[dim]{remark}")


def section(console: Console, variant: Variant, columns: dict[str, int]) -> Table:
    """Begin the part of a table that is about one variant."""
    console.print(f"[cyan]{variant.title}[/]: {variant.remark}")
    return table_of(columns, show_header=variant is VARIANTS[0])


def table_of(columns: dict[str, int], *, show_header: bool = True) -> Table:
    """Return an empty table with columns of these widths; all but the first are figures."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", show_header=show_header)
    for column, width in columns.items():
        justify: JustifyMethod = "right" if column else "left"
        table.add_column(column, justify=justify, width=width, no_wrap=True)
    return table
