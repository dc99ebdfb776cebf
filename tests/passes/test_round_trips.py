"""Every pass on paper networks of every kind, saved and loaded: the same outputs, spaces, modes and training."""

import pytest
import torch
from zoo import NAMES, PAPER, example, traced

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.gate import fold, gate

PASSES = {
    "trace": lambda name: traced(name)[0],
    "compress": lambda name: compress(traced(name)[0], 0.5),
    "concatenate": lambda name: concatenate([traced(name, 0)[0], traced(name, 1)[0]]),
    "gate": lambda name: gate(traced(name)[0]),
    "fold": lambda name: fold(gate(traced(name)[0])),
    "merge": lambda name: compress(gate(concatenate([traced(name, 0)[0], traced(name, 1)[0]])), 0.5, importance="gate"),
}


@pytest.mark.parametrize("name", [*(name for name in PAPER if name in NAMES), "vit"])
@pytest.mark.parametrize("surgery", PASSES)
def test_loads_as_it_was_saved(surgery, name, tmp_path):
    graph, x = PASSES[surgery](name), example(name)
    graph.module.train()
    gs.save(graph, tmp_path / "m.pt")
    loaded = gs.load(tmp_path / "m.pt")
    assert loaded.spaces == graph.spaces
    assert loaded.frozen == graph.frozen
    assert [dict(r) for r in loaded.lineage] == [dict(r) for r in graph.lineage]
    assert [m.training for m in loaded.module.modules()] == [m.training for m in graph.module.modules()]
    for training in (False, True):
        outputs = []
        for candidate in (graph, loaded):
            candidate.module.train(training)
            torch.manual_seed(5)
            outputs.append(candidate(x))
        assert torch.equal(*outputs)
    for key, tensor in graph.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[key], tensor)
