"""Every argument of a network from a file knows where the file says it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx_files import exported, written
from torch import Tensor, fx

import graphsurgery as gs
from graphsurgery.onnx.editing.file_graph import FileGraph
from graphsurgery.onnx.editing.places import Places
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.onnx.importing.sources import leaves

NETWORKS = ["shallow mobilenet_v3", "shallow squeezenet1_1", "shallow resnext", "shallow convnext", "shallow vit"]


def read_at(imported, place):
    """The node whose value a node of the file reads, or the path of the parameter; None where it has neither."""
    file = imported.file
    name = file.name(file.model.graph.node[place.operator].input[place.at])
    inputs = [n.name for n in imported.graph.module.graph.nodes if n.op == "placeholder"]
    known = dict(zip((value.name for value in file.inputs), inputs, strict=True)) | dict(imported.values)
    made = imported.module.plan.made.get((place.operator, place.at))
    return made or known.get(name) or {source.constant: path for path, source in imported.sources.items()}.get(name)


@pytest.mark.parametrize("dialect", ["ours", "free 17", "fixed 17"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_record_says_what_the_file_says(tmp_path, name, dialect):
    path = tmp_path / "m.onnx"
    path.write_bytes(exported(name, dialect))
    imported = import_onnx(path, weights=False)
    nodes = {node.name: node for node in imported.graph.module.graph.nodes}
    places, numbers, tensors = Places(imported, FileGraph(imported.file.model)), 0, 0
    for node, origin in imported.origins.items():
        assert len(origin.places) == len(leaves(nodes[node]))
        for leaf, where in zip(leaves(nodes[node]), origin.places, strict=True):
            assert type(leaf) is not int or not where or [places.says(place) for place in where] == [leaf]
            numbers += type(leaf) is int and bool(where)
            if isinstance(leaf, fx.Node) and isinstance(leaf.meta["value"], Tensor):
                own = imported.origins.get(leaf.name)
                inside = own is not None and own.operator == origin.operator
                called = str(leaf.target) if leaf.op == "get_attr" else leaf.name
                assert inside or {read_at(imported, place) for place in where} == {called}
                tensors += not inside
    assert tensors >= 10
    assert numbers or name != "shallow vit" or dialect == "fixed 17"


def test_a_value_that_is_read_twice_is_known_by_each_input(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Sub", ["r", "r"], ["d"]),
        helper.make_node("PRelu", ["d", "slope"], ["y"]),
    ]
    slope = np.full((2, 3), 0.5, np.float32)
    imported = import_onnx(written(tmp_path / "m.onnx", nodes, {"x": ["b", 2, 3]}, ["y"], {"slope": slope}))
    nodes = {node.name: node for node in imported.graph.module.graph.nodes}
    sub = next(origin for origin in imported.origins.values() if origin.operator == 1)
    assert [[tuple(place) for place in where] for where in sub.places] == [[(1, 0, None)], [(1, 1, None)]]
    slopes = [origin for origin in imported.origins.values() if origin.operator == 2]
    read = [place for origin in slopes for where in origin.places for place in where]
    assert {tuple(place) for place in read} == {(2, 0, None), (2, 1, None)}
    assert len(read) == 4, "three times the value, and the slope"


def test_a_trace_of_the_module_has_plain_numbers(tmp_path):
    """Whoever traces what runs the file gets a network like any other."""
    path = tmp_path / "m.onnx"
    path.write_bytes(exported("shallow vit", "free 17"))
    imported = import_onnx(path, weights=False)
    again = gs.trace(imported.module, imported.graph.example_inputs(2), check=False)
    for graph in (again, imported.graph):
        found = [leaf for node in graph.module.graph.nodes for leaf in leaves(node)]
        assert {type(leaf) for leaf in found if isinstance(leaf, int)} <= {int, bool}
