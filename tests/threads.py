"""How many threads the tests run on."""

import os

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
"""One, so that runs are alike; what OMP_NUM_THREADS says, so that `make test-portable` can ask for others."""
