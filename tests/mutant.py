"""A shim with something left out of it, to see that a test notices."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from conftest import PRELOAD, compile_c

from preload.build import COMMON_FLAGS, SHIM_FLAGS, SHIM_LINK, SHIM_SOURCES

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Timeshim


class Mutant:
    """The command `timeshim`, whose tasks run a shim with one of its files changed."""

    def __init__(
        self, timeshim: Timeshim, directory: Path, file: str, pattern: str, replacement: str
    ) -> None:
        """Build it, and what lies beside it.

        Args:
            timeshim: whose environment it has.
            directory: where to build.
            file: of preload/.
            pattern: what must be found there.
            replacement: what to put in its place, everywhere.
        """
        self.env = timeshim.env
        source, built = directory / "preload", directory / "built"
        shutil.copytree(PRELOAD, source, ignore=shutil.ignore_patterns("__pycache__"))
        text, changed = re.subn(pattern, replacement, (source / file).read_text(), flags=re.DOTALL)
        assert changed
        (source / file).write_text(text)
        built.mkdir()
        compile_c(
            built / "libtimeshim.so",
            *COMMON_FLAGS,
            *SHIM_FLAGS,
            *(source / name for name in SHIM_SOURCES),
            *SHIM_LINK,
            f"-Wl,--version-script={source / 'libtimeshim.map'}",
        )
        compile_c(built / "reaper", source / "reaper.c")
        self.launcher = (
            "import sys, pathlib, timeshim.tasks; from harness.cli import main; "
            f"timeshim.tasks.BUILT = pathlib.Path({str(built)!r}); main()"
        )

    def __call__(self, *arguments: str | Path) -> str:
        """Run it to its end and return its output."""
        command = [sys.executable, "-c", self.launcher, *arguments]
        return subprocess.run(
            command, check=True, env=self.env, timeout=60, capture_output=True, text=True
        ).stdout
