"""Attention and transformers of torch: every form of them is followed, typed, cut, saved and exported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contracts import assert_contracts, assert_same_in_both_modes
from torch import Tensor, nn

import graphsurgery as gs
from graphsurgery.network.outputs.naming import run
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.deviation import deviation

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "other keys and values": {"kdim": 3, "vdim": 3},
    "other keys and values, without bias": {"kdim": 3, "vdim": 3, "bias": False},
    "learned keys and values": {"add_bias_kv": True},
    "zeros": {"add_zero_attn": True},
    "everything": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 3, "vdim": 3, "batch_first": False},
    "tokens first": {"batch_first": False},
}
MASKS = ["", "padding", "padding as numbers", "padding, causal", "heads", "heads as numbers", "said to be causal"]


class Attention(nn.Module):
    """One attention between linear layers; what is masked follows the input."""

    def __init__(self, masked: str = "", need_weights: bool = False, dropout: float = 0.0, **form: Any) -> None:
        super().__init__()
        form = {"batch_first": True, **form}
        self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.attention = nn.MultiheadAttention(8, 2, dropout=dropout, **form)
        self.masked, self.weights, self.batch_first = masked, need_weights, form["batch_first"]

    def masks(self, x: Tensor) -> dict[str, Any]:
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        numbers = torch.zeros(later.shape, dtype=x.dtype).masked_fill(later, -torch.inf)
        padding = torch.cat([x[:, :1, 0] > 9, x[:, 1:, 0] > 0.3], 1)
        of_heads = padding.unsqueeze(1).unsqueeze(1).expand(-1, 2, x.shape[1], -1).flatten(0, 1)
        return {
            "": {},
            "padding": {"key_padding_mask": padding},
            "padding as numbers": {"key_padding_mask": x[..., 1]},
            "padding, causal": {"key_padding_mask": padding, "attn_mask": later},
            "heads": {"attn_mask": of_heads},
            "heads as numbers": {"attn_mask": of_heads * x.new_full((), -2.0), "key_padding_mask": x[..., 1]},
            "said to be causal": {"attn_mask": numbers, "is_causal": True},
        }[self.masked]

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.stem(x))
        query, memory = (t if self.batch_first else t.transpose(0, 1) for t in (h, x))
        memory = memory if self.attention.kdim == 3 else query
        y, weights = self.attention(query, memory, memory, need_weights=self.weights, **self.masks(x))
        y = self.head(y if self.batch_first else y.transpose(0, 1))
        return (y, weights) if self.weights else y


class Transformer(nn.Module):
    """torch's own encoder and decoder."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.layers = nn.Transformer(8, 2, 2, 1, 12, batch_first=True, **options)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = torch.cat([x[:, :1, 0] > 9, x[:, 1:, 0] > 0.3], 1)
        causal = nn.Transformer.generate_square_subsequent_mask(y.shape[1], dtype=y.dtype)
        paddings = {"src_key_padding_mask": hidden, "memory_key_padding_mask": hidden}
        return self.head(self.layers(self.stem(x), self.stem(y), tgt_mask=causal, **paddings))


@pytest.mark.parametrize(
    ("form", "masked"), [(form, "padding, causal") for form in FORMS] + [("plain", m) for m in MASKS]
)
@pytest.mark.parametrize("need_weights", [False, True])
def test_every_form_and_mask(form: str, masked: str, need_weights: bool) -> None:
    graph = assert_contracts(Attention(masked, need_weights, **FORMS[form]), (5, 3))
    assert {node for node, _ in graph.frozen} <= {"triu"}
    assert sum(space.size == 2 for space in graph.spaces) == 1
    assert sum(space.size == 4 for space in graph.spaces) == 2
    x = torch.randn(3, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert deviation(widen(graph, 1.5)(x), graph(x)) < 1e-12


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"bias": False, "activation": "gelu"}])
def test_transformers(options: dict[str, Any]) -> None:
    graph = assert_contracts(Transformer(**options), (5, 3), (4, 3))
    assert {node for node, _ in graph.frozen} <= {"triu"}
    assert sum(space.size == 12 for space in graph.spaces) == 3


def test_padding_that_torch_would_nest() -> None:
    """Where no gradients are wanted torch's encoder leaves padding out; what is traced is how it trains."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dtype=torch.float64)
    network = nn.TransformerEncoder(layer, 2).eval()
    x, hidden = torch.randn(2, 5, 8, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.bool)
    hidden[0, 3:] = True
    graph = gs.trace(_Padded(network), [x, hidden])
    assert deviation(graph(x, hidden), network(x, src_key_padding_mask=hidden)) < 1e-13


class _Padded(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=hidden)


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_as_in_training(need_weights: bool) -> None:
    torch.manual_seed(0)
    network = Attention("padding", need_weights, dropout=0.3).double().train()
    x = torch.randn(3, 5, 3, dtype=torch.float64)
    graph = gs.trace(network, x)
    graph.module.train()
    mine, expected = run(graph.module, [x], 0), run(network, [x], 0)
    for name, value in expected.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-13, atol=1e-13)
    assert not torch.equal(run(graph.module, [x], 1)["0"], mine["0"])


def test_a_query_that_sees_nothing_gives_zeros(tmp_path: Any) -> None:
    """In ONNX Runtime, too, in which a softmax of nothing is no number."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
            return self.attention(x, x, x, key_padding_mask=hidden, need_weights=False)[0]

    x, hidden = torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool)
    hidden[0] = True
    graph = gs.trace(Around().eval(), [x, hidden])
    assert torch.equal(graph(x, hidden)[0], attention.out_proj.bias.expand(5, -1))
    gs.export_onnx(graph, tmp_path / "small.onnx")
    gs.check_onnx(graph, tmp_path / "small.onnx")


@pytest.mark.parametrize("form", ["plain", "everything"])
def test_saved_and_exported(form: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3)
    graph = gs.trace(Attention("padding, causal", dropout=0.1, **FORMS[form]).eval(), x)
    gs.save(graph, tmp_path / "n.pt")
    assert torch.equal(gs.load(tmp_path / "n.pt")(x), graph(x))
    gs.export_onnx(graph, tmp_path / "n.onnx")
    gs.check_onnx(graph, tmp_path / "n.onnx")


class OwnProduct(nn.MultiheadAttention):
    """Takes torch's weights, and computes something else with them."""

    def forward(self, q: Tensor, _k: Tensor, _v: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        a, b, c = F.linear(q, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        return self.out_proj(torch.relu(a) * b + c), None


class LowRank(nn.MultiheadAttention):
    """Torch's attention, and a low-rank product beside it, as LoRA has it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(q, k, v, need_weights=False)[0] + self.up(self.down(q)), None


class Twice(LowRank):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(super().forward(q, k, v)[0], k, v)


def _hooked(attention: nn.MultiheadAttention) -> nn.MultiheadAttention:
    attention.register_forward_hook(lambda _, __, given: (3 * given[0], given[1]))
    attention.register_forward_pre_hook(lambda _, args: (2 * args[0], *args[1:]))
    return attention


def _with_more(attention: Any) -> Any:
    attention.scale, attention.inner = 2.5, nn.Linear(8, 8)
    attention.extra = nn.Parameter(torch.randn(8))
    attention.register_buffer("kept", torch.randn(8))
    return attention


OTHERS = {
    "own product": lambda: OwnProduct(8, 2, batch_first=True),
    "low rank": lambda: LowRank(8, 2, batch_first=True, dropout=0.2),
    "twice": lambda: Twice(8, 2, batch_first=True),
    "hooks": lambda: _hooked(nn.MultiheadAttention(8, 2, batch_first=True)),
    "hooks, and a forward of its own": lambda: _hooked(LowRank(8, 2, batch_first=True)),
    "more beside its weights": lambda: _with_more(nn.MultiheadAttention(8, 2, batch_first=True)),
}


class Around(nn.Module):
    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.a, self.attention, self.head = nn.Linear(6, 8), attention, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).relu()
        mixed = self.attention(hidden, hidden, hidden)[0]
        if hasattr(self.attention, "scale"):
            layer = self.attention
            mixed = layer.inner(mixed) * layer.scale + layer.extra * layer.kept
        return self.head(mixed)


@pytest.mark.parametrize("kind", OTHERS)
def test_an_attention_that_does_more_than_torchs_is_followed_as_it_is(kind: str, tmp_path: Any) -> None:
    """By itself, as nothing compares a trace of weights without values."""
    torch.manual_seed(0)
    model, x = Around(OTHERS[kind]()).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    graph = gs.trace(model, x, check=False)
    assert_same_in_both_modes(graph, model, x)
    small = gs.compress(gs.trace(model.eval(), x), 0.5)
    gs.save(small, tmp_path / "small.pt")
    torch.testing.assert_close(gs.load(tmp_path / "small.pt")(x), small(x))


def test_a_forward_that_an_attention_was_given_is_no_part_of_its_class() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    attention.forward = lambda q, k, v: (q * k + v, None)  # type: ignore[method-assign, assignment]
    model, x = Around(attention).eval(), torch.randn(2, 5, 6)
    torch.testing.assert_close(gs.trace(model, x, check=False)(x), model(x))
