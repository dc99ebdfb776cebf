"""Torchvision's detectors: the tensor core that can be traced, and the way back into the detector.

    network = gs.trace(core(detector), torch.empty(2, 3, 320, 320))
    smaller = install(compress(network, 0.5), detector)
    losses = smaller.train()(images, targets)

A detector's resizing, anchors and selection of boxes have no weights and follow the data. What lies between them is
the core: backbone and head, or backbone, head of the region proposals, and heads of the regions.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from graphsurgery.errors import SurgeryError, UnsupportedError
from graphsurgery.graph import ModelGraph
from graphsurgery.models.detection.parts import Part, cut, replaced
from graphsurgery.network.layers import Boundary
from graphsurgery.network.paths import named_tensors
from graphsurgery.tracing.leaves import is_leaf
from graphsurgery.tracing.trace import DETECTORS, is_detector, trace

__all__ = ["DETECTORS", "core", "install"]

_REGION_HEADS = ("box", "mask", "keypoint")
_REGION_PARTS = ("roi_pool", "head", "predictor")
_OBJECTNESS, _DELTAS = "objectness_", "proposal_deltas_"


def core(detector: nn.Module) -> nn.Module:
    """The part of a detector that holds its weights, as one network on images `[batch, 3, height, width]`.

    It shares the weights with the detector, under the same names. Its outputs are a dict of raw predictions: those of
    the head, `[batch, anchors, classes]` and `[batch, anchors, 4]`; or, of a two-stage detector, those of the region
    proposals for each level of features and those of the heads for one region, the whole image.

    Raises:
        UnsupportedError: not one of torchvision's detectors.
    """
    if not is_detector(detector):
        raise UnsupportedError(
            f"{type(detector).__name__} is not a detector that can be taken apart; expected one of torchvision's: "
            f"{', '.join(DETECTORS)}"
        )
    return TwoStageCore(detector) if isinstance(detector, GeneralizedRCNN) else OneStageCore(detector)


class OneStageCore(nn.Module):
    """Backbone and head: RetinaNet, FCOS, SSD."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = detector.backbone
        self.head: nn.Module = detector.head
        self.features = Boundary("features")
        self.training = detector.training

    def forward(self, images: Tensor) -> Any:
        return self.head(list(_marked(self.features, self.backbone(images)).values()))


class TwoStageCore(nn.Module):
    """Backbone, head of the region proposals, and heads of the regions: Faster, Mask and Keypoint R-CNN.

    The regions come from the proposals by steps that depend on the data. One region, the whole image, stands for them:
    sampled once for each cell of the pooled map, from every level of features, and averaged. Like the detector's own
    pooling it treats all channels alike, and the batch stays an axis of its own.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = detector.backbone
        self.rpn: nn.Module = detector.rpn
        self.roi_heads: nn.Module = detector.roi_heads
        self.features = Boundary("features")
        for name in _region_heads(detector):
            self.add_module(f"{name}_pooled", Boundary(f"{name}_pooled"))
            self.add_module(f"{name}_features", Boundary(f"{name}_features"))
        self.training = detector.training

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = _marked(self.features, self.backbone(images))
        objectness, deltas = self.rpn.get_submodule("head")(list(features.values()))
        outputs = {f"{_OBJECTNESS}{level}": x for level, x in enumerate(objectness)}
        outputs |= {f"{_DELTAS}{level}": x for level, x in enumerate(deltas)}
        for name in _region_heads(self):
            pool, head, predictor = (self.roi_heads.get_submodule(f"{name}_{part}") for part in _REGION_PARTS)
            pooled = self.get_submodule(f"{name}_pooled")(_whole_image(features, pool))
            predicted = predictor(self.get_submodule(f"{name}_features")(head(pooled)))
            outputs |= zip(_predictions(name), predicted if name == "box" else [predicted], strict=True)
        return outputs


def _region_heads(detector: Any) -> list[str]:
    """Which heads a two-stage detector has for its regions."""
    heads = detector.roi_heads
    return [n for n in _REGION_HEADS if all(getattr(heads, f"{n}_{p}", None) is not None for p in _REGION_PARTS)]


def _predictions(name: str) -> list[str]:
    """What the predictor of a head gives."""
    return ["class_logits", "box_regression"] if name == "box" else [f"{name}_logits"]


def _marked(boundary: nn.Module, features: Any) -> dict[str, Tensor]:
    """The feature maps by name, each behind the boundary; a single one is called 0, as in the detector."""
    named = features if isinstance(features, Mapping) else {"0": features}
    marked = boundary(dict(named))
    return {name: marked[name] for name in named}


def _whole_image(features: Mapping[str, Tensor], pool: Any) -> Tensor:
    """The whole image pooled as a region, from every level that `pool` reads: `[batch, channel, *output_size]`."""
    levels = [
        F.interpolate(x, size=tuple(pool.output_size), mode="bilinear", align_corners=False)
        for name, x in features.items()
        if name in pool.featmap_names
    ]
    return torch.stack(levels).mean(0)


def install(graph: ModelGraph, detector: nn.Module) -> nn.Module:
    """A copy of a detector that runs the parts of a traced, and perhaps edited, core in place of its own.

    It takes images and targets as before and gives the same losses and detections where the core is unedited; weights
    keep their names. Resizing, anchors, matching and selection of boxes are those of `detector`. Where the core is
    gated, each part draws the masks of its own examples: images, and in the heads of the regions each region.

    Args:
        graph: the core of this detector, or of one like it, after any passes; it is not modified.
        detector: is not modified either. Its modes are kept; of its weights, those that its core does not read.

    Raises:
        SurgeryError: the graph is not the core of a detector with these outputs; the message says what differs.
    """
    example = torch.empty(graph.inputs[0].shape, device="meta")
    reference = trace(core(detector), example, copy=False, check=False)  # for what it gives and what it is called
    _check_outputs(graph, reference, type(detector).__name__)
    installed = copy.deepcopy(detector)
    before = named_tensors(installed)
    module = copy.deepcopy(graph.module)
    parts = {piece.path: cut(module, *piece) for piece in _pieces(module, detector)}
    _check_whole(module, parts)
    _give_ordered_maps(parts["backbone"].graph)
    for path, part in parts.items():
        parent, _, name = path.rpartition(".")
        owner = installed.get_submodule(parent)
        setattr(owner, name, replaced(getattr(owner, name), part))
    _drop(installed, reference.tensors().keys() - graph.tensors().keys(), before)
    backbone: Any = installed.get_submodule("backbone")
    if hasattr(backbone, "out_channels"):
        backbone.out_channels = _width(graph)
    return installed


class _Piece(NamedTuple):
    """A part of a core: its path in the detector, what it reads and what it gives."""

    path: str
    entry: Mapping[fx.Node, int | None]
    output: Any


def _pieces(module: fx.GraphModule, detector: nn.Module) -> Iterator[_Piece]:
    """The parts that a detector calls one by one."""
    marks = _boundaries(module)
    images = next(node for node in module.graph.nodes if node.op == "placeholder")
    outputs = _outputs(module)
    maps: Any = marks["features"].args[0]
    positions = {name: position for position, name in enumerate(maps)}
    levels = {user: positions[str(user.args[1])] for user in marks["features"].users}
    yield _Piece("backbone", {images: None}, maps)
    if not isinstance(detector, GeneralizedRCNN):
        yield _Piece("head", levels, outputs)
        return
    proposals = [[x for name, x in outputs.items() if name.startswith(kind)] for kind in (_OBJECTNESS, _DELTAS)]
    yield _Piece("rpn.head", levels, tuple(proposals))
    for name in _region_heads(detector):
        pooled, features = marks[f"{name}_pooled"], marks[f"{name}_features"]
        given = tuple(outputs[key] for key in _predictions(name))
        yield _Piece(f"roi_heads.{name}_head", {pooled: None}, features.args[0])
        yield _Piece(f"roi_heads.{name}_predictor", {features: None}, given if name == "box" else given[0])


def _boundaries(module: fx.GraphModule) -> dict[str, fx.Node]:
    """The node of every boundary, by its name."""
    called = {node: module.get_submodule(str(node.target)) for node in module.graph.nodes if node.op == "call_module"}
    return {str(leaf.name): node for node, leaf in called.items() if isinstance(leaf, Boundary)}


def _outputs(module: fx.GraphModule) -> dict[str, fx.Node]:
    """The nodes that a network gives, by name; none where it does not give a dict of tensors."""
    given = next(iter(reversed(module.graph.nodes))).args[0]
    return dict(given) if isinstance(given, Mapping) else {}


def _check_outputs(graph: ModelGraph, reference: ModelGraph, detector: str) -> None:
    """Refuse a network that gives other predictions than the detector's own core."""
    shapes = []
    for network in (graph, reference):
        _ = network.types  # gives every node its value
        given = {name: tuple(node.meta["value"].shape) for name, node in _outputs(network.module).items()}
        shapes.append(given | {f"boundary {name}": () for name in _boundaries(network.module)})
    found, expected = shapes
    for name in (*expected, *found):
        if found.get(name) != expected.get(name):
            raise SurgeryError(
                f"install: {name} is {found.get(name, 'missing')} in the network, {expected.get(name, 'missing')} in"
                f" the detector; trace core() of a {detector} with these classes and anchors"
            )


def _check_whole(module: nn.Module, parts: Mapping[str, Part]) -> None:
    """Refuse a network with weights that no part of the detector would run."""
    things = [thing for part in parts.values() for thing in part.state.values()]
    kept = {id(p) for thing in things for p in (thing.parameters() if isinstance(thing, nn.Module) else [thing])}
    for name, parameter in module.named_parameters():
        if id(parameter) not in kept:
            raise SurgeryError(f"install: {name} stands between the parts {', '.join(parts)}, and would be lost")


def _give_ordered_maps(backbone: fx.Graph) -> None:
    """Have a backbone give its maps as torchvision's do."""
    output = next(iter(reversed(backbone.nodes)))
    maps: Any = output.args[0]
    with backbone.inserting_before(output):
        output.args = (backbone.call_function(OrderedDict, (list(maps.items()),)),)


def _drop(installed: nn.Module, names: Iterable[str], before: Mapping[str, Tensor]) -> None:
    """Remove weights that are still those of before: the detector's own core read them, the new one does not."""
    for name in names:
        after = named_tensors(installed)
        if name not in after or after[name] is not before.get(name):
            continue
        path, _, slot = name.rpartition(".")
        owner = installed.get_submodule(path)
        if is_leaf(owner):
            parent, _, layer = path.rpartition(".")
            del installed.get_submodule(parent)._modules[layer]
        else:
            (owner._parameters if slot in owner._parameters else owner._buffers).pop(slot)


def _width(graph: ModelGraph) -> int:
    """The channels of the feature maps, of which a detector has one number."""
    maps: Any = _boundaries(graph.module)["features"].meta["value"]
    return int(next(iter(maps.values())).shape[1])
