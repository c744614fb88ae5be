"""Ways into a clock past others who stand in front of it: language runtimes, other preloads.

Those of the program itself are in the matrix, see test_surface.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PROGRAMS

if TYPE_CHECKING:
    from conftest import Program, Timeshim


def run_shifted(timeshim: Timeshim, *command: str | Path, seconds: float = 2) -> dict[str, Any]:
    """Run something that prints one JSON object upon SIGTERM, its clocks shifted by a day."""
    # from its own start on: launching may take longer than that
    limited = ("timeout", str(seconds), *command)
    done = timeshim("run", "--monotonic=+1d", "--no-time-namespace", "--", *limited)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.skipif(not shutil.which("go"), reason="there is no Go compiler (Debian's golang-go)")
def test_go_with_cgo(timeshim: Timeshim, tmp_path: Path) -> None:
    environment = os.environ | {
        "CGO_ENABLED": "1",
        "GO111MODULE": "off",
        "GOFLAGS": "",
        "GOCACHE": str(tmp_path / "cache"),
    }
    built = tmp_path / "cgo"
    command = ["go", "build", "-o", str(built), str(PROGRAMS / "cgo.go")]
    subprocess.run(command, check=True, env=environment, timeout=100)
    seen = run_shifted(timeshim, built)
    assert seen["readings"] > 100
    assert seen["wrong"] == 0


@pytest.mark.parametrize("flags", [(), ("-Wl,-z,initfirst",)], ids=["plain", "initfirst"])
def test_reads_through_another_preload(
    timeshim: Timeshim, program: Program, flags: tuple[str, ...]
) -> None:
    """It finds the shim behind it, in places where little works too, and still does its own work."""
    wrapper = program("wrapper", "-shared", "-fPIC", *flags)
    environment = timeshim.env | {"LD_PRELOAD": str(wrapper)}
    command = ("run", "--monotonic=+1d", "--no-time-namespace", "--", program("entry"))
    seen = json.loads(timeshim.output(*command, env=environment))
    assert seen.pop("wrapped") >= 8
    assert len(seen) == 10
    # the kernel's clock is read a moment after
    assert {where: shift for where, shift in seen.items() if not 86399 <= shift <= 86400} == {}


@pytest.mark.parametrize("library", ["faketime/libfaketime.so.1", "libjemalloc.so.2"])
def test_libraries_that_are_often_preloaded(
    timeshim: Timeshim, program: Program, library: str
) -> None:
    found = next((p for p in sorted(Path("/usr/lib").rglob(library)) if p.exists()), None)
    if not found:
        pytest.skip(f"{library} is not installed")
    # libfaketime would have MONOTONIC read what REALTIME does
    faketime = {"FAKETIME": "+3d", "DONT_FAKE_MONOTONIC": "1"}
    environment = timeshim.env | faketime | {"LD_PRELOAD": str(found)}
    command = ("run", "--monotonic=+1d", "--no-time-namespace", "--", program("entry"))
    seen = json.loads(timeshim.output(*command, env=environment))
    assert {where: shift for where, shift in seen.items() if not 86399 <= shift <= 86400} == {}
