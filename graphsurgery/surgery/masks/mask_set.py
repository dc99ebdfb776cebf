"""Masks: which weights of a network live, as objects that can be compared, combined, stored and trained under.

A `MaskSet` has one boolean tensor for each masked weight, True where it lives; tied weights share one. It is stored as
bits, beside a checkpoint, inside its metadata, or as a supermask (see `models/supermasks`). `training` trains a network
under it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graphsurgery.errors import CheckpointError, SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.surgery.masks import bits


class Overlap(NamedTuple):
    """How far two masks agree.

    Attributes:
        hamming: the share of the weights on which they do not agree.
        iou: how many weights live in both, of those that live in either.
        chance: what `iou` would be by chance.
    """

    hamming: float
    iou: float
    chance: float


def maskable(graph: ModelGraph) -> dict[str, Tensor]:
    """The parameters of two axes or more that something is multiplied with, by their first names.

    Biases, norms, embeddings and tables of positions are not among them, nor are recurrent layers: they keep a list of
    their weights, which no parametrization reaches.
    """
    tensors, types = graph.tensors(), graph.types.parameters
    return {
        name: tensors[name]
        for name, typed in types.items()
        if typed.reads
        and len(typed.axes) >= 2
        and isinstance(tensors[name], nn.Parameter)
        and not isinstance(graph.module.get_submodule(name.rpartition(".")[0]), nn.RNNBase)
    }


class MaskSet(Mapping[str, Tensor]):
    """Which weights live: by the name of each masked weight a boolean tensor of its shape, on the CPU.

    Args:
        masks: boolean tensors by the first names of the weights; they are not copied.

    Raises:
        SurgeryError: a mask is not boolean.

    Attributes:
        unverified: whether they come from a file of an older version, which has no digest of its bits.
    """

    unverified = False

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if mask.dtype is not torch.bool:
                raise SurgeryError(f"mask of {name}: is of type {mask.dtype}, expected torch.bool")
        self._masks = {name: mask.cpu() for name, mask in masks.items()}

    @classmethod
    def ones(cls, graph: ModelGraph) -> MaskSet:
        """The mask under which all weights live."""
        return cls({name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in maskable(graph).items()})

    @classmethod
    def nonzero(cls, graph: ModelGraph) -> MaskSet:
        """The mask of the weights that are not 0, as a ticket's are."""
        return cls({name: weight.detach() != 0 for name, weight in maskable(graph).items()})

    @classmethod
    def pruned(cls, graph: ModelGraph, model: nn.Module) -> MaskSet:
        """The masks that `torch.nn.utils.prune` has put into a model and not removed.

        Args:
            graph: the trace of the model, which has the same names.
            model: as it was traced; of weights that it does not mask those live that are not 0.
        """
        masks = {
            f"{path}.{name.removesuffix('_mask')}".lstrip("."): mask != 0
            for path, part in model.named_modules()
            for name, mask in part._buffers.items()
            if name.endswith("_mask") and mask is not None and f"{name.removesuffix('_mask')}_orig" in part._parameters
        }
        return cls({name: masks.get(name, mask) for name, mask in cls.nonzero(graph).items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MaskSet):
            return NotImplemented
        return list(self) == list(other) and all(torch.equal(mask, other[name]) for name, mask in self.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"MaskSet({self.kept:,} of {self.total:,} weights in {len(self)} tensors)"

    @property
    def total(self) -> int:
        """How many weights are masked or not."""
        return sum(mask.numel() for mask in self.values())

    @property
    def kept(self) -> int:
        """How many weights live."""
        return sum(int(mask.sum()) for mask in self.values())

    @property
    def density(self) -> float:
        """The share of the weights that live."""
        return self.kept / max(1, self.total)

    @property
    def densities(self) -> dict[str, float]:
        """The share of each weight tensor that lives."""
        return {name: float(mask.double().mean()) for name, mask in self.items()}

    def __and__(self, other: MaskSet) -> MaskSet:
        """What lives in both."""
        return self._joined(other, torch.logical_and)

    def __or__(self, other: MaskSet) -> MaskSet:
        """What lives in either."""
        return self._joined(other, torch.logical_or)

    def __invert__(self) -> MaskSet:
        """What is dead."""
        return MaskSet({name: ~mask for name, mask in self.items()})

    def _joined(self, other: MaskSet, join: Callable[[Tensor, Tensor], Tensor]) -> MaskSet:
        self.check_like(other)
        return MaskSet({name: join(mask, other[name]) for name, mask in self.items()})

    def hamming(self, other: MaskSet) -> float:
        """The share of the weights of which one set says that they live and the other that they do not."""
        self.check_like(other)
        return sum(int((mask ^ other[name]).sum()) for name, mask in self.items()) / max(1, self.total)

    def iou(self, other: MaskSet) -> float:
        """How many weights live in both, of those that live in either; 1 where none does."""
        union = (self | other).kept
        return (self & other).kept / union if union else 1.0

    def iou_by_chance(self, other: MaskSet) -> float:
        """What `iou` would be if the places of as many living weights in each tensor were drawn independently.

        It is the expected intersection over the expected union. Masks that agree no better have nothing in common.
        """
        self.check_like(other)
        both = sum(int(mask.sum()) * int(other[name].sum()) / max(1, mask.numel()) for name, mask in self.items())
        union = self.kept + other.kept - both
        return both / union if union else 1.0

    def compared(self, other: MaskSet) -> dict[str, Overlap]:
        """How far each weight tensor agrees, by its name."""
        self.check_like(other)
        return {name: MaskSet({name: self[name]}).overlap(MaskSet({name: other[name]})) for name in self}

    def overlap(self, other: MaskSet) -> Overlap:
        """How far all weights together agree."""
        return Overlap(self.hamming(other), self.iou(other), self.iou_by_chance(other))

    def shuffled(self, seed: int) -> MaskSet:
        """As many living weights in each tensor, at places drawn by the seed."""
        generator = torch.Generator().manual_seed(seed)
        return MaskSet(
            {
                name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)
                for name, mask in self.items()
            }
        )

    def check_like(self, other: Mapping[str, Tensor]) -> None:
        """Refuse masks of another architecture.

        Raises:
            SurgeryError: names or shapes differ; says which.
        """
        _check_shapes("the masks", self, "the others", other)

    def check_fits(self, graph: ModelGraph) -> None:
        """Refuse a network that the masks do not belong to.

        Raises:
            SurgeryError: a name is not a weight that can be masked, or has another shape.
        """
        weights = maskable(graph)
        missing = [name for name in self if name not in weights]
        if missing:
            raise SurgeryError(
                f"masks: the network has no weight {missing[0]} that can be masked ({len(missing)} of {len(self)} are "
                "missing); the masks belong to another architecture"
            )
        _check_shapes("the masks", self, "the network", {name: weights[name] for name in self})

    def as_dict(self) -> dict[str, Any]:
        """JSON-like form, for the metadata of a checkpoint; the bits are compressed, and text."""
        return bits.as_dict(self)

    def digest(self) -> str:
        """Of the names, the shapes and the bits."""
        return bits.digest(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> MaskSet:
        """What `as_dict` gave; older versions gave no digest, and then the masks are `unverified`.

        Raises:
            SurgeryError: it is damaged, or has other bits than it was saved with.
        """
        masks = cls(bits.from_dict(fields))
        masks.unverified = "digest" not in fields
        return masks

    def save(self, path: Path | str) -> None:
        """Write the masks as JSON, beside a checkpoint; `load` gives them back.

        Raises:
            SurgeryError: the file cannot be written.
        """
        bits.write(path, self)

    @classmethod
    def load(cls, path: Path | str) -> MaskSet:
        """What `save` wrote; nothing in the file is executed.

        Raises:
            CheckpointError: the file is missing, damaged or of another kind.
        """
        fields = bits.read(path)
        try:
            return cls.from_dict(fields)
        except SurgeryError as cause:
            raise CheckpointError(f"{path}: {cause}") from cause


def _check_shapes(one: str, masks: Mapping[str, Tensor], another: str, others: Mapping[str, Tensor]) -> None:
    for name in dict.fromkeys([*masks, *others]):
        shapes = [list(found[name].shape) if name in found else None for found in (masks, others)]
        if shapes[0] != shapes[1]:
            here, there = ("no weight" if shape is None else f"the shape {shape}" for shape in shapes)
            raise SurgeryError(
                f"masks: {name} has {here} in {one} and {there} in {another}; they belong to another architecture"
            )
