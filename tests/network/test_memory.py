"""What a network leaves behind when nobody refers to it any more: nothing, and at once."""

from __future__ import annotations

import gc
import linecache
import weakref
from collections.abc import Callable

import pytest
import torch
import zoo
from torch import fx, nn
from torch.fx import graph_module

import graphsurgery as gs
from graphsurgery.network.assembly import Network, as_evaluated
from graphsurgery.network.values.evaluation import values_for
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.deepen import deepen
from graphsurgery.passes.factorize import factorize
from graphsurgery.passes.gate import fold, gate
from graphsurgery.passes.prune_dead import prune_dead
from graphsurgery.passes.slim import slim
from graphsurgery.passes.widen import widen

SMALL = "paper/resnet20?width=4"


@pytest.fixture
def no_collection():
    """Nothing is freed but what has no references left."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


EDITS: dict[str, Callable[[gs.ModelGraph], gs.ModelGraph]] = {
    "compress": lambda graph: compress(graph, keep=0.5),
    "widen": lambda graph: widen(graph, by=1.5),
    "gate": gate,
    "fold": lambda graph: fold(gate(graph)),
    "concatenate": lambda graph: concatenate([graph, graph]),
    "deepen": deepen,
    "factorize": lambda graph: factorize(graph, rank=0.5),
    "prune_dead": lambda graph: prune_dead(dead(graph)),
    "slim": slim,
    "two edits": lambda graph: widen(compress(graph, keep=0.5), by=1.5),
}


def dead(graph: gs.ModelGraph) -> gs.ModelGraph:
    """The network with a dead channel in its first space."""
    tensors = graph.tensors()
    space = graph.spaces[0]
    with torch.no_grad():
        for name, axis, _ in graph.uses[space.dim]:
            tensors[name].select(axis, 0).zero_()
    return graph


Watched = tuple[weakref.ref[fx.GraphModule], weakref.ref[torch.Tensor]]


def lives(watched: Watched) -> bool:
    network, tensor = watched
    return network() is not None or tensor() is not None


def watched(graph: gs.ModelGraph) -> Watched:
    """A network that has been typed and run, and the largest of its weights, without a hold on either.

    Not inside of an assertion: pytest keeps what stands there.
    """
    graph.spaces  # noqa: B018
    with torch.no_grad():
        graph(*graph.example_inputs())
    return weakref.ref(graph.module), weakref.ref(max(graph.tensors().values(), key=torch.Tensor.numel))


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("name", [*zoo.FEW, "densenet", "shufflenet_v2", "googlenet", "paper/lenet5"])
def test_a_trace_goes_with_its_last_reference(name):
    network, example = zoo.model(name), zoo.example(name)
    found = watched(gs.trace(network, example))
    assert not lives(found)
    there = weakref.ref(network)
    del network
    assert there() is None


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("name", [SMALL, "convnext", "vit"])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_goes_with_its_last_reference(edit, name):
    graph, _ = zoo.traced(name)
    found = watched(EDITS[edit](graph))
    assert not lives(found)
    before = watched(graph)
    del graph
    assert not lives(before)


@pytest.mark.usefixtures("no_collection")
def test_an_edit_does_not_keep_what_it_was_made_of():
    graph, _ = zoo.traced(SMALL)
    before = watched(graph)
    graph = widen(compress(graph, keep=0.5), by=1.5)
    assert graph.origin is not None
    assert not lives(before)


@pytest.mark.usefixtures("no_collection")
def test_a_stored_network_goes_with_its_last_reference(tmp_path):
    graph, _ = zoo.traced(SMALL)
    gs.save(graph, tmp_path / "a.pt")
    found = watched(gs.load(tmp_path / "a.pt"))
    assert not lives(found)
    before = watched(graph)
    del graph
    assert not lives(before)


@pytest.mark.usefixtures("no_collection")
def test_what_shares_the_weights_goes_with_its_last_reference():
    graph, x = zoo.traced("inception_v3")
    values_for(graph.module, [x.to("meta")])
    as_evaluated(graph.module)
    before = watched(graph)
    del graph
    assert not lives(before)


@pytest.mark.usefixtures("no_collection")
def test_a_refused_edit_keeps_nothing():
    graph, _ = zoo.traced(SMALL)
    with pytest.raises(gs.SurgeryError):
        compress(graph, keep=1.5)
    before = watched(graph)
    del graph
    assert not lives(before)


def test_a_file_goes_with_its_last_reference(tmp_path):
    gs.export_onnx(zoo.traced(SMALL)[0], tmp_path / "a.onnx")
    gc.collect()
    gc.disable()
    try:
        found = watched(import_onnx(tmp_path / "a.onnx").graph)
        assert not lives(found)
    finally:
        gc.enable()


def test_an_edit_of_a_file_leaves_no_weights(tmp_path):
    """Of several commands on large files in a row each would have those of the ones before beside its own."""
    graph = zoo.traced(SMALL)[0]
    gs.export_onnx(graph, tmp_path / "a.onnx")
    edits = [lambda g: compress(g, keep=0.5), lambda g: gs.factorize(g, rank=0.5, force=True), gs.deepen]

    def go(edit):
        gs.rewrite_onnx(tmp_path / "a.onnx", edit(import_onnx(tmp_path / "a.onnx").graph), tmp_path / "b.onnx")

    for edit in edits:
        go(edit)  # what is made once
    gc.collect()
    gc.disable()
    try:
        for edit in edits:
            before = held()
            go(edit)
            assert held() <= before
    finally:
        gc.enable()


def held() -> int:
    """The bytes of all tensors that are reachable or wait to be collected; several on one storage count once."""
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if not t.is_meta}.values()
    )


def live(*kinds: type) -> list[int]:
    gc.collect()
    classes = [type(thing) for thing in gc.get_objects()]
    return [sum(issubclass(one, kind) for one in classes) for kind in kinds]


def sources() -> tuple[int, int]:
    """How many sources of generated code fx and `linecache` keep."""
    gc.collect()
    return len(graph_module._loader.eval_cache), sum(name.startswith("<eval_with_key>") for name in linecache.cache)


def test_nothing_is_left_of_many_networks(tmp_path):
    def work(seed: int) -> None:
        x = zoo.example(SMALL)
        graph = gs.trace(zoo.model(SMALL, seed), x, check=False)
        edited = fold(gate(widen(compress(graph, keep=0.5), by=1.5)))
        edited(x)
        gs.save(edited, tmp_path / "a.pt")
        gs.load(tmp_path / "a.pt")(x)

    work(0)
    kinds = (fx.Graph, fx.Node, nn.Module, torch.Tensor, type)
    before = live(*kinds), sources()
    for seed in range(3):
        work(seed)
    assert (live(*kinds), sources()) == before


@pytest.mark.usefixtures("no_collection")
def test_no_weights_are_left_of_an_export(tmp_path):
    graph, _ = zoo.traced("paper/lenet_300_100")
    gs.export_onnx(graph, tmp_path / "a.onnx")
    before = held(), sources()
    gs.export_onnx(graph, tmp_path / "a.onnx")
    assert held() < before[0] + 1000
    assert sources() == before[1]
    assert sum(tensor.nbytes for tensor in graph.tensors().values()) > 2_000_000


def test_the_source_of_code_is_there_as_long_as_the_code():
    graph, x = zoo.traced("paper/mlp")
    graph(x)
    forward = type(graph.module).forward
    key = forward.__code__.co_filename
    assert isinstance(graph.module, Network)
    del graph
    gc.collect()
    assert any("def forward" in line for line in linecache.getlines(key))
    del forward
    gc.collect()
    assert linecache.getlines(key) == []
