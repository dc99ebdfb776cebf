"""The number of threads; the folder of the tests' own modules on the path; what is imported, set aside."""

import contextlib
import ctypes
import gc
import logging
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
gc.disable()  # what is imported is no garbage, until the tests begin


def set_threads():
    """torch is imported here, as the process that hands out the tests to others has no need of it."""
    import torch
    from threads import THREADS

    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def same_threads():
    """A number of threads that a command sets ends with its test."""
    set_threads()
    yield
    set_threads()


@pytest.fixture(autouse=True, scope="module")
def memory_given_back():
    """What a file of tests has freed goes back to the system, which the C library would keep for later.

    What is left of it (caches, imports, the traces of the zoo) stays to the end: no collection walks it again.
    """
    yield
    gc.collect()
    gc.freeze()
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture
def logged():
    """What training logs meanwhile; pytest's own way walks torch's thousand loggers six times for every test."""
    logger, messages, handler = logging.getLogger("graphsurgery.training"), [], logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield messages
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A browser to look at pages in, where there is one."""
    from browser import CHROMIUM, Browser

    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


def pytest_collection_finish():
    """The half million objects of the imports stay to the end: no collection needs to walk them again.

    It also comes sooner, as Python waits until what is new is a quarter of what is old.
    """
    set_threads()
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(3_000, 10, 3)  # by default 700, 10, 10: the young are walked more rarely, all as rarely


def pytest_unconfigure():
    """Nothing needs to look for garbage when the process ends."""
    gc.freeze()
