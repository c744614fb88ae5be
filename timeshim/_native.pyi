# The C module that preload/build.py makes of page.h, arith.h and supervise.h.

from typing import Any

ffi: Any  # a cffi.FFI; what it makes has the fields of those headers' structs
lib: Any  # functions, structs and integer constants as those headers declare them
