"""From an `nn.Module` to a `ModelGraph`: symbolic tracing with values on meta tensors, then the normal form."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.models import detection

from graphsurgery.errors import SurgeryError, TraceError, one_line
from graphsurgery.graph import InputSpec, ModelGraph
from graphsurgery.leaves import plain
from graphsurgery.lowering import lower, normalize
from graphsurgery.modes import ModesDifferError, join, same_graph
from graphsurgery.unshuffle import unshuffle
from graphsurgery.value_tracer import UnfollowedError, ValueTracer
from graphsurgery.values import copy_module, meta_of

DETECTORS = (detection.generalized_rcnn.GeneralizedRCNN, detection.RetinaNet, detection.FCOS, detection.ssd.SSD)
"""Models that take lists of images and select boxes by their values; `models.detection` takes these apart."""


def trace(model: nn.Module, example_input: Tensor | Sequence[Tensor]) -> ModelGraph:
    """Trace a model into a typed graph; the model is not modified and shares nothing with the result.

    Args:
        model: any module; its train/eval mode is kept, and both modes stay available.
        example_input: one input `[batch, ...]`, or one for each argument of `forward`; only shapes count, and whether
            it holds numbers or indices.

    Raises:
        TraceError: the forward cannot be followed; the message names the source line.
    """
    if isinstance(model, DETECTORS):
        raise TraceError(
            f"{type(model).__name__}: its anchors and its selection of boxes follow the data; trace core(detector), and"
            " put it back with install(graph, detector); both are in graphsurgery.models.detection"
        )
    examples = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    for example in examples:
        if not isinstance(example, Tensor) or example.dim() == 0:
            raise SurgeryError("trace: example inputs are tensors [batch, ...]")
    for path, part in model.named_modules():
        kind, home = type(part).__name__, type(part).__module__
        if home.startswith("torch.ao.nn.") and "quantized" in home and kind != "FloatFunctional":
            where = path or type(model).__name__
            raise TraceError(f"{where}: its weights are int8; trace the network before it is converted")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    traces = _Traces(model, [_stand_in(example, dtype) for example in examples])
    graph = traces.both_modes()
    module = traces.with_real_tensors(graph)
    module.training = model.training
    unshuffle(module)
    inputs = tuple(
        InputSpec(str(node.target), tuple(node.meta["value"].shape), node.meta["value"].dtype)
        for node in graph.nodes
        if node.op == "placeholder"
    )
    record: dict[str, Any] = {"pass": "trace", "model": type(model).__name__}
    if traces.only_evaluating:
        record["only as in evaluation"] = traces.only_evaluating
    return ModelGraph(module, inputs, (record,))


class _Traces:
    """Traces of one model: in evaluation, and in training too where the model asks for its mode.

    Tracing has side effects (a proxy may stay in a cache), so every attempt follows a meta copy of its own.
    """

    def __init__(self, model: nn.Module, examples: Sequence[Tensor]) -> None:
        self.model = model
        self.examples = examples
        self.real: dict[int, Tensor] = {}
        self.modes: dict[str, bool] = {}
        self.skeletons: list[nn.Module] = []
        self.opaque: dict[str, str] = {}
        self.identities: set[str] = set()
        self.only_evaluating: list[str] = []

    def both_modes(self) -> fx.Graph:
        """One graph that follows `train()` and `eval()`."""
        graph, branches = self._follow(training=False)
        if not branches:
            return graph
        try:
            other, _ = self._follow(training=True)
            return graph if same_graph(graph, other) else join(graph, other, self.skeletons)
        except (TraceError, ModesDifferError) as cause:
            self.only_evaluating = [*dict.fromkeys(branches), one_line(cause)]
            return graph

    def _follow(self, *, training: bool) -> tuple[fx.Graph, list[str]]:
        """A trace in one mode, and the lines of the model that asked for the mode."""
        while True:
            skeleton = _meta_copy(self.model, self.real)
            modes = {path: module.training for path, module in skeleton.named_modules()}
            skeleton.eval()
            lower(skeleton, modes, self.opaque)
            tracer = ValueTracer(
                self.examples,
                training=training,
                opaque=self.opaque,
                identities=self.identities,
            )
            try:
                graph = tracer.follow(skeleton)
            except UnfollowedError as cause:
                if not cause.path or training:
                    raise
                self.opaque[cause.path] = str(cause)
                continue
            self.identities = tracer.identities
            normalize(graph, skeleton, modes)
            self.modes |= modes
            self.skeletons.append(skeleton)
            return graph, tracer.branches

    def _owner(self, path: str) -> tuple[nn.Module, str]:
        """The module that has an attribute (a leaf module, a parameter, a constant), in the first trace that has it."""
        parent, _, name = path.rpartition(".")
        for skeleton in self.skeletons:
            owner: Any = skeleton
            for part in filter(None, parent.split(".")):
                owner = getattr(owner, part, None)
            if hasattr(owner, name):
                return owner, name
        raise AssertionError(f"{path} is in no trace")

    def with_real_tensors(self, graph: fx.Graph) -> fx.GraphModule:
        """A GraphModule of the graph whose leaves hold clones of the original tensors; ties stay ties."""
        clones: dict[int, Tensor] = {}

        def clone(tensor: Tensor) -> Tensor:
            source = self.real.get(id(tensor), tensor)
            if id(source) not in clones:
                new = source.detach().clone()
                if isinstance(tensor, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                clones[id(source)] = new
            return clones[id(source)]

        root: dict[str, Any] = {}
        transient: list[str] = []
        for node in graph.nodes:
            path = str(node.target)
            if node.op == "call_module" and path not in root:
                owner, name = self._owner(path)
                root[path] = plain(copy_module(getattr(owner, name), clone))
                for below, submodule in root[path].named_modules():
                    submodule.training = self.modes.get(f"{path}.{below}" if below else path, self.modes.get("", False))
            elif node.op == "get_attr" and path not in root:
                owner, name = self._owner(path)
                root[path] = clone(getattr(owner, name))
                if name in owner._non_persistent_buffers_set:
                    transient.append(path)
        module = fx.GraphModule(root, graph, class_name=type(self.model).__name__)
        for path in transient:
            parent, _, name = path.rpartition(".")
            module.get_submodule(parent)._non_persistent_buffers_set.add(name)
        for path, submodule in module.named_modules():
            if path not in root and not any(path.startswith(f"{leaf}.") for leaf in self.opaque):
                submodule.training = self.modes.get(path, False)
        return module


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
