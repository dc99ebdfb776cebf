"""Concatenate: what no single operator can hold side by side is computed once for each network, and the mean holds."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import randomize

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate, side_by_side
from graphsurgery.passes.gate import gate
from graphsurgery.surgery.deviation import deviation

TOKENS = 5


class _Tokens(nn.Module):
    """A network of `[batch, 5, 3]` with `width` channels between two linear layers."""

    def __init__(self, width=6):
        super().__init__()
        self.first, self.last = nn.Linear(3, width), nn.Linear(width, 2)
        self.width = width
        self.build(width)

    def build(self, width):
        """The layers between."""

    def forward(self, x):
        return self.last(torch.tanh(self.between(self.first(x))))


class SingleHead(_Tokens):
    """Products over channels, with a scale that is computed from the width."""

    def build(self, width):
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def between(self, x):
        scores = self.q(x) @ self.k(x).transpose(1, 2) * x.shape[-1] ** -0.5
        return x + torch.softmax(scores, -1) @ self.v(x)


class OneHeadAttention(_Tokens):
    """The same by torch's function."""

    def build(self, width):
        self.qkv = nn.Linear(width, 3 * width)

    def between(self, x):
        return F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))


class AcrossChannels(_Tokens):
    """Attention among channels instead of tokens: the product of two streams has them on two axes."""

    def build(self, width):
        self.qkv = nn.Linear(width, 3 * width)

    def between(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return v @ torch.softmax(F.normalize(q, dim=1).transpose(1, 2) @ F.normalize(k, dim=1), -1)


class Softmax(_Tokens):
    def between(self, x):
        return torch.softmax(x, -1)


class Means(_Tokens):
    """Means, sums and largest values of the channels, which are read by them again."""

    def between(self, x):
        return (x - x.mean(-1, keepdim=True)) * torch.sigmoid(x.sum(-1, keepdim=True)) + x.amax(-1, keepdim=True)


class Variance(_Tokens):
    """A norm across channels that is written by hand."""

    def build(self, width):
        self.scale = nn.Parameter(torch.randn(width))

    def between(self, x):
        variance, mean = torch.var_mean(x, -1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 0.1) * self.scale


class ByMeanSquare(_Tokens):
    def build(self, width):
        self.norm = nn.RMSNorm(width)

    def between(self, x):
        return self.norm(x)


class ByInstance(_Tokens):
    """The axis of the channels takes the part of positions."""

    def build(self, _):
        self.norm = nn.InstanceNorm1d(TOKENS, affine=True)

    def between(self, x):
        return self.norm(x)


class TokenMixing(_Tokens):
    """One weight for every channel, which differs between the networks."""

    def build(self, _):
        self.mix, self.shift = nn.Linear(TOKENS, TOKENS), nn.Parameter(torch.randn(TOKENS, 1))

    def between(self, x):
        return torch.relu(self.mix(x.transpose(1, 2)).transpose(1, 2)) * self.shift


class Modulation(_Tokens):
    """One layer writes channels, and gates that are picked by number."""

    def build(self, width):
        self.f = nn.Linear(width, 2 * width + 3)

    def between(self, x):
        query, context, gates = self.f(x).split((self.width, self.width, 3), -1)
        return query * (torch.relu(context * gates[..., 0:1]) + context * gates[..., 1:2])


class ProductOfMeans(_Tokens):
    """Two frozen axes, which hold a mean of the networks' values if they are read out."""

    def build(self, width):
        self.a, self.b, self.c = nn.Linear(width, 4), nn.Linear(width, 4), nn.Linear(4, width)

    def between(self, x):
        return self.c(torch.fft.fft(self.a(x)).real * torch.fft.fft(self.b(x)).real)


class Recurrent(_Tokens):
    """An LSTM whose states are read by a product over channels."""

    def build(self, width):
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.back = nn.Linear(2 * width, width)

    def between(self, x):
        x, (hidden, _) = self.lstm(x)
        return self.back(x) * torch.sigmoid(hidden.sum((0, 2))).reshape(-1, 1, 1)


class StandardizedWeights(_Tokens):
    """A weight that is normalised before it is used, by statistics of what it reads."""

    def build(self, width):
        self.weight, self.gain = nn.Parameter(torch.randn(width, width, 1)), nn.Parameter(torch.randn(width))

    def between(self, x):
        weight = F.batch_norm(
            self.weight.reshape(1, self.width, -1), None, None, weight=self.gain, training=True, momentum=0.0
        )
        return F.conv1d(x.transpose(1, 2), weight.reshape_as(self.weight)).transpose(1, 2)


class KernelsByProduct(_Tokens):
    """A convolution in groups with kernels that are computed from the input."""

    def build(self, width):
        self.kernel = nn.Linear(width, width)

    def between(self, x):
        kernel = self.kernel(x.mean(1)).reshape(-1, 1, 1)
        return (
            F.conv1d(x.transpose(1, 2).reshape(1, -1, TOKENS), kernel, groups=kernel.shape[0])
            .reshape(-1, self.width, TOKENS)
            .transpose(1, 2)
        )


class ProductOfWeights(_Tokens):
    """A weight of two factors, which stand side by side along what they have in common."""

    def build(self, width):
        self.back = nn.Parameter(torch.randn(width, 2))
        self.there = nn.Parameter(torch.randn(2, 4))
        self.frozen = nn.Linear(width, 4)

    def between(self, x):
        return torch.fft.fft(self.frozen(x)).real @ (self.back @ self.there).t()


class Correlation(_Tokens):
    """A volume of all pairs that later layers read as channels."""

    def build(self, width):
        self.read = nn.Linear(TOKENS, width)

    def between(self, x):
        return x * torch.relu(self.read(x @ x.transpose(1, 2)))


class Added(_Tokens):
    """A table that stands on positions alone, added before a nonlinearity, and one channel that gates the others."""

    def build(self, width):
        self.table, self.one = nn.Parameter(torch.randn(1, TOKENS, 1)), nn.Linear(width, 1)

    def between(self, x):
        return F.gelu(x + self.table) * torch.sigmoid(self.one(x)).expand(-1, -1, self.width)


class WrittenInPlace(_Tokens):
    """Views of what is kept apart are written, and what they are views of is read."""

    def between(self, x):
        y = torch.fft.fft(x).real
        y[..., 0] = 1
        first = y[..., :2]
        first *= 2
        y += x
        x.relu_()
        return torch.softmax(x, -1) * y


class Bent(_Tokens):
    """Nonlinearities behind the last weights, of several outputs in a dict."""

    def forward(self, x):
        x = torch.softmax(self.first(x), -1)
        return {"a": torch.softmax(self.last(x), -1), "b": (self.last(x).mean(1), x.amax(-1))}


NETWORKS = (
    SingleHead, OneHeadAttention, AcrossChannels, Softmax, Means, Variance, ByMeanSquare, ByInstance, TokenMixing,
    Modulation, ProductOfMeans, Recurrent, StandardizedWeights, KernelsByProduct, ProductOfWeights,
    Correlation, Added, WrittenInPlace,
    Bent,
)  # fmt: skip


def _traced(kind, seed, width=6):
    return _traced_once(kind, seed, width).copy()


@cache
def _traced_once(kind, seed, width):
    torch.manual_seed(seed)
    network = kind(width)
    randomize(network)
    return gs.trace(network.double().eval(), torch.zeros(2, TOKENS, 3, dtype=torch.float64), check=False)


def _mean(outputs):
    first = outputs[0]
    if isinstance(first, dict):
        return {key: _mean([output[key] for output in outputs]) for key in first}
    if isinstance(first, tuple):
        return tuple(_mean(list(parts)) for parts in zip(*outputs, strict=True))
    return torch.stack(outputs).mean(0)


def _input(seed=0):
    return torch.randn(3, TOKENS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", NETWORKS)
def test_outputs_are_the_mean(kind, count):
    graphs = [_traced(kind, seed) for seed in range(count)]
    x = _input()
    with torch.no_grad():
        assert deviation(concatenate(graphs)(x.clone()), _mean([graph(x.clone()) for graph in graphs])) < 1e-12


@pytest.mark.parametrize("kind", [k for k in NETWORKS if k is not Bent])
def test_of_unlike_widths(kind):
    graphs = [_traced(kind, seed, width) for seed, width in enumerate((4, 6, 5))]
    x = _input()
    with torch.no_grad():
        assert deviation(concatenate(graphs)(x.clone()), _mean([graph(x.clone()) for graph in graphs])) < 1e-12


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_result_is_an_ordinary_network(kind, tmp_path):
    graphs = [_traced(kind, seed) for seed in range(2)]
    big, x = concatenate(graphs), _input()
    gs.save(big, tmp_path / "big.pt")
    loaded = gs.load(tmp_path / "big.pt")
    with torch.no_grad():
        assert deviation(loaded(x.clone()), big(x.clone())) == 0
        if any(space.chosen for space in big.spaces):
            small = compress(big, 0.5)
            assert small(x.clone()) is not None
            assert sum(p.numel() for p in small.module.parameters()) < sum(p.numel() for p in big.module.parameters())


# A gate opens to 1 exactly at this location.
_OPEN = 10.0


@pytest.mark.parametrize("kind", [SingleHead, Softmax, Modulation, TokenMixing, Recurrent])
def test_open_gates_change_nothing(kind):
    big, x = concatenate([_traced(kind, seed) for seed in range(2)]), _input()
    with torch.no_grad():
        assert deviation(gate(big, loc=_OPEN)(x), big(x)) < 1e-12


# The exporter takes no number of groups that follows the batch.
@pytest.mark.parametrize("kind", [k for k in NETWORKS if k is not KernelsByProduct])
def test_in_onnx_runtime(kind, tmp_path):
    big = concatenate([_traced(kind, seed) for seed in range(2)])
    gs.export_onnx(big, tmp_path / "big.onnx")
    assert gs.check_onnx(big, tmp_path / "big.onnx").deviation <= 1e-4


def test_only_what_needs_it_is_kept_apart():
    big = concatenate([_traced(SingleHead, seed) for seed in range(2)])
    assert big.lineage[-1]["apart"] == ["matmul", "mul", "softmax", "matmul_1"]
    names = dict(big.module.named_parameters())
    assert names["q.weight"].shape == (12, 12)
    assert not names["q.weight"][:6, 6:].any()


def test_one_network_can_be_cut_out_of_the_sum():
    graphs = [_traced(SingleHead, seed) for seed in range(2)]
    big, x = concatenate(graphs), _input()
    assert [(space.name, space.size) for space in big.spaces][:2] == [("first", 6), ("first:2", 6)]
    with torch.no_grad():
        small = compress(big, {space.name: [0] for space in big.spaces if space.name.endswith(":2")})
        assert small.space("first").size == 6
        assert small.space("first:2").size == 1
        assert small(x).shape == (3, TOKENS, 2)


def test_weights_that_are_used_twice_stay_one():
    class Tied(_Tokens):
        def build(self, _):
            self.mix = nn.Linear(TOKENS, TOKENS)

        def between(self, x):
            return self.mix(torch.relu(self.mix(x.transpose(1, 2)))).transpose(1, 2)

    graphs = [_traced(Tied, seed) for seed in range(2)]
    big, x = concatenate(graphs), _input()
    assert len(list(big.module.parameters())) == 4 + 2 * 2
    with torch.no_grad():
        assert deviation(big(x), _mean([graph(x) for graph in graphs])) < 1e-12


def test_training_reaches_the_weights_of_every_network():
    big = concatenate([_traced(TokenMixing, seed) for seed in range(2)])
    big(_input()).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in big.module.parameters())


def test_refuses_indices_that_have_no_mean():
    class Chosen(_Tokens):
        def forward(self, x):
            return self.last(self.first(x)).argmax(-1)

    with pytest.raises(gs.SurgeryError, match=r"output argmax is of torch.int64, and indices and flags have no mean"):
        concatenate([_traced(Chosen, seed) for seed in range(2)])


def test_refuses_other_positions():
    graphs = []
    for tokens in (4, 5):
        network = nn.Sequential(nn.Linear(3, 4), nn.Flatten(), nn.Linear(4 * tokens, 2))
        graphs.append(gs.trace(network, torch.zeros(2, tokens, 3)))
    with pytest.raises(gs.SurgeryError, match="take inputs of different shapes"):
        concatenate(graphs)


@pytest.mark.parametrize("kind", NETWORKS)
def test_all_outputs_can_be_kept(kind):
    graphs = [_traced(kind, seed) for seed in range(2)]
    x = _input()
    with torch.no_grad():
        found = side_by_side(graphs)(x.clone())
        assert len(found) == 2
        for output, graph in zip(found, graphs, strict=True):
            assert deviation(output, graph(x.clone())) < 1e-12


def test_heads_of_unlike_classes_read_all_channels(tmp_path):
    graphs = []
    for seed, (width, classes) in enumerate(((4, 2), (6, 3), (4, 5))):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, classes)).double()
        graphs.append(gs.trace(network, torch.zeros(2, 3, dtype=torch.float64)))
    big, x = side_by_side(graphs), torch.randn(4, 3, dtype=torch.float64)
    assert dict(big.module.named_parameters())["2.weight"].shape == (10, 14)
    assert [(space.name, space.size) for space in big.spaces] == [("0", 14)]
    with torch.no_grad():
        for output, graph in zip(big(x), graphs, strict=True):
            assert deviation(output, graph(x)) < 1e-12
        small = compress(big, {"0": [0, 1, 5, 6, 12]})
        assert [output.shape[1] for output in small(x)] == [2, 3, 5]
    gs.export_onnx(big, tmp_path / "big.onnx")
    assert gs.check_onnx(big, tmp_path / "big.onnx").deviation <= 1e-4
    gs.save(big, tmp_path / "big.pt")
    assert deviation(gs.load(tmp_path / "big.pt")(x), big(x)) == 0


def test_a_weight_that_is_asked_for_its_device_is_not_used_twice():
    class Placed(_Tokens):
        def between(self, x):
            return x + torch.ones(TOKENS, 1).to(self.first.weight.device, self.first.weight.dtype)

    graphs = [_traced(Placed, seed) for seed in range(2)]
    big, x = concatenate(graphs), _input()
    assert "apart" not in big.lineage[-1]
    assert [(space.size, space.scalable) for space in big.spaces] == [(12, True)]
    with torch.no_grad():
        assert deviation(big(x), _mean([graph(x) for graph in graphs])) < 1e-12


class EndsInPlace(nn.Module):
    """A softmax is kept apart; the last activation writes in place, and the output is a view of that memory."""

    def __init__(self, *, named):
        super().__init__()
        self.first, self.last, self.norm, self.named = nn.Linear(4, 6), nn.Linear(6, 3), nn.BatchNorm1d(3), named
        self.end = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.norm(self.last(self.first(x).softmax(1)))
        z = torch.as_tensor(self.end(y))
        return {"scores": z} if self.named else z


@pytest.mark.parametrize("named", [False, True])
def test_an_output_that_is_written_in_place_is_the_mean(named):
    x = torch.randn(4, 4, dtype=torch.float64)
    graphs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = EndsInPlace(named=named).double().eval()
        randomize(network)
        graphs.append(gs.trace(network, x))
    both = concatenate(graphs)
    with torch.no_grad():
        outputs = [y["scores"] if named else y for y in (g(x) for g in (*graphs, both))]
    assert [n.op for n in both.module.graph.nodes].count("output") == 1
    assert deviation(outputs[2], (outputs[0] + outputs[1]) / 2) < 1e-12
