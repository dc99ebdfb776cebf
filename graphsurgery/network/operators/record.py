"""One record for each operator: its spellings, what is known about it, and what it is in ONNX.

Every room that has to know an operator asks its record: type inference, shapes, memory, shuffles, constants, repeats,
stored networks, the ONNX reader and writer. So a new operator on single elements is one line in `elementwise`, and
`tests/network/test_operators.py` takes it through all of them.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from graphsurgery.network.paths import layer_at


class Trait(Flag):
    """What is known about an operator."""

    NONE = 0
    ELEMENTWISE = auto()
    """Acts on each number of one tensor alone: the result has the shape and the axes of its operand."""
    BROADCAST = auto()
    """Acts on each number alone, of operands that are laid over each other from the last axis on."""
    FLOAT = auto()
    """Gives the dtype of its operand, which has to be one of floats."""
    FRESH = auto()
    """Spelled out of place, gives memory of its own, whatever it is given."""
    PASSES = auto()
    """The identity in evaluation."""
    SETTLES = auto()
    """Applied twice, does what it does once."""
    KEEPS_ZERO = auto()
    """Gives 0 for 0, with a slope there: what stands behind a zero still learns."""
    KEEPS_RANGE = auto()
    """What it gives lies between the least and the largest of what it is given."""
    MOVES = auto()
    """Computes nothing: each number that it gives is one that it was given, and shapes alone say which."""
    LAYS_OUT = auto()
    """Moves, and keeps numbers in their order: other sizes, slices, or one tensor behind another."""
    REORDERS = auto()
    """Moves, and may bring whole channels into another order."""
    POSITIONS = auto()
    """Acts on the last axes, as many as its name says: pooling, resizing, padding."""
    REDUCES = auto()
    """Makes one number of all those along some axes."""
    AFFINE = auto()
    """Of the mean of what it could be given, gives the mean of the results, in evaluation."""
    SHARES = auto()
    """Makes shares of one whole out of the numbers along an axis: a softmax."""
    PER_CHANNEL = auto()
    """Norms each channel by its own mean and variance, and has a vector with a number for each."""
    MULTIPLIES = auto()
    """Multiplies matrices: what it gives does not tell what it costs."""


@dataclass(frozen=True)
class TorchOperator:
    """One operator under all of its names.

    Attributes:
        name: the first of its names.
        modules: the classes of layers that do nothing else.
        functions: the functions, those of Python's own operators and those in place among them.
        methods: the names of the methods of a tensor.
        foreign_modules: the paths of layers of torchvision, which need not be imported; see `key_of`.
        foreign_functions: the paths of its functions.
        traits: what is known about it.
        onnx: the ONNX operator that does the same of the same operands, without attributes.
        mixes: for what reduces, the kind of its mixing (`axes.types.Mixing`).
    """

    name: str
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Any, ...] = ()
    methods: tuple[str, ...] = ()
    foreign_modules: tuple[str, ...] = ()
    foreign_functions: tuple[str, ...] = ()
    traits: Trait = Trait.NONE
    onnx: str | None = None
    mixes: str | None = None

    @property
    def spellings(self) -> tuple[Any, ...]:
        """Classes, functions and names of methods: all that a node can have as its target or layer, as `key_of`."""
        return (*self.modules, *self.functions, *self.methods, *self.foreign_modules, *self.foreign_functions)

    @property
    def call(self) -> Any:
        """The function for a new node: Python's operator, which takes numbers too, if it is one, else torch's."""
        return next((f for f in self.functions if f in _PYTHONS and not is_in_place(f)), self.functions[0])


_PYTHONS = frozenset(value for value in vars(operator).values() if callable(value))
_IN_PLACE = frozenset(
    getattr(operator, f"i{name}")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul")
) | {operator.setitem}
_RECORDS: list[TorchOperator] = []
_BY_SPELLING: dict[Any, TorchOperator] = {}


def record(
    names: str,
    *modules: type[nn.Module],
    traits: Trait,
    also: Iterable[Any] = (),
    functions: bool = True,
    foreign_modules: Iterable[str] = (),
    foreign_functions: Iterable[str] = (),
    onnx: str | None = None,
    mixes: str | None = None,
) -> None:
    """Enter an operator into the catalogue.

    Args:
        names: its names, with spaces between them. Functions and methods of these names are found in `torch`,
            `torch.nn.functional`, `torch.special` and `torch.Tensor`, those in place (`relu_`) too.
        modules: the classes of layers that do it.
        traits: what is known about it.
        also: Python's operators that do it.
        functions: whether functions of these names do it, too.
        foreign_modules: paths of layers of torchvision that do it.
        foreign_functions: paths of its functions that do it.
        onnx: the ONNX operator that does the same.
        mixes: the kind of mixing of what reduces.

    Raises:
        ValueError: a spelling belongs to another operator already, or there is none at all.
    """
    every = [form for name in names.split() for form in (name, f"{name}_")]
    spaces = (torch, F, torch.special) if functions else ()
    found = [getattr(space, form) for form in every for space in spaces if callable(getattr(space, form, None))]
    methods = tuple(form for form in every if callable(getattr(torch.Tensor, form, None)))
    called = tuple(dict.fromkeys([*found, *also]))
    foreign = tuple(foreign_modules), tuple(foreign_functions)
    made = TorchOperator(names.split()[0], modules, called, methods, *foreign, traits, onnx, mixes)
    if not made.spellings:
        raise ValueError(f"{names} is no function, method or layer")
    for spelling in made.spellings:
        if spelling in _BY_SPELLING:
            raise ValueError(f"{spelling} is {_BY_SPELLING[spelling].name} already, and cannot be {made.name}")
        _BY_SPELLING[spelling] = made
    _RECORDS.append(made)


def operators(traits: Trait = Trait.NONE) -> Iterator[TorchOperator]:
    """The operators that have all of these traits, in the order of the catalogue."""
    return (known for known in _RECORDS if traits in known.traits)


def operator_named(spelling: Any) -> TorchOperator | None:
    """The operator of a class of layers, a function, or the name of a method; None for what has no record."""
    return _BY_SPELLING.get(key_of(spelling))


def argument_of(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """What a call is given, in its place or by its name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def operator_of(module: nn.Module, node: fx.Node) -> TorchOperator | None:
    """The operator that a node runs; None for nodes that run nothing, and for what has no record."""
    return _BY_SPELLING.get(spelling_of(module, node)) if node.op.startswith("call") else None


def is_a(module: nn.Module, node: fx.Node, *traits: Trait) -> bool:
    """Whether a node runs an operator that has one of these traits."""
    known = operator_of(module, node)
    return known is not None and any(trait in known.traits for trait in traits)


def is_in_place(spelling: Any) -> bool:
    """Whether a function or method always writes into its first operand."""
    name = spelling if isinstance(spelling, str) else str(getattr(spelling, "__name__", ""))
    return spelling in _IN_PLACE or (name.endswith("_") and not name.startswith("_"))


def modules(traits: Trait) -> tuple[type[nn.Module], ...]:
    """The classes of layers that have all of these traits."""
    return tuple(kind for known in operators(traits) for kind in known.modules)


def key_of(part: Any) -> Any:
    """Under what a class, a function or a method stands in a table: itself, but by its path where it is torchvision's.

    A network that has such a part has imported torchvision, which takes as long as torch; nobody else needs it.
    """
    home = getattr(part, "__module__", None)
    return f"{home}.{part.__qualname__}" if isinstance(home, str) and home.startswith("torchvision.") else part


def part_at(path: str) -> Any:
    """The class or function at such a path; its library is imported."""
    home, _, name = path.rpartition(".")
    return getattr(importlib.import_module(home), name)


def spelling_of(module: nn.Module, node: fx.Node) -> Any:
    """What a node runs, as `key_of`: the class of a layer, a function, or the name of a method."""
    return key_of(type(layer_at(module, str(node.target))) if node.op == "call_module" else node.target)


def spelled(*names: str) -> tuple[Any, ...]:
    """All spellings of the operators of these names."""
    return tuple(spelling for known in _RECORDS if known.name in names for spelling in known.spellings)


def spellings(traits: Trait) -> tuple[Any, ...]:
    """All spellings of the operators that have all of these traits."""
    return tuple(spelling for known in operators(traits) for spelling in known.spellings)
