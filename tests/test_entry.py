"""The many ways into a clock: the shim is met on all of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PROGRAMS
from journey import journey
from test_migration import world

if TYPE_CHECKING:
    from conftest import Program, Timeshim

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")


def run_shifted(timeshim: Timeshim, *command: str | Path, seconds: float = 0.5) -> dict[str, Any]:
    """Run something that prints one JSON object upon SIGTERM, its clocks shifted by a day."""
    with timeshim.start("run", "--monotonic=+1d", "--no-time-namespace", "--", *command) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=20)
    return json.loads(printed)  # type: ignore[no-any-return]


@pytest.mark.parametrize("where", ["stack", "getauxval"])
def test_the_vdso_itself(timeshim: Timeshim, program: Program, where: str) -> None:
    seen = run_shifted(timeshim, program("vdso"), where)
    assert seen["readings"] > 100
    assert seen["wrong"] == 0


@needs_root
@world
def test_the_vdso_itself_after_two_migrations(program: Program, options: tuple[str, ...]) -> None:
    """A thread that CRIU finds in the copy, and a vDSO that it puts elsewhere, would show here."""
    with journey(95_000) as trip:
        trip.launch(str(program("vdso")), "stack")
        for back in (False, True):
            time.sleep(0.2)
            trip.move(*options, back=back)
        time.sleep(0.2)
        trip.terminate(trip.here)
        (seen,) = trip.results(trip.here)
    assert seen["wrong"] == 0


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


@pytest.mark.parametrize(
    "flags", [None, (), ("-Wl,-z,initfirst",)], ids=["plain", "wrapped", "wrapped, initfirst"]
)
def test_reads_in_places_where_little_works(
    timeshim: Timeshim, program: Program, flags: tuple[str, ...] | None
) -> None:
    """And another preloaded library, which finds the shim behind it, still does its own work."""
    environment = timeshim.env
    if flags is not None:
        wrapper = program("wrapper", "-shared", "-fPIC", *flags)
        environment = environment | {"LD_PRELOAD": str(wrapper)}
    command = ("run", "--monotonic=+1d", "--no-time-namespace", "--", program("entry"))
    seen = json.loads(timeshim.output(*command, env=environment))
    wrapped = seen.pop("wrapped", None)
    assert len(seen) == (9 if flags is None else 10)
    # the kernel's clock is read a moment after
    assert {where: shift for where, shift in seen.items() if not 86399 <= shift <= 86400} == {}
    if flags is not None:
        assert wrapped >= 8


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
