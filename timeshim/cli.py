"""The command line for tasks on this host: run, ps, clocks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from timeshim import launch, program, timens
from timeshim.clocks import NSEC, frame_of, read_clocks
from timeshim.control import Control
from timeshim.errors import Error
from timeshim.scan import HOP, MOVED, PUNNED, Object, scan_file, scan_process
from timeshim.tasks import Task, all_tasks, find, output_of, runtime_dir
from timeshim.tsc import measure_once

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def span(value: str) -> int:
    """Parse a signed span of time such as +497d, -3s, 1.5h; in nanoseconds."""
    match = re.fullmatch(r"([+-]?)(\d+)(?:\.(\d{1,9}))?([smhd]?)", value)
    if not match:
        raise click.BadParameter(f"{value!r} is not a span of time: write +497d, -3s, 1.5h")
    sign, whole, part, unit = match.groups()
    ns = (int(whole) * NSEC + int((part or "0").ljust(9, "0"))) * _UNITS[unit or "s"]
    if ns >= 2**62:
        raise click.BadParameter(f"{value!r} is more than a clock can be shifted by (146 years)")
    return -ns if sign == "-" else ns


class Group(click.Group):
    """A command group that prints `Error` as one sentence."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except Error as error:
            click.echo(f"timeshim: {error}", err=True)
            ctx.exit(1)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="timeshim")
def main() -> None:
    """Move running programs between hosts without any of their clocks noticing."""


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("--name", help="What to call the task (default: the command's name).")
@click.option(
    "--monotonic",
    type=span,
    default="0s",
    metavar="SPAN",
    help="Start with MONOTONIC, BOOTTIME and the TSC shifted, e.g. +497d: as if the host had been up so much longer.",
)
@click.option(
    "--clocks",
    type=click.Choice(["shim", "kernel", "none"]),
    default="shim",
    show_default=True,
    help="Whose clocks the program sees: the shim's; those of a time namespace of the kernel, for programs that no shim reaches; or (none) the host's.",
)
@click.option(
    "--no-time-namespace",
    is_flag=True,
    help="With --monotonic: shift by the shim alone, so that the kernel's clocks stay the host's.",
)
@click.option(
    "--tsc",
    type=click.Choice(["patch", "trap", "off"]),
    default="patch",
    show_default=True,
    help="Rewrite instructions that read the TSC, so that it goes on as well; have each of them trap, also in generated code, which takes microseconds; or leave them alone.",
)
@click.option(
    "--tsc-skip",
    multiple=True,
    metavar="FILE",
    help="Leave them alone in this program or library: libfoo.so means libfoo.so.1 too. Repeatable.",
)
@click.option("-d", "--detach", is_flag=True, help="Return once it runs; its output goes to a log.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    name: str | None,
    monotonic: int,
    clocks: str,
    tsc: str,
    tsc_skip: tuple[str, ...],
    command: tuple[str, ...],
    *,
    no_time_namespace: bool,
    detach: bool,
) -> None:
    """Launch COMMAND as a task, in the foreground.

    The task's standard input is empty, and it has no terminal.
    """
    path = program.find(command[0])
    if clocks == "shim":
        program.check_reachable(path)
    elif clocks == "kernel":
        check_kernel(no_time_namespace=no_time_namespace)
    elif monotonic:
        raise Error("--monotonic cannot be used with --clocks=none, which leaves clocks alone")
    if tsc == "trap" and clocks != "shim":
        raise Error("--tsc=trap takes --clocks=shim: it is the shim that handles the trap")
    if tsc == "trap" and tsc_skip:
        raise Error("--tsc-skip is for --tsc=patch: a trap is in all code of a process")
    frequency = measure_once(runtime_dir() / "tsc.json")
    task = Task.create(name, list(command), clocks, frequency.hz, tsc, list(tsc_skip))
    report = launch.launch(
        task, detach=detach, shift=monotonic, time_namespace=not no_time_namespace
    )
    if detach:
        click.echo(task.name)
    else:
        raise SystemExit(launch.follow(task, report))


def check_kernel(*, no_time_namespace: bool) -> None:
    """Check that a task can have the kernel's clocks to itself.

    Raises:
        Error: it cannot.
    """
    if no_time_namespace:
        raise Error("--clocks=kernel is a time namespace: --no-time-namespace leaves nothing of it")
    if os.geteuid():
        raise Error("--clocks=kernel takes root, which alone can make a time namespace")
    if not timens.supported():
        raise Error(
            "--clocks=kernel takes a kernel with time namespaces (Linux 5.6, CONFIG_TIME_NS)"
        )


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ps(*, as_json: bool) -> None:
    """List the tasks on this host."""
    rows = []
    for task in all_tasks():
        with contextlib.suppress(Error):  # it ended just now
            rows.append(describe(task))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, header_style="bold")
    for title in ("NAME", "STATE", "PROCESSES", "CLOCKS", "MIGRATIONS", "COMMAND"):
        table.add_column(title)
    for row in rows:
        table.add_row(
            row["name"],
            row["state"] + (f" for {shlex.join(row['destination'])}" if row["destination"] else ""),
            str(len(row["pids"])),
            f"shim in {row['covered']} of {row['eligible']}"
            + (", TSC trapped" if row["tsc"] == "trap" else "")
            if row["clocks"] == "shim"
            else row["clocks"],
            str(row["migrations"]),
            shlex.join(row["argv"]),
        )
    show(table)


@main.command()
@click.argument("task")
def logs(task: str) -> None:
    """Print what TASK printed on this host while nobody was there to read it."""
    try:
        click.echo(output_of(task).read_bytes(), nl=False)
    except FileNotFoundError:
        raise Error(f"no task {task!r} ever ran on this host") from None


def describe(task: Task) -> dict[str, Any]:
    """Return what there is to know about a task; keys as in `ps --json`."""
    with Control(task.control) as control, task.page() as page:
        status = control("status")
        pids = task.pids() or status["pids"]
        covered = sum(maps_page(pid) for pid in pids)
        return asdict(task) | {
            "state": status["state"],
            "destination": status["destination"],
            "pids": pids,
            "covered": covered,
            "eligible": max(len(pids) - 1, covered),  # all but the reaper
            "migrations": page.migrations,
            "blackout_ns": page.blackout_ns,
            "slots_exhausted": page.slots_exhausted,
            "tsc_rewritten": page.tsc_rewritten,
            "tsc_raw": page.tsc_raw,
        }


def show(table: Table) -> None:
    """Print a table, as wide as it needs where nobody's terminal limits it."""
    console = Console()
    Console(width=None if console.is_terminal else 200).print(table)


def maps_page(pid: int) -> bool:
    """Tell whether the shim is attached to a process: set-user-ID programs lose it."""
    try:
        return "/page\n" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, in nanoseconds and ticks.")
@click.argument("task")
def clocks(task: str, *, as_json: bool) -> None:
    """Show TASK's clocks: the host's, its own kernel interface's, and those it sees."""
    found = find(task)
    with found.page() as page, Control(found.control) as control:
        pid = next(iter(found.pids()), None) or control("status")["root"]
        host = read_clocks()
        kernel = host.in_namespace(frame_of(pid))
        virtual = kernel.virtual(page.epoch) if found.clocks == "shim" else kernel
        frequency = measure_once(runtime_dir() / "tsc.json")
        hz = page.tsc_hz
    readings = {"host": host, "kernel": kernel, "virtual": virtual}
    if as_json:
        record: dict[str, Any] = {frame: asdict(at) for frame, at in readings.items()}
        record["tsc_frequency"] = asdict(frequency) | {"virtual_hz": hz}
        click.echo(json.dumps(record, indent=2))
        return
    table = Table(box=None, header_style="bold")
    table.add_column("CLOCK")
    for frame in readings:
        table.add_column(frame.upper(), justify="right")
    for title, field in (
        ("MONOTONIC", "monotonic"),
        ("MONOTONIC_RAW", "raw"),
        ("MONOTONIC_COARSE", "coarse"),
        ("BOOTTIME", "boottime"),
        ("REALTIME", "realtime"),
    ):
        table.add_row(title, *(f"{getattr(at, field) / NSEC:.6f} s" for at in readings.values()))
    table.add_row("TSC", *(str(at.tsc) for at in readings.values()))
    show(table)
    click.echo(f"TSC frequency: {frequency}; the task's: {hz / 1e6:.3f} MHz")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every site.")
@click.argument("targets", nargs=-1, required=True, metavar="FILE|PID...")
def scan(targets: tuple[str, ...], *, as_json: bool) -> None:
    """Show where programs read the TSC by themselves, and how that is covered.

    Of a process, what it has mapped, and whether its sites are rewritten.
    """
    objects: list[Object] = []
    for target in targets:
        objects += scan_process(int(target)) if target.isdigit() else [scan_file(Path(target))]
    if as_json:
        click.echo(json.dumps([found.to_json() for found in objects], indent=2))
        return
    table = Table(box=None, header_style="bold")
    for title in ("OBJECT", "SITES", "MOVED", "HOP", "PUNNED", "NOT COVERED", ""):
        table.add_column(title, justify="left" if title in {"OBJECT", ""} else "right")
    for found in objects:
        rewritten = [site.rewritten for site in found.sites if site.rewritten is not None]
        notes = [found.left_alone] if found.left_alone and not found.trapped else []
        if found.trapped:
            notes.append("trapped")
        elif rewritten and not found.left_alone:
            notes.append(f"{sum(rewritten)} of {len(rewritten)} rewritten")
        if found.outside and not found.trapped:
            notes.append(f"{found.outside} look-alikes in no function, taken for data")
        if found.undecoded and not found.trapped:
            notes.append(f"{found.undecoded} in functions that cannot be decoded")
        table.add_row(
            found.path,
            str(len(found.sites)),
            *(str(found.count(handled)) for handled in (MOVED, HOP, PUNNED)),
            str(found.uncovered),
            "; ".join(notes),
        )
    show(table)
