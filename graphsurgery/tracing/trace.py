"""From an `nn.Module` to a `ModelGraph`: symbolic tracing with values on meta tensors, then the normal form."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphsurgery.errors import SurgeryError, TraceError, one_line
from graphsurgery.graph import InputSpec, ModelGraph, have_batch
from graphsurgery.network.assembly import assembled
from graphsurgery.network.copying import Replicas, Twin, copy_module, meta_copy
from graphsurgery.network.layers import hold
from graphsurgery.network.paths import modules_of
from graphsurgery.progress import phase
from graphsurgery.tracing.calls import call_of, is_plain
from graphsurgery.tracing.following.caches import Place, forget, numbers
from graphsurgery.tracing.following.questions import may_stand_in
from graphsurgery.tracing.following.tracer import UnfollowedError, ValueTracer
from graphsurgery.tracing.leaves import has_given_forward, plain
from graphsurgery.tracing.likeness import Likeness, UnlikeModuleError
from graphsurgery.tracing.modes import ModesDifferError, join, same_graph
from graphsurgery.tracing.normal_form import lower, normalize
from graphsurgery.tracing.plain_weights import with_plain_weights
from graphsurgery.tracing.shuffles.removal import unshuffle
from graphsurgery.tracing.training_only import in_training

DETECTORS = ("GeneralizedRCNN", "RetinaNet", "FCOS", "SSD")
"""Models of torchvision that take lists of images and select boxes by values; `models.detection` takes these apart."""


def is_detector(model: nn.Module) -> bool:
    """Whether a model is one of torchvision's `DETECTORS`."""
    kinds = [(base.__module__, base.__name__) for base in type(model).__mro__]
    return any(home.startswith("torchvision.models.detection.") and name in DETECTORS for home, name in kinds)


@phase("tracing the network")
def trace(
    model: nn.Module,
    example_input: Tensor | Sequence[Any] | Mapping[str, Any] = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    outputs: str | Sequence[str] | None = None,
    copy: bool = True,
    check: bool = True,
) -> ModelGraph:
    """Trace a model into a typed graph; the model is not modified and shares nothing with the result.

    Weights that the model computes from others (parametrizations, weight norm) become parameters with the values that
    they have in evaluation; the lineage names them.

    Args:
        model: any module; its train/eval mode is kept, and both modes stay available. Of a compiled or a data-parallel
            one the module inside is traced.
        example_input: one input `[batch, ...]`, or one for each argument of `forward`. Its shape counts, whether it
            holds numbers or indices, and the range of the indices. Inputs of another first size than the first one (a
            number, a mask `[1, tokens, tokens]`) have no batch. An argument that is None stays None: the graph
            does not take it. Tensors may stand in tuples, lists and dicts; the graph takes them one after the other.
            Numbers and texts among them are constants. A mapping is taken as `kwargs`.
        kwargs: the same for arguments that are given by name.
        outputs: which outputs count, by their place (`logits`, `0`, `1.aux`): the graph gives this one, or a dict of
            these. By default it gives what the model gives.
        copy: whether the graph gets memory of its own. Without, its tensors share that of the model: no time and no
            memory go into copies, but who trains the one trains the other. What passes make of the graph has its own.
        check: whether the graph is compared with the model: on the example inputs, in evaluation and in training with
            gradients, at another batch and at other lengths of each axis that the model takes so. That takes some
            runs of the model. It is left out where a tensor of the model has no values (meta).

    Raises:
        TraceError: the forward cannot be followed, and the message names the source line; or the graph computes
            something else than the model.
    """
    model = unwrapped(model)
    if is_detector(model):
        raise TraceError(
            f"{type(model).__name__}: its anchors and its selection of boxes follow the data; trace core(detector), and"
            " put it back with install(graph, detector); both are in graphsurgery.models.detection"
        )
    record: dict[str, Any] = {"pass": "trace"}
    if isinstance(example_input, Mapping):
        kwargs = {**example_input, **(kwargs or {})}
        example_input = ()
    examples = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    if not is_plain(examples, kwargs, outputs):
        call, examples = call_of(model, examples, kwargs or {}, outputs)
        model, record["call"] = call.adapted(model), call.as_record()
    if not any(isinstance(example, Tensor) for example in examples):
        raise SurgeryError("trace: example inputs are tensors [batch, ...], or None where the model takes that")
    if not any(example is not None and example.dim() for example in examples):
        raise SurgeryError("trace: example inputs are tensors [batch, ...], found none among the numbers")
    _refuse_integers(model)
    model, computed = with_plain_weights(model)
    record["model"] = type(model).__name__
    traces, module = _compared(model, examples, copy=copy, check=check)
    if computed:
        record["weights that were computed"] = computed
    found = {"only as in evaluation": traces.only_evaluating, "weights in another order": traces.reordered}
    record |= {name: value for name, value in found.items() if value}
    return ModelGraph(module, traces.inputs(module), (record,))


def _refuse_integers(model: nn.Module) -> None:
    parts = modules_of(model)
    integers = {kind for kind in set(map(type, parts.values())) if _holds_integers(kind)}
    for path, part in parts.items() if integers else ():
        if type(part) in integers:
            where = path or type(model).__name__
            raise TraceError(f"{where}: its weights are int8; trace the network before it is converted")


def _holds_integers(kind: type) -> bool:
    """Whether this is a layer of a network that torch has converted to 8 bits."""
    home = kind.__module__
    return home.startswith("torch.ao.nn.") and "quantized" in home and kind.__name__ != "FloatFunctional"


@phase("comparing the trace with the network")
def _compared(
    model: nn.Module,
    examples: Sequence[Tensor | None],
    *,
    copy: bool,
    check: bool,
    strict: bool = False,
    kept: Mapping[Place, Any] = MappingProxyType({}),
    reorder: bool = True,
) -> tuple[_Traces, fx.GraphModule]:
    """The traces of a model, and the network that they make, compared with the model where that is asked for.

    Args:
        kept: what the model has kept from former calls, and is to have forgotten.
        reorder: whether channels may be put in another order where they are shuffled.
    """
    traces = _Traces(model, examples, strict=strict, kept=kept)
    module, made = traces.with_real_tensors(traces.both_modes(), copy=copy)
    module.training = model.training
    # Before weights are put in another order, and so become other tensors.
    paths = {id(tensor): name for name, tensor in module.named_parameters()} if check else {}
    traces.reordered = reorder and unshuffle(module, shared=not copy)
    if check and not any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        try:
            names = {real: paths[id(new)] for real, new in made.items() if id(new) in paths}
            likeness = Likeness(model, module, examples, names, spells=bool(traces.spelled_out))
            likeness.check(training=not traces.only_evaluating)
            traces.only_evaluating += [
                f"{path} trains too here, while the model's own train() leaves it in evaluation"
                for path in likeness.stays
                if path in dict(module.named_modules())
            ]
            found = {} if kept else likeness.kept
            if found and any(node.target is hold for node in module.graph.nodes):
                return _without_memory(model, examples, found, copy=copy, strict=strict) or (traces, module)
        except UnlikeModuleError as cause:
            if traces.reordered:
                # Random numbers of training may fall on other channels where these are in another order.
                return _compared(model, examples, copy=copy, check=check, strict=strict, kept=kept, reorder=False)
            if not traces.spelled_out or strict:
                raise TraceError(f"{cause}; {traces.asked()}") from cause
            # Perhaps a size that the model has written into a text is a key, and not only a message.
            return _compared(model, examples, copy=copy, check=check, strict=True, kept=kept)
    return traces, module


def _without_memory(
    model: nn.Module, examples: Sequence[Tensor | None], kept: Mapping[Place, Any], *, copy: bool, strict: bool
) -> tuple[_Traces, fx.GraphModule] | None:
    """The trace of a model that has forgotten its former calls; None where it cannot do without."""
    for left_out in dict.fromkeys((frozenset(), frozenset(numbers(kept)))):
        some = {place: value for place, value in kept.items() if place not in left_out}
        if some:
            with contextlib.suppress(TraceError):
                return _compared(model, examples, copy=copy, check=True, strict=strict, kept=some)
    return None


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that torch.compile or data parallelism has been put around."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            f"{model.original_name}: is scripted, and has no Python forward; trace the module it was made of"
        )
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


class _Traces:
    """Traces of one model: in evaluation, and in training too where the model asks for its mode.

    Tracing has side effects (a proxy may stay in a cache), so every attempt follows a meta copy of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Sequence[Tensor | None],
        *,
        strict: bool = False,
        kept: Mapping[Place, Any] = MappingProxyType({}),
    ) -> None:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        self.model = model
        self.strict = strict
        self.kept = kept
        given = [example for example in examples if example is not None]
        self.ranges = [_range(example) for example in given]
        self.batched = have_batch([example.shape for example in given])
        stand_ins = iter([_stand_in(x, dtype, batched=b) for x, b in zip(given, self.batched, strict=True)])
        self.examples = [None if example is None else next(stand_ins) for example in examples]
        self.twins: dict[int, Twin] = {}
        self.modes: dict[str, bool] = {}
        self.skeletons: list[nn.Module] = []
        self.opaque: dict[str, str] = {}
        self.identities: set[str] = set()
        self.only_evaluating: list[str] = []
        self.reordered = False
        self.spelled_out: list[str] = []
        self.lines: list[str] = []
        self.symbolic: set[tuple[str, str]] = set()
        self.held: set[tuple[str, str]] = set()

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
        """A trace in one mode, and the lines of the model that asked for the mode.

        What the model asked of sizes by `int`, `float` and `len` stays computed in a second trace, if that succeeds.
        """
        tried: set[tuple[str, str]] = set()
        while True:
            skeleton = meta_copy(self.model, self.twins)
            forget(skeleton, self.kept, self.opaque)
            parts = modules_of(skeleton)
            modes = {path: part.training for path, part in parts.items()}
            for part in parts.values():
                part.__dict__["training"] = False  # not by `eval()`, as a model's own may do more: merge weights
            lower(skeleton, modes, self.opaque)
            tracer = ValueTracer(
                self.examples,
                training=training,
                strict=self.strict,
                opaque=self.opaque,
                identities=self.identities,
                symbolic=self.symbolic,
            )
            try:
                graph = tracer.follow(skeleton)
            except UnfollowedError as cause:
                if tried:
                    self.symbolic, self.held, tried = self.symbolic - tried, self.held | tried, set()
                    continue
                if not cause.path or training or has_given_forward(skeleton.get_submodule(cause.path)):
                    raise
                self.opaque[cause.path] = str(cause)
                continue
            tried = {asked for asked in tracer.conversions - self.symbolic - self.held if may_stand_in(*asked)}
            if tried:
                self.symbolic |= tried
                continue
            self.identities = tracer.identities
            self.spelled_out += tracer.spelled_out
            self.lines += [*tracer.branches, *tracer.spelled_out]
            normalize(graph, skeleton, modes)
            self.modes |= modes
            self.skeletons.append(skeleton)
            return graph, tracer.branches

    def asked(self) -> str:
        """What the model asked in order to decide, for the message of a trace that is not its model."""
        lines = list(dict.fromkeys(self.lines))[:3]
        asked = f"it asked at {', '.join(lines)}" if lines else "it does what a graph cannot say"
        return f"{asked}; give that part as a module of its own and trace the rest, or rewrite the line"

    def inputs(self, module: fx.GraphModule) -> tuple[InputSpec, ...]:
        """What the network takes."""
        nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
        values = [node.meta["value"] for node in nodes]
        return tuple(
            InputSpec(str(node.target), tuple(value.shape), value.dtype, *seen, batched=batched)
            for node, value, seen, batched in zip(nodes, values, self.ranges, self.batched, strict=True)
        )

    def with_real_tensors(self, graph: fx.Graph, *, copy: bool) -> tuple[fx.GraphModule, dict[int, Tensor]]:
        """A GraphModule of the graph whose leaves hold the original tensors or clones of them; ties stay ties.

        Returns:
            The network, and its tensor for each of the model's that it has, by the id of that.
        """
        replica = Replicas(copy=copy)

        def real(tensor: Tensor) -> Tensor:
            twin = self.twins.get(id(tensor))
            return replica(tensor if twin is None else twin.real)

        owners = [modules_of(skeleton) for skeleton in self.skeletons]
        parts: dict[str, Any] = {}
        transient: list[tuple[str, str]] = []
        for node in graph.nodes:
            path = str(node.target)
            if node.op not in ("call_module", "get_attr") or path in parts:
                continue
            prefix, _, name = path.rpartition(".")
            # It is in the first trace that has it: a leaf module, a parameter or a constant.
            if node.op == "get_attr":
                owner = next(modules[prefix] for modules in owners if hasattr(modules.get(prefix), name))
                parts[path] = real(getattr(owner, name))
                if name in owner._non_persistent_buffers_set:
                    transient.append((prefix, name))
                continue
            leaf = next(modules[path] for modules in owners if path in modules)
            parts[path] = plain(copy_module(leaf, real), node.meta["value"])
            if path in self.identities:
                parts[path] = in_training(parts[path], node.meta["value"])
            for below, submodule in modules_of(parts[path]).items():
                mode = self.modes.get(f"{path}.{below}" if below else path, self.modes.get("", False))
                submodule.__dict__["training"] = mode
        module = assembled(parts, graph, type(self.model).__name__)
        for prefix, name in transient:
            module.get_submodule(prefix)._non_persistent_buffers_set.add(name)
        for path, submodule in modules_of(module).items():
            if path not in parts and not any(path.startswith(f"{leaf}.") for leaf in self.opaque):
                submodule.__dict__["training"] = self.modes.get(path, False)
        return module, replica.made()


def _range(example: Tensor) -> tuple[int, int]:
    """The smallest and the largest index or flag of an example; zeros where it holds numbers, or no values."""
    counts = not example.is_floating_point() and not example.is_complex() and not example.is_meta and example.numel()
    return (int(example.min()), int(example.max())) if counts else (0, 0)


def _stand_in(example: Tensor, dtype: torch.dtype | None, *, batched: bool) -> Tensor:
    """A meta tensor like the example, in the model's dtype and, where it has a batch, with one of at least two.

    A batch of one could not be told from an axis that broadcasts.
    """
    shape = (max(2, example.shape[0]), *example.shape[1:]) if batched else example.shape
    kept = dtype is None or not example.is_floating_point()
    return torch.empty(shape, dtype=example.dtype if kept else dtype, device="meta")
