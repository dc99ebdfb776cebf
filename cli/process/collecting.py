"""How a process begins and ends: the garbage collector stays out of the way while it imports, and when it ends.

A command imports some half a million objects, none of which is garbage. As they grow the collector would walk all of
them a dozen times, and again at the end: two of the five seconds that a short command takes.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from typing import NoReturn

from graphsurgery.cli.process.watching import is_alone

_paused = False


def pause() -> None:
    """Nothing is collected from now on, until `go_on`."""
    global _paused
    _paused = gc.isenabled()
    gc.disable()


def go_on() -> None:
    """What is there stays for good, and what comes is collected as ever; without `pause` before, nothing changes."""
    global _paused
    if _paused:
        _paused = False
        gc.freeze()
        gc.enable()


def leave(code: int) -> NoReturn:
    """The process ends, and its memory with it: the interpreter need not look for garbage in it.

    Of several processes that train together (`accelerate launch`, `torchrun`) each ends at once, when what it has to do
    at its end is done: the threads by which they talk may still run while the interpreter takes their libraries down,
    which now and then aborts a process whose work is finished and saved.
    """
    global _paused
    _paused = False
    gc.freeze()
    if not is_alone():
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
