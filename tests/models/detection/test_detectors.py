"""Torchvision's detectors, small ones of each kind: taken apart, edited, and put together again."""

import copy
from collections import OrderedDict
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from zoo import randomize

import graphsurgery as gs
from graphsurgery.axes.algebra import is_fixed
from graphsurgery.errors import SurgeryError, TraceError, UnsupportedError
from graphsurgery.models import build, input_shape
from graphsurgery.models.detection import core, install
from graphsurgery.models.detection.detectors import OneStageCore
from graphsurgery.models.loading import open_model
from graphsurgery.network.layers import Boundary
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.gate import gate
from graphsurgery.surgery.gates import gates

WIDTH = 32
SIZES = [(64, 80), (90, 70)]


def block(inputs, outputs, stride, norm=nn.BatchNorm2d):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), norm(outputs), nn.ReLU(inplace=True))


def pyramid(extra, norm=nn.BatchNorm2d):
    body = nn.Sequential(
        OrderedDict(stem=block(3, 6, 4, norm), second=block(6, 8, 2, norm), third=block(8, 12, 2, norm))
    )
    return BackboneWithFPN(body, {"second": "0", "third": "1"}, [8, 12], WIDTH, extra)


def anchors(levels, ratios=(0.5, 1.0)):
    return AnchorGenerator(tuple((8 * 2**level,) for level in range(levels)), (ratios,) * levels)


def two_stage(kind, backbone=None, names=("0", "1"), **options):
    """A detector that resizes to 64 pixels, on a backbone with two maps and their pool, or one map."""
    pool = partial(MultiScaleRoIAlign, list(names), sampling_ratio=2)
    return kind(
        backbone or pyramid(LastLevelMaxPool()),
        min_size=64,
        max_size=96,
        rpn_anchor_generator=anchors(1 if names == ("0",) else 3),
        rpn_post_nms_top_n_test=20,
        rpn_post_nms_top_n_train=20,
        box_roi_pool=pool(output_size=3),
        box_score_thresh=0.0,
        box_detections_per_img=10,
        **{"box_head": TwoMLPHead(WIDTH * 9, 16), "box_predictor": FastRCNNPredictor(16, 3), **options},
    )


def mask_rcnn():
    parts = {"mask_head": MaskRCNNHeads(WIDTH, (8, 6), 1), "mask_predictor": MaskRCNNPredictor(6, 8, 3)}
    return two_stage(MaskRCNN, mask_roi_pool=MultiScaleRoIAlign(["0", "1"], 4, 2), **parts)


def keypoint_rcnn():
    parts = {"keypoint_head": KeypointRCNNHeads(WIDTH, (8, 6)), "keypoint_predictor": KeypointRCNNPredictor(6, 3)}
    return two_stage(KeypointRCNN, keypoint_roi_pool=MultiScaleRoIAlign(["0", "1"], 4, 2), **parts)


class OneMap(nn.Module):
    """A backbone that gives a single tensor, with norms that are frozen."""

    out_channels = WIDTH

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(block(3, 6, 4, FrozenBatchNorm2d), block(6, WIDTH, 2, FrozenBatchNorm2d))

    def forward(self, x):
        return self.body(x)


def one_map():
    """No head between the pooled regions and the predictor but a single layer."""
    return two_stage(FasterRCNN, OneMap(), ("0",), box_head=nn.Flatten(), box_predictor=FastRCNNPredictor(9 * WIDTH, 3))


def retinanet():
    head = RetinaNetHead(WIDTH, 2, 3, norm_layer=partial(nn.GroupNorm, 4))
    backbone = pyramid(LastLevelP6P7(WIDTH, WIDTH))
    return RetinaNet(
        backbone, 3, 64, 96, anchor_generator=anchors(4), head=head, score_thresh=0.0, detections_per_img=9
    )


def fcos():
    options = {"anchor_generator": anchors(3, (1.0,)), "head": FCOSHead(WIDTH, 1, 3, num_convs=1)}
    return FCOS(pyramid(LastLevelMaxPool()), 3, 64, 96, score_thresh=0.0, detections_per_img=9, **options)


class Rescaled(nn.Module):
    """Two maps of different widths, the first divided by its norm over channels, as in SSD."""

    def __init__(self):
        super().__init__()
        self.scale_weight = nn.Parameter(torch.ones(12))
        self.first = nn.Sequential(block(3, 8, 4), block(8, 12, 2))
        self.second = block(12, 10, 2)

    def forward(self, x):
        x = self.first(x)
        return OrderedDict([("0", self.scale_weight.view(1, -1, 1, 1) * F.normalize(x)), ("1", self.second(x))])


def ssd():
    backbone = Rescaled()
    return SSD(backbone, DefaultBoxGenerator([[2], [2]]), (64, 64), 3, score_thresh=0.0, detections_per_img=9)


KINDS = {
    "faster_rcnn": partial(two_stage, FasterRCNN),
    "mask_rcnn": mask_rcnn,
    "keypoint_rcnn": keypoint_rcnn,
    "one_map": one_map,
    "retinanet": retinanet,
    "fcos": fcos,
    "ssd": ssd,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def detector(kind, seed=0):
    """A small detector in eval mode, every value random."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = KINDS[kind]()
        randomize(made)
    return made.eval()


@cache
def traced(kind, seed=0):
    return gs.trace(core(detector(kind, seed).double()), torch.zeros(2, 3, 64, 64), check=False)


def images(seed=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator, dtype=dtype) for size in SIZES]


def targets():
    boxes = torch.tensor([[5.0, 8.0, 40.0, 50.0], [20.0, 10.0, 60.0, 60.0]])
    found = []
    for size in SIZES:
        masks = torch.zeros(2, *size, dtype=torch.uint8)
        masks[:, 10:40, 20:40] = 1
        keypoints = torch.tensor([[[20.0, 20.0, 1.0], [30.0, 30.0, 1.0], [35.0, 45.0, 1.0]]] * 2)
        found.append({"boxes": boxes, "labels": torch.tensor([1, 1]), "masks": masks, "keypoints": keypoints})
    return found


def losses(module, seed=11):
    """Losses of one batch in training mode, with the same sampling of boxes."""
    torch.manual_seed(seed)
    return module.train()(images(), targets())


def same(found, expected, tolerance=0.0):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def outputs(network, x):
    with torch.no_grad():
        return network(x)


@every_kind
def test_the_trace_is_the_core_in_both_modes(kind):
    eager = core(detector(kind).double())
    graph = gs.trace(eager, torch.zeros(2, 3, 64, 64))
    x = torch.randn(3, 3, 96, 64, dtype=torch.float64)
    for mode in (False, True):
        same(outputs(graph.module.train(mode), x), outputs(eager.train(mode), x))


@every_kind
def test_an_unedited_core_gives_the_detector_back(kind):
    original = detector(kind)
    installed = install(gs.trace(core(original), torch.zeros(2, 3, 64, 64), check=False), original)
    assert list(installed.state_dict()) == list(original.state_dict())
    same(dict(installed.state_dict()), dict(original.state_dict()))
    assert not any(module.training for module in installed.modules())
    found, expected = outputs(installed, images()), outputs(original, images())
    assert all(len(detections["boxes"]) > 3 for detections in expected)
    same(found, expected)
    found, expected = losses(installed), losses(original)
    same(found, expected)
    for given in (found, expected):
        sum(given.values()).backward()
    expected = {name: parameter.grad for name, parameter in original.named_parameters()}
    assert all(gradient is not None for gradient in expected.values())
    same({name: parameter.grad for name, parameter in installed.named_parameters()}, expected)


@every_kind
def test_a_compressed_core_makes_a_smaller_detector(kind):
    original = detector(kind)
    network = compress(gs.trace(core(original), torch.zeros(2, 3, 64, 64), check=False), 0.5)
    small = install(network, original)
    counts = [sum(p.numel() for p in module.parameters()) for module in (small, network.module, original)]
    assert counts[0] == counts[1] < 0.6 * counts[2]
    assert all(len(found["boxes"]) > 3 for found in outputs(small, images()))
    found = losses(small)
    assert found.keys() == losses(original).keys()
    assert all(loss.isfinite() for loss in found.values())
    if hasattr(original.backbone, "out_channels"):
        assert (original.backbone.out_channels, small.backbone.out_channels) == (WIDTH, WIDTH // 2)


@every_kind
def test_gates_detect_what_the_compressed_core_detects(kind):
    shell, graph = detector(kind), traced(kind)
    gated, x = gate(graph, loc=60.0), torch.randn(3, 3, 64, 96, dtype=torch.float64)
    assert gates(gated).keys() == {s.name for s in graph.spaces if s.outer}
    same(outputs(gated, x), outputs(graph, x))
    kept = {s.name: range(0, s.size, 2) for s in graph.spaces if s.outer and not s.mixed}
    for name, indices in kept.items():
        gates(gated)[name].loc.data[[i for i in range(graph.space(name).size) if i not in indices]] = -60
    small = compress(gated, kept)
    same(outputs(small, x), outputs(gated, x), 1e-11)
    inputs = images(dtype=torch.float64)
    same(outputs(install(small, shell), inputs), outputs(install(gated, shell), inputs), 1e-9)


@every_kind
def test_concatenated_cores_predict_the_mean(kind):
    first, second = traced(kind, 0), compress(traced(kind, 1), 0.75)
    if kind == "one_map":
        second = traced(kind, 1)
    both, x = concatenate([first, second]), torch.randn(3, 3, 64, 96, dtype=torch.float64)
    expected = {name: (y + outputs(second, x)[name]) / 2 for name, y in outputs(first, x).items()}
    same(outputs(both, x), expected, 1e-12)
    twice, inputs = install(concatenate([first, first]), detector(kind)), images(dtype=torch.float64)
    same(outputs(twice, inputs), outputs(install(first, detector(kind)), inputs), 1e-9)


@pytest.mark.parametrize("kind", ["mask_rcnn", "one_map", "ssd"])
def test_a_stored_core_is_put_in_as_well(kind, tmp_path):
    graph = compress(traced(kind), 0.5)
    gs.save(graph, tmp_path / "core.pt")
    installed = install(gs.load(tmp_path / "core.pt"), detector(kind, 3))
    inputs = images(dtype=torch.float64)
    same(outputs(installed, inputs), outputs(install(graph, detector(kind)), inputs))


def test_gates_learn_in_the_detector_and_come_back():
    shell = detector("faster_rcnn")
    graph = gs.trace(core(shell), torch.zeros(2, 3, 64, 64), check=False)
    installed = install(gate(graph, loc=0.5), shell).train()
    sum(installed(images(), targets()).values()).backward()
    found = {m.space: m for m in installed.modules() if type(m).__name__ == "ChannelGate"}
    assert found.keys() == {s.name for s in graph.spaces}
    assert all(m.loc.grad.abs().sum() > 0 for m in found.values())
    with torch.no_grad():
        for module in found.values():
            module.loc[::2] -= 0.1 * module.loc[::2].abs() + 1
    again = gs.trace(core(installed.eval()), torch.zeros(2, 3, 64, 64), check=False)
    small = compress(again, 0.5, importance="gate")
    assert {s.name: s.size for s in small.spaces} == {s.name: s.size // 2 for s in graph.spaces}


@pytest.mark.parametrize("kind", ["mask_rcnn", "one_map", "ssd"])
def test_what_was_put_in_can_be_copied_and_taken_apart_again(kind):
    network = compress(traced(kind), 0.5)
    installed = install(network, detector(kind))
    inputs = images(dtype=torch.float64)
    expected = outputs(installed, inputs)
    copied = copy.deepcopy(installed)
    for parameter in installed.parameters():
        parameter.data.fill_(0)
    same(outputs(copied, inputs), expected)
    again = gs.trace(core(copied), torch.zeros(2, 3, 64, 64), check=False)
    sizes = [(s.name, s.size) for s in again.spaces]
    if kind == "one_map":  # a part of one layer has another name
        assert [size for _, size in sizes] == [s.size for s in network.spaces]
    else:
        assert sizes == [(s.name, s.size) for s in network.spaces]
    same(outputs(install(again, copied), inputs), expected)


def test_frozen_weights_and_layers_that_no_forward_reads_stay_as_they_are():
    shell = detector("retinanet")
    shell.backbone.body.stem.requires_grad_(False)
    shell.backbone.unread = nn.Linear(2, 2)
    shell.head.register_buffer("class_weights", torch.ones(3))
    installed = install(compress(gs.trace(core(shell), torch.zeros(2, 3, 64, 64)), 0.5), shell)
    assert [p.requires_grad for p in installed.backbone.body.stem.parameters()] == [False] * 4
    same(dict(installed.backbone.unread.state_dict()), dict(shell.backbone.unread.state_dict()))
    same(installed.head.class_weights, torch.ones(3))
    assert installed.head.compute_loss.__func__ is RetinaNetHead.compute_loss


class Deep(TwoMLPHead):
    def __init__(self):
        super().__init__(WIDTH * 9, 16)
        self.fc8 = nn.Linear(16, 16)

    def forward(self, x):
        return self.fc8(super().forward(x))


def test_weights_that_the_new_core_does_not_read_go():
    plain, deep = detector("faster_rcnn"), two_stage(FasterRCNN, box_head=Deep())
    installed = install(gs.trace(core(plain), torch.zeros(2, 3, 64, 64)), deep)
    assert list(installed.state_dict()) == list(plain.state_dict())


class Moody(TwoMLPHead):
    """A head that drops some of its features in training, and doubles the others."""

    def forward(self, x):
        x = F.dropout(super().forward(x), 0.5, self.training)
        return x * 2 if self.training else x


def test_a_part_follows_the_mode():
    shell = two_stage(FasterRCNN, box_head=Moody(WIDTH * 9, 16)).eval()
    installed = install(gs.trace(core(shell), torch.zeros(2, 3, 64, 64)), shell)
    same(outputs(installed, images()), outputs(shell, images()))
    found = losses(installed)
    same(found, losses(shell))
    assert found["loss_classifier"] != losses(installed.eval(), 12)["loss_classifier"]


class Deciding(OneMap):
    """A backbone that does something else with wide images."""

    def forward(self, x):
        return super().forward(x if x.shape[-1] < 80 else x * 2)


def test_a_part_refuses_a_size_for_which_it_would_go_another_way():
    shell = two_stage(FasterRCNN, Deciding(), ("0",)).eval()
    installed = install(gs.trace(core(shell), torch.zeros(2, 3, 64, 64)), shell)
    installed.backbone(torch.zeros(2, 3, 96, 64))
    with pytest.raises(ValueError, match="finds False where the trace found True; trace the model at this input size"):
        installed.backbone(torch.zeros(2, 3, 64, 96))


class Attending(nn.Module):
    """A backbone whose attention the trace takes apart."""

    out_channels = WIDTH

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, 8, 1)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x):
        x = self.stem(x)
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).reshape(x.shape)


def test_a_layer_that_was_taken_apart_is_put_in_in_pieces():
    shell = two_stage(FasterRCNN, Attending(), ("0",)).eval()
    graph = gs.trace(core(shell), torch.zeros(2, 3, 64, 64), check=False)
    installed = install(graph, shell)
    assert {name.rpartition(".")[0] for name, _ in installed.backbone.named_parameters()} == {
        "stem", "attention.in_proj", "attention.out_proj"
    }  # fmt: skip
    x = torch.rand(2, 3, 64, 96)
    same(outputs(installed.backbone, x)["0"], outputs(shell.backbone, x), 1e-5)


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["faster_rcnn", "fcos"])
def test_a_detector_is_not_traced_whole(kind):
    with pytest.raises(TraceError, match=r"its selection of boxes follow the data; trace core\(detector\)"):
        gs.trace(detector(kind), torch.zeros(2, 3, 64, 64))


def test_only_detectors_have_a_core():
    with pytest.raises(UnsupportedError, match=r"Linear is not a detector .* GeneralizedRCNN, RetinaNet, FCOS, SSD"):
        core(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("network", "shell", "message"),
    [
        ("faster_rcnn", "mask_rcnn", "install: mask_logits is missing in the network"),
        ("mask_rcnn", "faster_rcnn", r"install: mask_logits is \(2, 3, 8, 8\) in the network, missing in the detector"),
        ("faster_rcnn", "ssd", "install: bbox_regression is missing in the network"),
        ("retinanet", "fcos", r"install: cls_logits is \(2, 170, 3\) in the network, \(2, 84, 3\) in the detector"),
    ],
)
def test_a_core_of_another_detector_is_refused(network, shell, message):
    with pytest.raises(SurgeryError, match=message):
        install(traced(network), detector(shell))


def test_weights_between_the_parts_are_refused():
    network = core(detector("faster_rcnn"))
    network.box_pooled = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), Boundary("box_pooled"))
    with pytest.raises(SurgeryError, match=r"install: box_pooled.0.weight stands between the parts backbone, rpn.head"):
        install(gs.trace(network, torch.zeros(2, 3, 64, 64)), detector("faster_rcnn"))


def test_a_part_that_looks_past_its_input_is_refused():
    class Peeking(OneStageCore):
        def forward(self, images):
            return {name: x * images.mean() for name, x in super().forward(images).items()}

    with pytest.raises(SurgeryError, match="head: reads images too"):
        install(gs.trace(Peeking(detector("fcos")), torch.zeros(2, 3, 64, 64)), detector("fcos"))


# By name -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "fcos_resnet50_fpn",
        "keypointrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn_v2",
        "retinanet_resnet50_fpn_v2",
        "ssd300_vgg16",
        "ssdlite320_mobilenet_v3_large",
    ],
)
def test_nothing_is_frozen_in_torchvisions_detectors(name):
    with torch.device("meta"):
        network = build(f"torchvision/{name}")
    shape = input_shape(f"torchvision/{name}")
    assert shape is not None
    graph = gs.trace(network, torch.empty(2, *shape, device="meta"))
    assert graph.frozen == ()
    assert {n for n, _ in graph.module.named_parameters()} == {n for n, _ in network.named_parameters()}
    typed = graph.types.parameters
    fixed = [p.numel() for n, p in network.named_parameters() if all(is_fixed(axis) for axis in typed[n].axes)]
    assert sum(fixed) < 0.002 * sum(p.numel() for p in network.parameters())
    small = compress(graph, 0.5, importance="random")
    assert len(small.spaces) == len(graph.spaces)


def test_a_spec_downloads_no_weights(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a download")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", refuse)
    with torch.device("meta"):
        network = build("torchvision/fasterrcnn_mobilenet_v3_large_fpn?num_classes=3")
    assert network.roi_heads.box_predictor.cls_score.out_features == 3


FILE = """
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torch import nn

INPUT_SHAPE = (3, 64, 64)

def small():
    backbone = nn.Sequential(nn.Conv2d(3, 32, 3, 8, 1), nn.ReLU())
    backbone.out_channels = 32
    return FCOS(backbone, 3, anchor_generator=AnchorGenerator(((8,),), ((1.0,),)))
"""


def test_a_detector_from_a_file_is_opened_and_exported_as_its_core(tmp_path):
    (tmp_path / "net.py").write_text(FILE)
    graph = open_model(f"{tmp_path / 'net.py'}:small")
    assert [spec.shape for spec in graph.inputs] == [(2, 3, 64, 64)]
    gs.export_onnx(graph, tmp_path / "core.onnx")
    assert gs.check_onnx(graph, tmp_path / "core.onnx", batches=(1, 3)).holds
