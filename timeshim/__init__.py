"""Tasks whose clocks are virtual: their pages, their clocks, and how they are launched.

Nothing here knows how a task moves to another host; that is the package ``harness``, which
imports this one.
"""

from importlib.metadata import version

__version__ = version("timeshim")
