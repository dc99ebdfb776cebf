"""What is known of a file when a network was imported from it, kept beside the network so that it is not read again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, fx, nn

from graphsurgery.graph import ModelGraph
from graphsurgery.network.assembly import assembled
from graphsurgery.network.copying import copy_module, meta_of
from graphsurgery.onnx.importing.running import OnnxNetwork

if TYPE_CHECKING:
    from graphsurgery.onnx.importing.importer import Imported


class ImportRecord(dict[str, Any]):
    """The record of an import in a lineage; copies and stored ones are plain.

    Attributes:
        structure: what was imported, without weights, as long as a network lives that has come from it.
    """

    structure: Structure | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


@dataclass(frozen=True, eq=False)
class Structure:
    """An import without weights, and the file as it was then.

    Attributes:
        imported: its network has meta tensors in the place of the weights of the file.
        stamp: what tells that the file is another by now.
    """

    imported: Imported
    stamp: tuple[int, ...]

    @classmethod
    def of(cls, imported: Imported) -> Structure:
        """The structure of an import; the network keeps its weights."""
        owned = {id(tensor) for path, tensor in imported.graph.tensors().items() if path in imported.sources}
        old = imported.graph.module

        def light(tensor: Tensor) -> Tensor:
            return meta_of(tensor) if id(tensor) in owned else tensor

        graph, copies, parts = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, Any]()
        for node in old.graph.nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].name = node.name
            if node.op in ("call_module", "get_attr") and str(node.target) not in parts:
                owner, _, name = str(node.target).rpartition(".")
                part = getattr(old.get_submodule(owner), name)
                parts[str(node.target)] = copy_module(part, light) if isinstance(part, nn.Module) else light(part)
        network = ModelGraph(assembled(parts, graph, type(old).__name__), imported.graph.inputs)
        module = OnnxNetwork(cast(OnnxNetwork, imported.module).plan)
        return cls(replace(imported, graph=network, module=module), _stamp(imported.file.path))


def structure_of(graph: ModelGraph, path: Path) -> Imported | None:
    """What is known of a file that a network has come from, in this process; None where the file has changed since."""
    for record in graph.lineage:
        known = record.structure if isinstance(record, ImportRecord) else None
        if known is None or known.imported.file.path != path or known.stamp != _stamp(path):
            continue
        if [spec.shape for spec in known.imported.graph.inputs] == [spec.shape for spec in graph.inputs]:
            return known.imported
    return None


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino
