"""What the comparison in ONNX Runtime is worth: right files pass, wrong ones do not, and what it says helps."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from onnx_files import built, scripted, weight, written
from torch import Tensor, nn

import graphsurgery as gs
from graphsurgery.errors import CheckFailedError, SurgeryError
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.exporting import check_onnx
from graphsurgery.onnx.exporting.judging import BLURRED, CONSTANT, EFFORTS, FedOutput, judge
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.deviation import changed_by


class Detector(nn.Module):
    """Boxes in pixels beside scores, in one output or in two."""

    def __init__(self, together: bool) -> None:
        super().__init__()
        self.stem, self.box, self.score = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 3, 1)
        self.together = together

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        x = F.relu(self.stem(x))
        boxes, scores = 640 * self.box(x).sigmoid().flatten(2), self.score(x).sigmoid().flatten(2)
        return torch.cat([boxes, scores], 1) if self.together else {"boxes": boxes, "scores": scores}


class Tails(nn.Module):
    """A map of probabilities that are tiny on noise, as of a detector of text."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        nn.init.constant_(self.out.bias, -10.4)
        nn.init.normal_(self.out.weight, std=0.7)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.stem(x / (1 + x.abs())))).sigmoid()


def exported(module, x, path):
    graph = gs.trace(module.eval(), x)
    scripted(module, x, path)
    return graph


def changed(path, name, change, to):
    """The file with one weight changed."""
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, to)
    return to


def shifted_by(number):
    def change(array):
        array += number

    return change


@pytest.mark.parametrize("together", [True, False])
def test_scores_beside_boxes_in_pixels_are_judged_by_themselves(tmp_path, together):
    torch.manual_seed(0)
    graph = exported(Detector(together), torch.zeros(2, 3, 6, 6), tmp_path / "m.onnx")
    assert check_onnx(graph, tmp_path / "m.onnx").holds
    # Where a sigmoid is steepest, 0.2 more in it is 0.05 more behind it.
    off = changed(tmp_path / "m.onnx", "score.bias", shifted_by(0.2), tmp_path / "off.onnx")
    with pytest.raises(CheckFailedError, match=r"deviates by .* of what output .* varies by .*allowed is 1\.0e-04"):
        check_onnx(graph, off)


def test_an_edit_of_a_network_with_tiny_outputs_passes(tmp_path):
    torch.manual_seed(0)
    path = scripted(Tails(), torch.zeros(2, 3, 6, 6), tmp_path / "m.onnx")
    graph = import_onnx(path).graph
    with torch.no_grad():
        assert float(graph.module(torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))).max()) < 1e-4
    check = rewrite_onnx(path, compress(graph, 0.5), tmp_path / "small.onnx")
    assert check.holds
    assert not check.untested
    off = changed(path, "out.bias", shifted_by(0.3), tmp_path / "off.onnx")
    assert not check_onnx(graph, off, raise_on_failure=False).holds


def small_networks():
    return {
        "convolutions": (
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
            (2, 6, 6),
        ),
        "linear": (nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)), (5,)),
        "norms": (
            nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3), nn.Softmax(-1)),
            (6,),
        ),
        "sigmoid": (nn.Sequential(nn.Conv1d(2, 4, 3), nn.SiLU(), nn.Conv1d(4, 2, 3), nn.Sigmoid()), (2, 9)),
    }


@pytest.mark.parametrize("name", small_networks())
def test_a_weight_that_is_off_by_one_percent_is_found(tmp_path, name):
    """The largest weight of every layer, so that no dead unit hides it."""
    torch.manual_seed(0)
    module, shape = small_networks()[name]
    graph = exported(module, torch.zeros(2, *shape), tmp_path / "m.onnx")
    assert check_onnx(graph, tmp_path / "m.onnx").holds
    weights = [t.name for t in onnx.load(tmp_path / "m.onnx").graph.initializer if len(t.dims) > 1]
    assert len(weights) >= 2

    def off(array):
        array.flat[np.abs(array).argmax()] *= 1.01

    missed = [
        weight
        for weight in weights
        if check_onnx(
            graph,
            changed(tmp_path / "m.onnx", weight, off, tmp_path / "off.onnx"),
            values={},  # the node is not asked for, which would take an export
            raise_on_failure=False,
        ).holds
    ]
    assert not missed


def test_a_constant_output_is_said(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Mul", ["y", "zero"], ["none"]),
        helper.make_node("Add", ["none", "one"], ["z"]),
    ]
    w = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    weights = {"w": w, "zero": np.zeros(3, np.float32), "one": np.ones(3, np.float32)}
    path = written(tmp_path / "m.onnx", nodes, {"x": ["b", 4]}, ["y", "z"], weights)
    check = check_onnx(import_onnx(path).graph, path)
    assert check.holds
    assert check.untested == {"z": CONSTANT}
    assert check.remarks == ("not tested: output z, the same on all inputs",)
    assert check.as_dict()["untested"] == {"z": CONSTANT}


def test_indices_are_drawn(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(12, 4), nn.Flatten(), nn.Linear(12, 3))
    graph = gs.trace(network, torch.zeros(2, 3, dtype=torch.long))
    gs.export_onnx(graph, tmp_path / "m.onnx")
    check = check_onnx(graph, tmp_path / "m.onnx")
    assert check.holds
    assert not check.untested


def test_the_advice_works(tmp_path):
    """What the message says to give lets the file pass; a little less does not."""
    torch.manual_seed(0)
    graph = exported(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(2, 4), tmp_path / "m.onnx")

    def off(array):
        array.flat[0] *= 1.01

    file = changed(tmp_path / "m.onnx", "2.weight", off, tmp_path / "off.onnx")
    with pytest.raises(CheckFailedError, match="allow it: --rtol") as caught:
        check_onnx(graph, file)
    advised = float(re.search(r"--rtol (\S+)$", str(caught.value)).group(1))
    assert check_onnx(graph, file, rtol=advised).holds
    assert not check_onnx(graph, file, rtol=0.9 * advised, raise_on_failure=False).holds


@pytest.mark.parametrize("rtol", [-1.0, float("nan"), float("inf")])
def test_an_rtol_that_is_no_tolerance(tmp_path, rtol):
    graph = exported(nn.Linear(4, 3), torch.zeros(2, 4), tmp_path / "m.onnx")
    with pytest.raises(SurgeryError, match=r"rtol is .*, expected a number that is not negative"):
        check_onnx(graph, tmp_path / "m.onnx", rtol=rtol)


def test_a_refused_file_says_what_is_allowed(tmp_path, monkeypatch):
    """Whatever the length of the message."""
    from graphsurgery.onnx.exporting import checking
    from graphsurgery.onnx.exporting.judging import Judgement

    torch.manual_seed(0)
    path = scripted(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(2, 4), tmp_path / "m.onnx")
    small = compress(import_onnx(path).graph, 0.5)
    monkeypatch.setattr(checking, "judge", lambda runs, *_: Judgement({run.label: 0.05 for run in runs}))
    with pytest.raises(CheckFailedError, match=r"allowed is 1\.0e-04; .*--rtol 5\.\de-02; or write a \.pt$"):
        rewrite_onnx(path, small, tmp_path / "small.onnx")
    assert not (tmp_path / "small.onnx").exists()


@pytest.mark.parametrize(("number", "word"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_what_a_network_itself_gives_that_is_no_number(tmp_path, number, word):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    network[0].bias.data[2] = number
    path = scripted(network, torch.zeros(2, 4), tmp_path / "m.onnx")
    expected = rf"m\.onnx: the network itself gives {word} from 0 on, whose 0\.bias holds {word} on batch \d"
    with pytest.raises(CheckFailedError, match=expected):
        import_onnx(path)
    graph = gs.trace(network.eval(), torch.zeros(2, 4))
    gs.export_onnx(graph, tmp_path / "e.onnx")
    with pytest.raises(CheckFailedError, match=rf"gives {word} from 0 on, .* so nothing can be compared"):
        check_onnx(graph, tmp_path / "e.onnx")


def test_an_edit_of_a_network_that_gives_no_numbers():
    """The edit is not to blame."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    network[2].weight.data[0, 0] = np.nan
    graph = gs.trace(network.eval(), torch.zeros(2, 4))
    with pytest.raises(CheckFailedError, match=r"the network itself gives NaN from 2 on, whose 2\.weight holds NaN"):
        changed_by(graph, widen(graph, 1.5))


def runs(found, expected, rounding=0.0):
    return [FedOutput("a", found, expected, len(found), lambda _: torch.full_like(expected, rounding).double())]


def test_rounding_is_the_scale_where_it_does_more():
    expected = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    found = expected + 1e-3
    assert judge(runs(found, expected), 1e-4).deviations["a"] == pytest.approx(1e-3, rel=1e-3)
    assert judge(runs(found, expected, 2e-4), 1e-4).deviations["a"] <= 1e-4
    assert judge(runs(found, expected, 5e-5), 1e-4).deviations["a"] > 1e-4


@pytest.mark.parametrize("enough", [1, 3, EFFORTS, EFFORTS + 1])
def test_rounding_is_measured_until_it_explains_the_difference(enough):
    expected, asked = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), []

    def rounding(effort):
        asked.append(effort)
        return torch.full_like(expected, 2e-4 if effort >= enough else 1e-6).double()

    found = judge([FedOutput("a", expected + 1e-3, expected, 2, rounding)], 1e-4)
    assert (found.deviations["a"] <= 1e-4) == (enough <= EFFORTS)
    assert asked == list(range(1, min(enough, EFFORTS) + 1))


def test_what_rounding_blurs_is_said():
    expected = torch.tensor([[0.0], [1.0]])
    assert judge(runs(expected + 0.5, expected, 0.1), 1e-4).untested == BLURRED


def test_a_part_that_varies_less_is_measured_by_itself():
    expected = torch.tensor([[0.0, 0.0], [100.0, 5.0]])
    off = expected + torch.tensor([0.0, 0.05])
    assert judge(runs(off, expected), 1e-4).deviations["a"] == pytest.approx(1e-2, rel=1e-3)


@pytest.mark.parametrize("moved", [False, True])
def test_the_tail_of_a_sigmoid_is_no_difference(tmp_path, moved):
    """ONNX Runtime gives 0 or 3e-8 for what is 1e-11; a size among the weights is not moved to measure rounding."""
    nodes = [
        ("Resize", ["x", np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)], "large", {}),
        ("Add", ["large", "other"], "sum", {}),
        ("Conv", ["sum", weight(4, 2, 1, 1), np.full(4, -25, np.float32)], "scores", {}),
        ("Sigmoid", ["scores"], "out" if not moved else "found", {}),
    ]
    if moved:
        nodes.append(("Transpose", ["found"], "out", {"perm": [0, 2, 3, 1]}))
    inputs = {"x": (np.float32, ["batch", 2, 3, 3]), "other": (np.float32, ["batch", 2, 6, 6])}
    assert import_onnx(built(tmp_path / "m.onnx", inputs, nodes)).graph.inputs


def test_flags_agree_like_any_output(tmp_path):
    """Flags `[batch, n]` have no largest."""
    x, y = (helper.make_tensor_value_info(name, kind, ["batch", 4]) for name, kind in (("x", 1), ("y", 9)))
    graph = helper.make_graph([helper.make_node("Greater", ["x", "half"], ["y"])], "g", [x], [y])
    graph.initializer.append(helper.make_tensor("half", 1, [], [0.5]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    found = import_onnx(tmp_path / "m.onnx")
    assert check_onnx(found.graph, tmp_path / "m.onnx").agreement is None
