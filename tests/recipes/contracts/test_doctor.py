import collections
import copy
import dataclasses
import json
import math

import pytest
import torch
from torch import fx, nn
from zoo import model, traced

import graphsurgery as gs
from graphsurgery.graph import InputSpec
from graphsurgery.models.loading import open_pair
from graphsurgery.network.outputs.naming import named_outputs, run
from graphsurgery.recipes.contracts import doctor, pass_contracts
from graphsurgery.recipes.contracts.contract import TOLERANCES, Contract
from graphsurgery.recipes.contracts.doctor import examine
from graphsurgery.recipes.contracts.held import EDGES, UNUSED
from graphsurgery.recipes.contracts.subjects import calibrate, draw_inputs, light_copy, randomize, redraw, skeleton
from graphsurgery.recipes.contracts.trace_contracts import TraceContracts
from graphsurgery.surgery.deviation import UnlikeError, apart, changed_by, deviation, double

MIXED = "gates 0 or 1 = compressed, mixed spaces"
SIZES = "traced = eager, another resolution"
TRAINING = "traced = eager, training"


class Transformer(nn.Module):
    """One block with LayerNorm, attention and dropout; `[batch, 5, 4]` to `[batch, 3]`."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(x)).mean(1))


class Graphs(nn.Module):
    """Two rounds of sums over the edges `[2, edges]` that number nodes; `[nodes, 4]` to `[nodes, 3]`."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, nodes, edges):
        if edges.size(0) != 2:
            raise ValueError("edges are pairs")
        x = self.first(nodes).relu()
        x = x.index_add(0, edges[1], self.second(x)[edges[0]]).relu()
        return self.head(x)


def statuses(report):
    return {contract.name: contract.status for contract in report.contracts}


SLIM = ("slim at width 1 = original", "slim at width w = compressed to the first channels")
SLIMMED = (
    "resnet18",
    "densenet",
    "mobilenet_v2",
    "resnext",
    "mobilenet_v3",
    "shufflenet_v2",
    "vit",
)


@pytest.mark.parametrize("name", SLIMMED)
def test_the_contracts_of_slimming_hold(name):
    found = {contract.name: contract for contract in examine(traced(name)[0], only=SLIM).contracts}
    assert tuple(found) == SLIM
    assert all(contract.status == "holds" for contract in found.values())


def test_dropout_falls_on_the_same_elements_whatever_the_memory_layout():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True).eval()
    graph = gs.trace(layer, torch.zeros(2, 5, 8))
    assert statuses(examine(graph, layer, onnx=False))[TRAINING] == "holds"
    x = torch.ones(4, 3)
    same = [run(nn.Dropout(0.5), [y], 0)["0"] for y in (x, x.t().contiguous().t())]
    assert torch.equal(*same)
    assert set(same[0].flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(run(nn.Dropout(0.5, inplace=True), [x.clone()], 0)["0"], same[0])


def test_slimming_is_examined_on_demand_only():
    graph, _ = traced("paper/lenet5")
    assert not set(SLIM) & statuses(examine(graph, onnx=False)).keys()
    assert set(SLIM) <= statuses(examine(graph, onnx=False, slim=True)).keys()


def test_what_cannot_be_slimmed_is_refused():
    (contract,) = examine(gs.trace(nn.Linear(4, 3), torch.zeros(2, 4)), only=SLIM).contracts
    assert contract.name == SLIM[0]
    assert "no space can be slimmed" in contract.refused


@pytest.mark.parametrize("spec", ["paper/mlp", "paper/cnn?width=4", "paper/resnet20?width=4&in_channels=1"])
def test_every_contract_holds(spec):
    graph, module = open_pair(spec)
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    report = examine(graph, module, slim=True)
    found = statuses(report)
    assert found.pop(SIZES) == ("not measured" if spec == "paper/mlp" else "holds")
    assert found == {name: "holds" for name in TOLERANCES if name not in (MIXED, SIZES)}
    assert report.holds
    assert report.parameters == sum(p.numel() for p in module.parameters())
    assert 0.9 < report.editable <= 1
    assert 0 < report.kept < 0.6
    torch.testing.assert_close(dict(graph.module.state_dict()), before, rtol=0, atol=0)


class Recurrent(nn.Module):
    """A layer in both directions, and a cell over its states; `[batch, 2, 4]` to `[batch, 3]`."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(4, 8), nn.Linear(6, 3)
        self.layer, self.cell = nn.GRU(8, 5, batch_first=True, bidirectional=True), nn.LSTMCell(10, 6)

    def forward(self, x):
        x, state = self.layer(torch.tanh(self.embed(x)))[0], None
        for step in range(2):
            state = self.cell(x[:, step], state)
        return self.head(state[0])


def test_recurrent_networks_hold_every_contract():
    torch.manual_seed(0)
    module = Recurrent().eval()
    graph = gs.trace(module, torch.zeros(2, 2, 4))
    report = examine(graph, module)
    found = statuses(report)
    for name in ("gates open = no gates", "gates folded = gated", "gates 0 or 1 = compressed"):
        assert found[name] == "holds"
        assert "cannot be gated" not in next(c.note for c in report.contracts if c.name == name)
    assert set(found.values()) <= {"holds", "not measured"}


def test_mixed_spaces_are_stated_and_not_promised():
    module = Transformer().eval()
    report = examine(gs.trace(module, torch.zeros(2, 5, 4)), module, onnx=False)
    assert statuses(report)[MIXED] == "stated"
    contract = next(c for c in report.contracts if c.name == MIXED)
    assert contract.measured > 1e-6
    assert "not exact: 1 spaces are mixed by layer_norm" in contract.note
    assert set(statuses(report).values()) == {"holds", "stated", "not measured"}
    absent = next(c.absent for c in report.contracts if c.name == SIZES)
    assert absent == "no input has height and width"


def test_a_pass_that_refuses_gives_its_reason():
    report = examine(gs.trace(nn.Linear(4, 3), torch.zeros(2, 4)), onnx=False)
    refused = {c.name: c.refused for c in report.contracts if c.status == "refused"}
    assert "no space can be gated" in refused["gates open = no gates"]
    assert "no channel can be removed" in refused["compressed keeps its spaces"]
    assert report.holds
    assert report.kept is None


def test_a_mistake_in_a_pass_is_a_finding(monkeypatch):
    def broken(*_args, **_kwargs):
        raise IndexError("index 4 is out of range")

    monkeypatch.setattr(pass_contracts, "concatenate", broken)
    graph, _ = open_pair("paper/mlp")
    report = examine(graph, onnx=False)
    contract = next(c for c in report.contracts if c.name == "concatenated = mean of two")
    assert (contract.status, contract.note) == ("fails", "IndexError: index 4 is out of range")
    assert not report.holds
    assert "Infinity" not in json.dumps(report.as_dict())


def test_a_wrong_trace_is_found():
    graph, module = open_pair("paper/mlp")

    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = module

        def forward(self, x):
            match x:
                case torch.Tensor():
                    return self.net(x) * 1.5
                case _:  # as the trace finds
                    return self.net(x)

    report = examine(graph, Other(), onnx=False)
    assert statuses(report)["traced = eager, evaluating"] == "fails"


class Twin(nn.Module):
    """A convolution and a norm, whose output `give` makes of the features; `[batch, 2, height, width]`."""

    def __init__(self, give):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)
        self.give = give

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        return self.give(self, x, self.head(x.mean((2, 3))))


Pair = collections.namedtuple("Pair", "out aux")


@pytest.mark.parametrize(
    "give",
    [
        lambda _, f, y: {"out": y, "features": [f, (f * 2,)]},
        lambda _, f, y: collections.OrderedDict(b=y, a=f),
        lambda m, f, y: Pair(y, None) if not m.training else Pair(y, f),
        lambda m, f, y: [y, f] if m.training else y,
        lambda m, _, y: (
            torch.nn.functional.dropout(y, 0.5, m.training) + torch.nn.functional.dropout(y, 0.1, m.training)
        ),
    ],
    ids=["nested", "ordered", "named tuple", "more in training", "dropout twice"],
)
def test_outputs_of_any_form_are_compared_in_both_modes(give):
    module = Twin(give)
    graph = gs.trace(module, torch.zeros(2, 2, 8, 8))
    contracts = TraceContracts(module, graph.inputs, large=False, seed=0).contracts
    assert [c.status for c in contracts] == ["holds"] * 4


def test_an_output_that_is_not_traced_fails():
    with pytest.raises(UnlikeError, match="1 outputs where 2 are expected: lacks aux"):
        apart({"out": torch.ones(2)}, {"out": torch.ones(2), "aux": torch.ones(2)})
    with pytest.raises(UnlikeError, match=r"output 0 has the shape \[2\], expected \[3\]"):
        apart({"0": torch.ones(2)}, {"0": torch.ones(3)})
    # A small output is not hidden by a large one.
    assert apart({"0": torch.ones(2), "1": torch.zeros(2)}, {"0": torch.ones(2), "1": torch.tensor([1e-9, 0])}) == 1


def test_named_outputs_of_a_dataclass():
    @dataclasses.dataclass
    class Output:
        logits: torch.Tensor
        loss: torch.Tensor | None = None

    assert list(named_outputs((Output(torch.ones(1)), {"a": [torch.ones(1), 2.0]}))) == ["0.logits", "1.a.0", "1.a.1"]


def test_statistics_after_training_are_compared():
    class Restless(Twin):
        def forward(self, x):
            y = super().forward(x)
            if type(x) is torch.Tensor and self.training and not isinstance(x, fx.Proxy):
                self.norm.running_mean += 1.0
            return y

    module = Restless(lambda _m, _f, y: y)
    contracts = TraceContracts(module, [InputSpec("x", (2, 2, 8, 8))], large=False, seed=0).contracts
    found = {c.name: c for c in contracts}
    assert found["traced = eager, evaluating"].status == "holds"
    assert found[TRAINING].status == "fails"


def test_buffers_may_hold_infinities():
    class Bounded(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)
            self.register_buffer("lowest", torch.tensor(-math.inf))

        def forward(self, x):
            return torch.clamp(super().forward(x), self.lowest)

    contracts = TraceContracts(Bounded(), [InputSpec("x", (2, 3))], large=False, seed=0).contracts
    assert {c.name: c.status for c in contracts}[TRAINING] == "holds"


def test_a_trace_that_refuses_another_size_says_so():

    def give(_, f, y):
        return y * 2 if f.shape[-1] > 8 else y

    module = Twin(give)
    contracts = TraceContracts(module, [InputSpec("x", (2, 2, 8, 8))], large=False, seed=0).contracts
    found = {c.name: c for c in contracts}
    assert found[SIZES].status == "refused"
    assert "trace the model at this input size" in found[SIZES].refused


def test_a_trace_that_breaks_at_another_size_fails():
    class Fixed(Twin):
        def forward(self, x):
            y = super().forward(x)
            match x:
                case torch.Tensor():
                    return y
                case _:  # as the trace finds
                    return y + x.flatten(1) @ torch.ones(128, 3, dtype=torch.float64)

    module = Fixed(lambda _m, _f, y: y)
    contracts = TraceContracts(module, [InputSpec("x", (2, 2, 8, 8))], large=False, seed=0).contracts
    found = {c.name: c for c in contracts}
    assert found[SIZES].status == "fails"
    assert "40x72: the trace does not run: RuntimeError" in found[SIZES].note


def test_a_size_that_the_original_refuses_is_not_measured():
    def give(_, f, y):
        torch._assert(f.shape[-1] == 8, "wrong size")
        return y

    module = Twin(give)
    contracts = TraceContracts(module, [InputSpec("x", (2, 2, 8, 8))], large=False, seed=0).contracts
    found = {c.name: c for c in contracts}
    assert found[SIZES].status == "not measured"
    assert "16x16: the module refuses it too: wrong size" in found[SIZES].absent


def test_what_float64_does_not_fit_is_measured_in_float32():
    module = Twin(lambda m, f, y: y + m.head(f.mean((2, 3)).float()))
    report = examine(gs.trace(module, torch.zeros(2, 2, 8, 8)), module, onnx=False)
    assert report.holds
    assert all("in float32" in c.note for c in report.contracts if c.measured is not None)
    # Where the module is not compared, what the network casts is float64 too.
    names = ("dead channels pruned = masked", "saved and loaded = original")
    again = examine(gs.trace(module, torch.zeros(2, 2, 8, 8)), module, onnx=False, only=names)
    assert [(c.name, c.status, c.note) for c in again.contracts] == [(name, "holds", "") for name in names]


def test_large_networks_are_measured_on_a_cut(monkeypatch):
    monkeypatch.setattr(doctor, "LARGE", 100)
    graph, module = open_pair("paper/mlp")
    report = examine(graph, module, onnx=False)
    assert report.holds
    assert report.parameters == 301
    notes = {c.name: c.note for c in report.contracts}
    assert notes["traced = eager, evaluating"] == "in float32"
    assert notes["gates open = no gates"] == "on a cut to 41% of every space"


def test_a_graph_without_values_gives_the_same_report(monkeypatch):
    monkeypatch.setattr(doctor, "LARGE", 1000)
    module = model("shallow resnet18").float()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.empty(2, 3, 32, 32)
    reports = [examine(gs.trace(m, x), module, onnx=False).as_dict() for m in (module, skeleton(module))]
    for report in reports:
        report.pop("seconds")
        for contract in report["contracts"]:
            contract.pop("seconds")
    assert reports[0] == reports[1]
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


def test_a_module_without_values_is_measured_on_drawn_ones():
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    report = examine(gs.trace(module, torch.empty(2, 3, 8, 8)), module, onnx=False)
    found = statuses(report)
    assert {found.pop(name) for name in list(found) if name.startswith("traced")} == {"not measured"}
    assert set(found.values()) == {"holds"}
    with torch.device("meta"):
        normed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    report = examine(gs.trace(normed, torch.empty(2, 3, 8, 8)), normed, onnx=False)
    assert set(statuses(report).values()) == {"not measured"}
    assert "buffer 1.running_mean holds no values" in report.contracts[-1].absent


def test_what_is_too_large_and_cannot_be_cut_is_not_measured(monkeypatch):
    monkeypatch.setattr(doctor, "LARGE", 2)
    module = nn.Linear(4, 3)
    report = examine(gs.trace(module, torch.zeros(2, 4)), onnx=False)
    assert set(statuses(report).values()) == {"not measured"}
    assert "too large to be measured in float64, and a narrow cut is refused" in report.contracts[0].absent


class Held(nn.Module):
    """Two linear layers of which the second reads what is frozen on purpose, and one that no one uses."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.unused = nn.Linear(5, 5)

    def forward(self, x):
        return self.third(self.second(torch.linalg.pinv(self.first(x)).mT).relu())


def test_held_parameters_have_a_reason():
    module = Held()
    graph = gs.trace(module, torch.zeros(2, 4))
    report = examine(graph, module, onnx=False)
    # The first layer writes frozen channels; the second reads them, and writes a space that the third reads.
    reason = "linalg_pinv is of a matrix as a whole, and of one with rows of zeros there is none"
    assert dict(report.held) == {reason: 40, EDGES: 2, UNUSED: 30}
    assert report.held[0][0] == reason
    assert sum(count for _, count in report.held) == round((1 - report.editable) * report.parameters)


def test_double_keeps_the_function():
    graph, _ = open_pair("paper/cnn?width=4")
    twice = double(graph)
    x = graph.example_inputs()
    graph.module.eval()
    assert [spec.dtype for spec in twice.inputs] == [torch.float64]
    assert [s.name for s in twice.spaces] == [s.name for s in graph.spaces]
    assert deviation(twice(x[0].double()), graph(*x)) < 1e-5


def test_randomize_shows_what_fresh_networks_hide():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).double()
    nn.init.zeros_(module[3].weight)
    twin = copy.deepcopy(module)
    randomize(module, 0)
    assert module[3].weight.abs().max() > 0.1
    assert module[1].running_var.unique().numel() == 4
    assert bool(((module[1].weight >= 0.5) & (module[1].weight <= 1.5)).all())
    randomize(twin, 0)
    torch.testing.assert_close(dict(module.state_dict()), dict(twin.state_dict()), rtol=0, atol=0)


def deep(width=8, layers=30):
    """A deep network whose signal fades where its norms have the statistics of a fresh network."""
    blocks: list[nn.Module] = []
    for _ in range(layers):
        blocks += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, width, 1), *blocks, nn.Flatten(), nn.LazyLinear(3))


def test_outputs_depend_on_the_inputs_of_a_deep_network():
    module = deep()
    module(torch.zeros(2, 2, 8, 8))
    specs = (InputSpec("x", (2, 2, 8, 8)),)
    module = module.double().eval()
    randomize(module, 0)
    modes = [m.training for m in module.modules()]

    def sensitivity():
        outputs = [run(module, draw_inputs(specs, 2, seed, torch.float64), 0) for seed in (0, 1)]
        return apart(*outputs)

    assert sensitivity() < 1e-3
    calibrate(module, specs, torch.float64, 0)
    assert sensitivity() > 0.01
    assert [m.training for m in module.modules()] == modes
    assert all(m.momentum == 0.1 for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    report = examine(gs.trace(module, torch.zeros(2, 2, 8, 8)), module, onnx=False)
    assert report.holds
    assert report.sensitivity > 0.01


def test_calibration_leaves_no_norm_with_the_statistics_of_its_inputs():
    module = nn.Sequential(nn.BatchNorm2d(3)).double()
    specs = (InputSpec("x", (2, 3, 8, 8)),)
    calibrate(module, specs, torch.float64, 0)
    (x,) = draw_inputs(specs, 32, 1, torch.float64)
    away = (module[0].running_mean - x.mean((0, 2, 3))).abs()
    assert bool((away > 1e-6).all() and (away < 0.2).all())
    assert bool((module[0].running_var > 0.5).all())


def test_a_light_copy_keeps_the_values_of_the_original():
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
    nn.init.zeros_(module[2].weight)
    before = copy.deepcopy(module.state_dict())
    light = light_copy(module)
    assert light[0].weight.data_ptr() == module[0].weight.data_ptr()
    randomize(light, 0)
    calibrate(light, (InputSpec("x", (2, 2, 8, 8)),), torch.float32, 0)
    redraw(light, 1)
    assert not torch.equal(light[0].weight, module[0].weight)
    torch.testing.assert_close(dict(module.state_dict()), dict(before), rtol=0, atol=0)


def test_weights_far_above_their_scale_are_tamed():
    module = nn.Sequential(nn.Linear(100, 4), nn.Linear(4, 100))
    nn.init.normal_(module[0].weight, std=10.0)
    module[1].weight.data.fill_(0.4)
    kept = module[1].weight.clone()
    randomize(module, 0)
    assert float(module[0].weight.detach().std()) == pytest.approx(0.1, rel=1e-3)
    torch.testing.assert_close(module[1].weight, kept, rtol=0, atol=0)


def test_infinity_fails():
    assert Contract("saved and loaded = original", math.inf, 0.0, 0.0).status == "fails"


class Steep(nn.Module):
    """Rounding in its first layer is seen in its outputs, the more the steeper it is."""

    def __init__(self, steepness):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.steepness = steepness

    def forward(self, x):
        return self.last(torch.sin(self.first(x) * self.steepness))


@pytest.mark.parametrize(("steepness", "status"), [(1.0, "holds"), (1e4, "holds"), (1e7, "not measured")])
def test_what_float32_cannot_tell_is_no_failure_of_onnx(steepness, status):
    name = "ONNX Runtime = PyTorch, compressed"
    torch.manual_seed(0)
    (contract,) = examine(gs.trace(Steep(steepness), torch.zeros(2, 4)), only=[name]).contracts
    assert contract.status == status
    assert contract.allowed == TOLERANCES[name] if steepness != 1e4 else 1e-4 < contract.allowed < 2e-2
    assert ("rounding to float32" in contract.note + contract.absent) == (steepness > 1)


def test_a_network_that_enlarges_rounding_is_excused_within_bounds(monkeypatch):
    name = "widened = original"
    torch.manual_seed(0)
    steep = gs.trace(nn.Sequential(nn.Linear(4, 4), Steep(1e6)), torch.zeros(2, 4))
    (contract,) = examine(steep, only=["widened = original"]).contracts[:1]
    assert contract.status == "holds"
    assert TOLERANCES[name] < contract.allowed < 1e-8
    assert "rounding the input" in contract.note
    real = pass_contracts.widen
    monkeypatch.setattr(pass_contracts, "widen", lambda graph, by, **kw: off(real(graph, by, **kw)))
    (contract,) = examine(steep, only=["widened = original"]).contracts[:1]
    assert contract.status == "fails"


def test_what_numbers_nodes_stays_among_the_nodes_that_are_drawn():
    torch.manual_seed(0)
    edges = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 5, 5, 0]])
    graph = gs.trace(Graphs(), [torch.randn(6, 4), edges])
    report = examine(graph, onnx=False, slim=True)
    found = {name: status for name, status in statuses(report).items() if status != "not measured"}
    assert found == dict.fromkeys(found, "holds")
    assert {"widened = original", "gates open = no gates", "aligned = original"} <= set(found)
    assert changed_by(graph, gs.widen(graph, 1.5)) < 1e-6
    assert int(graph.example_inputs(3)[1].max()) == 2
    assert "edges [2, 7]" in repr(graph)


def off(graph):
    """The network with a wrong weight."""
    next(graph.module.parameters()).data.view(-1)[0] += 1e-3
    return graph


def test_the_node_of_a_wrong_export_is_named(monkeypatch):
    import onnx

    from graphsurgery.onnx.exporting import exporter

    export = exporter.export_onnx

    def damaging(graph, path):
        export(graph, path)
        model = onnx.load(path)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("conv2.weight"))
        tensor.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(tensor), tensor.name))
        onnx.save(model, path)

    monkeypatch.setattr(exporter, "export_onnx", damaging)
    report = examine(*open_pair("paper/cnn?width=4"), onnx=True)
    contract = next(c for c in report.contracts if c.name.startswith("ONNX Runtime"))
    assert contract.status == "fails"
    assert "the first node that differs is" in contract.note
    assert "(Conv of" in contract.note


@pytest.mark.parametrize("edit", ["compress", "widen"])
def test_what_was_cut_and_grown_is_saved_too(edit, monkeypatch):
    graph, _ = traced("paper/lenet5")
    save = pass_contracts.save

    def refuses(network, path):
        if network.lineage[-1]["pass"] == edit:
            raise gs.SurgeryError(f"what {edit} made cannot be saved")
        save(network, path)

    (found,) = examine(graph, only=["saved and loaded = original"]).contracts
    assert found.status == "holds"
    monkeypatch.setattr(pass_contracts, "save", refuses)
    (found,) = examine(graph, only=["saved and loaded = original"]).contracts
    assert found.refused == f"what {edit} made cannot be saved"
