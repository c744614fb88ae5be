"""Namespace hosts: machines of one's own on one kernel, each with other clocks, up in 0.1 s.

A host has its own network, processes, mounts, host name, System V IPC and clock offsets, and shares
the rest (files, users, cgroups) with its creator. Hosts hang on a bridge that lives in a network
namespace of its own, so nothing appears among the creator's interfaces:

    creator | switch: client_prefix, bridge 10.213.0.1 | hosts: eth0 10.213.0.2, 10.213.0.3, ...

Nothing here has a name in a file system, so nothing can be left behind. Every namespace is held by
one process that waits for a pipe: when the creator writes to it, or dies in whatever way and the
kernel closes it, the holder exits and the kernel takes down the rest (pid_namespaces(7): "If the
'init' process of a PID namespace terminates, the kernel terminates all of the processes in the
namespace"). A parent-death signal would not do: it fires when the creating thread ends (prctl(2)).

The exception is a cgroup, which has a name. Those of the tasks that a host ends with are removed
with it; a creator that is killed leaves them empty, and rmdir removes them.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from pyroute2 import NetNS
from pyroute2.netlink.exceptions import NetlinkError

from timeshim.cgroup import Cgroup
from timeshim.errors import Error

SUBNET = IPv4Network("10.213.0.0/24")
SUBNET6 = IPv6Network("fd0d:2cb1:7e53::/64")  # a unique local prefix, RFC 4193

IFA_F_NODAD = 0x02  # linux/if_addr.h: usable at once, with no wait for duplicate detection
LOOPBACK = 1  # the index of lo in every network namespace, linux/net_namespace.h

# unshare(1) leaves mounts private by default. As slaves they still follow what the creator mounts
# and unmounts later, and pass nothing back.
SWITCH = ("--net", "--pid", "--fork")
HOST = (*SWITCH, "--mount", "--propagation=slave", "--uts", "--ipc", "--time")

# The pid is read from the creator's /proc, so it is the one that the creator knows.
PID = "read -r pid rest </proc/self/stat"
# Ends at the first byte as well as at end of file: a child that the creator forked meanwhile may
# hold a copy of the pipe. An ignored SIGCHLD makes the kernel reap orphans (sigaction(2)), which
# as zombies would keep pids that a restore needs; dash's own trap cannot ignore that signal.
WAIT = "exec env --ignore-signal=CHLD head --bytes=1"
SWITCH_HOLDER = f"{PID}; echo $pid; {WAIT}"
HOST_HOLDER = f"""set -e
{PID}
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t tmpfs -o nosuid,nodev,mode=0755 tmpfs /run
hostname -- "$0"
echo $pid
{WAIT}"""

# For commands on a host. One that is stopped keeps it from ending, see _wake_nsenters(); when the
# creator was killed only the kernel is left to wake it, and does so for a process group that this
# orphans (SIGHUP and SIGCONT, POSIX _exit()): so each command gets a group of its own.
APART = {"process_group": 0}

PATIENCE = 10.0  # seconds a holder may take to end; it takes milliseconds


@dataclass(frozen=True)
class HostSpec:
    """What a host should be.

    Attributes:
        name: its UTS host name, as hostname(1) accepts it.
        monotonic: seconds added to CLOCK_MONOTONIC, counted from the kernel's initial time
            namespace as in time_namespaces(7); may be negative, while the clock itself may not.
        boottime: the same for CLOCK_BOOTTIME; None takes `monotonic`.
    """

    name: str
    monotonic: int = 0
    boottime: int | None = None


@dataclass(frozen=True)
class Host:
    """A running host.

    Attributes:
        spec: what was asked for.
        pid: its process 1, as the creator sees it; killing that pulls the host's plug.
        address: its IPv4 address on the bridge.
        address6: its IPv6 address on the bridge.
    """

    spec: HostSpec
    pid: int
    address: str
    address6: str

    @property
    def name(self) -> str:
        """The host's UTS name."""
        return self.spec.name

    @property
    def prefix(self) -> list[str]:
        """The command prefix that runs something on the host, as root and in `/`."""
        namespaces = ("--net", "--pid", "--mount", "--uts", "--ipc", "--time")
        return ["nsenter", "--target", str(self.pid), *namespaces, "--"]

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs `argv` on the host."""
        return [*self.prefix, *argv]

    def run(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `argv` on the host to its end, as subprocess.run does with these `options`.

        By default its output is captured as text, failure raises CalledProcessError, and 60 s
        raise TimeoutExpired; a command that outlives that ends with the host.
        """
        captured = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        defaults = captured | {"check": True, "timeout": 60} | APART
        return subprocess.run(self.command(*argv), **(defaults | options))  # noqa: PLW1510 - in defaults

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[Any]:
        """Start `argv` on the host, as subprocess.Popen does; it is killed when the host ends.

        The Popen's own pid is nsenter's, outside the host, which passes on the exit status but no
        signals. Neither does a terminal's Ctrl-C reach the command: the creator decides.
        """
        return subprocess.Popen(self.command(*argv), **(APART | options))


@dataclass(frozen=True)
class Network:
    """Running hosts, and the command prefix of a client.

    Attributes:
        hosts: in the order of their specs.
        client_prefix: runs a command that reaches every host. Only the network namespace differs
            from the creator's, so the command is its caller's to end.
    """

    hosts: tuple[Host, ...]
    client_prefix: list[str]


@contextmanager
def network(*specs: HostSpec) -> Iterator[Network]:
    """Run hosts with these specs until the context ends, in whatever way.

    Raises:
        Error: not root; no time namespaces in this kernel; an offset that takes a clock below
            zero or past the kernel's limit; a name that is none. Nothing is left behind.
    """
    if not Path("/proc/self/ns/time").exists():
        raise Error("hosts need time namespaces: a kernel of 5.6 or later with CONFIG_TIME_NS")
    with ExitStack() as stack:
        hub = stack.enter_context(switch())
        hosts = tuple(
            Host(spec, stack.enter_context(_host(spec)), str(SUBNET[n]), str(SUBNET6[n]))
            for n, spec in enumerate(specs, start=2)
        )
        try:
            _connect(hub, hosts)
        except NetlinkError as error:
            raise Error(f"the hosts' network cannot be made: {error}") from error
        yield Network(hosts, ["nsenter", "--target", str(hub), "--net", "--"])


@contextmanager
def _host(spec: HostSpec) -> Iterator[int]:
    """Hold a host's namespaces, not yet connected, and give the pid of its process 1."""
    boottime = spec.monotonic if spec.boottime is None else spec.boottime
    offsets = (f"--monotonic={spec.monotonic}", f"--boottime={boottime}")
    held = _held(f"host {spec.name!r}", (*HOST, *offsets), HOST_HOLDER, spec.name)
    with ExitStack() as afterwards, held as pid:
        # open, it can be read even when the host is gone
        run = os.open(f"/proc/{pid}/root/run", os.O_RDONLY | os.O_DIRECTORY)
        afterwards.callback(_remove_cgroups, run)
        yield pid


def _remove_cgroups(run: int) -> None:
    """Remove the cgroups of the tasks that a host ended with.

    Args:
        run: its /run, where each such task has a directory of the cgroup's name
            (timeshim/tasks.py); closed here.
    """
    with suppress(FileNotFoundError):
        tasks = os.open("timeshim", os.O_RDONLY | os.O_DIRECTORY, dir_fd=run)
        for name in os.listdir(tasks):
            Cgroup.named(name).remove()
        os.close(tasks)
    os.close(run)


@contextmanager
def _held(what: str, namespaces: tuple[str, ...], script: str, *argv: str) -> Iterator[int]:
    """Run a holder in new namespaces and give the pid that it prints once they are ready."""
    holder = subprocess.Popen(
        ["unshare", *namespaces, "sh", "-c", script, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"LC_ALL": "C"},  # _reason reads the messages
        start_new_session=True,  # Ctrl-C is for the creator, which may still need its hosts
    )
    assert holder.stdout is not None
    assert holder.stderr is not None
    try:
        pid = holder.stdout.readline().strip()
        if not pid:
            raise Error(f"{what} cannot be made: {_reason(holder.stderr.read())}")
        yield int(pid)
    finally:
        _end(what, holder)


def _reason(complaint: str) -> str:
    """Turn what a holder wrote on its standard error into the end of a sentence."""
    if "Operation not permitted" in complaint:
        return "namespaces take root (CAP_SYS_ADMIN)"
    if "timens_offsets: Numerical result out of range" in complaint:
        # proc_timens_set_offset(), kernel/time/namespace.c
        return "its offsets would set a clock below 0 or beyond 146 years"
    return complaint.strip().partition("\n")[0] or "its holder was killed"


def _end(what: str, holder: subprocess.Popen[str]) -> None:
    """Let a holder go and wait until the kernel has taken down everything in its namespaces.

    Raises:
        Error: something outside has a child in the host and does not reap it.
    """
    farewell: str | None = "\n"
    for _ in range(round(PATIENCE / 0.2)):
        try:
            holder.communicate(farewell, timeout=0.2)
            return
        except subprocess.TimeoutExpired:
            farewell = None  # said once
            _wake_nsenters(holder.pid)
    raise Error(f"{what} does not end: a process outside it does not reap its children there")


def _wake_nsenters(holder: int) -> None:
    """Continue each stopped nsenter into the pid namespace that this holder made.

    The kernel cannot end the namespace before every process in it is reaped, and nsenter, which
    must reap the command it entered for, stops itself whenever that command is stopped.
    """
    ending = f"/proc/{holder}/ns/pid_for_children"
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if (process / "ns/pid_for_children").samefile(ending):
                os.kill(int(process.name), signal.SIGCONT)


@contextmanager
def switch() -> Iterator[int]:
    """Hold a network namespace with a bridge that has an address, and give the holder's pid.

    Raises:
        Error: not root, or the kernel has no bridges.
    """
    with _held("the switch", SWITCH, SWITCH_HOLDER) as pid:
        try:
            with _network_of(pid) as net:
                net.link("set", index=LOOPBACK, state="up")
                net.link("add", ifname="bridge", kind="bridge", state="up")
                _address(net, _index(net, "bridge"), str(SUBNET[1]), str(SUBNET6[1]))
        except NetlinkError as error:
            raise Error(f"the hosts' network cannot be made: {error}") from error
        yield pid


def plug_tap(hub: int, number: int) -> str:
    """Plug a TAP device, for a virtual machine, into a switch, and return its name there."""
    name = f"tap{number}"
    with _network_of(hub) as net:
        net.link("add", ifname=name, kind="tuntap", mode="tap")
        net.link("set", index=_index(net, name), master=_index(net, "bridge"), state="up")
    return name


def _connect(hub: int, hosts: tuple[Host, ...]) -> None:
    """Lay a cable from the switch to each host."""
    with _network_of(hub) as net:
        bridge = _index(net, "bridge")
        for n, host in enumerate(hosts):
            peer = {"ifname": "eth0", "net_ns_pid": host.pid}
            net.link("add", ifname=f"port{n}", kind="veth", peer=peer, master=bridge, state="up")
    for host in hosts:
        with _network_of(host.pid) as net:
            net.link("set", index=LOOPBACK, state="up")
            eth0 = _index(net, "eth0")
            net.link("set", index=eth0, state="up")
            _address(net, eth0, host.address, host.address6)


def _network_of(pid: int) -> NetNS:
    return NetNS(f"/proc/{pid}/ns/net", flags=0)


def _index(net: NetNS, name: str) -> int:
    [index] = net.link_lookup(ifname=name)
    return int(index)


def _address(net: NetNS, index: int, address: str, address6: str) -> None:
    net.addr("add", index=index, address=address, prefixlen=SUBNET.prefixlen)
    net.addr(
        "add",
        index=index,
        family=socket.AF_INET6,
        address=address6,
        prefixlen=SUBNET6.prefixlen,
        flags=IFA_F_NODAD,
    )
