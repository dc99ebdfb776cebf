"""Networks whose weights stay in their files: typed without values, cut tensor by tensor, written in shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from graphsurgery.axes import algebra as ax
from graphsurgery.errors import CheckpointError, SurgeryError, UnsupportedError
from graphsurgery.graph import ModelGraph
from graphsurgery.models.libraries.hugging_face import (
    HUGGING_FACE,
    is_folder,
    names_in_class,
    quiet,
    without_weights_of,
)
from graphsurgery.models.libraries.installing import copy_others
from graphsurgery.models.libraries.table import library_of
from graphsurgery.models.libraries.tensor_files import (
    INDEX,
    WEIGHTS,
    StoredTensor,
    stored_tensors,
    tensors_in,
    write_file,
)
from graphsurgery.models.spec_text import parse_spec
from graphsurgery.network.paths import modules_of
from graphsurgery.surgery.installing.configuration import configured
from graphsurgery.surgery.installing.install import as_traced, slots_of
from graphsurgery.surgery.remapping.gathering import gather
from graphsurgery.tracing.trace import trace

SHARD = 10**9
"""Bytes of the tensors in a file that is written; a tensor that is larger has one of its own."""


@dataclass(frozen=True)
class StoredNetwork:
    """A network whose weights stay in their files.

    Attributes:
        folder: where they lie.
        graph: its tensors have no values, but for buffers that its class computes.
        model: the instance of its class, without values too.
        tensors: what the files hold, by the names there.
        own: the name in the class of each of these, which may be another one.
        names: the first name in the graph of each of these; of what the network does not read there is none.
    """

    folder: Path
    graph: ModelGraph
    model: nn.Module
    tensors: dict[str, StoredTensor]
    own: dict[str, str]
    names: dict[str, str]

    @property
    def bytes(self) -> int:
        """Of all that the files hold."""
        return sum(tensor.bytes for tensor in self.tensors.values())

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """The tensors of the graph by their first names; of tied ones that are stored twice, the first."""
        return {name: self.tensors[stored] for stored, name in reversed(self.names.items())}


def folder_of(spec: str) -> Path | None:
    """The folder of `hf:FOLDER`; None for another spec."""
    found = library_of(spec)
    if found is None or found[0] is not HUGGING_FACE or not is_folder(found[1]):
        return None
    return Path(found[1])


def open_stored(spec: str) -> StoredNetwork:
    """The network of `hf:FOLDER`, typed; nothing of its weights is read.

    Raises:
        CheckpointError: the folder is missing or damaged, its weights are not those of its class.
        TraceError: its forward cannot be followed.
        UnsupportedError: a trace of it has other weights than its files.
    """
    folder = folder_of(spec)
    if folder is None:
        raise SurgeryError(
            f"{spec}: is no folder of Hugging Face (hf:FOLDER), so it has no weights to be read one by one"
        )
    model, tensors = without_weights_of(folder, parse_spec(spec).options)
    own = _names_in_class(spec, folder, model, tensors)
    try:
        graph = trace(model, HUGGING_FACE.inputs(model))
    except SurgeryError as cause:
        raise type(cause)(f"{spec}: {cause}") from cause
    for record in graph.lineage:
        if record.get("weights in another order") or record.get("weights that were computed"):
            raise UnsupportedError(f"{spec}: its trace computes weights from those in the files; {_WHOLE.format(spec)}")
    return StoredNetwork(folder, graph, model, tensors, own, _names(graph, model, own))


_WHOLE = "open it whole: compress {0} -o FILE.pt, then install FILE.pt --into {0} -o FOLDER"


def _names_in_class(spec: str, folder: Path, model: nn.Module, tensors: dict[str, StoredTensor]) -> dict[str, str]:
    """The name in the class of each tensor of the files, which have to be those of a model, and no others."""
    try:
        own = names_in_class(model, tensors)
    except UnsupportedError as cause:
        raise UnsupportedError(f"{spec}: {cause}; {_WHOLE.format(spec)}") from cause
    state = model.state_dict(keep_vars=True)
    there = {id(state[name]) for name in own.values() if name in state}
    twice = [name for name, count in Counter(own.values()).items() if count > 1]
    missing = [name for name, tensor in state.items() if id(tensor) not in there]
    wrong = [name for name, mine in own.items() if mine in state and state[mine].shape != tensors[name].shape]
    unexpected = [name for name, mine in own.items() if mine not in state]
    for what, names in {"missing": missing, "mismatched": wrong, "unexpected": unexpected, "doubled": twice}.items():
        if names:
            kind = type(model).__name__
            raise CheckpointError(f"{folder}: {len(names)} weights are {what} for {kind}: {min(names)}")
    return own


def _names(graph: ModelGraph, model: nn.Module, own: dict[str, str]) -> dict[str, str]:
    """The first name in a graph of each tensor of the files."""
    state = model.state_dict(keep_vars=True)
    slots = slots_of(as_traced(graph, model))
    traced = {id(getattr(*place)): name for name in graph.types.canonical for place in slots.get(name, ())}
    known = {name: traced.get(id(state[mine])) for name, mine in own.items()}
    return {name: graph.types.canonical[found] for name, found in known.items() if found is not None}


# What an edit makes of it ---------------------------------------------------------------------------------------------


def edited(network: StoredNetwork, small: ModelGraph, name: str) -> Tensor:
    """A tensor of the files as an edit of the network has it, in the precision in which it is stored.

    Args:
        network: before the edit.
        small: what the edit has made of its graph.
        name: of the tensor in the files.
    """
    stored, origin = network.tensors[name], small.origin
    assert origin is not None
    first = network.names.get(name)
    if first is None or first not in origin.parameters:
        return stored.read()
    return gather(origin.edit, origin.parameters[first], stored, origin.folded.get(first, {}))


def edited_shape(network: StoredNetwork, small: ModelGraph, name: str) -> tuple[int, ...]:
    """Its shape, before it is read."""
    first, origin = network.names.get(name), small.origin
    assert origin is not None
    if first is None or first not in origin.parameters:
        return network.tensors[name].shape
    return tuple(origin.edit.size(ax.resolve(axis)) for axis in origin.parameters[first].axes)


def filled(network: StoredNetwork, small: ModelGraph) -> ModelGraph:
    """An edit of a network with its values, all of them in memory; `small` gets them."""
    made: dict[int, Tensor] = {}
    named = {first: stored for stored, first in reversed(network.names.items())}
    for name, tensor in small.tensors().items():
        if id(tensor) in made or network.graph.types.canonical.get(name) not in named:
            continue
        new = edited(network, small, named[network.graph.types.canonical[name]])
        made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    for part in modules_of(small.module).values():
        every: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for slots in every:
            slots.update({key: made[id(old)] for key, old in slots.items() if id(old) in made})
    return small


# Shards ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """A file that is written.

    Attributes:
        file: its name.
        shapes: of the tensors in it, by name.
        bytes: of these.
    """

    file: str
    shapes: dict[str, tuple[int, ...]]
    bytes: int

    def lies_in(self, folder: Path) -> bool:
        """Whether it has been written."""
        try:
            found = tensors_in(folder / self.file)
        except CheckpointError:
            return False
        return {name: tensor.shape for name, tensor in found.items()} == self.shapes


def in_batches(names: Sequence[str], sizes: Sequence[int], most: int = SHARD) -> list[list[str]]:
    """Names one after the other, in lists whose sizes sum up to `most` at most, or hold one."""
    found: list[list[str]] = []
    total = 0
    for name, size in zip(names, sizes, strict=True):
        if not found or total + size > most:
            found.append([])
            total = 0
        found[-1].append(name)
        total += size
    return found


def shards_of(network: StoredNetwork, small: ModelGraph, most: int = SHARD) -> list[Shard]:
    """The files of an edit of a network."""
    shapes = {name: edited_shape(network, small, name) for name in network.tensors}
    sizes = {name: _product(shape) * network.tensors[name].dtype.itemsize for name, shape in shapes.items()}
    batches = in_batches(list(sizes), list(sizes.values()), most)
    return [
        Shard(
            WEIGHTS if len(batches) == 1 else f"model-{number:05d}-of-{len(batches):05d}.safetensors",
            {name: shapes[name] for name in batch},
            sum(sizes[name] for name in batch),
        )
        for number, batch in enumerate(batches, 1)
    ]


def _product(shape: tuple[int, ...]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found


def write_shards(network: StoredNetwork, small: ModelGraph, shards: Sequence[Shard], folder: Path) -> Iterator[Shard]:
    """Write the files that are not there yet, one after the other; each is told of when it lies there.

    Raises:
        SurgeryError: a file cannot be read or written; those before it stay.
    """
    for shard in shards:
        if not shard.lies_in(folder):
            write_file({name: edited(network, small, name) for name in shard.shapes}, folder / shard.file)
        yield shard


def write_around(network: StoredNetwork, built: Any, shards: Sequence[Shard], folder: Path) -> None:
    """What belongs to the weights in a folder for `from_pretrained`: configuration, index, tokenizer."""
    if len(shards) > 1:
        places = {name: shard.file for shard in shards for name in shard.shapes}
        index = {"metadata": {"total_size": sum(shard.bytes for shard in shards)}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    if hasattr(built.config, "use_cache"):  # a trace goes without; what is written serves others
        built.config.use_cache = type(built.config)().use_cache
    with quiet():
        built.config.save_pretrained(folder)
    copy_others(network.folder, folder)
    stored_tensors(folder)  # they are looked at


def configuration_of(network: StoredNetwork, small: ModelGraph) -> tuple[nn.Module, dict[str, Any]]:
    """The class with the configuration of an edit, without values, and the fields that have changed.

    The graph that the class has then is compared with that of the edit, operator by operator.

    Raises:
        SurgeryError: the class cannot hold the edit, or not by its configuration.
    """
    built, fields = configured(small, network.model)
    state = built.state_dict()
    for name, mine in network.own.items():
        if tuple(state[mine].shape) != (found := edited_shape(network, small, name)):
            raise SurgeryError(
                f"{network.folder}: the configuration gives {mine} the shape {list(state[mine].shape)}, and the edit"
                f" {list(found)}; cut less, or open it whole: -o FILE.pt"
            )
    return built, fields
