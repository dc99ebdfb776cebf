"""The garbage collector stays out of the way while a command imports, and when the interpreter ends.

A command imports some half a million objects, none of which is garbage. As they grow the collector would walk all of
them a dozen times, and again at the end: two of the five seconds that a short command takes.
"""

from __future__ import annotations

import gc

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


def leave() -> None:
    """The process ends, and its memory with it: the interpreter need not look for garbage in it."""
    global _paused
    _paused = False
    gc.freeze()
