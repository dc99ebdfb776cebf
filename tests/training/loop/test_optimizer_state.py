"""The state of an optimizer goes the way of the gradients."""

import copy

import pytest
import torch
from torch import nn
from zoo import traced

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.passes.factorize import factorize, unfactorize
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.deviation import deviation
from graphsurgery.training.loop.optimizer_state import follow_gradient, remap_optimizer


def gradients(graph, x):
    graph.module.zero_grad()
    graph(x).square().sum().backward()
    return {name: p.grad for name, p in graph.module.named_parameters()}


@pytest.mark.parametrize(
    "name", ["paper/lenet5", "paper/vgg11?bias=True&width=12", "paper/resnet20?width=8", "resnext"]
)
def test_the_gradients_of_a_wide_network_are_the_mapped_ones(name):
    graph, x = traced(name)
    wide = widen(graph, 1.4)
    old, new = gradients(graph, x), gradients(wide, x)
    for parameter, gradient in new.items():
        typed, folded = graph.types.parameters[parameter], wide.origin.folded.get(parameter, {})
        assert deviation(gradient, follow_gradient(wide.origin.edit, typed.axes, folded, old[parameter])) < 1e-10


@pytest.mark.parametrize("name", ["convnext", "vit"])
def test_with_norms_across_channels_for_equal_shares(name):
    graph, x = traced(name)
    wide = widen(graph, 2.0, init="equal")
    old, new = gradients(graph, x), gradients(wide, x)
    for parameter, gradient in new.items():
        typed, folded = graph.types.parameters[parameter], wide.origin.folded.get(parameter, {})
        expected = follow_gradient(wide.origin.edit, typed.axes, folded, old[parameter])
        assert float((gradient - expected).abs().max()) < 1e-10 * max(float(g.abs().max()) for g in new.values())


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.5, eps=1e-30),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_that_is_mapped_is_the_state_of_mapped_gradients(kind):
    """Steps of 0 keep the weights, so the wide network collects the state that its own gradients would have left."""
    graph, x = traced("paper/resnet20?width=8")
    optimizer = OPTIMIZERS[kind](graph.module.parameters())
    wide = widen(graph, 1.4, seed=5)
    own = OPTIMIZERS[kind](wide.module.parameters())
    for group in (*optimizer.param_groups, *own.param_groups):
        group.update(lr=0.0, weight_decay=0.0)
    for _ in range(3):
        for network, steps in ((graph, optimizer), (wide, own)):
            gradients(network, x)
            steps.step()
    mapped = remap_optimizer(optimizer, graph, wide)
    assert type(mapped) is type(optimizer)
    assert mapped.param_groups[0]["lr"] == 0.0
    for parameter in wide.module.parameters():
        for key, value in own.state[parameter].items():
            assert deviation(mapped.state[parameter][key], value) < 1e-6, key


def test_a_cut_keeps_the_state_of_what_stays_and_chains_of_passes_are_followed():
    graph, x = traced("paper/lenet5")
    optimizer = torch.optim.SGD(
        [{"params": [graph.tensors()["conv1.weight"]], "lr": 0.1}, {"params": [graph.tensors()["fc1.weight"]]}],
        lr=0.01, momentum=0.9,
    )  # fmt: skip
    gradients(graph, x)
    optimizer.step()
    small = compress(graph, {"conv1": [0, 2, 5]})
    mapped = remap_optimizer(optimizer, graph, small)
    assert [len(group["params"]) for group in mapped.param_groups] == [1, 1]
    assert mapped.param_groups[0]["lr"] == 0.1
    before = optimizer.state[graph.tensors()["conv1.weight"]]["momentum_buffer"]
    after = mapped.state[small.tensors()["conv1.weight"]]["momentum_buffer"]
    assert torch.equal(after, before[[0, 2, 5]])
    wide = widen(small, to={"conv1": 6})
    both = remap_optimizer(optimizer, graph, wide)
    steps = remap_optimizer(mapped, small, wide)
    for name in ("conv1.weight", "fc1.weight"):
        a, b = (o.state[wide.tensors()[name]]["momentum_buffer"] for o in (both, steps))
        assert torch.equal(a, b)
    gradients(wide, x)
    both.step()


def test_training_goes_on():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    graph = gs.trace(teacher, torch.zeros(2, 8).double())
    optimizer = torch.optim.Adam(graph.module.parameters(), lr=0.01)
    x = torch.randn(256, 8, dtype=torch.float64)

    def epoch(network, steps):
        for _ in range(40):
            steps.zero_grad()
            loss = (network(x) - x[:, :3].abs()).square().mean()
            loss.backward()
            steps.step()
        return float(loss.detach())

    first = epoch(graph, optimizer)
    wide = widen(graph, 2.0)
    assert epoch(wide, remap_optimizer(optimizer, graph, wide)) < first


def test_what_a_layer_was_for_a_while_has_no_state_and_factors_stay_in_their_group():
    network = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    graph = gs.trace(network, torch.zeros(2, 16).double())
    first, last = graph.module.get_submodule("0"), graph.module.get_submodule("2")
    groups = [{"params": list(first.parameters()), "lr": 0.1}, {"params": list(last.parameters()), "lr": 0.01}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    x = torch.randn(4, 16, dtype=torch.float64)
    gradients(graph, x)
    optimizer.step()
    two = factorize(graph, ["0"], rank=2)
    mapped = remap_optimizer(optimizer, graph, two)
    assert [group["lr"] for group in mapped.param_groups] == [0.1, 0.01]
    assert len(mapped.param_groups[0]["params"]) == 3
    for network in (two, unfactorize(widen(two, 2.0))):
        mapped = remap_optimizer(optimizer, graph, network)
        gradients(network, x)
        mapped.step()
    lbfgs = torch.optim.LBFGS(graph.module.parameters())
    lbfgs.step(lambda: graph(x).square().sum())
    with pytest.raises(gs.SurgeryError, match="it is not known how"):
        remap_optimizer(lbfgs, graph, widen(graph, 2.0))


def test_what_does_not_belong_together_is_refused():
    graph, x = traced("paper/lenet5")
    wide = widen(graph, 2.0)
    optimizer = torch.optim.SGD(graph.module.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(gs.SurgeryError, match="the second network was not made of the first one"):
        remap_optimizer(optimizer, wide, graph)
    foreign = torch.optim.SGD([*graph.module.parameters(), nn.Parameter(torch.zeros(3))], lr=0.1)
    with pytest.raises(gs.SurgeryError, match=r"it trains a parameter \[3\] that is none of the network before"):
        remap_optimizer(foreign, graph, wide)
    gradients(graph, x)
    optimizer.step()
    odd = copy.copy(optimizer)
    odd.state[graph.tensors()["conv1.weight"]]["curvature"] = torch.zeros_like(graph.tensors()["conv1.weight"])
    with pytest.raises(gs.SurgeryError, match="it is not known how curvature of SGD follows the weights"):
        remap_optimizer(odd, graph, wide)
