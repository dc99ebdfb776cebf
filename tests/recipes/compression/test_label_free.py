"""Recovery without labels: of networks with norms, and of files whose norms are folded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import graphsurgery as gs
from graphsurgery.models.loading import open_model
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.recipes.compression.label_free import check_calibration, label_free_plan, recover_without_labels
from graphsurgery.recipes.compression.recovery import Recovery
from graphsurgery.recipes.train import train
from graphsurgery.training.data import load_data
from graphsurgery.training.data.calibration import Calibration, calibration_of, read_examples
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.objectives.several_outputs import SeveralOutputs, reading_of


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def trained(digits):
    return train("paper/cnn?width=4", digits, TrainingPlan(epochs=2, device="cpu"), reporter=SilentReporter()).graph


@pytest.fixture(scope="module", params=["network", "file"])
def graph(request, trained, tmp_path_factory):
    if request.param == "network":
        return trained
    path = tmp_path_factory.mktemp("file") / "net.onnx"
    gs.export_onnx(trained, path)
    return import_onnx(path).graph


def recovered(graph, digits, epochs=2, data=None):
    calibration = calibration_of(digits)
    plan = label_free_plan(calibration, epochs, device="cpu")
    small = compress(graph, 0.6)
    return recover_without_labels(graph, small, calibration, plan, data=data, reporter=SilentReporter())


def test_agreement_comes_back_and_the_original_stays(graph, digits):
    before = {name: tensor.clone() for name, tensor in graph.tensors().items()}
    small, outcome = recovered(graph, digits)
    rows = {row.name: row.validation for row in outcome.rows}
    assert outcome.metric == "agreement"
    assert rows["original"]["agreement"] == pytest.approx(
        1, abs=1.5 / len(digits.validation)
    )  # answered in other batches
    assert rows["original"]["deviation"] < 1e-5
    assert rows["fine-tuned"]["deviation"] < 0.9 * rows["cut"]["deviation"]
    assert rows["fine-tuned"]["agreement"] > rows["cut"]["agreement"]
    assert small.lineage[-1]["recover"] == "mimic"
    for name, tensor in graph.tensors().items():
        assert torch.equal(tensor, before[name])


def test_labels_are_only_measured(trained, digits):
    """Another order of the labels changes what is measured, and nothing else."""
    x, y = digits.test.tensors
    wrong = replace(
        digits,
        train=TensorDataset(digits.train.tensors[0], digits.train.tensors[1].flip(0)),
        test=TensorDataset(x, y.flip(0)),
    )
    one, right = recovered(trained, digits, 1, data=digits)
    two, mixed = recovered(trained, wrong, 1, data=wrong)
    assert right.metric == "accuracy"
    assert right.rows[0].test["accuracy"] > 0.6 > 0.4 > mixed.rows[0].test["accuracy"]
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, two.tensors()[name])


def test_the_plan_is_some_two_thousand_steps(digits):
    calibration = calibration_of(digits)
    assert label_free_plan(calibration).epochs == 112
    assert label_free_plan(calibration, 0).epochs == 0
    assert label_free_plan(calibration, lr=0.5).lr == 0.5


def test_a_single_output_has_a_deviation_only():
    torch.manual_seed(0)
    graph = gs.trace(nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1)), torch.empty(2, 3))
    x = torch.randn(64, 3)
    part = TensorDataset(x, torch.full((64,), -1))
    calibration = Calibration(part, part, "points")
    plan = label_free_plan(calibration, 1, device="cpu")
    _, outcome = recover_without_labels(graph, compress(graph, 0.5), calibration, plan, reporter=SilentReporter())
    assert outcome.metric == "deviation"
    assert "agreement" not in outcome.rows[0].test


def test_what_does_not_fit_is_refused(trained, digits):
    calibration = calibration_of(digits)
    with pytest.raises(gs.SpecError, match=r"digits: has inputs \[1, 8, 8\], the network takes \[3, 32, 32\]"):
        check_calibration(calibration, open_model("paper/resnet20"))
    constant = gs.trace(Constant(), torch.empty(2, 1, 8, 8))
    with pytest.raises(gs.SpecError, match=r"the network gives 0 \[16, 3\]; expected numbers .* that differ"):
        check_calibration(calibration, constant)
    found = check_calibration(calibration, trained)
    assert not isinstance(found, SeveralOutputs)
    assert found.classes == 10


class Constant(nn.Module):
    """Gives the same counts for every example."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 3, 3)

    def forward(self, x):
        return self.layer(x).mean((2, 3)).argsort().detach() * 0


class Detector(nn.Module):
    """A map, boxes in pixels and scores: outputs of unlike shapes and scales, and one that is a count."""

    def __init__(self):
        super().__init__()
        self.stem, self.more = nn.Conv2d(1, 12, 3), nn.Conv2d(12, 12, 3)
        self.map, self.boxes = nn.Conv2d(12, 2, 1), nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.more(torch.relu(self.stem(x))))
        pooled = x.mean((2, 3))
        return {"map": self.map(x), "boxes": 640 * self.boxes(pooled), "first": pooled.argmax(1)}


def test_any_outputs_are_learnt_each_by_its_spread(digits):
    torch.manual_seed(0)
    module = Detector()
    graph = gs.trace(module, torch.empty(2, 1, 8, 8))
    calibration = calibration_of(digits)
    objective = check_calibration(calibration, graph)
    assert [(part.name, part.count) for part in objective.reading.parts] == [("map", 2 * 4 * 4), ("boxes", 4)]
    x = torch.stack([digits.train[n][0] for n in range(32)])
    with torch.no_grad():
        vector = objective.reading(graph.module(x))
    assert vector.shape == (32, 36)
    spread = (vector - vector.mean(0)).square()
    shares = [float(spread[:, :32].sum()), float(spread[:, 32:].sum())]
    assert 0.5 < shares[0] / shares[1] < 2  # although boxes are hundreds of times larger
    small = compress(graph, 0.5)
    plan = label_free_plan(calibration, 3, device="cpu")
    result, outcome = recover_without_labels(graph, small, calibration, plan, reporter=SilentReporter())
    cut, tuned = (row.validation["deviation"] for row in outcome.rows if row.name in ("cut", "fine-tuned"))
    assert tuned < 0.7 * cut
    assert outcome.metric == "deviation"
    before, after = ([o.detach() for o in m(x).values()] for m in (graph.module, result.module))
    for a, b in zip(before[:2], after[:2], strict=True):
        assert a.shape == b.shape


def test_of_large_outputs_some_numbers_are_compared():
    output = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    reading = reading_of({"map": output, "state": output[:2]}, 8)
    assert [(part.name, part.count) for part in reading.parts] == [("map", 2**13)]
    again = reading_of({"map": output}, 8)
    assert torch.equal(reading.parts[0].places, again.parts[0].places)
    vector = reading({"map": output})
    assert vector.shape == (8, 2**13)
    assert set(vector[0].mul(reading.parts[0].scale).round(decimals=4).tolist()) <= set(
        output[0].flatten().round(decimals=4).tolist()
    )


class Two(nn.Module):
    """Reads an image and words; gives scores, and a map of another scale."""

    def __init__(self):
        super().__init__()
        self.image, self.words = nn.Conv2d(1, 12, 3), nn.Embedding(10, 12)
        self.norm, self.scores, self.map = nn.BatchNorm2d(12), nn.Linear(12, 5), nn.Conv2d(12, 1, 1)

    def forward(self, image, words):
        found = torch.relu(self.norm(self.image(image)) + self.words(words).mean(1)[:, :, None, None])
        return self.scores(found.mean((2, 3))), 100 * self.map(found)


def arrays(folder, count=20, batched=True):
    generator = np.random.default_rng(0)
    images = generator.normal(size=(count, 1, 6, 6) if batched else (count, 1, 1, 6, 6)).astype(np.float32)
    words = generator.integers(0, 10, (count, 4) if batched else (count, 1, 4))
    np.savez(folder / "examples.npz", image=images, words=words)
    return folder


@pytest.mark.parametrize("batched", [True, False])
def test_networks_with_several_inputs_are_brought_back(tmp_path, batched):
    """Without a batch an example is a whole run; the batch norms are left as they are there."""
    torch.manual_seed(0)
    module = Two().eval()
    graph = gs.trace(module, [torch.randn(2, 1, 6, 6), torch.randint(0, 10, (2, 4))])
    if not batched:
        single = [replace(spec, shape=(1, *spec.shape[1:]), batched=False) for spec in graph.inputs]
        graph = replace(graph, inputs=tuple(single))
    calibration = read_examples(arrays(tmp_path, batched=batched), graph.inputs)
    small = compress(graph, 0.75)
    plan = label_free_plan(calibration, 40, lr=0.02, device="cpu")
    small, outcome = recover_without_labels(graph, small, calibration, plan, reporter=SilentReporter())
    rows = {row.name: row.validation["deviation"] for row in outcome.rows}
    assert rows["original"] < 1e-6
    assert rows["fine-tuned"] < 0.85 * rows["cut"]
    found = small.module(*Recovery(calibration=calibration).inputs())
    assert [tuple(t.shape) for t in found] == [(2 if batched else 1, 5), (2 if batched else 1, 1, 4, 4)]


def test_single_examples_are_refused_by_networks_with_several_inputs(tmp_path):
    graph = gs.trace(Two().eval(), [torch.randn(2, 1, 6, 6), torch.randint(0, 10, (2, 4))])
    part = TensorDataset(torch.randn(8, 1, 6, 6), torch.full((8,), -1))
    with pytest.raises(gs.SpecError, match=r"the network takes 2 \(image, words\); give a folder of .npz files"):
        check_calibration(Calibration(part, part, "images"), graph)
    with pytest.raises(gs.SpecError, match=r"has no .npz files; the network takes 2 inputs"):
        read_examples(tmp_path, graph.inputs)
