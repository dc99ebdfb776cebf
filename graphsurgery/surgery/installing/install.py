"""The edited weights of a network in an instance of the class that it came from."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphsurgery import errors
from graphsurgery.errors import SurgeryError, TraceError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.network.copying import Replicas, Twin, alias_copy, meta_copy
from graphsurgery.network.paths import OF_EVERY_MODULE, modules_of, named_tensors
from graphsurgery.surgery.installing.attributes import follow_attributes, put_numbers
from graphsurgery.surgery.installing.followed import IntegerPlace, solved
from graphsurgery.surgery.installing.relations import relations
from graphsurgery.surgery.installing.without_values import check_same_graph, has_values
from graphsurgery.tracing.calls import Call, restored
from graphsurgery.tracing.leaves import is_leaf
from graphsurgery.tracing.likeness import Likeness, UnlikeModuleError
from graphsurgery.tracing.normal_form import lower
from graphsurgery.tracing.plain_weights import with_plain_weights
from graphsurgery.tracing.trace import trace, unwrapped


def install(graph: ModelGraph, model: nn.Module) -> nn.Module:
    """A copy of a model, of its own class, that computes what an edited network computes.

    The tensors of the network go to the places that they have in the model, layers get their sizes, and integers in
    attributes (`self.heads`, `self.config.width`) get the values that the network has in the arguments which they end
    up in. Then both run on random inputs, in evaluation, at other sizes and in training with gradients; a copy that
    differs is refused. Weights that the model computes from others (weight norm) are plain in the copy.

    Args:
        graph: a network that was traced from this class and edited: cut, widened in whole copies, reordered. It is not
            modified.
        model: an instance of the class with the sizes from before. It is not modified either, and shares no memory with
            the copy.

    Returns:
        The copy, in the modes of `model`. What the network does not read has the values of `model`.

    Raises:
        SurgeryError: the class cannot hold the edit: the network has tensors or layers that it lacks, an attribute
            would need two values at once, its code computes with other numbers; the message says which.
    """
    return installed_with_numbers(graph, model)[0]


def installed_with_numbers(graph: ModelGraph, model: nn.Module) -> tuple[nn.Module, dict[IntegerPlace, int]]:
    """The same, and what every integer has to be that ends up in an argument of the network."""
    model = unwrapped(model)
    called = type(model).__name__
    model = as_traced(graph, model)
    plain, _ = with_plain_weights(model)
    installed, _ = alias_copy(plain)
    reference = _followed_trace(graph, installed, called)
    runs = has_values(graph.module) and has_values(installed)
    shuffled = runs and _are_shuffled(reference[0], installed)
    _put_tensors(graph, reference[0], installed, called)
    _put_sizes(graph, installed)
    _check_attention(installed, called)
    numbers = solved(relations(reference[0].module.graph, _valued(graph)), reference[1], f"install: {called}")
    put_numbers(installed, numbers)
    _settle_attention(installed)
    if not runs:
        if any(record.get("weights in another order") for record in reference[0].lineage):
            raise SurgeryError(
                f"install: {called} shuffles channels, and without values its weights cannot be put back"
            )
        check_same_graph(graph, traced_again(graph, installed, called), f"install: {called} with the edited sizes")
        return restored(installed), numbers
    _check_runs(graph, installed, called)
    if shuffled:
        _move_back(graph, installed, called)
    _compare(graph, installed, called)
    return restored(installed), numbers


def as_traced(graph: ModelGraph, model: nn.Module) -> nn.Module:
    """A model as one that takes the inputs of a network that was traced from its class, one after the other."""
    recorded = next((record["call"] for record in graph.lineage if "call" in record), None)
    return model if recorded is None else Call.from_record(recorded).adapted(model)


def _valued(graph: ModelGraph) -> Any:
    """The graph of a network whose nodes have their values."""
    graph.types  # noqa: B018  (nodes have their values then)
    return graph.module.graph


def placed_inputs(graph: ModelGraph, model: nn.Module, tensors: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Inputs as the forward of a model takes them: one for each argument, None where the network takes none."""
    given = dict(zip((spec.name for spec in graph.inputs), tensors, strict=True))
    names = list(inspect.signature(model.forward).parameters)
    if not all(name in names for name in given):
        return tuple(tensors)  # `*args`
    last = max((names.index(name) for name in given), default=-1)
    return tuple(given.get(name) for name in names[: last + 1])


def _followed_trace(graph: ModelGraph, model: nn.Module, called: str) -> tuple[ModelGraph, dict[Any, int]]:
    """The trace of a model whose numbers know their attributes, and these numbers."""
    followed, _ = alias_copy(model)
    old = follow_attributes(followed)
    return traced_again(graph, followed, called), old


def traced_again(graph: ModelGraph, model: nn.Module, called: str) -> ModelGraph:
    """The trace of a model on inputs of a network, with the model's memory."""
    blanks = [torch.empty(spec.shape, dtype=spec.dtype, device="meta") for spec in graph.inputs]
    try:
        return trace(model, placed_inputs(graph, model, blanks), copy=False, check=False)
    except TraceError as cause:
        raise SurgeryError(f"install: {called} does not take the inputs of the network: {cause}") from cause


# Tensors --------------------------------------------------------------------------------------------------------------


def slots_of(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Where in a model each tensor stands, by the name that a trace has for it; a tied one stands in several places."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                places.setdefault(id(tensor), []).append((module, name))
    twins: dict[int, Twin] = {}
    skeleton = meta_copy(model, twins)
    lower(skeleton, dict.fromkeys(modules_of(skeleton), False))
    lowered = {name: twins[id(tensor)].real for name, tensor in named_tensors(skeleton).items() if id(tensor) in twins}
    return {name: places[id(tensor)] for name, tensor in {**lowered, **named_tensors(model)}.items()}


def _put_tensors(graph: ModelGraph, reference: ModelGraph, installed: nn.Module, called: str) -> None:
    """Give a model the tensors of a network at their places, and memory of its own to the others."""
    slots, known = slots_of(installed), reference.tensors()
    owners = modules_of(installed)
    cloned = Replicas()
    put: set[tuple[int, str]] = set()
    for name, tensor in graph.tensors().items():
        path, _, leaf = name.rpartition(".")
        places = slots.get(name)
        if places is None and path in owners and owners[path]._parameters.get(leaf, tensor) is None:
            places = [(owners[path], leaf)]  # a bias that the layer had not
        if places is None:
            if name in known and not isinstance(tensor, nn.Parameter):
                continue  # a constant that the forward makes
            raise SurgeryError(
                f"install: {name} stands in the network and has no place in {called}; the edit has put it there, and"
                " only edits that keep the layers can go back"
            )
        for module, slot in places:
            setattr(module, slot, cloned(tensor))
            put.add((id(module), slot))
    for module in installed.modules():
        for slot, old in (*module._parameters.items(), *module._buffers.items()):
            if old is not None and (id(module), slot) not in put:
                setattr(module, slot, cloned(old))


def _put_sizes(graph: ModelGraph, installed: nn.Module) -> None:
    """Give the layers of a model the sizes that those of the network have, in place."""
    layers = modules_of(graph.module)
    leaves = {path: module for path, module in modules_of(installed).items() if is_leaf(module)}
    # A layer that nobody calls may have its weight in common with one that is called.
    tied = {(type(leaves[path]), id(t)): path for path in layers if path in leaves for t in leaves[path].parameters()}
    for path, module in leaves.items():
        same = next((tied[key] for t in module.parameters() if (key := (type(module), id(t))) in tied), None)
        called = path if path in layers else same
        for name, value in vars(layers[called]).items() if called is not None else ():
            old = vars(module).get(name)
            if name not in OF_EVERY_MODULE and _is_sizes(old) and _is_sizes(value) and value != old:
                vars(module)[name] = value


def _is_sizes(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(type(part) is int for part in value)
    return type(value) is int


def _attentions(installed: nn.Module) -> list[tuple[str, nn.MultiheadAttention]]:
    return [(path, part) for path, part in modules_of(installed).items() if isinstance(part, nn.MultiheadAttention)]


def _check_attention(installed: nn.Module, called: str) -> None:
    """Refuse heads of torch's attention that are not as wide together as what it reads, which it takes for granted."""
    for path, module in _attentions(installed):
        width, heads = module.out_proj.weight.shape
        if heads != width:
            raise SurgeryError(
                f"install: {path} in {called} is nn.MultiheadAttention, whose heads are as wide together as its inputs;"
                f" the network has inputs of {width} and heads of {heads}: cut both, or neither"
            )


def _settle_attention(installed: nn.Module) -> None:
    """What torch's attention derives from its numbers."""
    for _, module in _attentions(installed):
        module.head_dim = module.embed_dim // module.num_heads
        keys, values = module.k_proj_weight, module.v_proj_weight
        module.kdim = module.embed_dim if keys is None else keys.shape[1]
        module.vdim = module.embed_dim if values is None else values.shape[1]


# Channel shuffles -----------------------------------------------------------------------------------------------------


def _are_shuffled(reference: ModelGraph, model: nn.Module) -> bool:
    """Whether a trace has put weights of a model in another order, so that shuffles of channels could go."""
    slots = slots_of(model)
    return any(
        not torch.equal(tensor, getattr(*slots[name][0]))
        for name, tensor in reference.tensors().items()
        if name in slots
    )


def _move_back(graph: ModelGraph, installed: nn.Module, called: str) -> None:
    """Put weights in the order in which the class, with its shuffles, reads them, in place.

    A trace of the class with other weights, each number its own index, shows which goes where.
    """
    numbered, _ = alias_copy(installed)
    for module in numbered.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.data = torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = torch.arange(buffer.numel(), dtype=torch.float64).view(buffer.shape)
    slots = slots_of(installed)
    with torch.no_grad():
        for name, order in traced_again(graph, numbered, called).tensors().items():
            if name in slots and order.dtype == torch.float64 and order.numel():
                tensor = getattr(*slots[name][0])
                moved = tensor.flatten().clone()
                moved[order.flatten().long().to(tensor.device)] = tensor.flatten()
                tensor.copy_(moved.view(tensor.shape))


# Comparison -----------------------------------------------------------------------------------------------------------


def _likeness(graph: ModelGraph, installed: nn.Module) -> Likeness:
    """The copy and the network, to be compared on inputs."""
    slots = slots_of(installed)
    names = {id(getattr(*place)): name for name in graph.tensors() for place in slots.get(name, ())}
    examples = placed_inputs(graph, installed, graph.example_inputs(max(3, graph.batch)))
    return Likeness(installed, graph.module, examples, names, batched=[spec.batched for spec in graph.inputs])


def _check_runs(graph: ModelGraph, installed: nn.Module, called: str) -> None:
    """Refuse a copy whose code fails with the edited sizes."""
    try:
        _likeness(graph, installed).run_model()
    except Exception as cause:  # whatever the model's own code raises
        raise SurgeryError(
            f"install: {called} does not run with the edited sizes: {_where(cause)}: {one_line(cause)}; its code has a"
            " number of its own there, or needs sizes that go together"
        ) from cause


def _compare(graph: ModelGraph, installed: nn.Module, called: str) -> None:
    """Refuse a copy that computes something else than the network."""
    try:
        trains = not any("only as in evaluation" in record for record in graph.lineage)
        _likeness(graph, installed).check(training=trains)
    except UnlikeModuleError as cause:
        raise SurgeryError(
            f"install: {called} with the edited weights does not compute what the network does: {cause}; the class "
            "computes with a number that the edit keeps, or in another order"
        ) from cause


def _where(cause: BaseException) -> str:
    """The line of the model's own code that failed."""
    package = Path(errors.__file__).parent
    own = tuple(map(str, (Path(torch.__file__).parent, package / "network", package / "surgery")))
    frames = [f for f in traceback.extract_tb(cause.__traceback__) if not f.filename.startswith(own)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: `{frames[-1].line}`" if frames else "in torch"
