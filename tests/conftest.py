"""What the tests share: real C programs, compiled when asked for, and the real command line.

Whatever a test starts with `timeshim` carries a mark in its environment, by which all of it is
found and killed when the test ends, even after a time-out in the middle; nothing else is touched.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import summary

from timeshim.tasks import all_tasks, find

PROGRAMS = Path(__file__).parent / "programs"
CORPUS = Path(__file__).parent / "corpus"
PRELOAD = Path(__file__).parents[1] / "preload"
CFLAGS = ["-std=gnu17", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
SECONDS = 30.0
LONGEST = {
    name: rank
    for rank, name in enumerate(
        (
            "test_machines.py",
            "test_servers.py",
            "test_surface.py",
            "test_cpython.py",
            "test_timed.py",
        )
    )
}

Program = Callable[..., Path]


def compile_c(output: Path, *arguments: str | Path) -> Path:
    """Compile with the compiler that the shim itself is built with."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    subprocess.run([*compiler, *CFLAGS, *arguments, "-o", output], check=True, timeout=60)
    return output


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the tests that take minutes each."""
    parser.addoption("--long", action="store_true", help="run the tests marked `long`, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first, and leave the long tests out, unless told otherwise.

    A worker takes whole files (`--dist loadfile`): one that starts last would be waited for.
    """
    items.sort(key=lambda item: LONGEST.get(item.path.name, len(LONGEST)))
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the tables that tests have filled."""
    terminalreporter.write(summary.render())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand a worker's tables to the process that prints them."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["tables"] = summary.tables


class Workers:
    """What to do about pytest-xdist's worker processes, if it is in use."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:  # noqa: ARG002 - xdist's names
        """Take a worker's tables; one that died has none."""
        summary.merge(getattr(node, "workeroutput", {}).get("tables", {}))


def pytest_configure(config: pytest.Config) -> None:
    """Have the workers' ends noticed."""
    config.pluginmanager.register(Workers())


def let_others_in(directory: Path) -> None:
    """Make a directory of pytest's, which are private, reachable for other users."""
    for path in (directory, *directory.parents):
        if path.stat().st_uid == os.geteuid() and "pytest-of-" in str(path):
            path.chmod(path.stat().st_mode | 0o055)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Compile tests/programs/NAME.c, once a session; further arguments go to the compiler."""
    directory = tmp_path_factory.mktemp("programs")
    # in the tests without privileges others run them
    let_others_in(directory)
    built: dict[tuple[str, ...], Path] = {}

    def get(name: str, *flags: str) -> Path:
        key = (name, *flags)
        if key not in built:
            output = directory / (f"{name}-{len(built)}" if flags else name)
            built[key] = compile_c(output, PROGRAMS / f"{name}.c", *flags)
        return built[key]

    return get


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the corpus of interfaces, see tests/corpus/main.c."""
    return compile_c(tmp_path_factory.mktemp("corpus") / "corpus", *sorted(CORPUS.glob("*.c")))


class Timeshim:
    """The command `timeshim` as a user runs it. Call it, or `start` it."""

    command: tuple[str, ...] = (str(Path(sysconfig.get_path("scripts")) / "timeshim"),)

    def __init__(self) -> None:
        self.mark = f"TIMESHIM_TEST={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        self.env = os.environ | {name: value}

    def __call__(
        self, *arguments: str | Path, timeout: float = SECONDS, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end, its output caught."""
        process = self.start(*arguments, **options)
        with process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def output(self, *arguments: str | Path, timeout: float = SECONDS, **options: Any) -> str:
        """Run it, require that it succeeds and says nothing on stderr, and return its output."""
        done = self(*arguments, timeout=timeout, **options)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Start it, its output in pipes."""
        usual: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        usual |= {"stdin": subprocess.DEVNULL, "env": self.env}
        command = [str(argument) for argument in (*self.command, *arguments)]
        return subprocess.Popen(command, text=True, **(usual | options))

    def processes(self) -> list[int]:
        """Return the pids of all that was started by this object and still runs."""
        pids = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                    pids.append(int(path.name))
        return pids

    def ends(self, seconds: float = 10.0) -> bool:
        """Tell whether all of it ends by itself within some seconds."""
        deadline = time.monotonic() + seconds
        while self.processes():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def end(self, name: str) -> None:
        """Send SIGTERM to a task's root, which passes it on, and wait for the end of the task."""
        os.kill(find(name).pids()[0], signal.SIGTERM)
        deadline = time.monotonic() + 20
        while any(task.name == name for task in all_tasks()):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill all of it, and have `ps` remove what it leaves on disk."""
        killed = False
        deadline = time.monotonic() + 10
        while (pids := self.processes()) and time.monotonic() < deadline:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed = True
            time.sleep(0.01)
        if killed:
            self("ps")


@pytest.fixture
def timeshim() -> Iterator[Timeshim]:
    """Offer the command line; all that it leaves running is killed."""
    command = Timeshim()
    yield command
    command.kill()
