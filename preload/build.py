"""Builds the C side: one cffi module for Python, two plain ELF files for the task.

``timeshim._native``
    page.h, arith.h, supervise.h, inject.h and hold.h as Python sees them. Those headers are the only
    declarations: cffi is given their text, not a copy.
``libtimeshim.so``, ``reaper``
    What runs inside the task. They are compiled with flags of their own instead of
    Python's, need libc only, and lie beside the module.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from cffi import FFI
from setuptools.command.build_ext import build_ext as setuptools_build_ext

if TYPE_CHECKING:
    from setuptools import Extension

HERE = Path(__file__).parent

# all but the other two products' sources
SHIM_SOURCES = sorted(
    {path.name for path in HERE.glob("*.c")}
    - {"hold.c", "inject.c", "pending.c", "reaper.c", "supervise.c"}
)

COMMON_FLAGS = ["-std=gnu17", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]

# No stack protector: its canary is a thread-local variable, and its failure a call
# to abort() with a message, neither of which a clock read may do.
SHIM_FLAGS = ["-fPIC", "-shared", "-fno-stack-protector", "-U_FORTIFY_SOURCE"]

# initfirst: other libraries' constructors already read virtual clocks.
SHIM_LINK = ["-Wl,-z,initfirst,-z,now,-z,relro,-z,defs", "-Wl,-soname,libtimeshim.so"]


def declarations() -> str:
    """Return the headers as text that cffi's C parser takes."""
    text = "".join(
        (HERE / name).read_text() for name in ("page.h", "supervise.h", "inject.h", "hold.h")
    )
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    kept = [
        line
        for line in text.splitlines()
        if not re.match(r"#(include|ifndef|endif)|#define TIMESHIM_\w+_H$|_Static_assert", line)
    ]
    pure = re.findall(
        r"^static inline (.+?\))\n{", (HERE / "arith.h").read_text(), flags=re.MULTILINE | re.DOTALL
    )
    return "\n".join(kept) + "".join(f"\n{prototype};" for prototype in pure)


class build_ext(setuptools_build_ext):  # noqa: N801 - the name is setuptools'
    """setuptools' build_ext, for one extension that is emitted by cffi."""

    def build_extension(self, ext: Extension) -> None:
        """Emit and compile the module, then what lies beside it."""
        ffi = FFI()
        ffi.cdef(declarations())
        ffi.set_source(ext.name, '#include "arith.h"\n#include "hold.h"\n#include "supervise.h"')
        emitted = Path(self.build_temp) / "_native.c"
        emitted.parent.mkdir(parents=True, exist_ok=True)
        ffi.emit_c_code(str(emitted))

        # only for this call: what pyproject.toml lists is also what an sdist contains
        listed = ext.sources
        ext.sources = [*listed, str(emitted)]
        super().build_extension(ext)
        ext.sources = listed

        shim, reaper = self.plain_files(self.build_lib)
        sources = [str(HERE / name) for name in SHIM_SOURCES]
        version_script = f"-Wl,--version-script={HERE / 'libtimeshim.map'}"
        self.compile_plain(shim, [*SHIM_FLAGS, *sources, *SHIM_LINK, version_script])
        self.compile_plain(reaper, [str(HERE / "reaper.c")])

    def plain_files(self, root: str) -> list[Path]:
        """Return where the two ELF files belong in a tree of packages."""
        return [Path(root) / "timeshim" / name for name in ("libtimeshim.so", "reaper")]

    def get_outputs(self) -> list[str]:
        """Name all that is built, so that wheels and `pip uninstall` know of it."""
        return [*super().get_outputs(), *map(str, self.plain_files(self.build_lib))]

    def copy_extensions_to_source(self) -> None:
        """Copy what an editable installation runs from the source tree."""
        super().copy_extensions_to_source()
        for built, used in zip(
            self.plain_files(self.build_lib), self.plain_files("."), strict=True
        ):
            self.copy_file(str(built), str(used))

    def compile_plain(self, output: Path, arguments: list[str]) -> None:
        """Compile one ELF file without any of Python's flags."""
        compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
        command = [*compiler, *COMMON_FLAGS, *arguments, "-o", str(output)]
        self.announce(shlex.join(command), level=2)
        subprocess.run(command, check=True)
