"""Students learn all that their teachers give, without labels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import graphsurgery as gs
from graphsurgery.recipes.mimicking.any_outputs import mimic_outputs
from graphsurgery.recipes.mimicking.plan import MimicPlan
from graphsurgery.training.data.calibration import Calibration, read_examples
from graphsurgery.training.imitation import Imitation
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.objectives.teachers import OnnxOutputs


class Boxes(nn.Module):
    """A map, and boxes in pixels."""

    def __init__(self, width=8, boxes=4):
        super().__init__()
        self.stem, self.map, self.boxes = nn.Conv2d(1, width, 3), nn.Conv2d(width, 2, 1), nn.Linear(width, boxes)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        return self.map(x), 640 * self.boxes(x.mean((2, 3)))


def traced(seed=0, **options):
    torch.manual_seed(seed)
    return gs.trace(Boxes(**options).eval(), torch.randn(2, 1, 6, 6))


@pytest.fixture(scope="module")
def examples():
    x = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    parts = [TensorDataset(part, torch.full((len(part),), -1)) for part in (x[:52], x[52:])]
    return Calibration(*parts, "noise")


PLAN = MimicPlan(TrainingPlan(epochs=30, lr=0.02, optimizer="adam", batch_size=26, device="cpu"))


def test_every_output_comes_nearer(examples):
    teacher, student = traced(0), traced(1, width=12)
    before = {name: tensor.clone() for name, tensor in student.tensors().items()}
    mimic, outcome = mimic_outputs(student, {"teacher": teacher.module}, examples, PLAN, reporter=SilentReporter())
    rows = {row.name: row.test["deviation"] for row in outcome.rows}
    assert rows["teacher"] < 1e-6
    assert rows["mimic"] < 0.5 * rows["student"]
    x = examples.held.tensors[0]
    with torch.no_grad():
        wanted, found, first = (network.module(x) for network in (teacher, mimic, student))
    for a, b, c in zip(wanted, found, first, strict=True):
        assert (a - b).square().mean() < 0.5 * (a - c).square().mean()
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.tensors().items())
    assert mimic.lineage[-1]["teachers"] == ["teacher"]
    assert outcome.verdict.startswith("The mimic lies ")


@pytest.mark.parametrize("batch", ["free", 3])
def test_a_file_teaches_whatever_its_batch(examples, tmp_path, batch):
    teacher = traced(0)
    gs.export_onnx(teacher, tmp_path / "t.onnx")
    if batch != "free":
        model = onnx.load(tmp_path / "t.onnx")
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
        del model.graph.value_info[:]
        onnx.save(model, tmp_path / "t.onnx")
    x = examples.held.tensors[0][:7]
    found = OnnxOutputs(tmp_path / "t.onnx")(x)
    with torch.no_grad():
        wanted = teacher.module(x)
    assert [tuple(tensor.shape) for tensor in found.values()] == [(7, 2, 4, 4), (7, 4)]
    for a, b in zip(wanted, found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_several_teachers_are_averaged(examples):
    teachers = {name: traced(seed).module for seed, name in enumerate("ab")}
    plan = MimicPlan(TrainingPlan(epochs=1, device="cpu"))
    _, outcome = mimic_outputs(traced(2), teachers, examples, plan, reporter=SilentReporter())
    a, b, *_ = (row.test["deviation"] for row in outcome.rows)
    assert a == pytest.approx(b, rel=1e-4)
    assert a > 0.1


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.image, self.head = nn.Embedding(5, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, image, words):
        return {"y": self.head(torch.tanh(self.image(image) + self.words(words).mean(1)))}


def test_networks_with_several_inputs_teach(tmp_path):
    torch.manual_seed(0)
    teacher, student = (gs.trace(Words().eval(), [torch.randn(2, 4), torch.randint(0, 5, (2, 3))]) for _ in range(2))
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", image=generator.normal(size=(40, 4)), words=generator.integers(0, 5, (40, 3)))
    examples = read_examples(tmp_path, student.inputs)
    gs.export_onnx(teacher, tmp_path / "t.onnx")
    teachers = {"t.onnx": OnnxOutputs(tmp_path / "t.onnx")}
    _, outcome = mimic_outputs(student, teachers, examples, PLAN, reporter=SilentReporter())
    rows = {row.name: row.test["deviation"] for row in outcome.rows}
    assert rows["t.onnx"] < 1e-5
    assert rows["mimic"] < 0.5 * rows["student"]


def test_what_does_not_fit_is_refused(examples):
    teacher = {"teacher": traced().module}
    with pytest.raises(
        gs.SpecError, match=r"the student: gives outputs \[2, 4, 4\], \[5\], teacher gives \[2, 4, 4\], \[4\]; a mimic"
    ):
        mimic_outputs(traced(boxes=5), teacher, examples, PLAN)
    with pytest.raises(gs.SurgeryError, match="no teacher"):
        mimic_outputs(traced(), {}, examples, PLAN)
    wrong = Calibration(*(TensorDataset(torch.randn(5, 2, 6, 6), torch.zeros(5)) for _ in range(2)), "noise")
    with pytest.raises(gs.SpecError, match="noise: a network does not take these examples"):
        mimic_outputs(traced(), teacher, wrong, PLAN)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"imitation": Imitation(labels=0.5)}, "--labels"),
        ({"imitation": Imitation("kl")}, "--loss"),
        ({"bottleneck": 4}, "--bottleneck"),
        ({"copies": 1}, "--copies"),
        ({"standardise": True}, "--standardise"),
    ],
)
def test_what_is_of_logits_is_refused(examples, options, name):
    plan = MimicPlan(PLAN.training, **options)
    with pytest.raises(gs.SurgeryError, match=f"mimic: {name} is of .*logits.*; leave it out"):
        mimic_outputs(traced(), {"teacher": traced().module}, examples, plan)
