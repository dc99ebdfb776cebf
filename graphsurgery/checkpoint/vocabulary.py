"""The closed vocabulary of a stored network: which classes, functions, methods and attributes it may name.

A checkpoint can name nothing else, so opening one never imports, calls or evaluates anything that is not listed here.
None of it reads or writes files, runs code given as text, or takes a callable.
"""

from __future__ import annotations

import builtins
import keyword
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import get_overridable_functions

from graphsurgery.errors import SurgeryError
from graphsurgery.network.operators import Trait, key_of, modules, operators, part_at


def _words(text: str) -> list[str]:
    return text.split()


_OPS = ("placeholder", "get_attr", "call_module", "call_function", "call_method", "output")
_PART = re.compile(r"(?!__)[A-Za-z0-9_ -]+")
_NAME = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*")

CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Classes that only hold other modules; each is stored as a plain `nn.Module`."""

_OTHER_LAYERS = _words("""
Bilinear EmbeddingBag Fold Unfold MultiheadAttention RNN LSTM GRU RNNCell LSTMCell GRUCell RMSNorm LocalResponseNorm
MaxUnpool1d MaxUnpool2d MaxUnpool3d CosineSimilarity GLU PReLU
""")

_OPERATORS = _words("""
abs add and_ concat contains eq floordiv ge getitem gt iadd iand ifloordiv ilshift imod imul inv invert ior ipow
irshift isub itruediv ixor le lshift lt matmul imatmul mod mul ne neg not_ or_ pos pow rshift setitem sub truediv
truth xor
""")

_BUILTINS = _words("abs bool float getattr int len max min pow round slice sum tuple")

_MATH = _words("""
ceil cos exp fabs floor fmod gcd hypot isfinite isinf isnan isqrt lcm log log10 log2 pow prod sin sqrt tanh trunc
""")

_FACTORIES = _words("""
_assert arange as_strided as_tensor bernoulli empty eye finfo full full_like linspace multinomial normal ones poisson
rand rand_like randn randn_like randint randint_like randperm scalar_tensor tensor tril_indices triu_indices zeros
""")

_PACKING = _words("pack_padded_sequence pad_packed_sequence")

_FOREIGN_PREFIXES = ("fbgemm_", "miopen_", "quantized_", "q_", "choose_qparams")

_OTHER_METHODS = _words("""
addbmm addr argmax argmin argsort argwhere as_strided bernoulli byte char copy_ cross cummax cummin cumprod cumsum det
diag diag_embed diagonal diagonal_scatter diff dim dist dot element_size equal gather index_add index_copy index_fill
index_put inner inverse is_complex is_contiguous is_floating_point item kron kthvalue logcumsumexp masked_scatter
masked_select matrix_exp matrix_power max min msort ndimension nelement nonzero norm normal_ numel pinverse polygamma
prelu quantile real renorm repeat_interleave scatter scatter_add scatter_reduce select_scatter short size slice_scatter
sort stride sum_to_size take take_along_dim topk trace tril triu unfold uniform_ unique
""")

_DRAWING_METHODS = _words("exponential_ log_normal_ geometric_ cauchy_ random_")

_CATALOGUED_METHODS = {name for known in operators() for name in known.methods if not name.startswith("__")} - {"cuda"}

METHODS = frozenset(
    ["numel", "count", "index", *_CATALOGUED_METHODS, *_OTHER_METHODS, *_DRAWING_METHODS]
    + [f"{name}_" for name in _OTHER_METHODS if not name.endswith("_") and hasattr(torch.Tensor, f"{name}_")]
)
"""Methods of tensors and shapes that a graph may call, the in-place forms too; a file runs without a GPU."""

ATTRIBUTES = frozenset(
    _words("""
shape dtype device layout ndim T mT H mH real imag requires_grad is_cuda is_floating_point itemsize nbytes max min eps
tiny
""")
)
"""Attributes that a graph may read: those of tensors and dtypes, and the numbers of a `torch.finfo`."""

RNN_ARGUMENTS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
"""What `nn.RNN`, `nn.LSTM` and `nn.GRU` take; their own signatures say only `*args`."""

RNN_OWN_ARGUMENTS = MappingProxyType({nn.RNN: ("nonlinearity",), nn.LSTM: ("proj_size",)})
"""What only one of them takes."""


OLD_NORMS = frozenset(
    _words("""
SegmentedLayerNorm segmented_group_norm segmented_layer_norm segmented_normalize weighted_group_norm
weighted_instance_norm weighted_rms_norm
""")
)
"""What a grouped norm was in files of earlier versions; `older_norms` reads them."""

OLD_NAMES = MappingProxyType(
    {
        f"graphsurgery.layers.{name}": f"graphsurgery.network.layers.{name}"
        for name in _words("Boundary ChannelGate TrainingFlag either hold scale_axis shift_mask weigh")
    }
    | {f"graphsurgery.layers.{name}": "graphsurgery.network.layers.grouped_norm" for name in sorted(OLD_NORMS)}
)
"""What names were in files of earlier versions, and what they are now: both are read, the new ones are written."""


class _Named(Mapping[str, Any]):
    """What is stored under names; what is torchvision's, whose paths are given, is imported when it is asked for."""

    def __init__(self, own: Mapping[str, Any], foreign: Iterable[str]) -> None:
        self._own = own
        self._foreign = {f"torchvision.ops.{path.rpartition('.')[2]}": path for path in foreign}

    def __getitem__(self, name: str) -> Any:
        return part_at(self._foreign[name]) if name in self._foreign else self._own[name]

    def __contains__(self, name: object) -> bool:
        return name in self._foreign or name in self._own

    def __iter__(self) -> Iterator[str]:
        return iter((*self._own, *self._foreign))

    def __len__(self) -> int:
        return len(self._own) + len(self._foreign)

    def by_part(self) -> dict[Any, str]:
        """The first name of each part, by what it is or, for torchvision's, by its path (`key_of`)."""
        names = {path: name for name, path in self._foreign.items()}
        for name, part in self._own.items():
            if name not in OLD_NAMES:
                names.setdefault(part, name)
        return names


@cache
def module_classes() -> _Named:
    """The leaf classes by the name under which they are stored."""
    from graphsurgery.network import gated_layers, layers

    classes: dict[str, type[nn.Module]] = {f"torch.nn.{name}": getattr(nn, name) for name in _OTHER_LAYERS}
    classes |= {f"torch.nn.{kind.__name__}": kind for kind in modules(Trait.NONE)}
    for name in layers.__all__:
        own = getattr(layers, name)
        if isinstance(own, type) and issubclass(own, nn.Module):
            classes[f"graphsurgery.network.layers.{name}"] = own
    for name in gated_layers.__all__:
        classes[f"graphsurgery.network.gated_layers.{name}"] = getattr(gated_layers, name)
    classes |= {old: classes[new] for old, new in OLD_NAMES.items() if new in classes}
    return _Named(classes, [path for known in operators() for path in known.foreign_modules])


@cache
def functions() -> _Named:
    """The functions by the name under which they are stored.

    These are the operators of the catalogue, what torch itself lists as functions of tensors, its factories,
    arithmetic, and our own.
    """
    from graphsurgery.network import layers

    table: dict[str, Callable[..., Any]] = {}
    tensor_functions = {id(function) for group in get_overridable_functions().values() for function in group}
    for namespace in (torch, F, torch.linalg, torch.special, torch.fft):
        for name in dir(namespace):
            function = getattr(namespace, name)
            listed = id(function) in tensor_functions and not isinstance(function, type)
            if listed and not name.startswith(("_", *_FOREIGN_PREFIXES)):
                table[f"{namespace.__name__}.{name}"] = function
    table |= {f"torch.{name}": getattr(torch, name) for name in _FACTORIES}
    for function in (function for known in operators() for function in known.functions):
        name = getattr(function, "__name__", "")
        homes = [space for space in (torch, F) if getattr(space, name, None) is function]
        table |= {f"{space.__name__}.{name}": function for space in homes}
    table |= {f"operator.{name}": getattr(operator, name) for name in _OPERATORS}
    table |= {f"builtins.{name}": getattr(builtins, name) for name in _BUILTINS}
    table |= {f"math.{name}": getattr(math, name) for name in _MATH}
    table |= {f"torch.nn.utils.rnn.{name}": getattr(nn.utils.rnn, name) for name in _PACKING}
    for name in layers.__all__:
        own = getattr(layers, name)
        if not isinstance(own, type):
            table[f"graphsurgery.network.layers.{name}"] = own
    table |= {old: table[new] for old, new in OLD_NAMES.items() if new in table}
    return _Named(table, [path for known in operators() for path in known.foreign_functions])


@cache
def _class_names() -> Mapping[Any, str]:
    return module_classes().by_part()


@cache
def _function_names() -> Mapping[Any, str]:
    return functions().by_part()


def class_name(cls: type[nn.Module]) -> str | None:
    """The stored name of exactly this class; None when it is not in the vocabulary."""
    return _class_names().get(key_of(cls))


def function_name(function: Any) -> str | None:
    """The stored name of this function; None when it is not in the vocabulary."""
    return _function_names().get(key_of(function))


def check_target(op: str, target: str, args: tuple[Any, ...]) -> None:
    """Refuse what a graph may not call or read."""
    if op not in _OPS:
        raise SurgeryError(f"operation {op!r} is unknown")
    if op in ("get_attr", "call_module"):
        checked_path(target)
    elif op in ("placeholder", "output"):
        checked_name(target)
    elif op == "call_method" and target not in METHODS:
        raise SurgeryError(f"method {target!r} is not one that a checkpoint may call")
    elif op == "call_function":
        if target not in functions():
            raise SurgeryError(f"function {target!r} is not one that a checkpoint may call")
        if target == "builtins.getattr" and (len(args) < 2 or args[1] not in ATTRIBUTES):
            raise SurgeryError(f"attribute {args[1:2]} is not one that a checkpoint may read")


def checked_name(name: Any) -> str:
    """A name that may stand in Python source."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise SurgeryError(f"{name!r} is not a plain name")
    return name


def checked_path(path: Any) -> str:
    """A path of plain names, numbers, hyphens and spaces with dots between them, as a ModuleDict may have them.

    The code of a network asks for what is no plain name by a text in quotes, of which these letters are no part.
    """
    parts = path.split(".") if isinstance(path, str) else [""]
    if not all(_PART.fullmatch(part) for part in parts):
        raise SurgeryError(f"{path!r} is not a plain path")
    return path
