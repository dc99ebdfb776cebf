"""Attention and transformers of torch: every form of them is followed, typed, cut, saved and exported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts import assert_contracts
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
