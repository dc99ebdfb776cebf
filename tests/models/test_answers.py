"""One of several outputs."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphsurgery as gs
from graphsurgery.errors import SpecError
from graphsurgery.models.answers import output_names, with_output
from graphsurgery.network.outputs.naming import named_outputs, one_output
from graphsurgery.passes.compress import compress
from graphsurgery.training.objectives.tasks import CrossEntropy
from graphsurgery.training.objectives.teachers import OnnxTeacher, Teachers


@dataclasses.dataclass
class Fields:
    logits: Tensor
    hidden: Tensor | None = None
    loss: Tensor | None = None


class Named(NamedTuple):
    logits: Tensor
    hidden: Tensor


class Heads(nn.Module):
    """A body with two heads, of which one normalises, checks a size and writes in place."""

    def __init__(self, form):
        super().__init__()
        self.body, self.norm = nn.Linear(4, 8), nn.BatchNorm1d(6)
        self.head, self.other = nn.Linear(8, 3), nn.Linear(8, 6)
        self.form = form

    def forward(self, x):
        hidden = torch.relu(self.body(x))
        other = self.norm(self.other(hidden))
        if other.shape[0] > 100:
            other = other * 2
        other = other.clone()
        other[:, 0] = 1.0
        logits = self.head(hidden)
        logits = logits.clone()
        logits[:, 1] = 0.5
        return self.form(logits, other)


FORMS = {
    "dict": (lambda a, b: {"logits": a, "hidden": b}, "logits", "hidden"),
    "tuple": (lambda a, b: (b, a), "1", "0"),
    "list": (lambda a, b: [a, None, b], "0", "2"),
    "nested": (lambda a, b: {"out": (None, {"main": a}), "aux": [b]}, "out.1.main", "aux.0"),
    "dataclass": (Fields, "logits", "hidden"),
    "named tuple": (Named, "0", "1"),
    "split": (lambda a, _: a.split([1, 2], 1), "1", "0"),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_output_is_what_the_network_gives_there(form, tmp_path):
    torch.manual_seed(0)
    make, name, other = FORMS[form]
    network, x = Heads(make), torch.randn(5, 4)
    graph = gs.trace(network, x)
    gs.save(graph, tmp_path / "whole.pt")
    for whole in (graph, gs.load(tmp_path / "whole.pt")):
        assert set(output_names(whole)) == {name, other}
        for chosen in (name, other):
            for mode in (True, False):
                expected = named_outputs(whole.module.train(mode)(x))[chosen]
                found = with_output(whole, chosen)
                torch.testing.assert_close(found.module.train(mode)(x), expected, rtol=0, atol=0)
    alone = with_output(graph, name)
    assert ("norm" in dict(alone.module.named_modules())) is False
    assert [space.name for space in alone.spaces] == ["body"]
    assert alone.lineage[-1]["answer"] == name
    small = compress(alone, {"body": [0, 3]})
    gs.save(small, tmp_path / "small.pt")
    torch.testing.assert_close(gs.load(tmp_path / "small.pt")(x), small(x), rtol=0, atol=0)
    # The check of a size belongs to the other head.
    assert alone(torch.randn(101, 4)).shape[0] == 101
    with pytest.raises(gs.SurgeryError, match=rf"no output logitz; it gives .*{name}"):
        with_output(graph, "logitz")


def test_a_bare_tensor_stays():
    graph = gs.trace(nn.Linear(4, 2), torch.zeros(2, 4))
    assert with_output(graph, "logits") is graph
    assert output_names(graph) == ["0"]


def test_a_loss_inside_goes_with_its_labels():
    class Learner(Heads):
        def forward(self, x, labels):
            logits = self.head(torch.relu(self.body(x)))
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    torch.manual_seed(0)
    x, labels = torch.randn(3, 4), torch.tensor([0, 2, 1])
    graph = gs.trace(Learner(None), [x, labels])
    alone = with_output(graph, "logits")
    torch.testing.assert_close(alone(x, labels), graph(x, labels)["logits"], rtol=0, atol=0)
    assert [spec.name for spec in alone.inputs] == ["x", "labels"]


ONE = {
    "bare": lambda x: x,
    "dict": lambda x: {"logits": x, "hidden": None},
    "tuple": lambda x: (x,),
    "dataclass": Fields,
    "nested": lambda x: [{"a": (x, None)}],
}


@pytest.mark.parametrize("form", ONE)
def test_one_tensor_is_taken_wherever_it_is(form):
    x = torch.arange(6.0).reshape(2, 3)
    assert one_output(ONE[form](x), "it") is x


@pytest.mark.parametrize("several", [{"loss": torch.zeros(()), "logits": torch.zeros(2, 3)}, ()], ids=["two", "none"])
def test_several_are_refused_by_name(several):
    message = (
        r"m: gives several outputs \((loss \[\], logits \[2, 3\]|none)\), expected one; choose it with --answer NAME"
    )
    with pytest.raises(SpecError, match=message):
        one_output(several, "m")


@pytest.mark.parametrize("form", ["dict", "tuple", "dataclass"])
def test_a_network_with_one_named_output_is_trained_and_measured(form):
    torch.manual_seed(0)
    bare = nn.Linear(4, 3)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = bare

        def forward(self, x):
            return ONE[form](self.layer(x))

    batch, task = (torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])), CrossEntropy(3)
    wrapped = gs.trace(Wrapped(), batch[0]).module
    assert task.loss(wrapped, batch)["total"] == task.loss(bare, batch)["total"]
    torch.testing.assert_close(task.predict(wrapped, batch), task.predict(bare, batch), rtol=0, atol=0)
    torch.testing.assert_close(Teachers([wrapped])(batch[0]), bare(batch[0]), rtol=0, atol=0)


def test_the_outputs_of_training_are_auxiliary_heads():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return {"out": self.a(x), "aux": self.b(x)} if self.training else {"out": self.a(x)}

    torch.manual_seed(0)
    network, batch = Auxiliary(), (torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0]))
    found = CrossEntropy(3).loss(network.train(), batch)["total"]
    losses = [F.cross_entropy(layer(batch[0]), batch[1]) for layer in (network.a, network.b)]
    torch.testing.assert_close(found, losses[0] + 0.3 * losses[1])


def test_a_teacher_in_a_file_says_which(tmp_path):
    torch.manual_seed(0)
    graph = gs.trace(Heads(FORMS["dict"][0]).eval(), torch.zeros(2, 4))
    gs.export_onnx(graph, tmp_path / "a.onnx")
    with pytest.raises(
        gs.SurgeryError, match=r"gives several outputs \(logits, hidden\); choose one with --answer NAME"
    ):
        OnnxTeacher(tmp_path / "a.onnx")
    x = torch.randn(3, 4)
    for name in ("logits", "hidden"):
        found = OnnxTeacher(tmp_path / "a.onnx", name)(x)
        torch.testing.assert_close(found, graph(x)[name], rtol=1e-4, atol=1e-5)
    digests = {Teachers([OnnxTeacher(tmp_path / "a.onnx", name)]).digest() for name in ("logits", "hidden")}
    assert len(digests) == 2
