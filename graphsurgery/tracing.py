"""From an `nn.Module` to a `ModelGraph`: symbolic tracing with values on meta tensors, then the normal form."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import InputSpec, ModelGraph
from graphsurgery.leaves import plain
from graphsurgery.lowering import lower_attention, normalize
from graphsurgery.value_tracer import ValueTracer
from graphsurgery.values import copy_module, meta_of


def trace(model: nn.Module, example_input: Tensor | Sequence[Tensor]) -> ModelGraph:
    """Trace a model into a typed graph; the model is not modified and shares nothing with the result.

    Args:
        model: any module; its train/eval mode is kept, and both modes stay available.
        example_input: one input `[batch, ...]`, or one for each argument of `forward`; only shapes count, and whether
            it holds numbers or indices.

    Raises:
        TraceError: the forward cannot be followed; the message names the source line.
    """
    examples = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    for example in examples:
        if not isinstance(example, Tensor) or example.dim() == 0:
            raise SurgeryError("trace: example inputs are tensors [batch, ...]")
    real: dict[int, Tensor] = {}
    skeleton = _meta_copy(model, real)
    modes = {path: module.training for path, module in skeleton.named_modules()}
    skeleton.eval()
    lower_attention(skeleton, modes)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    tracer = ValueTracer([_stand_in(example, dtype) for example in examples])
    graph = tracer.follow(skeleton)
    normalize(graph, skeleton, modes)
    module = _with_real_tensors(graph, skeleton, modes, real)
    module.training = model.training
    inputs = tuple(
        InputSpec(str(node.target), tuple(node.meta["value"].shape), node.meta["value"].dtype)
        for node in graph.nodes
        if node.op == "placeholder"
    )
    return ModelGraph(module, inputs, ({"pass": "trace", "model": type(model).__name__},))


def _stand_in(example: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A meta tensor like the example, in the model's dtype and with a batch of at least two.

    A batch of one could not be told from an axis that broadcasts.
    """
    batch = 2 if example.shape[0] == 1 else example.shape[0]
    kept = dtype is None or not example.is_floating_point()
    return torch.empty((batch, *example.shape[1:]), dtype=example.dtype if kept else dtype, device="meta")


def _meta_copy(model: nn.Module, real: dict[int, Tensor]) -> nn.Module:
    """A deep copy whose parameters and buffers are meta tensors; `real` gets the original of each, by its id."""
    memo: dict[int, Any] = {}

    def replace(tensor: Tensor) -> None:
        if id(tensor) in memo:
            return
        new: Tensor = meta_of(tensor)
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = new
        real[id(new)] = tensor

    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if isinstance(tensor, Tensor):
                replace(tensor)
        for tensor in module.__dict__.values():
            # Plain attributes keep their values: what the forward computes from them alone is a constant.
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
    for module in model.modules():
        # Copying plain leaves by hand saves a walk through a dozen empty dictionaries for each.
        if not module._modules and type(module).__module__.startswith("torch.nn.modules"):
            memo[id(module)] = copy_module(module, lambda tensor: memo[id(tensor)])
    return copy.deepcopy(model, memo)


def _with_real_tensors(
    graph: fx.Graph, skeleton: nn.Module, modes: Mapping[str, bool], real: Mapping[int, Tensor]
) -> fx.GraphModule:
    """A GraphModule of the graph whose leaves hold clones of the original tensors; ties stay ties."""
    clones: dict[int, Tensor] = {}

    def clone(tensor: Tensor) -> Tensor:
        if id(tensor) not in clones:
            source = real.get(id(tensor), tensor)
            new = source.detach().clone()
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            clones[id(tensor)] = new
        return clones[id(tensor)]

    root: dict[str, Any] = {}
    transient: list[str] = []
    for node in graph.nodes:
        path = str(node.target)
        if node.op == "call_module" and path not in root:
            root[path] = plain(copy_module(skeleton.get_submodule(path), clone))
            root[path].training = modes.get(path, False)
        elif node.op == "get_attr" and path not in root:
            parent, _, name = path.rpartition(".")
            owner = skeleton.get_submodule(parent)
            root[path] = clone(getattr(owner, name))
            if name in owner._non_persistent_buffers_set:
                transient.append(path)
    module = fx.GraphModule(root, graph, class_name=type(skeleton).__name__)
    for path in transient:
        parent, _, name = path.rpartition(".")
        module.get_submodule(parent)._non_persistent_buffers_set.add(name)
    for path, submodule in module.named_modules():
        if path not in root:
            submodule.training = modes.get(path, False)
    return module
