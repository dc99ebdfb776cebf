"""Work in another process without the seconds of its imports: a fork of the one that runs the tests."""

import os
import signal
import sys
import traceback
import warnings
from pathlib import Path

import torch


class Forked:
    """A process that does `work()` and ends: with 0, with the code of a `SystemExit`, or with 1 and a traceback.

    As the interpreter does, it ends with 120 where standard output cannot be written to its last character.

    Where its standard streams go: a file descriptor, a path that is made, or, for None, where those of the tests go;
    descriptors that it has no part in are closed there.
    """

    def __init__(self, work, stdout=None, stderr=None, closed=()):
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a process with threads that forks; the child has one
            self.pid = os.fork()
        if not self.pid:
            for descriptor in closed:
                os.close(descriptor)
            os._exit(_code(work, stdout, stderr))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.pid:
            self.send_signal(signal.SIGKILL)
            self.wait()

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self):
        """How it ended: its code, or the negative number of the signal that killed it."""
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _code(work, stdout, stderr):
    warnings.simplefilter("ignore")
    # A background job of a shell ignores the signal, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)  # the other threads of OpenMP were left behind
    try:
        for name, number, given in (("stdout", 1, stdout), ("stderr", 2, stderr)):
            _redirect(name, number, given)
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
    except OSError:
        code = 120  # as the interpreter has it
    sys.stderr.flush()
    return code


def _redirect(name, number, given):
    if isinstance(given, str | Path):
        given = os.open(given, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    if given is not None:
        os.dup2(given, number)
        setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
