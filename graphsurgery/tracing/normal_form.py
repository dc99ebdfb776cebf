"""The normal form: what tracing leaves is made of fewer, plainer operators.

Before the trace `nn.MultiheadAttention` becomes projections and `scaled_dot_product_attention`, and timm's norms with
an activation become norm and activation; after it, assertions and unused sizes go, and functional dropout becomes a
module.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphsurgery.network.aliasing import acts_in_place, owns_memory
from graphsurgery.network.layers import grouped_product, hold
from graphsurgery.network.operators import argument_of, key_of, spelled
from graphsurgery.network.outputs.records import ends, held_by, is_record
from graphsurgery.network.paths import modules_of
from graphsurgery.network.training_only import draw_alike
from graphsurgery.tracing.modes import FLAG
from graphsurgery.tracing.quotients import whole_quotient
from graphsurgery.tracing.stand_ins.attention import lowered_attention

_HOOKS = "_hooks"
"""In the name of every attribute in which a module keeps what is called before or behind its forward."""


def lower(root: nn.Module, modes: dict[str, bool], kept: Iterable[str] = ()) -> None:
    """Replace modules below `root` by plainer ones over the same parameters, in place.

    Args:
        root: whose submodules are replaced.
        modes: the mode of each module by its path; it learns those of the new ones.
        kept: paths below which nothing is replaced.
    """
    for path, module in modules_of(root).items():
        lowered = None if any(path == k or path.startswith(f"{k}.") for k in kept) else _lowered(module)
        if lowered is not None and path:
            parent, _, name = path.rpartition(".")
            setattr(root.get_submodule(parent), name, lowered.eval())
            vars(lowered).update({name: hooks for name, hooks in vars(module).items() if _HOOKS in name})
    for path in modules_of(root):
        modes.setdefault(path, modes[path.rpartition(".")[0]])


def _lowered(module: nn.Module) -> nn.Module | None:
    """The plainer form of a module, if it has one."""
    kind = type(module)
    if isinstance(module, nn.MultiheadAttention):
        return lowered_attention(module)
    if "forward" in vars(module):
        return None
    if kind.__name__ in ("BatchNormAct2d", "SyncBatchNormAct") and kind.__module__.startswith("timm."):
        return _norm_and_activation(module)
    if kind.__name__ == "DropPath" and getattr(module, "scale_by_keep", True) and not module._modules:
        p = getattr(module, "drop_prob", ...)
        from torchvision.ops import StochasticDepth

        depth = StochasticDepth(float(p or 0.0), "row") if isinstance(p, float | None) else None
        return depth if depth is not None and draw_alike(module, depth, [torch.ones(3, 2, 2)]) else None
    return None


def _norm_and_activation(module: Any) -> nn.Module:
    """A BatchNorm that calls its own dropout and activation becomes three modules."""
    norm = nn.BatchNorm2d.__new__(nn.BatchNorm2d)
    state = {name: type(value)() if _HOOKS in name else value for name, value in vars(module).items()}
    norm.__dict__ = {**state, "_modules": {}}
    parts = {"norm": norm, "drop": module.drop, "act": module.act}
    return nn.Sequential(OrderedDict((name, part) for name, part in parts.items() if type(part) is not nn.Identity))


_DROPOUTS: dict[Any, Any] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
}
_STOCHASTIC_DEPTH = frozenset(spelled("stochastic_depth"))
_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def normalize(graph: fx.Graph, root: nn.Module, modes: dict[str, bool]) -> None:
    """Bring a traced graph into normal form, in place; new modules are added to `root`."""
    for node in list(graph.nodes):
        _torch_spelling(node)
        if node.target in _COUNTS:
            _as_sum_of_flags(node)
        if node.op != "call_function":
            continue
        whole_quotient(node)
        if node.target is getattr:
            _by_number(node)
        if node.target is torch._assert:
            graph.erase_node(node)
        elif is_record(node.target):
            _only_at_the_end(node)
        elif node.target in _OUT_OF_PLACE and _may_be_new(root, node):
            node.target = _OUT_OF_PLACE[node.target]
        elif node.target is F.pairwise_distance:
            _distance(node)
        elif node.target is torch.tensordot:
            _as_einsum(node)
        elif node.target in _GROUPED:
            _grouped_product(node)
        elif node.target in _DROPOUTS:
            _dropout_module(node, root, modes)
        elif key_of(node.target) in _STOCHASTIC_DEPTH:
            _stochastic_depth_module(node, root, modes)
    for node in reversed(list(graph.nodes)):
        if node.users or node.target is hold:
            continue
        flag = node.op == "call_module" and str(node.target).endswith(FLAG)
        default = flag or (node.op == "placeholder" and not isinstance(node.meta["value"], Tensor))
        plain = node.op in ("call_function", "call_method", "get_attr") and not acts_in_place(root, node)
        if default or plain:
            graph.erase_node(node)


def _distance(node: fx.Node) -> None:
    """The distance of two tensors becomes the norm of what lies between them, as torch computes it."""
    a, b = (argument_of(node, position, name, None) for position, name in ((0, "x1"), (1, "x2")))
    p, eps, keepdim = (
        argument_of(node, position, name, default)
        for position, name, default in ((2, "p", 2.0), (3, "eps", 1e-6), (4, "keepdim", False))
    )
    between = a.meta["value"] - b.meta["value"]
    with node.graph.inserting_before(node):
        parts = [node.graph.call_function(operator.sub, (a, b))]
        parts.append(node.graph.call_function(operator.add, (parts[0], eps)))
    for part in parts:
        part.meta["value"] = between
    node.target, node.args, node.kwargs = torch.norm, (parts[1], p, -1, keepdim), {}


def _by_number(node: fx.Node) -> None:
    """A result that an operator gives under a name, such as `x.max(1).values`, is one by its number."""
    source, name = node.args[:2]
    value = source.meta["value"] if isinstance(source, fx.Node) else None
    if not isinstance(value, tuple) or not type(value).__module__.startswith("torch.return_types"):
        return
    places = [place for place, part in enumerate(value) if part is getattr(value, str(name), None)]
    if places:
        node.target, node.args = operator.getitem, (source, places[0])


def _as_einsum(node: fx.Node) -> None:
    """A product over axes that are named by numbers becomes one over letters, where the numbers are written down."""
    left, right = (argument_of(node, position, name, None) for position, name in ((0, "a"), (1, "b")))
    dims = argument_of(node, 2, "dims", 2)
    if not all(isinstance(side, fx.Node) for side in (left, right)) or node.kwargs.get("out") is not None:
        return
    ranks = [side.meta["value"].dim() for side in (left, right)]
    if type(dims) is int:
        dims = [range(ranks[0] - dims, ranks[0]), range(dims)]
    if not isinstance(dims, (list, tuple)) or not all(isinstance(d, (list, tuple, range)) for d in dims):
        return
    if not all(isinstance(d, int) for side in dims for d in side):
        return
    letters = [[chr(ord("a") + place) for place in range(ranks[0])], [chr(ord("A") + n) for n in range(ranks[1])]]
    for a, b in zip(*dims, strict=True):
        letters[1][b] = letters[0][a]
    summed = {letters[0][a] for a in dims[0]}
    kept = [letter for side in letters for letter in side if letter not in summed]
    equation = f"{''.join(letters[0])},{''.join(letters[1])}->{''.join(kept)}"
    node.target, node.args, node.kwargs = torch.einsum, (equation, left, right), {}


_GROUPED = (F.grouped_mm, torch._grouped_mm)
_COUNTS = (torch.bincount, "bincount")


def _grouped_product(node: fx.Node) -> None:
    """A product of groups of rows becomes our own, which has any precision and ONNX operators; or one of batches."""
    x, weight = (argument_of(node, position, name, None) for position, name in ((0, "mat_a"), (1, "mat_b")))
    offsets = argument_of(node, 2, "offs", None)
    wanted = argument_of(node, 4, "out_dtype", None)
    if wanted is not None or argument_of(node, 3, "bias", None) is not None:
        return
    ranks = [side.meta["value"].dim() for side in (x, weight)]
    if ranks == [2, 3] and offsets is not None:
        node.target, node.args, node.kwargs = grouped_product, (x, weight, offsets), {}
    elif ranks == [3, 3] and offsets is None:
        node.target, node.args, node.kwargs = torch.bmm, (x, weight), {}


def _as_sum_of_flags(node: fx.Node) -> None:
    """How often each of a known number of indices occurs becomes a sum of flags, which refuses larger ones."""
    indices: Any = node.args[0]
    count = argument_of(node, 2, "minlength", 0)
    if argument_of(node, 1, "weights", None) is not None or not count:
        return
    with node.graph.inserting_before(node):
        whole = node.graph.call_method("long", (indices,))
        flags = node.graph.call_function(F.one_hot, (whole, count))
    whole.meta["value"] = indices.meta["value"].long()
    flags.meta["value"] = torch.empty(*whole.meta["value"].shape, count, dtype=torch.int64, device="meta")
    node.op, node.target, node.args, node.kwargs = "call_method", "sum", (flags, 0), {}


def _only_at_the_end(node: fx.Node) -> None:
    """A named tuple or a dataclass that is no part of what the network gives becomes a tuple or a dict."""
    values = held_by(node.target, node.args, node.kwargs)

    def opened(operand: fx.Node) -> Any:
        return values if operand is node else operand

    given = ends(node.graph)
    for user in list(node.users):
        if user not in given:
            user.args, user.kwargs = fx.map_arg(user.args, opened), fx.map_arg(user.kwargs, opened)
    if not node.users:
        node.graph.erase_node(node)


def _may_be_new(root: nn.Module, node: fx.Node) -> bool:
    """Whether an in-place operator may give a new tensor instead: nothing else sees what it overwrites."""
    operand, other = node.args
    values = [part.meta["value"] for part in (operand, other) if isinstance(part, fx.Node)]
    alike = len({value.dtype for value in values if isinstance(value, Tensor)}) == 1
    return alike and isinstance(operand, fx.Node) and owns_memory(root, operand)


_NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim"}
_BEHIND: dict[Any, Any] = {
    torch._C._VariableFunctions.meshgrid: torch.meshgrid,  # type: ignore[attr-defined]
    torch._C._nn.pad: F.pad,
}
"""Functions of torch's core that are recorded where the public one is given its tensors in a list, or sizes alone."""


def _torch_spelling(node: fx.Node) -> None:
    """A first operand given by name is put first, NumPy's names of arguments become torch's, functions public ones."""
    if node.op == "call_function" and node.target in _BEHIND:
        node.target = _BEHIND[node.target]
    if not node.kwargs or not node.op.startswith("call"):
        return
    kwargs = {_NUMPY_NAMES.get(name, name): value for name, value in node.kwargs.items()}
    if not node.args and "input" in kwargs:
        node.args = (kwargs.pop("input"),)
    if kwargs != node.kwargs:
        node.kwargs = kwargs


def _dropout_module(node: fx.Node, root: nn.Module, modes: dict[str, bool]) -> None:
    """`F.dropout(x, p, training=self.training)` becomes `nn.Dropout`."""
    owner, p = _owner(argument_of(node, 2, "training", True)), argument_of(node, 1, "p", 0.5)
    if owner is not None and isinstance(p, float):
        _as_module(node, root, modes, _DROPOUTS[node.target](p), owner)


def _stochastic_depth_module(node: fx.Node, root: nn.Module, modes: dict[str, bool]) -> None:
    owner, p = _owner(argument_of(node, 3, "training", True)), argument_of(node, 1, "p", 0.0)
    if owner is not None and isinstance(p, float):
        from torchvision.ops import StochasticDepth

        module = StochasticDepth(p, argument_of(node, 2, "mode", "row"))
        _as_module(node, root, modes, module, owner)


def _owner(training: Any) -> str | None:
    """The path of the module whose mode this is; None for a mode that is written down."""
    if not isinstance(training, fx.Node) or training.op != "call_module":
        return None
    path = str(training.target)
    return path.removesuffix(FLAG).removesuffix(".") if path.endswith(FLAG) else None


def _as_module(node: fx.Node, root: nn.Module, modes: dict[str, bool], module: nn.Module, owner: str) -> None:
    parent, name = root.get_submodule(owner), node.name
    while hasattr(parent, name):
        name += "_"
    parent.add_module(name, module)
    path = f"{owner}.{name}" if owner else name
    modes[path] = modes.get(owner, False)
    node.op, node.target, node.args, node.kwargs = "call_module", path, (node.args[0],), {}
