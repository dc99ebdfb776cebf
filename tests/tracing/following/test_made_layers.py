"""Layers that a forward makes, and losses that it computes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphsurgery as gs
from graphsurgery.onnx.exporting.exporter import export_onnx
from graphsurgery.passes.compress import compress


class Made(nn.Module):
    """A convolution, whatever a function makes of its output, and another."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last = nn.Conv1d(4, 8, 1), nn.Conv1d(8, 3, 1)
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


CUT = {
    "an activation": lambda y: nn.ReLU()(y),
    "an activation in place": lambda y: nn.ReLU(inplace=True)(y),
    "softmax": lambda y: nn.Softmax(dim=-1)(y),
    "a chain": lambda y: nn.Sequential(nn.Tanh(), nn.LayerNorm(y.shape[-1]), nn.Identity())(y),
    "a norm over positions": lambda y: nn.LayerNorm(y.shape[-1:])(y),
    "an rms norm over positions": lambda y: nn.RMSNorm(y.size(2))(y),
    "a batch norm": lambda y: nn.BatchNorm1d(y.shape[1])(y),
    "pooling": lambda y: nn.AvgPool1d(2)(y),
    "padding": lambda y: nn.ConstantPad1d(1, 0.5)(y),
    "resizing": lambda y: nn.Upsample(scale_factor=2)(y),
}
KEPT = {
    "a norm over channels": lambda y: nn.LayerNorm(y.size(1))(y.transpose(1, 2)).transpose(1, 2),
    "a norm over both": lambda y: nn.LayerNorm(y.size()[1:])(y),
    "a norm of groups": lambda y: nn.GroupNorm(2, y.shape[1])(y),
    "an instance norm": lambda y: nn.InstanceNorm1d(8, affine=True)(y),
    "dropout, which is always on": lambda y: nn.Dropout(0.5)(y),
}


@pytest.mark.parametrize("name", [*CUT, *KEPT])
def test_what_changes_nothing_but_by_its_forward_is_followed(name, tmp_path):
    torch.manual_seed(0)
    network = Made({**CUT, **KEPT}[name])
    graph = gs.trace(network, torch.randn(2, 4, 6))
    gs.save(graph, tmp_path / "a.pt")
    stored = gs.load(tmp_path / "a.pt")
    for length in (6, 8):
        x = torch.randn(3, 4, length)
        for mode in (True, False):
            outputs = []
            for module in (network, graph.module, stored.module):
                torch.manual_seed(1)
                outputs.append(module.train(mode)(x))
            torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(outputs[2], outputs[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", CUT)
def test_what_is_followed_is_cut_at_every_length(name):
    torch.manual_seed(0)
    network = Made(CUT[name])
    small = compress(gs.trace(network, torch.randn(2, 4, 6)), {"first": [1, 2, 6]})
    with torch.no_grad():
        network.last.weight[:, [0, 3, 4, 5, 7]] = 0
        for length in (6, 8):
            x = torch.randn(3, 4, length)
            torch.testing.assert_close(small(x), network(x), rtol=1e-5, atol=1e-5)


class InList(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layers = [layer]

    def forward(self, x):
        return self.layers[0](x)


def trained(norm):
    nn.init.normal_(norm.weight)
    return norm


FRESH = {
    "Conv1d": Made(lambda y: nn.Conv1d(8, 8, 1)(y)),
    "Linear": Made(lambda y: nn.Linear(y.shape[2], y.shape[2])(y)),
    r"Sequential\.1 \(Linear\)": Made(lambda y: nn.Sequential(nn.ReLU(), nn.Linear(6, 6))(y)),
    "PReLU": Made(lambda y: nn.PReLU()(y)),
    "LayerNorm": InList(trained(nn.LayerNorm(6))),
    "BatchNorm1d": InList(nn.BatchNorm1d(4).eval()),
    "Linear ": InList(nn.Linear(6, 6)),
}


@pytest.mark.parametrize("name", FRESH)
def test_weights_that_are_new_at_every_call_are_refused_by_name(name):
    with pytest.raises(gs.TraceError, match=rf"{name.strip()} is made in forward, with weights that are new at every"):
        gs.trace(FRESH[name], torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)))


class Lazy(nn.Module):
    """Makes a norm when it first knows the width, and trains it from then on."""

    def forward(self, x):
        if not hasattr(self, "norm"):
            self.norm = nn.LayerNorm(x.shape[-1])
        return self.norm(x)


def test_a_layer_of_the_first_call_is_there_after_it():
    network, x = Lazy(), torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        gs.TraceError, match="LayerNorm is made in the first call of the model; call it once, then trace"
    ):
        gs.trace(network, x)
    network(x)
    assert [name for name, _ in gs.trace(network, x).module.named_parameters()] == ["norm.weight", "norm.bias"]


class Learner(nn.Module):
    """As Hugging Face has it: with labels it gives its loss, too."""

    def __init__(self, criterion):
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        if criterion is not None:
            self.criterion = criterion

    def forward(self, x, labels=None):
        logits = self.head(torch.relu(self.body(x)))
        if labels is None:
            return {"loss": None, "logits": logits}
        if hasattr(self, "criterion"):
            return {"loss": self.criterion(logits, labels), "logits": logits}
        return {"loss": nn.CrossEntropyLoss()(logits.view(-1, 3), labels.view(-1)), "logits": logits}


CRITERIA = {
    "made": None,
    "cross entropy": nn.CrossEntropyLoss(label_smoothing=0.1),
    "weighted": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])),
    "of shares": nn.MultiLabelSoftMarginLoss(),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_losses_inside_are_followed(name, tmp_path):
    torch.manual_seed(0)
    network = Learner(CRITERIA[name])
    x, labels = torch.randn(4, 4), torch.tensor([0, 2, 1, 1])
    if name == "of shares":
        labels = F.one_hot(labels, 3).float()
    graph = gs.trace(network, [x, labels])
    assert [space.name for space in graph.spaces] == ["body"]
    gs.save(graph, tmp_path / "a.pt")
    stored, small = gs.load(tmp_path / "a.pt"), compress(graph, {"body": [0, 5]})
    for module in (graph.module, stored.module):
        torch.testing.assert_close(module(x, labels), network(x, labels), rtol=0, atol=0)
    with torch.no_grad():
        network.head.weight[:, [1, 2, 3, 4, 6, 7]] = 0
    torch.testing.assert_close(small(x, labels), network(x, labels))


def test_without_labels_the_loss_is_none(tmp_path):
    torch.manual_seed(0)
    graph = gs.trace(Learner(None).eval(), torch.randn(2, 4))
    assert graph(torch.randn(3, 4))["loss"] is None
    gs.save(graph, tmp_path / "a.pt")
    export_onnx(gs.load(tmp_path / "a.pt"), tmp_path / "a.onnx")
