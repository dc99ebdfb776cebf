"""Norms of earlier versions as grouped norms, while a network is built of what a file describes.

There were a function for each kind of norm, with literal segments and one share for each channel, and a layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphsurgery.checkpoint.vocabulary import OLD_NORMS
from graphsurgery.errors import SurgeryError
from graphsurgery.network.layers import grouped_norm

_OLD = frozenset(f"graphsurgery.{home}.{name}" for home in ("layers", "network.layers") for name in sorted(OLD_NORMS))

_TAKES = MappingProxyType(
    {
        "segmented_layer_norm": ("x", "segments", "weight", "bias", "eps", "groups", "shares"),
        "segmented_group_norm": ("x", "segments", "weight", "bias", "eps", "groups"),
        "segmented_normalize": ("x", "power", "dim", "eps"),
        "weighted_rms_norm": ("x", "shares", "weight", "eps"),
        "weighted_group_norm": ("x", "num_groups", "shares", "weight", "bias", "eps"),
        "weighted_instance_norm": ("x", "shares", "weight", "bias", "eps"),
    }
)
"""What each function took by position."""

_OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "segmented_layer_norm": {"eps": 1e-5},
        "segmented_group_norm": {"dim": 1, "positions": True, "eps": 1e-5},
        "segmented_normalize": {"eps": 1e-12, "dim": 1, "power": 2.0},
        "weighted_rms_norm": {"centred": False, "eps": None},
        "weighted_group_norm": {"dim": 1, "positions": True, "eps": 1e-5},
        "weighted_instance_norm": {"dim": 2, "affine": 1, "eps": 1e-5},
    }
)
"""What each is as a grouped norm, where its arguments do not say otherwise."""

_MOST = 2**24
"""Channels times segments: those of a file may say anything."""


def is_old_norm(name: Any) -> bool:
    """Whether a class or function of this stored name is a norm of an earlier version."""
    return isinstance(name, str) and name in _OLD


class OlderNorms:
    """Makes grouped norms of the old ones in a graph that is being built.

    Args:
        root: the network, which has its tensors.
        graph: its graph, which has the nodes up to now.
        names: those that nodes of the file have.
    """

    def __init__(self, root: fx.GraphModule, graph: fx.Graph, names: Collection[str]) -> None:
        self.root, self.graph, self.names = root, graph, names
        self.layers: dict[nn.Module, Mapping[str, Any]] = {}
        self._shares: dict[fx.Node, None] = {}

    def layer(self, arguments: Mapping[str, Any]) -> nn.Module:
        """What holds the weights of a layer with these arguments; a call of it becomes a call of the function."""
        module = nn.Module()
        self.layers[module] = arguments
        return module

    def called(self, op: str, target: str) -> bool:
        """Whether a node calls an old norm."""
        if op == "call_module":
            return self.root.get_submodule(target) in self.layers
        return op == "call_function" and is_old_norm(target)

    def call(self, name: str, op: str, target: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> fx.Node:
        """The node of a grouped norm, in the place of one that calls an old norm.

        Raises:
            SurgeryError: it is given something else than the old norm was.
        """
        kind = target.rpartition(".")[2]
        if op == "call_module":
            kind, given = "segmented_layer_norm", dict(self.layers[self.root.get_submodule(target)])
            owner = self.root.get_submodule(target)._parameters
            given |= {
                w: self._read(f"{target}.{w}", self._free(f"{name}_{w}")) for w in ("weight", "bias") if w in owner
            }
            given["x"] = args[0]
        else:
            given = dict(zip(_TAKES[kind], args, strict=False)) | dict(kwargs)
            given |= {"power": given["p"]} if "p" in given else {}
        options = {option: given.get(option, usual) for option, usual in _OPTIONS[kind].items()}
        members = self._members(given)
        if "num_groups" in given and members.shape[1] > 1:
            options["blocks"] = True
        path = self._free(f"{name}_members")
        self.root.register_buffer(path, members)
        vectors = [given.get(vector) for vector in ("weight", "bias") if vector in _TAKES[kind]]
        call = (given["x"], self._read(path, path), *vectors)
        return self.graph.create_node("call_function", grouped_norm, call, options, name)

    def _members(self, given: Mapping[str, Any]) -> Tensor:
        """Who is normalised with whom, and how much each counts, `[channels, groups]`."""
        share = self._share(given.get("shares"))
        sizes, groups = given.get("segments"), given.get("groups")
        if sizes is None:
            count, channels = int(given.get("num_groups", 1)), 0 if share is None else len(share)
            if not 0 < count <= channels:
                raise SurgeryError(f"a norm of {count} groups has {channels} shares, expected one for each channel")
            sizes = [channels // count] * count
        if sum(sizes) * len(sizes) > _MOST or (share is not None and share.shape != (sum(sizes),)):
            found = "no" if share is None else str(len(share))
            raise SurgeryError(f"a norm of {sum(sizes)} channels in {len(sizes)} segments has {found} shares")
        numbers = torch.arange(len(sizes)) if groups is None else torch.tensor(groups).unique(return_inverse=True)[1]
        owner = numbers.repeat_interleave(torch.tensor(sizes))
        members = F.one_hot(owner).to(next(self.root.parameters(), torch.empty(0)) if share is None else share)
        return members if share is None else members * share.detach().unsqueeze(1)

    def _share(self, node: Any) -> Tensor | None:
        """The shares that a node gives."""
        if node is None:
            return None
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            raise SurgeryError("a norm has shares that are computed, expected a buffer")
        self._shares[node] = None
        owner, _, name = str(node.target).rpartition(".")
        share: Tensor = getattr(self.root.get_submodule(owner), name)
        return share

    def _read(self, path: str, name: str) -> fx.Node:
        """A new node that gives a tensor."""
        return self.graph.create_node("get_attr", path, name=name)

    def _free(self, wanted: str) -> str:
        """A name that no node has or will have, nor anything of the network."""
        while wanted in self.names or hasattr(self.root, wanted) or any(n.name == wanted for n in self.graph.nodes):
            wanted += "_"
        return wanted

    def finish(self) -> None:
        """Let go of shares that nothing reads any more."""
        for node in self._shares:
            if node.users:
                continue
            self.graph.erase_node(node)
            if all(other.target != node.target for other in self.graph.nodes if other.op == "get_attr"):
                owner, _, name = str(node.target).rpartition(".")
                delattr(self.root.get_submodule(owner), name)
