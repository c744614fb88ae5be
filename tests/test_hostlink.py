"""The way between namespace hosts that migrations in tests take: a command prefix like any other."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.hostlink import NOT_RUN, SCRIPTS, link
from harness.hosts import HostSpec, Network, network
from timeshim.cgroup import Cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root")


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network(HostSpec("a"), HostSpec("b", 1000)) as net:
        yield net


def test_it_runs_a_command_on_the_other_host(net: Network) -> None:
    a, b = net.hosts
    with link(a, b) as host:
        prefix = shlex.split(host)
        done = a.run(*prefix, "sh", "-c", "hostname; cat; echo no >&2; exit 3", input="hello\n", check=False)  # fmt: skip
        assert (done.stdout, done.stderr, done.returncode) == ("b\nhello\n", "no\n", 3)
        assert a.run(*prefix, "sh", "-c", "command -v timeshim").stdout == f"{SCRIPTS}/timeshim\n"
    done = a.run(*prefix, "true", check=False)
    assert (done.returncode, "No such file" in done.stderr) == (NOT_RUN, True)


def sleepers(mark: str) -> list[str]:
    """Return the pids of the processes with this argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().split(b"\0")[:2] == [b"sleep", mark.encode()]:
                found.append(path.parent.name)
        except OSError:
            pass
    return found


def until(running: bool, mark: str) -> None:
    deadline = time.monotonic() + 10
    while bool(sleepers(mark)) is not running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nothing_runs_on_when_its_caller_is_killed(net: Network) -> None:
    a, b = net.hosts
    mark = str(10**9 + uuid.uuid4().int % 10**9)
    with link(a, b) as host:
        # the mounts alone, so that the caller is nsenter itself
        prefix = ["nsenter", f"--target={a.pid}", "--mount", "--", *shlex.split(host)]
        with subprocess.Popen([*prefix, "sleep", mark]) as caller:
            until(True, mark)
            caller.kill()
            until(False, mark)


def test_nothing_runs_on_when_the_link_ends(net: Network) -> None:
    a, b = net.hosts
    mark = str(10**9 + uuid.uuid4().int % 10**9)
    with link(a, b) as host:
        caller = a.popen(*shlex.split(host), "sleep", mark)
        until(True, mark)
    assert not sleepers(mark)
    assert caller.wait(10) == NOT_RUN


@pytest.mark.parametrize("how", ["it ends", "its plug is pulled"])
def test_a_host_ends_with_the_cgroups_of_its_tasks(how: str) -> None:
    with network(HostSpec("c")) as net:
        (c,) = net.hosts
        c.run(f"{SCRIPTS}/timeshim", "run", "-d", "--", "sleep", "1000")
        (name,) = c.run("sh", "-c", "cd /run/timeshim; echo *.0.*").stdout.split()
        cgroup = Cgroup.named(name)
        assert cgroup.populated
        if how == "its plug is pulled":
            os.kill(c.pid, signal.SIGKILL)
    assert not cgroup.path.exists()
