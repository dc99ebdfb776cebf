"""torchvision's shifted windows: one trace is the network at every size, wherever it shifts, whatever its windows."""

from functools import partial

import pytest
import torch
from contracts import masked, random_choice
from torchvision.models import swin_transformer as images
from torchvision.models.video import swin_transformer as clips

import graphsurgery as gs
from graphsurgery.network.layers import hold, shift_mask
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.gate import fold, gate
from graphsurgery.surgery.deviation import deviation
from graphsurgery.surgery.gates import gates
from graphsurgery.tracing.stand_ins import shifted_windows

V2 = {"block": images.SwinTransformerBlockV2, "downsample_layer": images.PatchMergingV2}
RANDOM = {"dropout": 0.1, "attention_dropout": 0.2, "stochastic_depth_prob": 0.3}
NETWORKS = {
    "swin": partial(images.SwinTransformer, [4, 4], 8, num_heads=[2, 4], window_size=[4, 4]),
    "swin, oblong windows": partial(images.SwinTransformer, [4, 4], 8, num_heads=[2, 4], window_size=[3, 5]),
    "swin v2": partial(images.SwinTransformer, [4, 4], 8, num_heads=[2, 4], window_size=[4, 4], **V2),
    "swin 3d": partial(clips.SwinTransformer3d, [2, 4, 4], 8, num_heads=[2, 4], window_size=[4, 4, 4]),
}
# One window everywhere, which is also shorter than a window of a clip; two windows along one axis; padded windows.
IMAGES = ((12, 8), (16, 32), (44, 60))
CLIPS = ((2, 12, 8), (12, 16, 32), (8, 44, 28))


def sizes_for(name):
    return CLIPS if "3d" in name else IMAGES


def network(name, seed=0, depths=(2, 2), **options):
    torch.manual_seed(seed)
    found = NETWORKS[name](num_classes=5, depths=list(depths), **options).double().eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(0, 0.3)
    return found


def draw(size, batch=2, seed=1):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("traced_at", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_one_trace_is_the_network_at_every_size_bit_for_bit(name, traced_at):
    eager = network(name, **RANDOM)
    graph = gs.trace(eager, draw(sizes_for(name)[traced_at]))
    assert not any(node.target is hold for node in graph.module.graph.nodes)
    assert not any("only as in evaluation" in entry for entry in graph.lineage)
    for size in sizes_for(name):
        x = draw(size, batch=3)
        for training in (False, True):
            outputs = []
            for module in (graph.module, eager):
                torch.manual_seed(2)
                outputs.append(module.train(training)(x))
            assert outputs[1].isfinite().all()
            assert torch.equal(*outputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_keep_their_names(name):
    eager = network(name)
    graph = gs.trace(eager, draw(sizes_for(name)[0]))
    found = graph.module.state_dict()
    assert found.keys() == eager.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in eager.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_size_of_the_example_changes_no_space(name):
    graphs = [gs.trace(network(name), draw(size)) for size in sizes_for(name)]
    spaces = [[(s.name, s.size, s.outer, s.scalable, len(s.mixed)) for s in graph.spaces] for graph in graphs]
    assert spaces[0] == spaces[1] == spaces[2]
    assert graphs[0].frozen == graphs[1].frozen == graphs[2].frozen


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_passes_hold_at_sizes_that_were_not_traced(name, tmp_path):
    size, *others = reversed(sizes_for(name))
    networks = [network(name, seed) for seed in range(2)]
    graphs = [gs.trace(eager, draw(size)) for eager in networks]
    kept = random_choice(graphs[0])
    cut, hidden, both = compress(graphs[0], kept), masked(graphs[0], kept), concatenate(graphs)
    gated = gate(graphs[0], list(kept))
    folded = fold(gated)
    assert len(gates(gated)) == len(kept)
    gs.save(cut, tmp_path / "cut.pt")
    stored = gs.load(tmp_path / "cut.pt")
    for other in others:
        x = draw(other)
        assert deviation(cut(x), hidden(x)) < 1e-12
        assert deviation(both(x), (networks[0](x) + networks[1](x)) / 2) < 1e-12
        assert deviation(folded(x), gated(x)) < 1e-12
        assert torch.equal(stored(x), cut(x))


@pytest.mark.parametrize(("name", "size", "depths"), [("swin", (32, 16), [2, 1]), ("swin 3d", (4, 32, 16), [2])])
def test_what_shifts_is_exported(name, size, depths, tmp_path):
    """The first stage has a block that shifts and one that does not; merging patches is the same in clips."""
    graph = gs.trace(network(name, depths=depths), draw(size))
    gs.export_onnx(graph, tmp_path / "windows.onnx")
    assert gs.check_onnx(graph, tmp_path / "windows.onnx", batches=(1, 3)).holds


SHIFTS = [
    ((8, 4), (4, 4), (2, 0)),
    ((8, 8), (4, 4), (2, 1)),
    ((4, 4), (4, 4), (0, 0)),
    ((3, 10), (3, 5), (0, 2)),
    ((4, 8, 6), (2, 4, 3), (1, 2, 1)),
    ((2, 8, 6), (2, 4, 3), (0, 2, 1)),
    ((4, 8, 6), (2, 4, 3), (0, 0, 0)),
]


@pytest.mark.parametrize(("sizes", "window", "shift"), SHIFTS)
def test_the_mask_is_that_of_torchvision(sizes, window, shift):
    like = torch.zeros(1, dtype=torch.float64)
    whole = [(1,) * (3 - len(sizes)) + part for part in (sizes, window)]
    expected = clips._compute_attention_mask_3d(like, *whole, (0,) * (3 - len(shift)) + shift)
    found = shift_mask(like, sizes, window, shift)
    assert found.dtype == like.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shift", [(0, 0), (2, 1), (0, 3)])
@pytest.mark.parametrize("cosine", [True, False])
def test_images_outside_of_a_trace(cosine, shift, bias):
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = [normal(2, 7, 9, 8), normal(24, 8), normal(8, 8), normal(1, 2, 16, 16), [4, 4], 2, list(shift)]
    options = {"qkv_bias": normal(24), "proj_bias": normal(8)} if bias else {}
    options["logit_scale"] = normal(2, 1, 1) if cosine else None
    found, expected = (
        module.shifted_window_attention(*given, **options, training=False) for module in (shifted_windows, images)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("size", "shift"), [((3, 9, 4), (1, 2, 2)), ((4, 4, 4), (0, 0, 0)), ((9, 5, 7), (0, 2, 0))])
def test_clips_outside_of_a_trace(size, shift):
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    window, moved = shifted_windows.window_and_shift(shift, size, [4, 4, 4])
    assert (window, moved) == clips._get_window_and_shift_size(list(shift), size, [4, 4, 4])
    tokens = window[0] * window[1] * window[2]
    given = [normal(2, *size, 8), normal(24, 8), normal(8, 8), normal(1, 2, tokens, tokens), window, 2, moved]
    found, expected = (
        module.shifted_window_attention_3d(*given, training=False) for module in (shifted_windows, clips)
    )
    assert torch.equal(found, expected)


def test_a_trace_leaves_torchvision_as_it_was():
    before = [getattr(home, name) for home, name, _ in shifted_windows.replacements()]
    gs.trace(network("swin"), draw((16, 16)))
    with pytest.raises(gs.TraceError):
        gs.trace(network("swin"), torch.zeros(2, 4, 16, 16))
    assert [getattr(home, name) for home, name, _ in shifted_windows.replacements()] == before
