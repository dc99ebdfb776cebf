"""The number of threads, and the folder of the tests' own modules on the path."""

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
