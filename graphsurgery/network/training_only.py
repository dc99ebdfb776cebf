"""Layers that act in training only, such as drop-path or noise, as what they compute there; nothing of their class."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import _get_qualified_name

from graphsurgery.network.copying import copy_module
from graphsurgery.network.outputs.randomness import seed_all


class InTraining(nn.Module):
    """Gives what a graph computes in training, and what it is given in evaluation.

    It stands for a layer of a user's class, and is one node of a network, typed as the identity: so that a checkpoint
    holds all of it, and edits of a network need not look into it.

    Attributes:
        code: the graph as text, by which two such layers are told apart.

    Args:
        kind: how the class of the layer is called.
        graph: from one input to one output; what it names lies directly below this module.
        parts: those layers and constants, by name.
    """

    def __init__(self, kind: str, graph: fx.Graph, parts: Mapping[str, Any]) -> None:
        super().__init__()
        self.kind = kind
        self.set_graph(graph)
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_buffer(name, part)

    def set_graph(self, graph: fx.Graph) -> None:
        """Let it compute another graph."""
        self.graph = graph
        self.code = str(graph)

    def forward(self, x: Tensor) -> Any:
        """`x` in evaluation; in training what the graph makes of it."""
        if not self.training:
            return x
        return fx.Interpreter(self, graph=self.graph).run(x)

    def extra_repr(self) -> str:
        return self.kind

    def __getstate__(self) -> dict[str, Any]:
        """The state with functions by their names, as some of torch's do not pickle."""
        return {**self.__dict__, "graph": [_written(node) for node in self.graph.nodes]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        graph = fx.Graph()
        nodes: dict[str, fx.Node] = {}
        for name, op, target, arguments in state["graph"]:
            args, kwargs = fx.node.map_aggregate(arguments, lambda a: nodes[a.name] if isinstance(a, _Reference) else a)
            nodes[name] = graph.create_node(
                op, _function(target) if op == "call_function" else target, args, kwargs, name
            )
        super().__setstate__({**state, "graph": graph})


@dataclass(frozen=True)
class _Reference:
    """Stands for a node."""

    name: str


def _written(node: fx.Node) -> tuple[str, str, str, Any]:
    """A node without references to others, and without functions."""
    target = str(node.target) if not callable(node.target) else _get_qualified_name(node.target)
    return node.name, node.op, target, fx.map_arg((node.args, node.kwargs), _refer)


def _refer(node: fx.Node) -> Any:
    return _Reference(node.name)


def _function(name: str) -> Any:
    home, _, own = name.rpartition(".")
    return getattr(importlib.import_module(home or "builtins"), own)


def draw_alike(one: nn.Module, other: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether two layers give the same in training and draw the same random numbers; the modules stay as they are.

    Args:
        one, other: the layers.
        inputs: the first has to take the first of these; of the others those count that it takes.
    """
    one, other = _training(one), _training(other)
    return all(_same(one, other, x, required=index == 0) for index, x in enumerate(inputs))


def _training(layer: nn.Module) -> nn.Module:
    copied = copy_module(layer, lambda tensor: tensor)
    for part in copied.modules():
        part.__dict__["training"] = True
    return copied


def _same(one: nn.Module, other: nn.Module, x: Tensor, *, required: bool) -> bool:
    """Whether both give the same, and leave the generator in the same state."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            expected, state = _run(one, x)
        except Exception:  # whatever the layer's own code raises
            return not required
        try:
            found, state_too = _run(other, x)
        except Exception:  # a decision that was taken for another size
            return False
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor) or expected.dtype != found.dtype:
        return False
    return torch.equal(state, state_too) and torch.equal(expected, found)


def _run(layer: nn.Module, x: Tensor) -> tuple[Any, Tensor]:
    seed_all(0)
    return layer.forward(x.clone()), torch.get_rng_state()
