"""Programs that are not taken to pieces give the files that they gave before."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest
import torch
import torch.nn.functional as F
from contracts import Network
from torch import nn

from graphsurgery.onnx.exporting import decomposing, translations
from graphsurgery.onnx.exporting.checking import check_onnx
from graphsurgery.onnx.exporting.exporter import export_onnx
from graphsurgery.tracing.trace import trace


def everything_known(net, x):
    """All operators for which another one stands."""
    x = net.norm(net.conv(x))
    for function in (F.relu_, F.hardtanh_, F.leaky_relu_, F.elu_):
        x = function(x * 1.5)
    x = net.silu(net.dropout(net.relu(x + 0.1)))
    x = (x.narrow(1, 1, 3).square().movedim(1, -1) - 0.5).movedim(-1, 1)
    x = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return net.head(x.flatten(1) * torch.tensor([0.5, 1.0, 2.0]))


def more_known(net, x):
    """The other ones, which also meet whole numbers and what does not lie in order."""
    x = net.up(x.transpose(2, 3).contiguous().view(-1, 1, 6, 6).to(x.device, x.dtype))
    first, second, last = x.chunk(3, 1)
    assert last.shape[1] == 1
    places = first.mean((2, 3)).argsort(1, descending=True)
    large = ((second > 0) & (first < 1) | (second > 2)).to(torch.int64).sum((1, 2, 3))
    whole = torch.zeros(4, 2).index_put_((places[0],), torch.ones(2))
    rows = F.conv_transpose1d(last[:, 0], net.rows, padding=1, dilation=2).to(torch.float64).float()
    rows = F.adaptive_avg_pool3d(rows[..., None, None], 1).flatten(2)
    return net.head(torch.cat([rows.mean(2), large[:, None].to(x.dtype) + whole.sum(), places * 1.0], 1))


def layers():
    torch.manual_seed(0)
    return {
        "conv": nn.Conv2d(1, 4, 3),
        "norm": nn.BatchNorm2d(4),
        "silu": nn.SiLU(inplace=True),
        "dropout": nn.Dropout(inplace=True),
        "relu": nn.ReLU(inplace=True),
        "up": nn.ConvTranspose2d(1, 5, 3, stride=2, padding=1, output_padding=1),
        "head": nn.Linear(3, 5),
    }


@pytest.fixture
def taken(monkeypatch):
    """Whether each program was taken to pieces."""
    found: list[bool] = []
    ours = decomposing.with_few_decomposed

    def noted(usual):
        def as_usual(program, registry):
            found[-1] = True
            return usual(program, registry)

        def either(program, registry):
            found.append(False)
            return ours(as_usual)(program, registry)

        return either

    monkeypatch.setattr(translations, "with_few_decomposed", noted)
    return found


@pytest.mark.parametrize("forward", [everything_known, more_known])
def test_the_same_operators_and_numbers(tmp_path, taken, monkeypatch, forward):
    network = Network(forward, {"rows": torch.randn(12, 1, 3)}, **layers())
    network.head = nn.Linear(3 if forward is everything_known else 4, 5)
    graph = trace(network.eval(), torch.randn(2, 1, 6, 6))
    export_onnx(graph, tmp_path / "quick.onnx")
    assert taken == [False]
    check_onnx(graph, tmp_path / "quick.onnx")
    monkeypatch.setattr(translations, "with_few_decomposed", lambda usual: usual)
    export_onnx(graph, tmp_path / "usual.onnx")
    quick, usual = (onnx.load(tmp_path / f"{name}.onnx").graph for name in ("quick", "usual"))
    assert Counter(node.op_type for node in quick.node) == Counter(node.op_type for node in usual.node)
    assert [value.name for value in quick.output] == [value.name for value in usual.output]
    weights = [{entry.name for entry in file.initializer if "." in entry.name} for file in (quick, usual)]
    assert weights[0] == weights[1]


def seen_by_a_view(net, x):
    x = net.conv(x)
    rows = x.view(-1, 4, 16)
    F.relu_(x)
    return net.head(rows.mean(-1)[:, :3])


def what_an_input_holds(net, x):
    F.relu_(x)
    return net.head(net.conv(x).mean((2, 3))[:, :3])


def read_again(net, x):
    """The value before is read before the change, and what it is changed into after it."""
    x = net.conv(x)
    before = x.sum((2, 3))
    F.relu_(x)
    return net.head((before + x.mean((2, 3)))[:, :3])


@pytest.mark.parametrize(
    ("forward", "whole"), [(seen_by_a_view, False), (what_an_input_holds, False), (read_again, True)]
)
def test_what_is_changed_in_place_is_seen_by_those_who_see_it(tmp_path, taken, forward, whole):
    network = Network(forward, **{name: layers()[name] for name in ("conv", "head")}).eval()
    graph = trace(network, torch.randn(2, 1, 6, 6))
    export_onnx(graph, tmp_path / "m.onnx")
    check_onnx(graph, tmp_path / "m.onnx")
    assert taken == [not whole]


@pytest.mark.parametrize("call", [torch.tensor_split])
def test_what_nothing_is_known_of_is_taken_to_pieces(tmp_path, taken, call):
    def forward(net, x):
        first, second = call(net.conv(x), 2, 1)
        return net.head((first * second).mean((2, 3)).repeat(1, 2)[:, :3])

    graph = trace(
        Network(forward, **{name: layers()[name] for name in ("conv", "head")}).eval(), torch.randn(2, 1, 6, 6)
    )
    export_onnx(graph, tmp_path / "m.onnx")
    check_onnx(graph, tmp_path / "m.onnx")
    assert taken == [True]
