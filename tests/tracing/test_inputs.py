"""Inputs that are no examples: numbers, masks for all examples, and arguments that stay None."""

import onnxruntime
import pytest
import torch
from torch import nn

import graphsurgery as gs
from graphsurgery.graph import have_batch
from graphsurgery.models.loading import open_pair
from graphsurgery.onnx.runtime.latency import random_feed
from graphsurgery.passes.compress import compress
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.deviation import deviation


class Several(nn.Module):
    """Attention under a mask, scaled by a number, with two arguments that may be None."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x, mask, scale, bias=None, offset=None, *, extra=None):
        scores = self.q(x) @ self.k(x).transpose(1, 2) * scale + mask
        if bias is not None:
            scores = scores + bias
        mixed = scores.softmax(-1) @ self.v(x)
        if offset is not None:
            mixed = mixed + offset
        return self.out(mixed if extra is None else mixed + extra)


def inputs(batch, mask, tokens=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, tokens, 4), [tokens if n == 5 else n for n in mask], (), (batch, 1, 6)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


MASKS = {"for all": (1, 5, 5), "without a batch": (5, 5), "for each": (3, 5, 5)}


@pytest.mark.parametrize("name", MASKS)
def test_each_input_has_the_axes_that_it_had(name, tmp_path):
    torch.manual_seed(0)
    model, (x, mask, scale, offset) = Several(), inputs(3, MASKS[name])
    graph = gs.trace(model, [x, mask, scale, None, offset])
    assert [spec.name for spec in graph.inputs] == ["x", "mask", "scale", "offset"]
    assert [spec.batched for spec in graph.inputs] == [True, name == "for each", False, True]
    assert {space.name for space in graph.spaces} == {"q"}  # v meets an input
    assert graph.batch == 3
    gs.save(graph, tmp_path / "a.pt")
    stored = gs.load(tmp_path / "a.pt")
    assert stored.inputs == graph.inputs
    for batch, tokens in ((3, 5), (4, 5), (4, 7)):
        shape = (batch, 5, 5) if name == "for each" else MASKS[name]
        x, mask, scale, offset = inputs(batch, shape, tokens, seed=batch)
        expected = model(x, mask, scale, None, offset)
        for module in (graph, stored):
            torch.testing.assert_close(module(x, mask, scale, offset), expected, rtol=1e-5, atol=1e-6)
    assert graph(*graph.example_inputs(7)).shape == (7, 5, 3)
    assert cost(graph).macs == cost(stored).macs > 0


@pytest.mark.parametrize("name", ["for all", "without a batch"])
def test_passes_and_files_keep_them(name, tmp_path):
    torch.manual_seed(0)
    x, mask, scale, _ = inputs(3, MASKS[name])
    graph = gs.trace(Several().eval(), [x, mask, scale])
    small = compress(graph, {"v": [0, 3]})
    with torch.no_grad():
        graph.module.out.weight[:, [1, 2, 4, 5]] = 0
        assert deviation(small(x, mask, scale), graph(x, mask, scale)) < 1e-5
    gs.export_onnx(small, tmp_path / "a.onnx")
    assert gs.check_onnx(small, tmp_path / "a.onnx").holds
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    fed = random_feed(session, 4, "a.onnx")
    assert [list(array.shape) for array in fed.values()] == [[4, 5, 4], list(MASKS[name]), []]
    assert session.run(None, fed)[0].shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("shapes", "batched"),
    [
        ([(2, 3), (2,), ()], [True, True, False]),
        ([(1, 3), (1, 4)], [True, True]),
        ([(), (1, 4, 4), (6, 4)], [False, False, True]),
        ([(4, 4), (2, 4)], [True, False]),
    ],
)
def test_the_batch_is_what_the_first_input_of_several_has(shapes, batched):
    assert have_batch(shapes) == batched


def test_a_wrong_decision_under_a_mask_for_all_is_found():
    class Deciding(Several):
        def forward(self, x, mask):
            scores = self.q(x) @ self.k(x).transpose(1, 2) + mask * (2.0 if f"{x.shape[0]}" == "3" else 3.0)
            return self.out(scores.softmax(-1) @ self.v(x))

    x, mask, _, _ = inputs(3, (5, 5))
    graph = gs.trace(Deciding(), [x, mask])
    with pytest.raises(ValueError, match="finds 4 where the trace found 3"):
        graph(*graph.example_inputs(4))


def test_what_is_no_input_is_refused():
    with pytest.raises(gs.SurgeryError, match=r"or None where the model takes that"):
        gs.trace(nn.Linear(2, 2), [3])
    with pytest.raises(gs.SurgeryError, match=r"example inputs are tensors \[batch, \.\.\.\], found none"):
        gs.trace(nn.Linear(2, 2), [torch.tensor(1.0)])


FILE = """
import torch
from torch import nn

EXAMPLE_INPUTS = (torch.zeros(2, 3), None, torch.tensor(2.0))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x, mask=None, scale=1.0):
        y = self.body(x) * scale
        return self.head(y if mask is None else y * mask)
"""


def test_a_file_may_name_them(tmp_path):
    (tmp_path / "net.py").write_text(FILE)
    graph, module = open_pair(f"{tmp_path / 'net.py'}:Net")
    assert module is None  # it takes another argument between them
    assert [(spec.name, spec.shape) for spec in graph.inputs] == [("x", (2, 3)), ("scale", ())]


@pytest.mark.parametrize("training", [True, False])
def test_inputs_that_the_model_itself_fails_on_are_refused(training):
    """A norm of instances of one pixel: shapes say nothing of it, so the trace alone would have gone on."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 1)).train(training)
    with pytest.raises(gs.TraceError, match=r"Sequential itself fails on the example inputs.*more than 1 spatial ele"):
        gs.trace(model, torch.zeros(2, 1, 2, 2))
    assert gs.trace(model, torch.zeros(2, 1, 4, 4)).spaces
