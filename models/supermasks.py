"""Supermasks: a network as its architecture, the seed of its weights, and one bit for each of them.

The file is a plain dictionary, written by `torch.save`:

    format       "graphsurgery supermask"
    version      1
    spec         the model spec
    seed         what draws its weights
    input_shape  of one example
    constant     whether a weight stands for its sign times the standard deviation of its tensor
    shapes       the shapes of the masked weights, by name
    bits         the masks one after another, a bit for each weight, compressed, as bytes
    factors      by name, what the living weights are multiplied by
    buffers      running statistics and the like, which no seed draws
    digest       sha256 of the drawn weights
    masks        sha256 of the masks; files of older versions have none
    metadata     whatever the caller stored with it

Random masks of LeNet-300-100 (266,200 weights) make files of 35.2 kB where half of the weights live, 20.7 kB where a
tenth do and 17.2 kB where 7 % do; the weights themselves take 1,065 kB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphsurgery.checkpoint.atomic import write_tensors
from graphsurgery.checkpoint.files import unpickled
from graphsurgery.errors import CheckpointError, SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.models.spec_text import is_function_spec, parse_spec
from graphsurgery.models.specs import build
from graphsurgery.network.outputs.randomness import seeded
from graphsurgery.passes.mask import mask
from graphsurgery.surgery.growth.fresh_weights import signed_constant
from graphsurgery.surgery.masks import bits as mask_bits
from graphsurgery.surgery.masks.mask_set import MaskSet, maskable
from graphsurgery.tracing.trace import trace

FORMAT = "graphsurgery supermask"
VERSION = 1
_FIELDS: Mapping[str, type] = {
    "spec": str,
    "seed": int,
    "input_shape": list,
    "constant": bool,
    "shapes": dict,
    "bits": Tensor,
    "factors": dict,
    "buffers": dict,
    "digest": str,
    "metadata": dict,
}


@dataclass(frozen=True)
class Supermask:
    """A network that was never trained: what draws its weights, and which of them live.

    Attributes:
        spec: the model spec.
        seed: of its weights, as `drawn` takes it.
        input_shape: of one example.
        masks: which weights live.
        constant: whether each weight stands for its sign times the standard deviation of its tensor.
        factors: by the name of a weight, what it is multiplied by.
        buffers: values that the seed does not draw, by name.
        metadata: JSON-like.
    """

    spec: str
    seed: int
    input_shape: tuple[int, ...]
    masks: MaskSet
    constant: bool = False
    factors: Mapping[str, float] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def network(self) -> ModelGraph:
        """The network, whose dead weights are 0 and whose living ones have their factor.

        Raises:
            SurgeryError: the masks belong to another architecture than the spec.
            SpecError: the spec names nothing that exists.
        """
        graph = drawn(self.spec, self.seed, self.input_shape)
        self.masks.check_fits(graph)
        prepare(graph, self.masks, constant=self.constant, factors=self.factors)
        _check_buffers(self, graph)
        tensors = graph.tensors()
        with torch.no_grad():
            for name, buffer in self.buffers.items():
                tensors[name].copy_(buffer)
        return mask(graph, self.masks)


_COMPARED: set[tuple[str, tuple[int, ...]]] = set()
"""The specs and shapes whose trace was compared with the network: it is the same whatever draws the weights."""


def drawn(spec: str, seed: int, shape: tuple[int, ...]) -> ModelGraph:
    """The network of a spec with weights drawn by a seed, traced at an input shape."""
    with seeded(seed):
        module = build(spec)
    graph = trace(module, torch.empty(2, *shape, device="meta"), check=(spec, shape) not in _COMPARED)
    _COMPARED.add((spec, shape))
    return graph


def prepare(
    graph: ModelGraph, names: Mapping[str, Any], *, constant: bool = False, factors: Mapping[str, float] | None = None
) -> None:
    """Make the named weights signed constants if asked for, and multiply them by their factors; in place."""
    tensors = graph.tensors()
    with torch.no_grad():
        for name in names:
            value = signed_constant(tensors[name]) if constant else tensors[name]
            tensors[name].copy_(value * (factors or {}).get(name, 1.0))


def save_supermask(supermask: Supermask, path: Path | str) -> int:
    """Write a supermask; the size of the file in bytes.

    Raises:
        SurgeryError: the masks do not fit the spec, or the file cannot be written.
    """
    graph = drawn(supermask.spec, supermask.seed, supermask.input_shape)
    supermask.masks.check_fits(graph)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "spec": supermask.spec,
        "seed": supermask.seed,
        "input_shape": list(supermask.input_shape),
        "constant": supermask.constant,
        "shapes": {name: list(living.shape) for name, living in supermask.masks.items()},
        "bits": torch.frombuffer(bytearray(mask_bits.packed(supermask.masks)), dtype=torch.uint8),
        "factors": {name: float(factor) for name, factor in supermask.factors.items()},
        "buffers": {name: buffer.detach().cpu().clone() for name, buffer in supermask.buffers.items()},
        "digest": _digest(graph),
        "masks": supermask.masks.digest(),
        "metadata": dict(supermask.metadata),
    }
    write_tensors(path, content)
    return Path(path).stat().st_size


def is_supermask(path: Path | str) -> bool:
    """Whether `save_supermask` wrote this file; False for any other, missing or damaged file."""
    try:
        content = unpickled(Path(path))
    except CheckpointError:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def load_supermask(path: Path | str, *, trust_files: bool = False) -> Supermask:
    """Read a supermask; nothing in the file is executed, and its weights are checked to be those it was made for.

    Args:
        path: the file.
        trust_files: take a spec that names a function of a Python file, which executes that file.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind or a newer version, its masks belong to another
            architecture, or the seed draws other weights here.
    """
    content = unpickled(Path(path))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is no supermask; expected what `graphsurgery supermask` wrote")
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path}: is of version {content.get('version')!r}, this graphsurgery reads {VERSION}")
    for name, kind in _FIELDS.items():
        if not isinstance(content.get(name), kind):
            raise CheckpointError(f"{path}: has no {name} of type {kind.__name__}; the file is damaged")
    try:
        supermask = _checked(content, trust_files)
        graph = drawn(supermask.spec, supermask.seed, supermask.input_shape)
        supermask.masks.check_fits(graph)
        _check_buffers(supermask, graph)
    except SurgeryError as cause:
        raise CheckpointError(f"{path}: {cause}") from cause
    except Exception as cause:  # the file may be anything, so anything may be wrong with it
        raise CheckpointError(
            f"{path}: is damaged ({type(cause).__name__}: {one_line(cause)}); take another copy of it"
        ) from cause
    if _digest(graph) != content["digest"]:
        raise CheckpointError(
            f"{path}: seed {supermask.seed} draws other weights for {supermask.spec} here than where the mask was "
            "made; use the same version of torch, or save the network as a checkpoint there"
        )
    return supermask


def _checked(content: Mapping[str, Any], trust_files: bool) -> Supermask:
    """The fields of a file, of the types that they should have."""
    spec, bits = content["spec"], content["bits"]
    if is_function_spec(parse_spec(spec).name) and not trust_files:
        raise SurgeryError(f"its spec {spec} executes a Python file; open it with --trust-pickle if you trust that")
    if {"weights", "pretrained", "checkpoint_path"} & set(parse_spec(spec).options):
        raise SurgeryError(f"its spec {spec} asks for trained weights, which no seed draws; the file was altered")
    if bits.dtype is not torch.uint8 or bits.dim() != 1:
        raise SurgeryError("its bits are no bytes; the file is damaged")
    try:
        shapes = {str(name): tuple(int(size) for size in shape) for name, shape in content["shapes"].items()}
        shape = tuple(int(size) for size in content["input_shape"])
        factors = {str(name): float(factor) for name, factor in content["factors"].items()}
    except (TypeError, ValueError, OverflowError) as cause:
        raise SurgeryError("its shapes or factors are no numbers; the file is damaged") from cause
    if not all(isinstance(buffer, Tensor) for buffer in content["buffers"].values()):
        raise SurgeryError("its buffers are no tensors; the file is damaged")
    masks = MaskSet(mask_bits.unpacked(bits.numpy().tobytes(), shapes))
    masks.unverified = "masks" not in content
    if not masks.unverified and content["masks"] != masks.digest():
        raise SurgeryError("its bits do not have the digest they were saved with; the file was altered")
    return Supermask(
        spec, content["seed"], shape, masks, content["constant"], factors, content["buffers"], content["metadata"]
    )


def _check_buffers(supermask: Supermask, graph: ModelGraph) -> None:
    """Refuse buffers that the network does not have like that."""
    tensors = graph.tensors()
    for name, buffer in supermask.buffers.items():
        own = tensors.get(name)
        if own is None or own.shape != buffer.shape or own.dtype != buffer.dtype or buffer.layout != own.layout:
            raise SurgeryError(
                f"supermask: the network has no buffer {name} of shape {list(buffer.shape)} and {buffer.dtype}"
            )


def _digest(graph: ModelGraph) -> str:
    """Of the values of all weights that can be masked."""
    found = hashlib.sha256()
    for name, weight in sorted(maskable(graph).items()):
        found.update(name.encode())
        found.update(weight.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()
