"""One thread, so that runs are alike; the folder of the tests' own modules on the path; what is imported, set aside."""

import gc
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


def pytest_collection_finish():
    """The half million objects of the imports stay to the end: no collection needs to walk them again.

    It also comes sooner, as Python waits until what is new is a quarter of what is old.
    """
    gc.collect()
    gc.freeze()
