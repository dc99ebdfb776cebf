"""One set of weights at any width."""

import pytest
import torch
from contracts import typed
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork
from torch import nn
from torch.utils.data import TensorDataset
from zoo import FEW, NAMES, traced

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.passes.gate import gate
from graphsurgery.passes.slim import slim
from graphsurgery.surgery.channels.slimming import Slimmable, batch_norms, key_of, pack_norms, parse_width, unpack_norms
from graphsurgery.surgery.deviation import deviation
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.objectives import CrossEntropy
from graphsurgery.training.objectives.sandwich import Sandwich


@pytest.mark.parametrize("name", NAMES)
def test_a_width_is_the_cut_to_the_first_channels(name):
    graph, x = traced(name)
    slimmable = Slimmable(graph)
    with torch.no_grad():
        for width in (1.0, 0.6, 0.25):
            sizes = slimmable.sizes(width)
            cut = graph if width == 1 else compress(graph, {n: list(range(size)) for n, size in sizes.items()})
            assert deviation(slimmable.at(width)(x), cut(x)) < 1e-10
            assert deviation(slimmable.extract(width)(x), cut(x)) < 1e-10


@pytest.mark.parametrize("name", ["paper/lenet5", "resnext", "vit", "mobilenet_v3", "densenet"])
def test_gradients_reach_the_one_set_of_weights(name):
    graph, x = traced(name)
    slimmable = Slimmable(graph)
    slimmable.at(0.5)(x).square().sum().backward()
    small = slimmable.extract(0.5)
    small(x).square().sum().backward()
    views = slimmable.at(0.5).parameters()
    for parameter, tensor in small.module.named_parameters():
        whole = graph.tensors()[parameter]
        if whole.grad is not None:
            (expected,) = torch.autograd.grad(views[parameter], whole, tensor.grad)
            assert torch.allclose(whole.grad, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_sorted_channels_give_the_same(name):
    graph, x = traced(name)
    with torch.no_grad():
        assert deviation(slim(graph)(x), graph(x)) < 1e-10


@given(st.integers(0, 10**6), st.floats(0.25, 1.0))
@settings(max_examples=40, deadline=None)
def test_random_networks_at_random_widths(seed, width):
    graph, x, _ = typed(RandomNetwork(seed, steps=5), (3, 4, 4), seed=seed)
    if not any(space.outer for space in graph.spaces):
        return
    slimmable = Slimmable(graph)
    with torch.no_grad():
        assert deviation(slim(graph, importance="random", seed=seed)(*x), graph(*x)) < 1e-10
        assert deviation(slimmable.at(width)(*x), slimmable.extract(width)(*x)) < 1e-10


def test_spaces_can_have_widths_of_their_own():
    graph, x = traced("paper/lenet5")
    slimmable = Slimmable(graph)
    width = {"conv1": 3, "fc1": 0.5}
    assert slimmable.sizes(width) == {"conv1": 3, "conv2": 16, "fc1": 60, "fc2": 84}
    assert slimmable.at(width)(x).shape == (2, 10)
    assert slimmable.at(width) is slimmable.at({"fc1": 60, "conv1": 3})


def test_widths_are_read_from_text():
    assert parse_width("0.5") == 0.5
    sizes = {"conv1": 3, "layer1.0.conv1:2": 60}
    assert parse_width(key_of(sizes)) == sizes
    for text in ("half", "conv1=0.5", "=3", "conv1=3,", ""):
        with pytest.raises(gs.SurgeryError, match=r"has no known form; write 0.5, or channels of spaces"):
            parse_width(text)


ROUNDED = [(64, 0.5, 8, 32), (20, 0.5, 8, 16), (18, 0.9, 8, 16), (100, 0.35, 8, 32), (10, 0.25, 8, 8), (10, 1.0, 8, 10)]


@pytest.mark.parametrize(("size", "width", "round_to", "expected"), [*ROUNDED, (7, 0.25, 1, 2)])
def test_sizes_are_rounded_as_in_the_paper(size, width, round_to, expected):
    graph, _, _ = typed(nn.Sequential(nn.Linear(3, size), nn.ReLU(), nn.Linear(size, 2)), (3,))
    assert Slimmable(graph, round_to=round_to).sizes(width) == {"0": expected}


def _task():
    torch.manual_seed(0)
    x = torch.randn(512, 10)
    return TensorDataset(x, (x[:, :4].argmax(1)))


def _trained(rule):
    """The accuracies of the widest and of the narrowest network, and the losses of the last epoch."""
    torch.manual_seed(0)
    data = _task()
    layers = [nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)]
    graph = gs.trace(nn.Sequential(*layers), torch.zeros(2, 10))
    slimmable = Slimmable(graph)
    objective = Sandwich(slimmable, CrossEntropy(4), rule=rule)
    plan = TrainingPlan(epochs=20, lr=0.1, device="cpu")
    history = fit(graph.module, data, plan, objective=objective, validation=data, reporter=SilentReporter())
    graph.module.train()
    x, y = data.tensors
    narrow = float((slimmable.at(0.25)(x).argmax(1) == y).float().mean())
    return history.records[-1].validation["accuracy"], narrow, history.records[-1].train


def test_training_by_the_rules():
    found = {rule: _trained(rule) for rule in ("sandwich", "random", "widest")}
    assert found["sandwich"][0] > 0.8
    assert found["widest"][0] > 0.8
    assert found["sandwich"][1] > 0.7 > found["widest"][1]
    assert {rule: "narrowest" in losses for rule, (_, _, losses) in found.items()} == {
        "sandwich": True,
        "random": False,
        "widest": False,
    }


def test_before_the_warm_up_narrow_networks_learn_labels_and_then_the_widest():
    graph, x = traced("paper/lenet_300_100")
    slimmable, labels = Slimmable(graph), torch.tensor([1, 2])
    objective = Sandwich(slimmable, CrossEntropy(10), widths=2, warmup=0.5)
    task = CrossEntropy(10)
    narrow = slimmable.at(0.25)
    with torch.no_grad():
        wide = task.loss(graph.module, (x, labels))["total"]
        objective.on_step(0.2)
        before = objective.loss(graph.module, (x, labels))
        objective.on_step(0.7)
        after = objective.loss(graph.module, (x, labels))
        hard = nn.functional.cross_entropy(narrow(x), labels)
        soft = -(graph(x).softmax(1) * narrow(x).log_softmax(1)).sum(1).mean()
    assert float(before["total"]) == pytest.approx(float(wide + hard))
    assert float(after["total"]) == pytest.approx(float(wide + soft))


class WithAuxiliary(nn.Module):
    """Gives what an auxiliary head says, too, in training."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.side = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        return (self.head(x), self.side(x)) if self.training else self.head(x)


def test_narrow_networks_with_auxiliary_heads_learn_from_the_widest_too():
    torch.manual_seed(0)
    x, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    graph = gs.trace(WithAuxiliary(), x)
    slimmable = Slimmable(graph)
    objective = Sandwich(slimmable, CrossEntropy(3), widths=2, warmup=0.0)
    graph.module.train()
    with torch.no_grad():
        found = objective.loss(graph.module, (x, labels))["narrowest"]
        soft = graph.module(x)[0].softmax(1)
        main, side = (-(soft * output.log_softmax(1)).sum(1).mean() for output in slimmable.at(0.25)(x))
    assert float(found) == pytest.approx(float(main + 0.3 * side))


@pytest.mark.parametrize("name", FEW)
def test_statistics_travel_as_text(name):
    graph, x = traced(name)
    small = Slimmable(graph).extract(0.5)
    packed = pack_norms(small.module)
    again = Slimmable(graph).extract(0.5)
    for part in again.module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
    unpack_norms(again.module, packed)
    with torch.no_grad():
        assert deviation(again(x), small(x)) == 0


def _switchable(name, widths=(0.25, 0.5)):
    """A switchable network whose narrow BatchNorms have values of their own, and inputs for it."""
    graph, x = traced(name)
    slimmable = Slimmable(graph, switchable=widths)
    torch.manual_seed(3)
    for width in widths:
        for norm in batch_norms(slimmable.at(width).module).values():
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            norm.running_mean.normal_(0, 0.2)
    return slimmable, x


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3", "densenet"])
def test_switchable_norms_belong_to_one_width(name):
    slimmable, x = _switchable(name)
    graph = slimmable.graph
    before = graph(x)
    for width in (0.25, 0.5):
        cut = compress(graph, {n: list(range(size)) for n, size in slimmable.sizes(width).items()})
        with torch.no_grad():
            assert deviation(slimmable.at(width)(x), cut(x)) > 1e-3
            for path, norm in batch_norms(slimmable.at(width).module).items():
                cut.module.get_submodule(path).load_state_dict(norm.state_dict())
            assert deviation(slimmable.at(width)(x), cut(x)) < 1e-10
            assert deviation(slimmable.extract(width)(x), cut(x)) < 1e-10
    with torch.no_grad():
        assert deviation(graph(x), before) == 0


def test_switchable_norms_are_trained_with_the_network():
    slimmable, _ = _switchable("resnet18", (0.5,))
    graph = slimmable.graph
    count = len(batch_norms(graph.module))
    own = sum(1 for _ in slimmable.trained_module().parameters())
    assert own == sum(1 for _ in graph.module.parameters()) + 2 * count
    graph.module.train()
    slimmable.at(0.5)(torch.randn(2, 3, 32, 32, dtype=torch.float64)).square().sum().backward()
    for norm in batch_norms(slimmable.at(0.5).module).values():
        assert norm.weight.grad.any()
    assert all(norm.weight.grad is None for norm in batch_norms(graph.module).values())
    assert graph.module.get_submodule("conv1").weight.grad.any()


def test_a_switchable_network_has_its_own_widths_only():
    slimmable, x = _switchable("resnet18")
    assert slimmable.switchable == (0.25, 0.5, 1.0)
    assert torch.equal(slimmable.at(1.0)(x), slimmable.graph(x))
    for width in (0.4, {"conv1": 3}):
        for use in (slimmable.at, slimmable.extract):
            with pytest.raises(
                gs.SurgeryError, match=r"no BatchNorms of its own; the widths that have are 0.25, 0.5, 1"
            ):
                use(width)
    with pytest.raises(gs.SurgeryError, match=r"the width is 0.1, expected 0.25 to 1"):
        Slimmable(slimmable.graph, switchable=(0.1,))
    with pytest.raises(gs.SurgeryError, match="this network has no BatchNorm that widths could have"):
        Slimmable(traced("paper/lenet5")[0], switchable=(0.5,))
    with pytest.raises(gs.SurgeryError, match="rule random is not for switchable BatchNorms"):
        Sandwich(slimmable, CrossEntropy(10), rule="random")


def test_each_step_trains_all_switchable_widths():
    slimmable, _ = _switchable("resnet18", (0.25, 0.5, 0.75))
    assert Sandwich(slimmable, CrossEntropy(10), widths=2).chosen() == [0.25, 0.5, 0.75]


def test_the_whole_width_is_the_network_itself():
    graph, x = traced("resnet18")
    slimmable = Slimmable(graph)
    with torch.no_grad():
        slimmable.at(1.0)
        graph.module.bn1.running_mean.add_(1.0)
        assert torch.equal(slimmable.at(1.0)(x), graph(x))


def test_the_network_at_a_width_in_onnx_runtime(tmp_path):
    graph, _ = traced("shallow resnet18")
    graph.module.float()
    half = Slimmable(graph, round_to=8).extract(0.5)
    gs.export_onnx(half, tmp_path / "half.onnx")
    assert gs.check_onnx(half, tmp_path / "half.onnx").holds


BAD = {
    "below": (0.1, r"the width is 0.1, expected 0.25 to 1"),
    "above": (1.2, r"the width is 1.2, expected 0.25 to 1"),
    "space": ({"conv9": 3}, r"conv9 is not a space of this model"),
    "count": ({"conv1": 9}, r"space conv1 has 6 channels, cannot have 9"),
    "share": ({"conv1": 0.1}, r"the width of space conv1 is 0.1"),
}


@pytest.mark.parametrize("case", BAD)
def test_widths_out_of_range_are_refused(case):
    width, message = BAD[case]
    graph, _ = traced("paper/lenet5")
    with pytest.raises(gs.SurgeryError, match=message):
        Slimmable(graph).at(width)


def test_other_bad_input_is_refused():
    graph, _ = traced("paper/lenet5")
    for options, message in (({"min_width": 0.0}, "smallest width is 0"), ({"round_to": 0}, "round_to is 0")):
        with pytest.raises(gs.SurgeryError, match=message):
            Slimmable(graph, **options)
    for options, message in (
        ({"rule": "x"}, "rule is 'x'"),
        ({"widths": 1}, "1 widths"),
        ({"warmup": 2.0}, "warmup is 2"),
    ):
        with pytest.raises(gs.SurgeryError, match=message):
            Sandwich(Slimmable(graph), CrossEntropy(10), **options)
    single, _, _ = typed(nn.Linear(3, 2), (3,))
    for refused in (lambda: Slimmable(single), lambda: slim(single)):
        with pytest.raises(gs.SurgeryError, match="no space can be slimmed"):
            refused()
    with pytest.raises(gs.SurgeryError, match="this network has gates"):
        Slimmable(gate(graph))
    with pytest.raises(gs.SurgeryError, match="importance best is unknown"):
        slim(graph, importance="best")
    other, _ = traced("resnet18")
    with pytest.raises(gs.SurgeryError, match="the stored statistics do not fit"):
        unpack_norms(other.module, {})
    assert key_of({"a": 1, "b": 2}) == "a=1,b=2"
