"""Gate: with all gates open nothing changes; the gates follow the paper's formula; folding is exact."""

import math

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, typed
from torch import nn
from zoo import NAMES, SHALLOW, traced

import graphsurgery as gs
from graphsurgery.checkpoint import load, save
from graphsurgery.network.layers import ChannelGate
from graphsurgery.passes.compress import compress
from graphsurgery.passes.gate import fold, gate
from graphsurgery.surgery.deviation import deviation, double
from graphsurgery.surgery.gates import gates


def set_gates(graph, value):
    for module in gates(graph).values():
        with torch.no_grad():
            module.loc.copy_(value(module.loc))


@pytest.mark.parametrize("name", NAMES)
def test_open_gates_change_nothing(name):
    graph, x = traced(name)
    gated = gate(graph)
    set_gates(gated, lambda loc: torch.full_like(loc, 60.0))
    with torch.no_grad():
        assert deviation(gated(x), graph(x)) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_folding_keeps_outputs_in_evaluation(name):
    graph, x = traced(name)
    gated = gate(graph)
    generator = torch.Generator().manual_seed(3)
    set_gates(gated, lambda loc: torch.randn(loc.shape, generator=generator, dtype=loc.dtype))
    with torch.no_grad():
        folded = fold(gated)
        assert deviation(folded(x), gated(x)) < 1e-12
    assert not gates(folded)
    assert [s.name for s in folded.spaces] == [s.name for s in graph.spaces]


def test_a_network_from_a_file_can_be_gated_first(tmp_path):
    graph, _ = traced("resnet18")
    save(graph, tmp_path / "m.pt")
    gated = gate(load(tmp_path / "m.pt"))
    assert len(gates(gated)) == len(gates(gate(graph)))
    assert len(gates(gate(double(graph)))) == len(gates(gated))


def test_compressing_a_gated_network_folds_the_gains():
    graph, x = traced("resnet18")
    gated = gate(graph)
    generator = torch.Generator().manual_seed(3)
    set_gates(gated, lambda loc: torch.randn(loc.shape, generator=generator, dtype=loc.dtype))
    kept = {name: module.loc.topk(module.channels // 2).indices.sort().values for name, module in gates(gated).items()}
    with torch.no_grad():
        small = compress(gated, 0.5, importance="gate")
        for name, module in gates(gated).items():
            closed = torch.ones(module.channels, dtype=torch.bool)
            closed[kept[name]] = False
            module.loc[closed] = -60.0
        assert deviation(small(x), gated(x)) < 1e-10


def test_one_mask_sample_serves_all_reads_of_a_space():
    graph, _ = traced("paper/resnet20?width=8")
    gated = gate(graph)
    nodes = list(gated.module.graph.nodes)
    calls = [n for n in nodes if n.op == "call_module" and str(n.target).startswith("gates.")]
    assert len(calls) == len(gates(gated)) == len(graph.spaces)
    assert any(len(n.users) > 1 for n in calls)


def test_gates_stand_behind_norm_and_activation():
    graph, _ = traced("paper/cnn")
    gated = gate(graph)
    for node in gated.module.graph.nodes:
        if node.op == "call_function" and node.target.__name__ == "scale_axis":
            assert "BatchNorm" not in type(gated.module.get_submodule(str(next(iter(node.users)).target))).__name__


def test_samples_per_example_in_training_and_is_deterministic_in_evaluation():
    module = ChannelGate(5)
    x = torch.zeros(400, 3)
    torch.manual_seed(0)
    masks = module.train()(x)
    assert masks.shape == (400, 5)
    assert not torch.equal(masks[0], masks[1])
    open_share = (masks > 0).double().mean()
    assert open_share == pytest.approx(float(module.open_probability().detach().mean()), abs=0.02)
    masks = module.eval()(x)
    assert torch.equal(masks, module.value().expand(400, 5))


def test_follows_the_formula():
    module = ChannelGate(3).double()
    with torch.no_grad():
        module.loc.copy_(torch.tensor([-1.0, 0.5, 2.0]))
    torch.manual_seed(1)
    u = torch.rand(7, 3, dtype=torch.float64)
    torch.manual_seed(1)
    found = module.train()(torch.zeros(7, 1))
    s = torch.sigmoid((u.log() - (1 - u).log() + module.loc) / (2 / 3))
    torch.testing.assert_close(found, torch.clamp(s * 1.2 - 0.1, 0, 1))
    expected = torch.sigmoid(module.loc - (2 / 3) * math.log(0.1 / 1.1))
    torch.testing.assert_close(module.open_probability(), expected)
    assert ChannelGate(1).open_probability().item() == pytest.approx(0.93, abs=0.005)


def test_gates_get_gradients():
    graph, x = traced("paper/cnn")
    gated = gate(graph)
    gated.module.train()
    gated(x).square().sum().backward()
    assert all(module.loc.grad is not None and module.loc.grad.any() for module in gates(gated).values())


@pytest.mark.parametrize("name", SHALLOW)
def test_in_onnx_runtime(name, tmp_path):
    graph, _ = traced(name)
    gated = gate(graph, loc=0.0)
    gs.export_onnx(gated, tmp_path / "gated.onnx")
    assert gs.check_onnx(gated, tmp_path / "gated.onnx").deviation <= 1e-4


def test_refuses():
    graph, _ = traced("paper/cnn")
    with pytest.raises(gs.SurgeryError, match="has gates already; fold or compress"):
        gate(gate(graph))
    with pytest.raises(gs.SurgeryError, match="conv7 is not a space"):
        gate(graph, ["conv7"])
    linear = gs.trace(nn.Linear(3, 2), torch.zeros(2, 3))
    with pytest.raises(gs.SurgeryError, match="no space can be gated; all its channels are network inputs or outputs"):
        gate(linear)
    on_one_axis = Network(
        lambda n, x: torch.conv2d(
            n.a(x).reshape(1, -1, 4, 4), n.kernels.repeat(x.shape[0], 1, 1, 1), groups=x.shape[0]
        ),
        {"kernels": torch.zeros(2, 4, 1, 1)},
        a=nn.Conv2d(3, 4, 1),
    )
    with pytest.raises(gs.SurgeryError, match="conv2d reads space a where the batch is no axis of its own"):
        gate(typed(on_one_axis, (3, 4, 4))[0], ["a"])


def test_what_no_gate_reaches_is_named():
    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
            self.w = nn.Parameter(torch.zeros(8, 8))

        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.b(torch.addmm(h, h, self.w))

    graph = gs.trace(Squared().eval(), torch.randn(3, 3))
    with pytest.raises(gs.SurgeryError, match="a is read by addmm, b, which no gate reaches"):
        gate(graph)


def test_refuses_a_network_with_a_fixed_batch():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)).reshape(2, 4))

    with pytest.raises(gs.SurgeryError, match="the network does not take a batch of 5"):
        gate(gs.trace(Fixed(), torch.zeros(2, 3)))


WITHOUT_A_WEIGHT = {
    "tied": Network(
        lambda net, x: F.linear(torch.relu(net.a(x)), net.a.weight.t()) @ net.table, {"table": torch.zeros(5, 2)},
        a=nn.Linear(5, 8),
    ),
    "scores": Network(
        lambda net, x: net.a(x) @ torch.tanh(net.a(x * 2)).transpose(1, 2), a=nn.Linear(5, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["tied", "scores"])
def test_spaces_that_no_weight_of_its_own_reads_are_gated_in_front_of_their_readers(name, tmp_path):
    graph, x, _ = typed(WITHOUT_A_WEIGHT[name], (4, 5))
    assert not any(space.scalable for space in graph.spaces if space.readers)
    gated = gate(graph, loc=60.0)
    assert len(gates(gated)) == 1
    with torch.no_grad():
        assert deviation(gated(*x), graph(*x)) < 1e-12
        for module in gates(gated).values():
            module.loc.copy_(torch.linspace(-2, 2, module.channels))
        folded = fold(gated)
        assert deviation(folded(*x), gated(*x)) < 1e-12
        assert deviation(folded(*x), graph(*x)) > 1e-2
        for module in gates(gated).values():
            module.loc[:3] = -60.0
        small = compress(gated, 0.625, importance="gate")
        assert deviation(small(*x), gated(*x)) < 1e-12
        gs.save(small, tmp_path / "small.pt")
        assert deviation(gs.load(tmp_path / "small.pt")(*x), small(*x)) == 0
