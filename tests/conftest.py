"""The number of threads; the folder of the tests' own modules on the path; what is imported, set aside."""

import gc
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from threads import THREADS

torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def same_threads():
    """A number of threads that a command sets ends with its test."""
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)


def pytest_collection_finish():
    """The half million objects of the imports stay to the end: no collection needs to walk them again.

    It also comes sooner, as Python waits until what is new is a quarter of what is old.
    """
    gc.collect()
    gc.freeze()
