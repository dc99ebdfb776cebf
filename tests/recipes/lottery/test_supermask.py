"""Supermasks: masks that are learned, and what is delivered of them."""

from dataclasses import replace

import pytest
import torch
from rounding import alike
from torch import nn
from torch.nn.utils import parametrize

import graphsurgery as gs
from graphsurgery.models.supermasks import drawn, load_supermask, save_supermask
from graphsurgery.recipes.lottery.plans import SupermaskPlan
from graphsurgery.recipes.lottery.supermask import supermask
from graphsurgery.surgery.masks.mask_set import maskable
from graphsurgery.training.data import load_data
from graphsurgery.training.loop.evaluation import evaluate
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.loop.run import Run
from graphsurgery.training.objectives import CrossEntropy
from graphsurgery.training.objectives.learned_masks import BernoulliMask, TopKMask

SPEC = "paper/lenet_300_100?in_features=64"
TRAINING = TrainingPlan(epochs=4, batch_size=50, optimizer="sgd", lr=20.0, schedule="constant", device="cpu", seed=3)
SILENT = SilentReporter()


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


def layer(part, size=(30, 40), seed=0):
    torch.manual_seed(seed)
    linear = nn.Linear(size[1], size[0], bias=False).double()
    linear.weight.requires_grad_(False)
    parametrize.register_parametrization(linear, "weight", part(linear.weight))
    return linear, linear.parametrizations.weight[0]


@pytest.mark.parametrize("rescaled", [False, True])
def test_scores_get_the_gradient_of_the_mask(rescaled):
    linear, mask = layer(lambda w: BernoulliMask(w, rescaled=rescaled))
    linear.train()
    weight = linear.parametrizations.weight.original
    torch.manual_seed(1)
    used = linear.weight
    living = used != 0
    factor = living.numel() / int(living.sum()) if rescaled else 1.0
    torch.testing.assert_close(used.detach(), weight * living * factor)
    gradient = torch.randn(used.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad((used * gradient).sum(), mask.scores)
    torch.testing.assert_close(found, gradient * weight * factor * 0.25)
    assert 0.4 < float(living.double().mean()) < 0.6


def test_the_factor_may_be_differentiated_too():
    linear, mask = layer(lambda w: BernoulliMask(w, through_factor=True))
    torch.manual_seed(1)
    (found,) = torch.autograd.grad(linear.weight.square().sum(), mask.scores)
    torch.manual_seed(1)
    mask.through_factor = False
    (other,) = torch.autograd.grad(linear.weight.square().sum(), mask.scores)
    difference = found - other
    torch.testing.assert_close(difference, difference.flatten()[0].expand_as(difference))
    assert float(difference.abs().max()) > 0


def test_in_evaluation_the_mask_is_a_threshold_unless_draws_are_asked_for():
    linear, mask = layer(BernoulliMask)
    with torch.no_grad():
        mask.scores.normal_()
    linear.eval()
    assert torch.equal(linear.weight != 0, mask.scores > 0)
    assert torch.equal(linear.weight != 0, mask.mask())
    mask.sampling = True
    assert not torch.equal(linear.weight != 0, linear.weight != 0)


@pytest.mark.parametrize("count", [1, 120, 1200])
def test_top_k_has_exactly_that_many(count):
    linear, mask = layer(lambda w: TopKMask(w, count))
    for training in (True, False):
        linear.train(training)
        assert int((linear.weight != 0).sum()) == count
    gradient = torch.randn(linear.weight.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad((linear.weight * gradient).sum(), mask.scores)
    weight = linear.parametrizations.weight.original
    torch.testing.assert_close(found, gradient * weight * mask.scores.sign() * (1200 / count))


@pytest.mark.parametrize("part", [BernoulliMask, lambda w: TopKMask(w, 300)])
def test_living_weights_are_what_they_are_to_the_last_bit(part):
    """What is trained is the network that is delivered."""
    torch.manual_seed(0)
    weight = torch.randn(30, 40)
    mask = part(weight)
    with torch.no_grad():
        mask.scores.normal_().mul_(0.1)
    used = mask(weight)
    living = used != 0
    assert torch.equal(used[living], (weight * (1200 / int(living.sum())))[living])


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("method", ["learned", "top-k"])
def test_what_is_delivered_is_what_was_measured(method, constant, data, tmp_path):
    training = TRAINING if method == "learned" else replace(TRAINING, lr=0.2)
    plan = SupermaskPlan(method, training, constant=constant, **({"density": 0.3} if method == "top-k" else {}))
    outcome = supermask(SPEC, data, plan, reporter=SILENT).outcome
    found = outcome.supermask
    save_supermask(found, tmp_path / "mask.pt")
    network = load_supermask(tmp_path / "mask.pt").network()
    last = outcome.rows[-1]
    measured = evaluate(network.module, data.test, CrossEntropy(10))
    # The file has the constant as a factor of its own, which rounds otherwise.
    assert measured == alike(last.test, len(data.test))
    assert last.test["accuracy"] > outcome.row("untrained").test["accuracy"] + 0.3
    names = ["untrained", "sampled", "averaged", "thresholded"] if method == "learned" else ["untrained", "top-k"]
    assert [row.name for row in outcome.rows] == names
    initial = drawn(SPEC, 3, (1, 8, 8)).tensors()
    for name, weight in maskable(network).items():
        living = found.masks[name]
        assert torch.equal(weight.sign()[living], initial[name].sign()[living])
        assert not weight[~living].any()
        if method == "top-k":
            assert int(living.sum()) == round(0.3 * living.numel())
    assert torch.equal(network.tensors()["fc1.bias"], initial["fc1.bias"])


def test_networks_with_norms_keep_their_statistics(data, tmp_path):
    training = replace(TRAINING, epochs=1, lr=5.0)
    graph, outcome = supermask("paper/cnn?width=4", data, SupermaskPlan("learned", training), reporter=SILENT)
    found = outcome.supermask
    assert "norm1.running_mean" in found.buffers
    save_supermask(found, tmp_path / "mask.pt")
    network = load_supermask(tmp_path / "mask.pt").network()
    assert evaluate(network.module, data.test, CrossEntropy(10))["accuracy"] == outcome.rows[-1].test["accuracy"]
    assert all(torch.equal(tensor, graph.tensors()[name]) for name, tensor in network.tensors().items())


def test_a_search_goes_on_after_an_interruption(data, tmp_path):
    plan = SupermaskPlan("learned", replace(TRAINING, epochs=2))
    expected = supermask(SPEC, data, plan, reporter=SILENT).outcome.supermask

    class Stopping(SilentReporter):
        def epoch_finished(self, _):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supermask(SPEC, data, plan, run=Run(tmp_path), reporter=Stopping())
    found = supermask(SPEC, data, plan, run=Run(tmp_path), reporter=SILENT).outcome.supermask
    assert found.masks == expected.masks


def test_heuristic_masks_are_chosen_on_validation_data(data):
    training = TrainingPlan(epochs=4, batch_size=64, optimizer="adam", lr=2e-3, schedule="constant", device="cpu")
    plan = SupermaskPlan("heuristic", training, criteria=("large_final", "small_final", "snip"), densities=(0.5, 0.2))
    outcome = supermask(SPEC, data, plan, reporter=SILENT).outcome
    found = outcome.supermask
    assert [row.name for row in outcome.rows] == ["untrained", "trained", "large_final", "small_final", "snip"]
    rows = {row.name: row.validation["accuracy"] for row in outcome.rows[2:]}
    assert max(rows, key=rows.get) == "large_final"
    assert outcome.row("large_final").test["accuracy"] > outcome.row("untrained").test["accuracy"] + 0.2
    measured = evaluate(found.network().module, data.test, CrossEntropy(10))["accuracy"]
    assert measured == outcome.row("large_final").test["accuracy"]
    other = supermask(SPEC, replace(data, test=data.train), plan, reporter=SILENT).outcome.supermask
    assert other.masks == found.masks


def test_onnx_runtime_computes_the_delivered_network(data, tmp_path):
    found = supermask(
        SPEC, data, SupermaskPlan("learned", replace(TRAINING, epochs=1)), reporter=SILENT
    ).outcome.supermask
    network = found.network()
    gs.export_onnx(network, tmp_path / "mask.onnx")
    assert gs.check_onnx(network, tmp_path / "mask.onnx").holds


BAD = {
    "method": ({"method": "luck"}, r"method is 'luck'; choose from learned, top-k, heuristic"),
    "density": ({"density": 0.0}, r"density is 0, expected a share above 0"),
    "density of learned": ({"density": 0.1}, r"density is for top-k, not for learned"),
    "criteria of top-k": ({"method": "top-k", "criteria": ("snip",)}, r"criteria is for heuristic, not for top-k"),
    "no factor": ({"through_factor": True, "rescaled": False}, r"through_factor is of the factor that rescales"),
    "criterion": ({"criteria": ("best",)}, r"criterion 'best' is unknown"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_plans_are_refused(case):
    options, message = BAD[case]
    with pytest.raises(gs.SurgeryError, match=message):
        SupermaskPlan(**options)


def test_a_density_that_empties_a_tensor_is_refused(data):
    with pytest.raises(gs.SurgeryError, match=r"density 1e-05 of the 19200 weights of fc1.weight is none; keep more"):
        supermask(SPEC, data, SupermaskPlan("top-k", TRAINING, density=1e-5), reporter=SILENT)
