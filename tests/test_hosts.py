"""Namespace hosts: they are what was asked for, and nothing is left of them however they end.

What is left is looked for in the whole machine, and recognised by a mark in the environment that
every process of a test inherits, so that tests may run beside each other and beside other work.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from harness.hosts import HostSpec, Network, network
from timeshim.errors import Error

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root")

ROOT = Path(__file__).parents[1]
AHEAD = 200 * 86400
# As far back as the kernel allows: the clock of such a host starts in its first second.
BEHIND = -int(time.monotonic())


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    """Two hosts, one ahead and one behind the creator, for the tests that only look at them."""
    specs = HostSpec("ahead", AHEAD, boottime=AHEAD + 3600), HostSpec("behind", BEHIND)
    with network(*specs) as net:
        yield net


def namespaces(*prefix: str) -> dict[str, str]:
    """Return the namespaces that a command under this prefix runs in, by name."""
    show = 'for ns in /proc/self/ns/*; do echo "${ns##*/} $(readlink "$ns")"; done'
    lines = subprocess.check_output([*prefix, "sh", "-c", show], text=True, timeout=10).splitlines()
    return dict(line.split() for line in lines if "_for_children" not in line)


def differing(*prefix: str) -> set[str]:
    """Return the names of the namespaces that a prefix changes."""
    mine, theirs = namespaces(), namespaces(*prefix)
    return {name for name in mine if mine[name] != theirs[name]}


def test_a_host_has_namespaces_of_its_own(net: Network) -> None:
    for host in net.hosts:
        assert differing(*host.prefix) == {"net", "pid", "mnt", "uts", "ipc", "time"}
    a, b = (namespaces(*host.prefix) for host in net.hosts)
    assert {name for name in a if a[name] == b[name]} == {"cgroup", "user"}


def test_a_client_differs_in_its_network_only(net: Network) -> None:
    assert differing(*net.client_prefix) == {"net"}


@pytest.mark.parametrize("clock", ["CLOCK_MONOTONIC", "CLOCK_BOOTTIME", "CLOCK_REALTIME"])
def test_clocks_differ_by_what_was_asked(net: Network, clock: str) -> None:
    asked = {
        "CLOCK_MONOTONIC": (AHEAD, BEHIND),
        "CLOCK_BOOTTIME": (AHEAD + 3600, BEHIND),
        "CLOCK_REALTIME": (0, 0),
    }[clock]
    for host, offset in zip(net.hosts, asked, strict=True):
        before = time.clock_gettime_ns(getattr(time, clock))
        read = host.run(
            sys.executable, "-c", f"import time; print(time.clock_gettime_ns(time.{clock}))"
        )
        after = time.clock_gettime_ns(getattr(time, clock))
        assert before <= int(read.stdout) - offset * 10**9 <= after


def test_hosts_and_client_reach_each_other_by_tcp(net: Network) -> None:
    serve = """if True:
        import socket
        server = socket.create_server(("::", 7), family=socket.AF_INET6, dualstack_ipv6=True)
        print("listening", flush=True)
        for _ in range(6):  # three askers, two addresses
            with server.accept()[0] as peer:
                peer.sendall(socket.gethostname().encode())
    """
    ask = """if True:
        import socket, sys
        for address in sys.argv[1:]:
            with socket.create_connection((address, 7), timeout=5) as server:
                print(server.recv(99).decode())
    """
    python = sys.executable, "-c"
    servers = [host.popen(*python, serve, stdout=subprocess.PIPE) for host in net.hosts]
    for server in servers:
        assert server.stdout is not None
        assert server.stdout.readline() == b"listening\n"
    addresses = [address for host in net.hosts for address in (host.address, host.address6)]
    for prefix in (*(host.prefix for host in net.hosts), net.client_prefix):
        answers = subprocess.check_output([*prefix, *python, ask, *addresses], timeout=30)
        assert answers.split() == [b"ahead", b"ahead", b"behind", b"behind"]
    for server in servers:
        server.communicate(timeout=10)
        assert server.returncode == 0


def test_hosts_have_their_own_names(net: Network) -> None:
    assert [host.run("hostname").stdout.strip() for host in net.hosts] == ["ahead", "behind"]
    assert socket.gethostname() not in ("ahead", "behind")


def test_hosts_have_their_own_run_directory(net: Network) -> None:
    a, b = net.hosts
    name = f"/run/{uuid.uuid4()}"
    a.run("touch", name)
    assert a.run("stat", "--format=%a", "/run").stdout.strip() == "755"
    assert a.run("stat", "--file-system", "--format=%T", "/run").stdout.strip() == "tmpfs"
    assert a.run("test", "-e", name).returncode == 0
    assert b.run("test", "-e", name, check=False).returncode == 1
    assert not Path(name).exists()


def test_hosts_share_the_other_files(net: Network, tmp_path: Path) -> None:
    a, b = net.hosts
    a.run("sh", "-c", f"echo here > {tmp_path}/file")
    assert b.run("cat", f"{tmp_path}/file").stdout == (tmp_path / "file").read_text() == "here\n"


def test_mounts_reach_hosts_and_do_not_come_back(tmp_path: Path) -> None:
    program = """if True:
        import os, subprocess, sys
        from harness.hosts import HostSpec, network
        here, there = sys.argv[1:]
        os.mkdir(here)
        os.mkdir(there)
        with network(HostSpec("a")) as net:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", here], check=True)
            net.hosts[0].run("mountpoint", here)
            net.hosts[0].run("mount", "-t", "tmpfs", "tmpfs", there)
            net.hosts[0].run("mountpoint", there)
            assert not os.path.ismount(there)
    """
    shared = "unshare", "--mount", "--propagation=shared"
    paths = str(tmp_path / "here"), str(tmp_path / "there")
    command = [*shared, sys.executable, "-c", program, *paths]
    subprocess.run(command, check=True, cwd=ROOT, timeout=30)


def test_hosts_see_their_own_processes_and_reap_them(net: Network) -> None:
    host = net.hosts[0]
    host.run("sh", "-c", "true & sleep 0.01 &")  # orphans, left to process 1
    until = time.monotonic() + 10
    while True:
        first, *others = host.run("sh", "-c", "cd /proc; echo [0-9]*").stdout.split()
        if len(others) == 1 or time.monotonic() > until:
            break
        time.sleep(0.01)
    assert first == "1"
    assert len(others) == 1  # the shell that looked


def test_a_failing_command_raises(net: Network) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        net.hosts[0].run("sh", "-c", "echo no >&2; exit 3")
    assert (error.value.returncode, error.value.stderr) == (3, "no\n")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (HostSpec("b", BEHIND - 1000), "its offsets would set a clock below 0"),
        (HostSpec("b", boottime=10**10), "beyond 146 years"),
        (HostSpec("not a name"), "host 'not a name' cannot be made: hostname: "),
    ],
)
def test_a_spec_that_cannot_be_met_is_refused(spec: HostSpec, message: str) -> None:
    with pytest.raises(Error, match=message), network(HostSpec("a"), spec):
        pass


def test_without_privilege_the_error_says_so() -> None:
    program = "from harness.hosts import *\nwith network(): pass"
    drop = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    refused = subprocess.run(
        [*drop, sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=30,
    )
    last = refused.stderr.splitlines()[-1]
    assert "Error: the switch cannot be made: namespaces take root" in last


def test_a_stopped_command_does_not_keep_its_host() -> None:
    with network(HostSpec("a")) as net:
        stopped = net.hosts[0].popen("sh", "-c", "kill -STOP $$")
        until = time.monotonic() + 10
        while state(stopped.pid) != "T" and time.monotonic() < until:
            time.sleep(0.01)
        assert state(stopped.pid) == "T"  # nsenter follows the command that it waits for
    assert stopped.wait(timeout=10) == -signal.SIGKILL


def state(pid: int) -> str:
    """Return a process's state letter, proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# Run as a process of its own, which can be killed, in a network namespace of its own, which
# nothing else changes. Its arguments: how to end, and the offset of the second host.
CREATOR = """
import os, sys
from harness import hosts
from pyroute2.netlink.exceptions import NetlinkError

def report(word):
    print(word, flush=True)
    sys.stdin.readline()

def refuse(*args):
    report("half")
    raise NetlinkError(19, "No such device")

def descriptors():
    return sorted(os.listdir("/proc/self/fd"))

ending, offset = sys.argv[1], int(sys.argv[2])
if ending == "half":
    hosts._connect = refuse
kept = []
before = descriptors()
try:
    with hosts.network(hosts.HostSpec("a"), hosts.HostSpec("b", offset)) as net:
        kept = [host.popen("sleep", "1000") for host in net.hosts]
        kept += [host.popen("sh", "-c", "setsid sleep 1000 & kill -STOP $$") for host in net.hosts]
        try:
            report("up")
        except KeyboardInterrupt:
            net.hosts[0].run("true")  # it is still there for the clean-up that needs it
            raise
        if ending == "exception":
            raise RuntimeError
except (RuntimeError, KeyboardInterrupt, hosts.Error) as error:
    print(repr(error), file=sys.stderr)
for process in kept:
    process.wait()
try:
    sys.exit(f"there are children left: {os.waitpid(-1, os.WNOHANG)}")
except ChildProcessError:
    pass
assert descriptors() == before
report("down")
"""


class Creator:
    """A process that makes hosts, and what there is of it and of them in the machine."""

    def __init__(self, ending: str, offset: int = 0) -> None:
        """Start the creator; it reports and waits at the points of its script."""
        self.held: list[int] = []
        self.mark = f"HOSTS_TEST={uuid.uuid4()}".encode()
        name, _, value = self.mark.decode().partition("=")
        self.process = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-c", CREATOR, ending, str(offset)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {name: value},
            cwd=ROOT,
            start_new_session=True,  # the hardest case: no session outlives a killed creator
        )

    def expect(self, word: str) -> None:
        """Wait until the creator reports this."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == word + "\n"

    def go_on(self) -> None:
        """Let the creator go on after a report."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def processes(self) -> set[int]:
        """Return the processes that descend from the creator, without itself."""
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if self.mark in (process / "environ").read_bytes().split(b"\0"):
                    found.add(int(process.name))
        return found - {self.process.pid}

    def namespaces(self) -> set[str]:
        """Return the namespaces that its descendants are in and this process is not.

        They are held open as well: the number of one that is gone may be given to another, of
        whatever else makes namespaces on this machine meanwhile.
        """
        processes = self.processes()
        for process in processes:
            for link in Path(f"/proc/{process}/ns").iterdir():
                self.held.append(os.open(link, os.O_RDONLY | os.O_CLOEXEC))
        return links(*processes) - links(os.getpid(), self.process.pid)

    def interfaces(self) -> set[str]:
        """Return the network interfaces in the creator's own namespace."""
        lines = Path(f"/proc/{self.process.pid}/net/dev").read_text().splitlines()[2:]
        return {line.partition(":")[0].strip() for line in lines}


def links(*pids: int) -> set[str]:
    """Return the namespaces of these processes, or of all."""
    found = set()
    for process in map(str, pids) if pids else ["[0-9]*"]:
        for link in Path("/proc").glob(f"{process}/ns/*"):
            with suppress(OSError):  # it has ended meanwhile
                found.add(str(link.readlink()))
    return found


@pytest.fixture
def creators() -> Iterator[list[Creator]]:
    """Creators to clean up after, so that a failing test leaves nothing behind either."""
    made: list[Creator] = []
    yield made
    for creator in made:
        creator.process.kill()
        creator.process.communicate(timeout=10)
        for pid in creator.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for fd in creator.held:
            os.close(fd)


@pytest.mark.parametrize("ending", ["normal", "exception", "SIGINT"])
def test_nothing_is_left_when_the_context_ends(creators: list[Creator], ending: str) -> None:
    creator = Creator(ending)
    creators.append(creator)
    creator.expect("up")
    inside = creator.namespaces()
    # Two hosts of six, and the switch's net and pid.
    assert len(inside) == 2 * 6 + 2
    assert creator.interfaces() == {"lo"}
    if ending == "SIGINT":
        os.killpg(creator.process.pid, signal.SIGINT)  # as a terminal does
    else:
        creator.go_on()
    creator.expect("down")
    assert creator.processes() == set()
    assert links() & inside == set()
    assert creator.interfaces() == {"lo"}


@pytest.mark.parametrize("ending", ["half", "impossible offset"])
def test_nothing_is_left_of_a_failed_set_up(creators: list[Creator], ending: str) -> None:
    creator = Creator(ending, BEHIND - 1000 if ending == "impossible offset" else 0)
    creators.append(creator)
    inside: set[str] = set()
    if ending == "half":
        creator.expect("half")
        inside = creator.namespaces()
        assert len(inside) == 2 * 6 + 2
        creator.go_on()
    creator.expect("down")
    assert creator.processes() == set()
    assert links() & inside == set()
    assert creator.interfaces() == {"lo"}


@pytest.mark.parametrize("moment", ["up", "half"])
@pytest.mark.parametrize("killer", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_killed_creator(
    creators: list[Creator], moment: str, killer: signal.Signals
) -> None:
    creator = Creator(moment)
    creators.append(creator)
    creator.expect(moment)
    inside = creator.namespaces()
    assert len(inside) == 2 * 6 + 2
    creator.process.send_signal(killer)
    assert creator.process.wait(timeout=10) == -killer
    # Nobody is left who could wait for the kernel, so the test does.
    until = time.monotonic() + 10
    while (left := creator.processes()) and time.monotonic() < until:
        time.sleep(0.01)
    assert left == set()
    assert links() & inside == set()
