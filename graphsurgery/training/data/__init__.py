"""Examples: where they come from, how they are cut into batches, and how statistics are taken from them."""

from graphsurgery.training.data.dataset import Data, split
from graphsurgery.training.data.loading import check_fits, load_data

__all__ = [
    "Data",
    "check_fits",
    "load_data",
    "split",
]
