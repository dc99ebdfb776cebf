"""Masks: as objects, as bits, and as what a module is trained under."""

import copy

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork
from torch import nn
from zoo import FEW, traced

import graphsurgery as gs
from graphsurgery.checkpoint import read_metadata
from graphsurgery.passes.mask import mask
from graphsurgery.surgery.deviation import deviation
from graphsurgery.surgery.masks import bits
from graphsurgery.surgery.masks.mask_set import MaskSet, maskable
from graphsurgery.surgery.masks.training import masked

SOME = ("paper/lenet_300_100", "paper/conv2?image_size=8", "paper/resnet20?width=8", *FEW)


def drawn(graph, density=0.3, seed=0):
    """Random masks of a network."""
    generator = torch.Generator().manual_seed(seed)
    return MaskSet({name: torch.rand(w.shape, generator=generator) < density for name, w in maskable(graph).items()})


@pytest.mark.parametrize("name", SOME)
def test_weights_that_multiply_can_be_masked(name):
    graph, _ = traced(name)
    weights = maskable(graph)
    layers = {n: m for n, m in graph.module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert {f"{n}.weight" for n in layers} <= set(weights)
    assert all(w.dim() >= 2 and "pos_embedding" not in n for n, w in weights.items())


@pytest.mark.parametrize("name", SOME)
def test_a_module_under_a_mask_computes_what_the_pass_gives(name):
    graph, x = traced(name)
    masks = drawn(graph)
    small = mask(graph, masks)
    with torch.no_grad():
        expected = small(x)
        before = {n: (id(t), t.shape) for n, t in graph.tensors().items()}
        with masked(graph, masks) as module:
            assert deviation(module(x), expected) < 1e-12
        assert deviation(graph(x), expected) < 1e-12
    assert {n: (id(t), t.shape) for n, t in graph.tensors().items()} == before
    assert MaskSet.nonzero(small) == masks
    assert small.lineage[-1] == {"pass": "mask", "kept": masks.kept, "of": masks.total}
    assert [s.size for s in small.spaces] == [s.size for s in graph.spaces]


@given(st.integers(0, 10**6), st.floats(0.0, 1.0))
@settings(max_examples=30, deadline=None)
def test_random_networks_under_random_masks(seed, density):
    graph, x, _ = typed(RandomNetwork(seed), (3, 4, 4), seed=seed)
    masks = drawn(graph, density, seed)
    small = mask(graph, masks)
    with torch.no_grad(), masked(graph, masks) as module:
        assert deviation(module(*x), small(*x)) < 1e-12
    packed = MaskSet(bits.unpacked(bits.packed(masks), {n: tuple(m.shape) for n, m in masks.items()}))
    assert packed == masks
    assert MaskSet.from_dict(masks.as_dict()) == masks


def test_an_exported_ticket_is_the_masked_network(tmp_path):
    graph, _ = traced("paper/lenet5")
    small = mask(graph, drawn(graph))
    gs.export_onnx(small, tmp_path / "ticket.onnx")
    assert gs.check_onnx(small, tmp_path / "ticket.onnx").holds


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_dead_weights_get_no_update_no_momentum_and_no_decay(kind):
    graph, x = traced("paper/lenet5")
    masks = drawn(graph)
    frozen = {"fc1.weight": torch.full_like(graph.tensors()["fc1.weight"], 0.25)}
    before = {n: t.detach().clone() for n, t in graph.tensors().items()}
    with masked(graph, masks, frozen) as module:
        optimizer = OPTIMIZERS[kind](module.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(module(x), torch.tensor([1, 2])).backward()
            optimizer.step()
        originals = {
            n.replace("parametrizations.weight.original", "weight"): p
            for n, p in module.named_parameters()
            if n.endswith("original")
        }
        for name, parameter in originals.items():
            dead = ~masks[name]
            for state in optimizer.state[parameter].values():
                if state is not None and state.shape == parameter.shape:
                    assert not state[dead].any()
            assert not parameter[dead].any()
    for name, tensor in graph.tensors().items():
        if name in masks:
            dead = ~masks[name]
            assert (tensor[dead] == (0.25 if name == "fc1.weight" else 0.0)).all()
            assert not torch.equal(tensor[masks[name]], before[name][masks[name]])


def test_tied_weights_share_a_mask():
    layer = nn.Linear(6, 6)
    network = Network(lambda n, x: n.a(torch.relu(n.b(x))), a=layer, b=nn.Linear(6, 6))
    network.b.weight = layer.weight
    graph, x, _ = typed(network, (6,))
    assert list(maskable(graph)) == ["a.weight"] or list(maskable(graph)) == ["b.weight"]
    masks = drawn(graph, 0.5)
    small = mask(graph, masks)
    with torch.no_grad(), masked(graph, masks) as module:
        assert torch.equal(module(*x), small(*x))
        assert len([n for n, _ in module.named_parameters() if n.endswith("original")]) == 1
    assert graph.module.a.weight is graph.module.b.weight


def test_a_parameter_of_the_root_can_be_masked():
    network = Network(lambda n, x: torch.relu(x @ n.w) @ n.v, {"w": torch.zeros(4, 5), "v": torch.zeros(5, 2)})
    graph, x, _ = typed(network, (4,))
    masks = drawn(graph, 0.5)
    assert set(masks) == {"w", "v"}
    small = mask(graph, masks)
    with torch.no_grad(), masked(graph, masks) as module:
        assert torch.equal(module(*x), small(*x))
    with torch.no_grad():
        assert torch.equal(graph(*x), small(*x))
        assert torch.equal(copy.deepcopy(graph.module)(*x), small(*x))


def test_recurrent_layers_are_left_out():
    layers = {"a": nn.Linear(4, 6), "lstm": nn.LSTM(6, 5, batch_first=True), "b": nn.Linear(5, 3)}
    graph, _, _ = typed(Network(lambda n, x: n.b(n.lstm(torch.relu(n.a(x)))[0]), **layers), (7, 4))
    assert set(maskable(graph)) == {"a.weight", "b.weight"}


def test_sets_and_their_distances():
    graph, _ = traced("paper/lenet5")
    a, b = drawn(graph, 0.5, 1), drawn(graph, 0.5, 2)
    both, either = a & b, a | b
    assert both.kept + either.kept == a.kept + b.kept
    assert a.hamming(b) == pytest.approx((either.kept - both.kept) / a.total)
    assert a.iou(b) == pytest.approx(both.kept / either.kept)
    assert (a.hamming(a), a.iou(a), (~a).iou(a)) == (0.0, 1.0, 0.0)
    assert a.overlap(b) == (a.hamming(b), a.iou(b), a.iou_by_chance(b))
    layer = a.compared(b)["fc1.weight"]
    assert layer.hamming == float((a["fc1.weight"] ^ b["fc1.weight"]).double().mean())
    assert layer == (pytest.approx(0.5, abs=0.02), pytest.approx(1 / 3, abs=0.02), pytest.approx(1 / 3, abs=0.02))
    assert a.density == pytest.approx(0.5, abs=0.02)
    assert a.densities["fc1.weight"] == float(a["fc1.weight"].double().mean())
    assert (~a).kept == a.total - a.kept
    assert MaskSet.ones(graph).density == 1.0


def test_a_shuffled_mask_keeps_its_counts():
    graph, _ = traced("paper/lenet5")
    masks = drawn(graph, 0.2)
    shuffled = masks.shuffled(3)
    assert shuffled.densities == masks.densities
    assert shuffled == masks.shuffled(3)
    assert shuffled != masks.shuffled(4)
    assert shuffled.iou(masks) < 0.2


@given(st.integers(0, 10**6), st.floats(0.05, 1.0), st.floats(0.05, 1.0))
@settings(max_examples=20, deadline=None)
def test_independent_masks_overlap_by_chance(seed, first, second):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"wide": (200, 300), "narrow": (20, 30)}
    a, b = (
        MaskSet({name: torch.rand(shape, generator=generator) < share for name, shape in shapes.items()})
        for share in (first, second)
    )
    assert a.iou(b.shuffled(seed)) == pytest.approx(a.iou_by_chance(b), abs=0.02)
    assert a.iou_by_chance(b) == b.iou_by_chance(a)


def test_masks_of_nothing_agree():
    nothing = MaskSet({"fc": torch.zeros(2, 3, dtype=torch.bool)})
    assert nothing.overlap(nothing) == (0.0, 1.0, 1.0)
    assert nothing.iou_by_chance(~nothing) == 0.0


def test_masks_inside_a_checkpoint(tmp_path):
    graph, _ = traced("paper/lenet5")
    masks = drawn(graph, 0.07)
    gs.save(mask(graph, masks), tmp_path / "ticket.pt", masks=masks.as_dict())
    assert MaskSet.from_dict(read_metadata(tmp_path / "ticket.pt")["masks"]) == masks
    assert len(bits.packed(masks)) < masks.total / 8


def test_masks_beside_a_checkpoint(tmp_path):
    graph, _ = traced("paper/lenet5")
    masks = drawn(graph, 0.07)
    masks.save(tmp_path / "masks.json")
    assert MaskSet.load(tmp_path / "masks.json") == masks
    whole = (tmp_path / "masks.json").read_text()
    cases = {"{}": r"is no file of masks; expected", whole[:-99]: r"is no file of masks, or damaged"}
    cases[whole.replace('"conv1.weight": [6,', '"conv1.weight": [7,')] = r"masks.json: masks: have \d+ bytes"
    for text, message in cases.items():
        (tmp_path / "masks.json").write_text(text)
        with pytest.raises(gs.CheckpointError, match=message):
            MaskSet.load(tmp_path / "masks.json")
    with pytest.raises(gs.CheckpointError, match=r"none.json: cannot be read \(No such file"):
        MaskSet.load(tmp_path / "none.json")


def damaged(change):
    graph, _ = traced("paper/lenet5")
    fields = drawn(graph).as_dict()
    change(fields)
    return fields


BAD = {
    "no bits": (lambda f: f.pop("bits"), r"shapes or bits are damaged"),
    "no text": (lambda f: f.update(bits="?"), r"shapes or bits are damaged"),
    "cut short": (lambda f: f.update(bits=f["bits"][:80]), r"masks: (their bits are damaged|have \d+ bytes)"),
    "other": (lambda f: f.update(bits="aGVsbG8="), r"their bits are damaged"),
    "too few": (lambda f: f["shapes"].update({"fc1.weight": [120, 401]}), r"have \d+ bytes, their shapes ask for \d+"),
    "negative": (lambda f: f["shapes"].update({"fc1.weight": [-1, 400]}), r"have \d+ bytes"),
    "no sizes": (lambda f: f["shapes"].update({"fc1.weight": ["a"]}), r"shapes or bits are damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_bits_are_refused(case):
    change, message = BAD[case]
    with pytest.raises(gs.SurgeryError, match=message):
        MaskSet.from_dict(damaged(change))


def test_masks_of_another_architecture_are_refused():
    graph, _ = traced("paper/lenet5")
    other, _ = traced("paper/conv2?image_size=8")
    small, _ = traced("paper/lenet5?image_size=16")
    with pytest.raises(gs.SurgeryError, match=r"no weight conv1.weight that can be masked \(2 of 5 are missing\)"):
        mask(other, drawn(graph))
    with (
        pytest.raises(gs.SurgeryError, match=r"fc1.weight has the shape \[120, 400\] in the masks and .*\[120, 64\]"),
        masked(small, drawn(graph)),
    ):
        pass
    with pytest.raises(gs.SurgeryError, match=r"features.0.weight has the shape .* and no weight in the others"):
        drawn(other).hamming(MaskSet({}))
    with pytest.raises(gs.SurgeryError, match=r"mask of fc: is of type torch.float32, expected torch.bool"):
        MaskSet({"fc": torch.ones(2, 2)})
    with (
        pytest.raises(gs.SurgeryError, match=r"fc1.weight has dead values \[2, 2\]"),
        masked(graph, drawn(graph), {"fc1.weight": torch.zeros(2, 2)}),
    ):
        pass
