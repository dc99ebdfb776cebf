"""One thread, so that runs are alike; the folder of the tests' own modules on the path."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
