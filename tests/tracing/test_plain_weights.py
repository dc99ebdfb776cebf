"""Weights that a module computes from others become weights."""

import copy
from functools import partial

import pytest
import torch
from contracts import Network, assert_contracts
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import graphsurgery as gs
from graphsurgery.models.mask_files import open_masks
from graphsurgery.passes.compress import compress
from graphsurgery.recipes.contracts.doctor import examine
from graphsurgery.surgery.deviation import deviation
from graphsurgery.surgery.masks.mask_set import MaskSet
from graphsurgery.tracing.plain_weights import with_plain_weights

WAYS = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight norm": nn.utils.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "pruned": partial(prune.random_unstructured, name="weight", amount=0.4),
}


def network(way):
    torch.manual_seed(0)
    return nn.Sequential(
        WAYS[way](nn.Conv1d(3, 8, 3)), nn.ReLU(), WAYS[way](nn.Conv1d(8, 6, 1)), nn.ReLU(), nn.Conv1d(6, 4, 1)
    ).double()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_the_trace_computes_the_same_with_plain_weights(way, training, tmp_path):
    model, x = network(way), torch.randn(2, 3, 9, dtype=torch.float64)
    model(x)  # some of them only know their weights after a call
    model.train(training)
    state = copy.deepcopy(model.state_dict())
    graph = gs.trace(model, x)
    assert graph.module.training is training
    assert [line.partition(" ")[0] for line in graph.lineage[0]["weights that were computed"]] == [
        "0.weight",
        "2.weight",
    ]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert set(graph.tensors()) == {f"{layer}.{name}" for layer in (0, 2, 4) for name in ("weight", "bias")}
    assert all(tensor.requires_grad for tensor in graph.tensors().values())
    with torch.no_grad():
        graph.module.eval()
        assert deviation(graph(x), model.eval()(x)) < 1e-12
        gs.save(graph, tmp_path / "m.pt")
        assert torch.equal(gs.load(tmp_path / "m.pt")(x), graph(x))
    assert compress(graph, 0.5).space("0").size == 4


@pytest.mark.parametrize("way", ["weight norm", "spectral norm", "orthogonal", "pruned"])
def test_every_pass_works_on_it(way):
    assert_contracts(network(way).eval(), (3, 9))


def test_in_onnx_runtime(tmp_path):
    graph = gs.trace(network("weight norm").float().eval(), torch.zeros(2, 3, 9))
    gs.export_onnx(graph, tmp_path / "m.onnx")
    assert gs.check_onnx(graph, tmp_path / "m.onnx").holds


def test_doctor_says_what_it_could_not_compare():
    model = network("spectral norm").float().eval()
    report = examine(gs.trace(model, torch.zeros(2, 3, 9)), model, onnx=False)
    assert report.holds
    found = {contract.name: contract for contract in report.contracts}
    assert "0.weight (SpectralNorm) is computed there" in str(found["traced = eager, training"])
    assert found["traced = eager, evaluating"].status == "holds"


def test_masks_that_are_not_removed_are_a_mask_set(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 2, 1))
    prune.random_unstructured(model[0], "weight", 0.5)
    prune.ln_structured(model[0], "weight", 0.25, 2, 0)  # a second mask over the first
    prune.random_unstructured(model[0], "bias", 0.5)
    prune.l1_unstructured(model[2], "weight", 0.5)
    with torch.no_grad():
        model[2].weight_orig.zero_()  # lives, whatever its value
        model[3].weight[0, 0] = 0
    graph = gs.trace(model, torch.zeros(2, 2, 3, 3))
    masks = MaskSet.pruned(graph, model)
    assert torch.equal(masks["0.weight"], model[0].weight_mask.bool())
    assert torch.equal(masks["2.weight"], model[2].weight_mask.bool())
    assert masks["3.weight"].flatten().tolist() == [False] + [True] * 5
    assert graph.lineage[0]["weights that were computed"] == [
        "0.weight (PruningContainer)",
        "0.bias (RandomUnstructured)",
        "2.weight (L1Unstructured)",
    ]
    torch.save(model, tmp_path / "model.pt")
    assert open_masks(str(tmp_path / "model.pt"), trust_pickle=True, example_shape=(2, 3, 3)) == masks


OVER = {
    "old": (nn.utils.weight_norm, lambda layer: (layer, "weight_v")),
    "old spectral": (nn.utils.spectral_norm, lambda layer: (layer, "weight_orig")),
    "new": (parametrizations.weight_norm, lambda layer: (layer.parametrizations.weight, "original1")),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", OVER)
def test_a_mask_over_a_part_of_a_weight(way, tmp_path):
    torch.manual_seed(0)
    wrap, place = OVER[way]
    model = nn.Sequential(wrap(nn.Linear(4, 5)), nn.Linear(5, 2))
    prune.random_unstructured(*place(model[0]), 0.5)
    x = torch.randn(3, 4)
    model.eval()
    graph = gs.trace(model, x)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-6, atol=1e-6)
    assert "0.weight " in " ".join(graph.lineage[0]["weights that were computed"])
    assert set(graph.tensors()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    gs.save(graph, tmp_path / "a.pt")


def test_attention_and_recurrent_layers():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    parametrizations.weight_norm(attention.out_proj)
    recurrent = parametrizations.weight_norm(nn.LSTM(8, 5, batch_first=True), "weight_hh_l0")
    model = Network(lambda n, x: n.rnn(n.attention(x, x, x)[0])[0], attention=attention, rnn=recurrent).double().eval()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    graph = gs.trace(model, x)
    with torch.no_grad():
        assert deviation(graph(x), model(x)) < 1e-12


def test_ties_stay_ties_and_frozen_weights_frozen():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 4))
    parametrize.register_parametrization(model[2], "weight", nn.Identity())
    model[2].parametrizations["weight"] = model[0].parametrizations["weight"]
    model.requires_grad_(False)
    plain, lines = with_plain_weights(model)
    assert lines == ["0.weight (WeightNorm)", "2.weight (WeightNorm)"]
    assert plain[0].weight is plain[2].weight
    assert type(plain[0]) is nn.Linear
    assert not any(parameter.requires_grad for parameter in plain.parameters())
    assert plain[0].bias is model[0].bias
    assert parametrize.is_parametrized(model[0])


def test_a_buffer_stays_one_and_a_root_has_its_own_name():
    layer = parametrizations.weight_norm(nn.Linear(3, 2))
    layer.register_buffer("scale", torch.ones(2))
    parametrize.register_parametrization(layer, "scale", nn.Softplus())
    plain, lines = with_plain_weights(layer)
    assert lines == ["weight (WeightNorm)", "scale (Softplus)"]
    assert set(dict(plain.named_buffers())) == {"scale"}
    assert torch.equal(plain.scale, layer.scale)
    assert gs.trace(layer, torch.zeros(2, 3)).lineage[0]["model"] == "Linear"


def test_a_model_without_them_is_not_copied():
    model = nn.Linear(3, 2)
    assert with_plain_weights(model) == (model, [])
