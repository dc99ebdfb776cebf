"""Examples of networks with several inputs: all inputs of an example as one vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graphsurgery.graph import InputSpec
from graphsurgery.network.outputs.naming import named_outputs


class PackedInputs:
    """All inputs of a network as one vector for each example, so that whatever takes examples takes them.

    A network whose inputs all have a batch runs on many examples at once. Where one has none, such as a state `[layers,
    batch, hidden]`, an example is a whole run, and examples run one after the other.

    Args:
        inputs: what the network takes.
    """

    def __init__(self, inputs: Sequence[InputSpec]) -> None:
        self.inputs = tuple(inputs)
        self.shapes = [spec.shape[1:] if spec.batched else spec.shape for spec in self.inputs]
        """Of one example."""
        self.sizes = [math.prod(shape) for shape in self.shapes]
        narrow = all(spec.dtype.is_floating_point and spec.dtype.itemsize <= 4 for spec in self.inputs)
        self.dtype = torch.float32 if narrow else torch.float64  # which holds indices of 53 bits

    def packed(self, tensors: Sequence[Tensor]) -> Tensor:
        """The vectors `[examples, numbers]` of inputs, each `[examples, ...]`."""
        return torch.cat([tensor.reshape(len(tensor), -1).to(self.dtype) for tensor in tensors], 1)

    def unpacked(self, vectors: Tensor) -> list[Tensor]:
        """The inputs, each `[examples, ...]`, of vectors."""
        parts = vectors.split(self.sizes, 1)
        known = zip(parts, self.shapes, self.inputs, strict=True)
        return [part.reshape(-1, *shape).to(spec.dtype) for part, shape, spec in known]

    def run(self, module: nn.Module, vectors: Tensor) -> Any:
        """What a network gives for vectors; outputs of single runs stand one behind the other, by name."""
        tensors = self.unpacked(vectors)
        if all(spec.batched for spec in self.inputs):
            return module(*tensors)
        runs = [named_outputs(module(*self.single(tensors, number))) for number in range(len(vectors))]
        return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}

    def single(self, tensors: Sequence[Tensor], number: int) -> list[Tensor]:
        """The inputs of one run: those of one example."""
        pairs = zip(tensors, self.inputs, strict=True)
        return [tensor[number : number + 1] if spec.batched else tensor[number] for tensor, spec in pairs]

    def real(self, vectors: Tensor) -> list[Tensor]:
        """The inputs of a run on real examples: all of them, or the first where a run takes one."""
        tensors = self.unpacked(vectors)
        return tensors if all(spec.batched for spec in self.inputs) else self.single(tensors, 0)

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of one example of each input, by name."""
        return {spec.name: tuple(shape) for spec, shape in zip(self.inputs, self.shapes, strict=True)}
