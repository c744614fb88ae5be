"""Programs that read the TSC by themselves: rewritten by the shim, or by way of timeshim.h."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PRELOAD, Program, Timeshim, compile_c
from mutant import Mutant

import timeshim as package
from timeshim.scan import HOP, MOVED, PUNNED, scan_file, scan_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INCLUDE = f"-I{PRELOAD}"
SPINNER = f"tsc-spinner-{os.getpid()}"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")


@pytest.fixture
def plugin(program: Program) -> Path:
    return program("plugin", "-shared", "-fPIC")


def wrong_sites(printed: str) -> list[str]:
    """Return the names of the ways in which `tsc sites` read a wrong counter."""
    return [line["site"] for line in map(json.loads, printed.splitlines()) if not line["right"]]


KINDS = pytest.mark.parametrize(
    "flags",
    [("-fPIE", "-pie"), ("-fno-pie", "-no-pie"), ("-O0", "-fPIE", "-pie")],
    ids=["pie", "not-pie", "not-optimized"],
)


@KINDS
def test_every_way_to_read_it(
    timeshim: Timeshim, program: Program, plugin: Path, flags: tuple[str, ...]
) -> None:
    tsc = program("tsc", INCLUDE, *flags)
    for shift in ("+1d", "+0s"):
        assert wrong_sites(timeshim.output("run", "--monotonic", shift, tsc, "sites", plugin)) == []
    # natively, and with the instructions left alone, where only timeshim.h sees the page
    native = subprocess.run([tsc, "sites", plugin], capture_output=True, text=True, check=True)
    assert wrong_sites(native.stdout) == []
    raw = timeshim.output("run", "--tsc=off", "--monotonic", "+1d", tsc, "sites", plugin)
    assert {"plain", "hop", "punned", "constructor"} <= set(wrong_sites(raw))
    assert not {"timeshim.h", "timeshim.h, aux"} & set(wrong_sites(raw))


def test_what_is_skipped(timeshim: Timeshim, program: Program, plugin: Path) -> None:
    tsc = program("tsc", INCLUDE)
    run = ("run", "--monotonic", "+1d")
    wrong = wrong_sites(timeshim.output(*run, "--tsc-skip", plugin.name, tsc, "sites", plugin))
    assert wrong == ["constructor", "plugin", "plugin again"]
    wrong = wrong_sites(timeshim.output(*run, "--tsc-skip", tsc.name, tsc, "sites", plugin))
    assert "plain" in wrong
    assert "plugin" not in wrong
    done = timeshim("run", "--tsc-skip", "x" * 1100, tsc, "sites")
    assert done.returncode == 1
    assert "too long" in done.stderr


def test_each_kind_of_plan_occurs_and_data_is_left_alone(program: Program) -> None:
    found = scan_file(program("tsc", INCLUDE))
    handled = Counter(site.handled for site in found.sites)
    assert handled[MOVED] > 5
    assert handled[HOP] >= 1
    assert handled[PUNNED] >= 1
    assert found.uncovered == 0
    assert found.inside >= 3  # with_data() in tsc.c
    assert found.marked >= 2  # hardware() and timeshim.h


def test_a_process_that_runs(timeshim: Timeshim, program: Program) -> None:
    tsc = program("tsc", INCLUDE)
    for options, rewritten in (((), True), (("--tsc=off",), False)):
        timeshim.output("run", "--detach", "--name", SPINNER, *options, tsc, "spin", "1")
        (row,) = [
            row for row in json.loads(timeshim.output("ps", "--json")) if row["name"] == SPINNER
        ]
        pid = row["pids"][-1]
        found = {thing.path: thing for thing in scan_process(pid)}[str(tsc)]
        assert {site.rewritten for site in found.sites} == {rewritten}
        assert bool(found.uncovered) is not rewritten
        shown = timeshim.output("scan", str(pid))
        assert f"{len(found.sites) if rewritten else 0} of {len(found.sites)} rewritten" in shown
        timeshim.end(SPINNER)


def test_scan_refuses_what_is_no_program(timeshim: Timeshim, tmp_path: Path) -> None:
    whole = shutil.which("true")
    assert whole
    with open(whole, "rb") as file:
        content = file.read()
    cut = tmp_path / "cut"
    cut.write_bytes(content[: len(content) // 2])
    for target in (cut, "/etc/passwd", tmp_path, "/does/not/exist", "999999999"):
        done = timeshim("scan", target)
        assert done.returncode == 1
        assert re.fullmatch(r"timeshim: .+\n", done.stderr)


@pytest.mark.parametrize("file", ["true", "program"])
def test_whatever_headers_say_it_is_checked(program: Program, tmp_path: Path, file: str) -> None:
    """One process reads hundreds of damaged files, and ends as it should."""
    whole = program("tsc", INCLUDE) if file == "program" else shutil.which("true")
    assert whole
    done = subprocess.run(
        [sys.executable, "-c", SCAN_DAMAGED, whole, tmp_path / "damaged"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)


SCAN_DAMAGED = """
import pathlib, random, sys
from contextlib import suppress
from timeshim.errors import Error
from timeshim.scan import scan_file
whole, damaged = pathlib.Path(sys.argv[1]).read_bytes(), pathlib.Path(sys.argv[2])
chance = random.Random(1)
for i in range(600):
    content = bytearray(whole)
    for _ in range(chance.randint(1, 4)):
        # the headers, and whatever lies behind them: dynamic section, unwind table, code
        at = chance.randrange(min(900, len(content)) if i % 2 else len(content))
        content[at] = chance.randrange(256)
    damaged.write_bytes(content[: chance.randrange(len(content))] if i % 5 == 0 else content)
    with suppress(Error):
        scan_file(damaged)
"""


def test_registers_flags_and_the_red_zone(timeshim: Timeshim, program: Program) -> None:
    probe = program("tsc_probe", INCLUDE)
    handled = {site.handled for site in scan_file(probe).sites}
    assert {MOVED, PUNNED} <= handled or {MOVED, HOP} <= handled
    outcome = json.loads(timeshim.output("run", "--monotonic", "+1d", probe, "storm", "3"))
    print(outcome)
    assert outcome["checks"] == 3_000_000
    assert outcome["signals"] > 100
    assert outcome["wrong"] == 0


@pytest.fixture
def without_the_check(timeshim: Timeshim, tmp_path: Path) -> Mutant:
    """Return a `timeshim` whose trampolines do not look at the generation again."""
    return Mutant(timeshim, tmp_path, "trampoline.c", r"jne\t1b", "nop")


def test_frozen_at_any_instruction(timeshim: Timeshim, program: Program) -> None:
    probe = program("tsc_probe", INCLUDE)
    outcome = json.loads(timeshim.output("run", "--monotonic", "+1d", probe, "steps", timeout=100))
    print(outcome)
    assert outcome["boundaries"] > 300
    assert outcome["wrong"] == 0


def test_frozen_at_any_instruction_without_the_check(
    program: Program, without_the_check: Mutant
) -> None:
    printed = without_the_check("run", "--monotonic", "+1d", program("tsc_probe", INCLUDE), "steps")
    outcome = json.loads(printed)
    print(outcome)
    assert outcome["wrong"] > 0


def spin_in_place(
    timeshim: Timeshim, tsc: Path, times: int, run: Callable[..., Any], *options: str
) -> list[dict[str, Any]]:
    """Migrate three spinning readers so often on this host; return their reports."""
    run("run", "--detach", "--name", SPINNER, "--", tsc, "spin", "3")
    for hop in range(times):
        timeshim.output(
            "migrate",
            *options,
            SPINNER,
            "env TIMESHIM_TSC_HZ=2000000000" if options and hop % 2 == 0 else "",
        )
    timeshim.end(SPINNER)
    return [json.loads(line) for line in timeshim.output("logs", SPINNER).splitlines()]


@as_root
@pytest.mark.timeout(300)
@pytest.mark.parametrize("times", [20, pytest.param(60, marks=pytest.mark.long)])
def test_spinning_over_migrations_in_place(
    timeshim: Timeshim, program: Program, times: int
) -> None:
    threads = spin_in_place(timeshim, program("tsc", INCLUDE), times, timeshim.output)
    print(threads)
    assert len(threads) == 3
    assert sum(thread["backward"] for thread in threads) == 0
    # nor did it jump: it stood still while nobody ran
    assert all(thread["most"] < thread["hz"] for thread in threads)


@as_root
@pytest.mark.timeout(300)
def test_spinning_without_the_check(
    timeshim: Timeshim, program: Program, without_the_check: Mutant
) -> None:
    threads = spin_in_place(timeshim, program("tsc", INCLUDE), 20, without_the_check)
    print(threads)
    assert sum(thread["backward"] for thread in threads) > 0


@as_root
def test_a_scaled_counter_goes_on(timeshim: Timeshim, program: Program) -> None:
    threads = spin_in_place(timeshim, program("tsc", INCLUDE), 6, timeshim.output, "--scale-tsc")
    print(threads)
    assert sum(thread["backward"] for thread in threads) == 0
    assert all(thread["most"] < thread["hz"] for thread in threads)


def test_the_header_for_libraries_and_static_programs(tmp_path: Path) -> None:
    """Nothing to link, and without the shim the plain instruction."""
    source = tmp_path / "use.c"
    source.write_text(
        '#include "timeshim.h"\n#include <stdio.h>\n'
        "int main(void) { uint32_t aux; uint64_t a = timeshim_rdtsc(), b = timeshim_rdtscp(&aux);\n"
        "return !(a && b >= a); }\n"
    )
    for flags in ((), ("-static",), ("-O0",), ("-no-pie", "-fno-pie"), ("-fPIC", "-shared")):
        output = compile_c(tmp_path / "use", source, INCLUDE, *flags)
        if "-shared" not in flags:
            subprocess.run([output], check=True, timeout=10)
    if not shutil.which("g++"):
        return
    (tmp_path / "use.cc").write_text(source.read_text())
    subprocess.run(
        ["g++", "-Wall", "-Wextra", "-Werror", INCLUDE, tmp_path / "use.cc", "-o", tmp_path / "cc"],
        check=True,
        timeout=60,
    )


def test_from_python(timeshim: Timeshim) -> None:
    first, (second, aux) = package.rdtsc(), package.rdtscp()
    assert first <= second
    assert aux >= 0
    read = "import timeshim; print(timeshim.rdtsc(), timeshim.tsc_hz())"
    for options in ((), ("--tsc=off",)):
        before = package.rdtsc()
        printed = timeshim.output("run", *options, "--monotonic", "+1d", sys.executable, "-c", read)
        after = package.rdtsc()
        ticks, hz = map(int, printed.split())
        assert before <= ticks - 86400 * hz <= after


def test_the_table_in_libcrypto_is_not_a_site(timeshim: Timeshim) -> None:
    """Elliptic curves still compute what they should (OpenSSL's own sign and verify)."""
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("no openssl")
    script = (
        "set -e; cd $(mktemp -d); openssl ecparam -name prime256v1 -genkey -noout -out k.pem; "
        "openssl ec -in k.pem -pubout -out p.pem 2>/dev/null; for i in 1 2 3 4 5 6 7 8; do "
        "echo $i >m; openssl dgst -sha256 -sign k.pem -out s m; "
        "openssl dgst -sha256 -verify p.pem -signature s m; done"
    )
    printed = timeshim.output("run", "--monotonic", "+1d", "sh", "-c", script)
    assert printed.count("Verified OK") == 8
