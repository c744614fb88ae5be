"""The command line: what timeshim.cli offers on one host, and moving tasks between hosts."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from dataclasses import asdict

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from harness.carrier import Carrier
from harness.migrate import Options, Progress, Summary
from harness.migrate import migrate as move
from harness.receive import receive as take
from harness.wire import Wire
from timeshim.cli import main
from timeshim.control import Control
from timeshim.tasks import find

__all__ = ["main"]


class Display(Progress):
    """A progress display, for a terminal."""

    def __init__(self, name: str) -> None:
        """Prepare it."""
        self.bars = Bars(
            TextColumn("[bold]{task.fields[name]}"),
            TextColumn("{task.description:8}"),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.bar = self.bars.add_task("", name=name, total=None)

    def phase(self, name: str) -> None:
        """Show the phase."""
        self.bars.update(self.bar, description=name)

    def total(self, size: int) -> None:
        """Show how much there is to send."""
        self.bars.update(self.bar, total=size)

    def advance(self, size: int) -> None:
        """Show how much was sent."""
        self.bars.advance(self.bar, size)


@main.command()
@click.option(
    "--scale-tsc",
    is_flag=True,
    help="Accept a host with another TSC frequency; the task's page then holds the ratio.",
)
@click.option(
    "--no-time-namespace",
    is_flag=True,
    help="Restore into the host's own time namespace; the shim alone carries the clocks.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.argument("task")
@click.argument("host")
def migrate(
    task: str, host: str, *, scale_tsc: bool, no_time_namespace: bool, as_json: bool
) -> None:
    """Move TASK to HOST.

    HOST is the command prefix that runs something there, as one argument: "ssh root@b",
    "nsenter ... --", or "" for this host. It must find `timeshim` there.
    """
    found = find(task)
    progress = Progress()
    with contextlib.ExitStack() as stack:
        if sys.stderr.isatty():  # elsewhere rich 13 would print an empty line
            progress = Display(found.name)
            stack.enter_context(progress.bars)
        summary = move(
            found,
            shlex.split(host),
            Options(scale_tsc=scale_tsc, time_namespace=not no_time_namespace),
            progress,
        )
    if as_json:
        click.echo(json.dumps(asdict(summary) | {"continuity_ns": summary.continuity_ns}))
    else:
        tell(summary)


def tell(summary: Summary) -> None:
    """Print what a migration came to."""
    click.echo(f"{summary.task} runs on {summary.destination}")
    click.echo(
        f"blackout {summary.blackout_ns / 1e6:.1f} ms, {summary.bytes / 1e6:.1f} MB sent, "
        f"{summary.waits} waits in progress corrected"
    )
    if summary.timers_lost:
        click.echo(
            f"{summary.timers_lost} timers could not be set again, and will not ring", err=True
        )
    if summary.untrapped:
        click.echo(
            f"{summary.untrapped} threads do not trap any more, and read the hardware's TSC",
            err=True,
        )
    if summary.clocks == "shim":
        click.echo(
            f"continuity: every clock within {summary.continuity_ns / 1e3:.0f} us "
            f"(freeze {summary.freeze_ns / 1e3:.0f}, resume {summary.resume_ns / 1e3:.0f}); at resume"
        )
    elif summary.clocks == "kernel":
        click.echo(
            f"continuity: BOOTTIME within {summary.continuity_ns / 1e3:.0f} us, MONOTONIC "
            f"{summary.advance_ns / 1e6:.1f} ms ahead, which the restore took; at resume"
        )
    else:
        click.echo("continuity: none, the clocks are the host's")
        return
    for name in ("monotonic", "raw", "coarse", "boottime"):
        click.echo(f"  {name:10} {summary.virtual[name] / 1e9:18.6f} s")
    if summary.clocks == "shim":
        click.echo(f"  {'tsc':10} {summary.virtual['tsc']:18}")


@main.command(hidden=True)
def receive() -> None:
    """Receive a task; what `migrate` runs on the destination."""
    reader, writer = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but the stream may go there
    take(Wire(reader, writer, "the source"))


@main.command()
@click.argument("task")
def resolve(task: str) -> None:
    """Settle where TASK runs after a migration that ended in doubt.

    Asks the destination whether the task ever ran there. If so, the frozen copy here is removed;
    if not, it runs on here.
    """
    found = find(task)
    with Control(found.control) as control:
        status = control("status")
        if status["state"] != "leaving":
            click.echo(f"{found.name} is {status['state']}: nothing is in doubt")
            return
        with Carrier(status["destination"]) as carrier:
            carrier.expect_greeting()
            carrier.send("question", id=found.id, hop=found.hop + 1)
            arrived = carrier.expect("answer")["arrived"]
        if arrived:
            control("kill")
            click.echo(f"{found.name} runs on {carrier.peer}; the copy here is gone")
        else:
            control("resume")
            click.echo(f"{found.name} never ran on {carrier.peer}; it runs on here")


@main.command()
def demo() -> None:
    """Show a server and a program crossing between hosts whose clocks differ by days."""
    from harness import demo  # noqa: PLC0415 - importing pyroute2 takes 0.3 s

    console = Console(highlight=False)
    outcome = demo.demo(console)
    demo.show(outcome, console)
    raise SystemExit(1 if outcome.failures() else 0)
