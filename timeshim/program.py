"""Can the shim reach a program at all? Asked before it is started, answered in a sentence.

The dynamic linker ignores a preload it cannot use, silently or with a warning that scrolls by,
so what can be known from the file is looked up there (ld.so(8), LD_PRELOAD).
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from timeshim.errors import Error

_SCRIPT_DEPTH = 4  # how often the kernel follows #! (fs/binfmt_script.c, bprm_execve)
_HINT = "`--clocks=kernel` has a time namespace carry its MONOTONIC and BOOTTIME, though neither its CPU time nor its relative waits; `--clocks=none` leaves it the host's clocks"


def find(command: str) -> Path:
    """Return the file that a command names, looked up as execvp(3) does.

    Raises:
        Error: there is none, or it may not be executed.
    """
    found = shutil.which(command)
    if not found:
        raise Error(f"there is no executable program {command!r}")
    return Path(found)


def check_reachable(path: Path) -> None:
    """Check that the dynamic linker will load a preload into a program, or into its interpreter.

    Raises:
        Error: it will not, and why.
    """
    for _ in range(_SCRIPT_DEPTH):
        _check_privileges(path)
        with path.open("rb") as file:
            if file.read(2) != b"#!":
                break
            interpreter = shlex.split(file.readline().decode(errors="replace"))
        if not interpreter:
            break
        path = Path(interpreter[0])
        if not path.exists():
            raise Error(f"{path}, the interpreter of a script, does not exist")
    _check_elf(path)


def _check_privileges(path: Path) -> None:
    status = path.stat()
    raises_user = status.st_mode & stat.S_ISUID and status.st_uid != os.geteuid()
    raises_group = status.st_mode & stat.S_ISGID and status.st_gid != os.getegid()
    capable = os.geteuid() and "security.capability" in os.listxattr(path)
    if raises_user or raises_group or capable:
        raise Error(
            f"{path} gains privileges when it starts (set-user-ID or file capabilities), so no preload reaches it: start it as the user it becomes; {_HINT}"
        )


def _check_elf(path: Path) -> None:
    with path.open("rb") as file:
        try:
            elf = ELFFile(file)
        except ELFError:
            return  # not ELF: execve(2) says what it thinks of it
        if elf.get_machine_arch() != "x64" or elf.elfclass != 64:
            raise Error(
                f"{path} is a program for {elf.get_machine_arch()}: only x86-64 ones are supported; {_HINT}"
            )
        loader = next((s for s in elf.iter_segments() if s["p_type"] == "PT_INTERP"), None)
        if loader is None:
            raise Error(f"{path} is statically linked, so no preload reaches it; {_HINT}")
        if "musl" in loader.get_interp_name():
            message = (
                f"{path} is linked with musl, which this shim (for glibc) cannot serve; {_HINT}"
            )
            raise Error(message)
