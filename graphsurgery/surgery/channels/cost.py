"""What a network costs: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.network.assembly import as_evaluated
from graphsurgery.network.copying import deep_copy, meta_of
from graphsurgery.network.layers import grouped_product
from graphsurgery.network.operators import Trait, is_a, operator_named, spelled
from graphsurgery.network.values.evaluation import is_foreign, run_on_numbers
from graphsurgery.network.values.packing import STAND_INS
from graphsurgery.network.values.shapes import result_of


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: number of parameters, tied ones once.
        macs: multiply-accumulates of matrix products and convolutions, per image.
        bytes: size of all parameters and buffers, in bytes.
        uncounted: operators that are kept whole, and whose multiply-accumulates are not among `macs`.
    """

    parameters: int
    macs: int
    bytes: int
    uncounted: tuple[str, ...] = ()


def cost(graph: ModelGraph) -> Cost:
    """Count parameters, bytes, and MACs of one evaluation at batch 1; the network is neither run nor modified.

    MACs are those of convolutions and matrix products, attention's too, at the input sizes of `graph.inputs`. What
    only training uses (auxiliary heads) counts among the parameters, not among the MACs. Weights inside operators of an
    `.onnx` file that are kept whole count among the parameters and bytes.

    Raises:
        SurgeryError: the network does not run at these input sizes.
    """
    tensors = [*graph.module.parameters(), *graph.module.buffers()]
    whole = held(graph)
    return Cost(
        parameters=sum(p.numel() for p in graph.module.parameters()) + whole.parameters,
        macs=sum(macs_by_node(graph).values()),
        bytes=sum(t.numel() * t.element_size() for t in tensors) + whole.bytes,
        uncounted=whole.uncounted,
    )


def held(graph: ModelGraph) -> Cost:
    """What operators that are kept whole hold inside, where it is no tensor of the network; no surgery changes it."""
    parts = {path: part for path, part in graph.module.named_modules() if hasattr(part, "held_parameters")}
    return Cost(
        parameters=sum(part.held_parameters for part in parts.values()),
        macs=0,
        bytes=sum(part.held_bytes for part in parts.values()),
        uncounted=tuple(path for path, part in parts.items() if part.multiplies),
    )


def macs_by_node(graph: ModelGraph) -> dict[fx.Node, int]:
    """The multiply-accumulates of every node that has some, in one evaluation at batch 1; see `cost`."""
    if graph not in _MACS:
        _MACS[graph] = _counted(graph)
    return _MACS[graph]


_MACS: WeakKeyDictionary[ModelGraph, dict[fx.Node, int]] = WeakKeyDictionary()
"""Of networks that were counted; a command asks several times."""


def _counted(graph: ModelGraph) -> dict[fx.Node, int]:
    module = graph.module
    reference = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    inputs = [
        torch.empty(spec.sizes(1), dtype=reference if spec.dtype.is_floating_point else spec.dtype, device="meta")
        for spec in graph.inputs
    ]
    counting = _Counting(as_evaluated(module))
    try:
        with torch.no_grad():
            counting.run(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as cause:
        shapes = [tuple(x.shape) for x in inputs]
        raise SurgeryError(f"cost: the network does not run on inputs of shape {shapes} ({one_line(cause)})") from cause
    counts = {node.name: macs for node, macs in counting.macs.items() if macs}
    return {node: counts[node.name] for node in module.graph.nodes if node.name in counts}


_NO_PRODUCTS = (Trait.MOVES, Trait.ELEMENTWISE, Trait.BROADCAST, Trait.REDUCES, Trait.SHARES, Trait.POSITIONS)
"""What operators do that multiply no matrices; to count such a call loads torch's compiler, in more than a second."""


class _Counting(fx.Interpreter):
    """Runs a network node by node and counts: by formulas, or by torch's counter where there are none."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.counter = FlopCounterMode(display=False, custom_mapping=_operations())
        self.macs: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = self._known(n)
        if result is None:
            counts = n.op.startswith("call") and not is_a(self.module, n, *_NO_PRODUCTS)
            with self.counter if counts else nullcontext(), torch.device("meta"):  # which counts from 0
                result = super().run_node(n)
            self.macs[n] = self.counter.get_total_flops() // 2 if counts else 0
        return result

    def _known(self, n: fx.Node) -> Any:
        """What a common operator gives, whose products are counted too; None where torch has to be asked."""
        if n.op not in ("call_module", "call_function", "call_method"):
            return None
        target = self.fetch_attr(str(n.target)) if n.op == "call_module" else n.target
        if isinstance(target, nn.Module) and (target._forward_pre_hooks or target._forward_hooks):
            return None
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        result = result_of(n.op, target, args, kwargs)
        products = None if result is None else _products(target, args, kwargs, result)
        if products is None:
            return None
        self.macs[n] = products
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaf: Any = self.fetch_attr(str(target))
        # Deep-copying with meta stand-ins already in the memo costs no memory, whatever the size of the layer.
        stand_ins = {id(tensor): _stand_in(tensor) for tensor in (*leaf.parameters(), *leaf.buffers())}
        shadow = deep_copy(leaf, stand_ins).eval()
        # Modules that a trace has kept whole may need values to run.
        return (_Foreign(shadow, self.counter) if is_foreign(leaf) else shadow)(*args, **kwargs)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = super().get_attr(target, args, kwargs)
        return _stand_in(value) if isinstance(value, Tensor) else value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().call_function(STAND_INS.get(target, target), args, kwargs)


_READS = frozenset(spelled("linear", "conv1d", "conv2d", "conv3d"))
_WRITES = frozenset(spelled("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"))
"""Every number that is given is multiplied with a row of the weight; every number that is read with one."""
_GROUPED = frozenset({grouped_product, F.grouped_mm, torch._grouped_mm})


def _products(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int | None:
    """The multiply-accumulates of an operator that gives this; None where it multiplies and has no formula here."""
    kind = type(target) if isinstance(target, nn.Module) else target
    if isinstance(target, nn.RNNBase):  # every step of every example is multiplied with every matrix
        return prod(args[0].shape[:2]) * sum(p.numel() for p in target.parameters() if p.dim() == 2)
    if kind in _GROUPED:
        return int(result.numel() * args[0].shape[1])
    if kind in _READS or kind in _WRITES:
        weight: Any = target.weight if isinstance(target, nn.Module) else _argument(args, kwargs, 1, "weight")
        numbers = result if kind in _READS else _argument(args, kwargs, 0, "input")
        return int(numbers.numel() * prod(weight.shape[1:]))
    if target is F.scaled_dot_product_attention:
        return _scores(*args, **kwargs)
    known = operator_named(kind)
    return None if known is not None and Trait.MULTIPLIES in known.traits else 0


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs[name]


def _scores(query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any) -> int:  # noqa: ARG001
    """The products of queries with keys, and of their shares with values."""
    return prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _operations() -> dict[Any, Any]:
    """What torch's counter does not know: twice the multiply-accumulates of an operator, by the shapes it is given."""

    def of_weight(x: Any, weight: Any, *others: Any, out_shape: Any, **options: Any) -> int:  # noqa: ARG001
        return 2 * prod(out_shape) * prod(weight[1:])

    def of_vector(matrix: Any, *others: Any, out_shape: Any, **options: Any) -> int:  # noqa: ARG001
        return 2 * prod(matrix)

    def added(x: Any, *factors: Any, out_shape: Any, **options: Any) -> int:  # noqa: ARG001
        return 2 * prod(factors[0]) * (factors[1][-1] if len(factors[1]) > 1 else 1)

    aten = torch.ops.aten
    known: dict[Any, Any] = {aten._trilinear: of_weight, aten.addmv: added, aten.addbmm: added}
    known |= dict.fromkeys((aten.mv, aten.dot, aten.vdot), of_vector)
    if "torchvision" in sys.modules:  # it registers its operators when it is imported
        known[torch.ops.torchvision.deform_conv2d] = of_weight
    return known


class _Foreign(nn.Module):
    """Counts nothing of an attempt that fails for want of values."""

    def __init__(self, leaf: nn.Module, counter: FlopCounterMode) -> None:
        super().__init__()
        self.leaf = leaf
        self.counter = counter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        before = copy.deepcopy(dict(self.counter.flop_counts))
        try:
            return self.leaf.forward(*args, **kwargs)
        except Exception:  # whatever the module's own code raises
            self.counter.flop_counts.clear()
            self.counter.flop_counts.update(before)
            return run_on_numbers(self.leaf, args, kwargs)


def _stand_in(tensor: Tensor) -> Tensor:
    """A tensor of the same kind, shape and dtype that holds no values, and of which no gradients are asked."""
    empty = meta_of(tensor)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
