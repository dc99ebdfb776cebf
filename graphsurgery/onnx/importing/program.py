"""An `.onnx` file as a program: its operators in order, with their inputs, outputs and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphsurgery.onnx.files.precision import Precision
from graphsurgery.onnx.files.storage import Weights
from graphsurgery.onnx.files.texts import Texts


@dataclass(frozen=True)
class Operator:
    """One node of the file.

    Attributes:
        name: of the node in the file, or its first output where it has none.
        kind: operator type, such as `Conv`; with its domain in front where that is not the standard one.
        inputs: names of values; empty for one that is left out. Behind them what the graphs inside the node read.
        outputs: names of values.
        attributes: by name, as Python values.
        opset: version of the standard operators.
        index: of the node in the file.
        moved: the inputs that other nodes of the file read, where two have become one: the number of the node, and of
            the input there.
        free: whether the file leaves more sizes of its inputs free than the batch.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    index: int
    moved: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    free: bool = False

    def place(self, at: int) -> tuple[int, int]:
        """The node in the file that reads an input, and which one it is there."""
        return self.moved.get(at, (self.index, at))


@dataclass(frozen=True, eq=False)
class OnnxProgram:
    """A model in a file, as what is run and what is constant.

    Attributes:
        path: of the file.
        model: without the large weights; local functions are written out in it.
        operators: the nodes in the order in which they can run, without those that only hold or pass on constants.
        constants: initializers, constant nodes, and what is computed from those alone, by name.
        aliases: names of values that are another value under a second name.
        weights: the large ones, where they lie; they are among the constants.
        precision: what its floating numbers are in the file; here they are float32.
        quantised: how many weights and values are quantised in the file; here they are not.
        texts: what of the file reads or gives texts, maps and sequences; here it is left out.
    """

    path: Path
    model: onnx.ModelProto
    operators: tuple[Operator, ...]
    constants: Mapping[str, np.ndarray[Any, Any]] = field(repr=False)
    aliases: Mapping[str, str] = field(repr=False)
    weights: Weights = field(repr=False, default_factory=Weights)
    precision: Precision = field(repr=False, default_factory=lambda: Precision({}))
    quantised: int = 0
    texts: Texts = field(repr=False, default_factory=Texts)

    @property
    def as_stored(self) -> bool:
        """Whether the model computes in the numbers that the file has."""
        return self.precision.is_single and not self.quantised and not self.texts

    @cached_property
    def inputs(self) -> tuple[onnx.ValueInfoProto, ...]:
        """What a caller feeds: the inputs that are no weights."""
        weights = {initializer.name for initializer in self.model.graph.initializer}
        return tuple(value for value in self.model.graph.input if value.name not in weights)

    @cached_property
    def kinds(self) -> Mapping[str, int]:
        """The types of the values, by name, as far as they can be inferred."""
        try:
            model = onnx.shape_inference.infer_shapes(self.model)
        except Exception:  # of an operator that is not of the standard
            return {}
        return {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it gives."""
        return tuple(value.name for value in self.model.graph.output)

    def name(self, value: str) -> str:
        """The first name of a value."""
        while value in self.aliases:
            value = self.aliases[value]
        return value
