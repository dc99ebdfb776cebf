"""The catalogue of operators: one record for each, with its spellings and what is known about it."""

from graphsurgery.network.operators import elementwise, movement, sums, windows
from graphsurgery.network.operators.record import (
    TorchOperator,
    Trait,
    argument_of,
    is_a,
    is_in_place,
    key_of,
    modules,
    operator_named,
    operator_of,
    operators,
    part_at,
    spelled,
    spelling_of,
    spellings,
)

__all__ = [
    "TorchOperator",
    "Trait",
    "argument_of",
    "is_a",
    "is_in_place",
    "key_of",
    "modules",
    "operator_named",
    "operator_of",
    "operators",
    "part_at",
    "spelled",
    "spelling_of",
    "spellings",
]

_TABLES = (elementwise, movement, sums, windows)
