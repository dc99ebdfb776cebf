"""A network from a file, run once on meta tensors before anybody relies on it.

A description may name only what the vocabulary has and still be no network: a `padding` of the wrong length, integers
for weights, a call with too many arguments. torch finds these when it runs them. So every node is run on tensors
without data, as `propagate` does when types are asked for, and keeps its value for them. Only such formulas of `shapes`
stand for a run that look at every argument: with those alone torch's compiler is not loaded, which its reference code
would do, in more than a second. What torch does not check on meta tensors is whether the operands of a product have one
dtype: that is checked here.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.rnn import PackedSequence

from graphsurgery.checkpoint.encoding import dtype_name
from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.graph import InputSpec
from graphsurgery.network.paths import map_values
from graphsurgery.network.training_only import InTraining
from graphsurgery.network.values.evaluation import propagate

_PRODUCTS = frozenset(
    {
        *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear),
        *(F.bilinear, F.multi_head_attention_forward),
        *(torch.matmul, torch.mm, torch.bmm, torch.mv, torch.addmm, torch.baddbmm, torch.addbmm, torch.addmv),
        *(torch.dot, torch.inner, torch.outer, torch.einsum, torch.tensordot, operator.matmul),
    }
)
_PRODUCT_METHODS = frozenset({"matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "addbmm", "addmv", "dot", "inner"})
_PRODUCT_LAYERS = (_ConvNd, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.PReLU)
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
_HALVES = (torch.float16, torch.bfloat16)


def rehearse(module: fx.GraphModule, inputs: Sequence[InputSpec]) -> None:
    """Give every node its value on meta tensors, as `propagate`, and find what could not be run.

    Raises:
        SurgeryError: a node cannot be run on the values before it, or multiplies tensors of unlike dtypes; the message
            names it. Or the graph takes other inputs than these.
    """
    takes = [node for node in module.graph.nodes if node.op == "placeholder"]
    if len(takes) != len(inputs):
        raise SurgeryError(f"the graph takes {len(takes)} inputs, {len(inputs)} are described")
    _check_layers(module)
    try:
        examples = [torch.empty(spec.shape, dtype=spec.dtype, device="meta") for spec in inputs]
        # A factory in the graph need not make tensors with data, which may be as large as the file likes.
        with torch.device("meta"):
            propagate(module, examples, strict=True)
    except Exception as cause:  # the graph may be anything, so anything may be wrong with it
        failed = next((node for node in module.graph.nodes if "value" not in node.meta), None)
        raise SurgeryError(
            f"{failed or 'the inputs'}: cannot be run on what the file describes "
            f"({type(cause).__name__}: {one_line(cause)})"
        ) from cause
    for node in module.graph.nodes:
        _check_operands(module, node)
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, InTraining):
            _rehearse_training(node, layer)


def _rehearse_training(node: fx.Node, layer: InTraining) -> None:
    """Run what a layer does in training: it gives a tensor of the shape that it is given, as in evaluation."""
    value, found = node.meta["value"], None
    try:
        with torch.device("meta"), torch.no_grad():
            found = fx.Interpreter(layer, graph=layer.graph).run(torch.empty_like(value))
    except Exception as cause:  # the graph may be anything, so anything may be wrong with it
        raise SurgeryError(f"{node}: cannot be run in training ({type(cause).__name__}: {one_line(cause)})") from cause
    if not isinstance(found, Tensor) or (found.shape, found.dtype) != (value.shape, value.dtype):
        raise SurgeryError(f"{node}: gives something else in training than a tensor like the one that it is given")


def _check_batch_norm(path: str, layer: _NormBase) -> None:
    for name, value in (("eps", layer.eps), ("momentum", layer.momentum)):
        if type(value) not in (int, float) and not (name == "momentum" and value is None):
            raise SurgeryError(f"{path}: {name} is {value!r}, expected a number")


def _check_layers(module: fx.GraphModule) -> None:
    """The tensors of a layer are floating numbers where it makes floating ones; convolutions have whole settings."""
    for path, layer in module.named_modules():
        if isinstance(layer, _ConvNd):
            _check_convolution(path, layer)
        if isinstance(layer, _NormBase):
            _check_batch_norm(path, layer)
        for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is None:
                continue
            where = f"{path}.{name}" if path else name
            numbers = tensor.is_floating_point() or tensor.is_complex()
            if isinstance(layer, (*_NORMS, *_PRODUCT_LAYERS)) and numbers == (name == "num_batches_tracked"):
                raise SurgeryError(f"{where}: is of dtype {dtype_name(tensor.dtype)}, which this layer cannot have")
            if isinstance(tensor, nn.Parameter) and not numbers:
                raise SurgeryError(f"{where}: is a parameter of dtype {dtype_name(tensor.dtype)}, expected floats")


def _check_convolution(path: str, layer: _ConvNd) -> None:
    """A setting is a number for each axis that the kernel slides over; meta tensors do not mind others."""
    axes = layer.weight.dim() - 2
    for name, least in (("kernel_size", 1), ("stride", 1), ("dilation", 1), ("padding", 0)):
        setting = getattr(layer, name)
        if name == "padding" and setting in ("same", "valid"):
            continue
        whole = isinstance(setting, list | tuple) and all(type(part) is int and part >= least for part in setting)
        if not whole or len(setting) != axes:
            raise SurgeryError(f"{path}: {name} is {setting!r}, expected {axes} whole numbers of at least {least}")


def _check_operands(module: fx.GraphModule, node: fx.Node) -> None:
    """The operands of a product have one dtype; a norm's weights may be more precise than what it normalises."""
    layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    product = node.target in (_PRODUCT_METHODS if node.op == "call_method" else _PRODUCTS)
    if layer is None and not (product and node.op in ("call_method", "call_function")):
        return
    if layer is not None and not isinstance(layer, (*_PRODUCT_LAYERS, *_NORMS)):
        return
    found = {tensor.dtype for tensor in _tensors((node.args, node.kwargs)) if tensor.dtype is not torch.bool}
    own = {p.dtype for p in (*layer.parameters(), *layer.buffers()) if p.is_floating_point()} if layer else set()
    if isinstance(layer, _NORMS) and own == {torch.float32} and found <= set(_HALVES):
        return
    if len(found | own) > 1:
        names = ", ".join(sorted(map(dtype_name, found | own)))
        raise SurgeryError(f"{node.name}: its operands are of unlike dtypes ({names})")


def _tensors(arguments: Any) -> Iterator[Tensor]:
    """The tensors among the values of a node's arguments; of packed sequences their numbers."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    def numbers(node: fx.Node) -> Any:
        value = node.meta["value"]
        return value.data if isinstance(value, PackedSequence) else value

    map_values(fx.map_arg(arguments, numbers), note)
    return iter(found)
