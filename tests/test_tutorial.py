"""docs/tutorial.md, typed on two virtual machines by somebody who does what it says."""

from __future__ import annotations

import doctest
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.machines import NEEDS, MachineSpec, machines

TUTORIAL = Path(__file__).parents[1] / "docs/tutorial.md"
missing = [program for program in NEEDS if not shutil.which(program)]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="virtual machines' network takes root"),
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
    pytest.mark.timeout(400),  # the image may have to be built
]


class Command(NamedTuple):
    """What is typed on a machine, and what it should print, with `...` for anything."""

    machine: str
    typed: str
    printed: str


def commands(text: str) -> list[Command]:
    """Return the commands of a document, in order."""
    found: list[Command] = []
    for line in text.splitlines():
        if prompt := re.fullmatch(r"    ([a-z]+)# (.*)", line):
            found.append(Command(prompt[1], prompt[2], ""))
        elif found and (more := re.fullmatch(r"    > ?(.*)", line)):
            found[-1] = found[-1]._replace(typed=f"{found[-1].typed}\n{more[1]}")
        elif found and line.startswith("    "):
            found[-1] = found[-1]._replace(printed=f"{found[-1].printed}{line[4:]}\n")
    return found


def is_printed(wanted: str, got: str) -> bool:
    return doctest.OutputChecker().check_output(
        wanted, got, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )


def test_the_tutorial_reads_as_it_should() -> None:
    """Nothing of it is passed over, and what it prints can be wrong."""
    found = commands(TUTORIAL.read_text())
    assert {command.machine for command in found} == {"a", "b"}
    assert sum("migrate" in command.typed for command in found) == 3
    assert not is_printed("stopwatch runs on ssh root@b\n...", "timeshim: no route to host\n")


def test_the_tutorial() -> None:
    with machines(MachineSpec("a"), MachineSpec("b")) as pair:
        at = {machine.name: machine for machine in pair}
        for command in commands(TUTORIAL.read_text()):
            done = at[command.machine].run("sh", "-c", f"cd /root; {command.typed}", check=False)
            print(f"{command.machine}# {command.typed}\n{done.stdout}{done.stderr}")
            assert is_printed(command.printed, done.stdout + done.stderr), command
