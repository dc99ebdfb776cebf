"""Gates in front of what recurrent layers and cells read of themselves."""

import copy
import pickle

import pytest
import torch
from contracts import Network, random_choice, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrences import CELLS, LAYERS, Packed, recurrent
from torch import nn

import graphsurgery as gs
from graphsurgery.checkpoint import load, save
from graphsurgery.network.gated_layers import GATED, GatedLSTM
from graphsurgery.passes.compress import compress
from graphsurgery.passes.gate import fold, gate, gateable
from graphsurgery.recipes.contracts.edit_checks import check_cut
from graphsurgery.recipes.contracts.subjects import holes
from graphsurgery.surgery.deviation import deviation
from graphsurgery.surgery.gates import gates
from graphsurgery.surgery.masks.training import masked

NAMES = [*LAYERS, *CELLS]


def set_gates(graph, seed=0):
    """Random gates: some shut, some open, most between."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in gates(graph).values():
            module.loc.copy_(2 * torch.randn(module.channels, generator=generator, dtype=torch.float64))


def assert_gates_hold(graph, x, seed=0):
    """Open, folded, and shut: each is what it is called."""
    assert [space.name for space in gateable(graph)] == [space.name for space in graph.spaces]
    with torch.no_grad():
        gated = gate(graph, loc=60.0)
        assert deviation(gated(*x), graph(*x)) < 1e-12
        set_gates(gated, seed)
        folded = fold(gated)
        assert deviation(folded(*x), gated(*x)) < 1e-10
        assert deviation(folded(*x), graph(*x)) > 1e-6
        assert {type(module) for module in folded.module.modules()}.isdisjoint(GATED.values())
        kept = random_choice(graph, seed)
        for name, module in gates(gated).items():
            module.loc.fill_(-60.0)
            module.loc[kept[name]] = 60.0
        small = compress(graph, kept)
        assert deviation(small(*x), gated(*x)) < 1e-10
        chosen = compress(gated, {name: len(indices) for name, indices in kept.items()}, importance="gate")
        assert deviation(chosen(*x), small(*x)) < 1e-10
    return gated


@pytest.mark.parametrize("name", NAMES)
def test_open_folded_and_shut(name):
    graph, x, _ = typed(recurrent(name), (3, 3))
    gated = assert_gates_hold(graph, x)
    assert [module.shared for module in gates(gated).values()] == [False, True]


class Drawn(nn.Module):
    """A recurrent layer of any options; its states too are read, from states that are given or from none."""

    def __init__(self, kind, options, starts):
        super().__init__()
        directions = 1 + options["bidirectional"]
        self.a, self.s = nn.Linear(3, 5), nn.Linear(3, 4)
        self.r = kind(5, 4, **options)
        self.b, self.c = nn.Linear(4 * directions, 2), nn.Linear(4, 2)
        self.starts = starts

    def forward(self, x):
        layers = self.r.num_layers * (1 + self.r.bidirectional)
        h, start = torch.tanh(self.a(x)), None
        if self.starts:
            state = torch.tanh(self.s(x[:, 0]))[None].expand(layers, -1, -1).contiguous()
            start = (state, state / 2) if isinstance(self.r, nn.LSTM) else state
        every, last = self.r(h if self.r.batch_first else h.transpose(0, 1), start)
        last = last[0] if isinstance(last, tuple) else last
        every = every if self.r.batch_first else every.transpose(0, 1)
        return self.b(every) + self.c(last[-1])[:, None]


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]),
    st.fixed_dictionaries(
        {"num_layers": st.integers(1, 2)} | {name: st.booleans() for name in ("bidirectional", "bias", "batch_first")}
    ),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_any_options(kind, options, starts, seed):
    graph, x, _ = typed(Drawn(kind, options, starts), (4, 3), seed=seed)
    assert_gates_hold(graph, x, seed)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_packed_sequences(kind):
    """What is packed is read inside, and what is read behind has no axis of examples."""
    options = {"num_layers": 2, "bidirectional": True}
    network = Packed(kind, ends=False, whole=True, options=options).double().eval()
    x = torch.randn(3, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([2, 5, 3])
    graph = gs.trace(network, [x[:2], lengths[:2]])
    gated = assert_gates_hold(graph, [x, lengths])
    assert all(module.shared for module in gates(gated).values())


@pytest.mark.parametrize("name", NAMES)
def test_one_mask_for_the_whole_batch_and_all_readers(name):
    graph, x, _ = typed(recurrent(name), (3, 3))
    gated = gate(graph, ["r"], loc=0.5)
    gated.module.train()
    torch.manual_seed(3)
    first = gated(*x)
    torch.manual_seed(3)
    mask = gates(gated)["r"](x[0])
    assert torch.equal(mask, mask[:1].expand_as(mask))
    fixed = gate(graph, ["r"])
    module = gates(fixed)["r"]
    target = ((mask[0] - module.gamma) / (module.zeta - module.gamma)).clamp(1e-30, 1 - 1e-16)
    with torch.no_grad():
        module.loc.copy_(torch.logit(target))
    assert deviation(first, fixed(*x)) < 1e-10
    assert deviation(first, fold(fixed)(*x)) < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_gates_and_weights_train(name):
    graph, x, _ = typed(recurrent(name), (3, 3))
    gated = gate(graph)
    gated.module.train()
    torch.manual_seed(0)
    gated(*x).square().sum().backward()
    missing = [path for path, p in gated.module.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing
    again = copy.deepcopy(gated.module).eval()
    assert torch.equal(again(*x), gated.module.eval()(*x))


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_gradients_are_those_of_the_formula(name):
    """Of the gates too: the mask stands on the columns of the weights."""
    graph, x, _ = typed(recurrent(name), (3, 3))
    gated = gate(graph, ["r"])
    set_gates(gated)
    gated(*x).square().sum().backward()
    module = gates(gated)["r"]
    step = torch.zeros_like(module.loc)
    step[2] = 1e-6
    with torch.no_grad():
        module.loc += step
        above = gated(*x).square().sum()
        module.loc -= 2 * step
        below = gated(*x).square().sum()
    torch.testing.assert_close((above - below) / 2e-6, module.loc.grad[2], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_traced_again(name, tmp_path):
    graph, x, _ = typed(recurrent(name), (3, 3))
    gated = gate(graph)
    set_gates(gated)
    save(gated, tmp_path / "n.pt")
    loaded = load(tmp_path / "n.pt")
    assert torch.equal(loaded(*x), gated(*x))
    assert deviation(fold(loaded)(*x), gated(*x)) < 1e-10
    assert gates(loaded)["r"].shared
    assert torch.equal(pickle.loads(pickle.dumps(gated.module))(*x), gated(*x))
    assert torch.equal(gs.trace(gated.module, [t[:2] for t in x])(*x), gated(*x))


def test_older_gates_have_a_mask_for_each_example(tmp_path):
    """A file that says nothing of it."""
    graph, _, _ = typed(Network(lambda n, x: n.b(torch.tanh(n.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2)), (3,))
    save(gate(graph), tmp_path / "n.pt")
    assert not gates(load(tmp_path / "n.pt"))["a"].shared
    assert b"shared" not in (tmp_path / "n.pt").read_bytes()


EXPORTED = ["both ways, in two layers", "GRU", "RNN", "LSTMCell", "GRUCell"]


@pytest.mark.parametrize(
    ("name", "folded"), [*((name, False) for name in EXPORTED), (EXPORTED[0], True), ("GRUCell", True)]
)
def test_in_onnx_runtime(name, folded, tmp_path):
    """What is folded is a plain layer again."""
    torch.manual_seed(0)
    graph = gs.trace(recurrent(name).eval(), torch.randn(2, 3 if name in CELLS else 2, 3))
    gated = gate(graph, loc=0.0)
    gs.export_onnx(fold(gated) if folded else gated, tmp_path / "n.onnx")
    assert gs.check_onnx(gated, tmp_path / "n.onnx").deviation < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_check_of_a_cut_masks_what_a_layer_reads_of_itself(name):
    graph, _, _ = typed(recurrent(name), (3, 3))
    gated = gate(graph)
    set_gates(gated)
    for before, importance in ((graph, "l1"), (gated, "gate")):
        found = check_cut(before, compress(before, 0.5, importance=importance))
        assert found.check.holds
        assert found.deviation < 1e-12


def test_tied_weights_are_scaled_together():
    """Both layers read their states by one weight; each is scaled, once."""
    network = recurrent("LSTM")
    network.r = nn.LSTM(6, 6, 2, batch_first=True)
    network.a = nn.Linear(3, 6)
    network.r.weight_hh_l1 = network.r.weight_hh_l0
    graph, x, _ = typed(network, (3, 3))
    gated = gate(graph, ["r"])
    set_gates(gated)
    (call,) = (node for node in gated.module.graph.nodes if node.target == "r")
    assert set(call.kwargs["gates"]) == {"weight_hh_l0", "weight_hh_l1", "weight_ih_l1"}
    assert deviation(fold(gated)(*x), gated(*x)) < 1e-10


def test_a_layer_without_gates_is_the_plain_one():
    torch.manual_seed(0)
    plain, x = nn.LSTM(3, 4, 2, dropout=0.5), torch.randn(5, 2, 3)
    gated = GatedLSTM(3, 4, 2, dropout=0.5)
    gated.load_state_dict(plain.state_dict())
    for mode in (True, False):
        torch.manual_seed(1)
        expected, _ = plain.train(mode)(x)
        torch.manual_seed(1)
        assert torch.equal(gated.train(mode)(x)[0], expected)


@pytest.mark.parametrize("name", CELLS)
def test_under_a_mask_of_weights(name):
    graph, x, _ = typed(recurrent(name), (3, 3))
    gated = gate(graph)
    set_gates(gated)
    masks = holes(graph, seed=0)
    assert "r.weight_hh" in masks
    expected = gated.copy()
    with torch.no_grad():
        for path, parameter in expected.module.named_parameters():
            parameter.mul_(masks[path]) if path in masks else None
        with masked(gated, masks):
            assert torch.equal(gated(*x), expected(*x))


def test_refuses():
    graph, _, _ = typed(recurrent("LSTM"), (3, 3))
    with pytest.raises(gs.SurgeryError, match="has gates already; fold or compress"):
        gate(gate(graph))
    with pytest.raises(gs.SurgeryError, match="hidden is not a space of this model"):
        gate(graph, ["hidden"])
    projected = Network(
        lambda n, x: n.b(n.r(torch.tanh(n.a(x)))[0]),
        a=nn.Linear(3, 8),
        r=nn.LSTM(8, 6, proj_size=4, batch_first=True),
        b=nn.Linear(4, 2),
    )
    with pytest.raises(gs.SurgeryError, match="no space can be gated; frozen by r: LSTM: projections of the hidden"):
        gate(typed(projected, (5, 3))[0])
