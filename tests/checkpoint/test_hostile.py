"""A share of the campaign on damaged checkpoints, and each kind of fault that it once found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from graphsurgery.checkpoint import load, save
from graphsurgery.checkpoint.files import _digest
from graphsurgery.errors import CheckpointError, SurgeryError
from graphsurgery.graph import InputSpec, ModelGraph
from graphsurgery.recipes.slimming.slimmable import Statistics, load_slimmable, save_slimmable
from graphsurgery.surgery.channels.slimming import Slimmable
from graphsurgery.surgery.masks.mask_set import MaskSet
from graphsurgery.training.loop.plan import recorded_plan

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "campaigns"))

import damage
import damaged_checkpoints


class Net(nn.Module):
    """A convolution with a norm, a product with a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.table = nn.Parameter(torch.ones(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3)) @ self.table


@pytest.fixture
def content(tmp_path) -> dict[str, Any]:
    """What a whole checkpoint holds."""
    graph = ModelGraph(fx.symbolic_trace(Net()), (InputSpec("x", (2, 2, 6, 6)),))
    save(graph, tmp_path / "whole.pt")
    found: dict[str, Any] = torch.load(tmp_path / "whole.pt", weights_only=True)
    return found


def opened(content: dict[str, Any], folder: Path) -> ModelGraph:
    torch.save({**content, "digest": _digest(content["graph"])}, folder / "m.pt")
    return load(folder / "m.pt")


def retyped(content: dict[str, Any], name: str, tensor: Tensor) -> None:
    """Another tensor, which the description agrees with."""
    content["state_dict"][name] = tensor
    entry = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "requires_grad": False}
    content["graph"]["tensors"][name] |= entry


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float64, torch.float16])
@pytest.mark.parametrize("name", ["conv.weight", "norm.weight", "norm.running_mean", "table"])
def test_tensors_of_another_dtype(tmp_path, content, name, dtype):
    retyped(content, name, content["state_dict"][name].to(dtype))
    with pytest.raises(CheckpointError, match=r"m\.pt: .*(dtype|unlike dtypes|float)"):
        opened(content, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:1].expand_as(x), "overlap or leave gaps"),
        (lambda x: torch.stack([x, x], -1)[..., 0], "overlap or leave gaps"),
        (lambda x: x.to("meta"), "expected dense tensors"),
        (lambda x: x.to_sparse(), "expected dense tensors|cannot be read"),
        (lambda x: x[:2], "description says"),
        (lambda x: x.double(), "description says"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_tensors_that_are_not_as_described(tmp_path, content, change, message):
    content["state_dict"]["conv.weight"] = change(content["state_dict"]["conv.weight"])
    with pytest.raises(CheckpointError, match=message):
        opened(content, tmp_path)


def test_weights_in_another_order_of_memory_are_kept(tmp_path, content):
    weight = content["state_dict"]["conv.weight"].contiguous(memory_format=torch.channels_last)
    content["state_dict"]["conv.weight"] = weight
    assert opened(content, tmp_path).module.conv.weight.stride() == weight.stride()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("padding", {"tuple": [1]}),
        ("padding", {"tuple": [1, 1, 1]}),
        ("padding", {"tuple": [-1, 1]}),
        ("padding", "circular"),
        ("stride", {"tuple": [1, 0]}),
        ("stride", None),
        ("dilation", {"tuple": [0, 0]}),
        ("dilation", {"tuple": [1, 0.5]}),
        ("groups", 3),
        ("in_channels", 5),
        ("padding_mode", "mirror"),
        ("surprise", 1),
    ],
)
def test_arguments_of_layers(tmp_path, content, name, value):
    content["graph"]["modules"]["conv"]["arguments"][name] = value
    with pytest.raises(CheckpointError, match=r"m\.pt: conv"):
        opened(content, tmp_path)


@pytest.mark.parametrize(("name", "value"), [("eps", "small"), ("momentum", {"tuple": [1]}), ("num_features", 5)])
def test_arguments_of_norms(tmp_path, content, name, value):
    content["graph"]["modules"]["norm"]["arguments"][name] = value
    with pytest.raises(CheckpointError, match=r"m\.pt: norm"):
        opened(content, tmp_path)


def second_name(nodes: list[dict[str, Any]]) -> None:
    nodes[2]["name"] = nodes[1]["name"]


def second_input(nodes: list[dict[str, Any]]) -> None:
    nodes.insert(1, {"name": "y", "op": "placeholder", "target": "y", "args": [], "kwargs": {}})


def same_input(nodes: list[dict[str, Any]]) -> None:
    nodes.insert(1, {"name": "y", "op": "placeholder", "target": nodes[0]["target"], "args": [], "kwargs": {}})


def second_result(nodes: list[dict[str, Any]]) -> None:
    nodes[-1]["args"].append({"node": "x"})


def option(nodes: list[dict[str, Any]]) -> None:
    nodes[1]["kwargs"]["extra"] = 1


@pytest.mark.parametrize("change", [second_name, second_input, same_input, second_result, option])
def test_graphs_that_are_none(tmp_path, content, change):
    change(content["graph"]["nodes"])
    with pytest.raises(CheckpointError, match=r"m\.pt: "):
        opened(content, tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("inputs", [], "takes 1 inputs, 0 are described"),
        ("inputs", [{"name": "x", "shape": [2, 2, -6, 6], "dtype": "float32"}], "expected positive integers"),
        ("inputs", [{"name": "x", "shape": 3, "dtype": "float32"}], "inputs are damaged"),
        ("inputs", [{"name": "x", "shape": [2, 2, 6, 6], "dtype": "int64"}], "should be the same|unlike dtypes"),
        ("lineage", [3], "a record is of type int"),
        ("lineage", [{"only as in evaluation": 3}], "is no list of lines"),
        ("metadata", {"a": torch.zeros(1)}, "metadata: a value of type Tensor"),
    ],
)
def test_what_stands_beside_the_graph(tmp_path, content, field, value, message):
    content[field] = value
    with pytest.raises(CheckpointError, match=message):
        opened(content, tmp_path)


@pytest.mark.parametrize("plan", [None, 3, {"lr": "fast"}, {"rate": 1}, {"schedule": 3}])
def test_a_record_of_a_training_that_is_none(plan):
    with pytest.raises(SurgeryError, match="lineage: the plan of the last training is damaged"):
        recorded_plan({"pass": "train", "plan": plan})


@pytest.mark.parametrize(
    "settings",
    [{"switchable": 3}, {"switchable": ["x"]}, {"min_width": "x"}, {"round_to": None}, {"switchable": [0.5]}],
)
def test_settings_of_slimmable_networks(tmp_path, content, settings):
    graph = opened(content, tmp_path)
    save_slimmable(Statistics(Slimmable(graph)), tmp_path / "s.pt")
    stored = torch.load(tmp_path / "s.pt", weights_only=True)
    stored["metadata"]["slim"] |= settings
    torch.save(stored, tmp_path / "s.pt")
    with pytest.raises(CheckpointError, match=r"s\.pt: (its settings|slim)"):
        load_slimmable(tmp_path / "s.pt")


def test_masks_have_a_digest_and_older_ones_are_told_apart():
    masks = MaskSet({"a": torch.tensor([[True, False, True], [False, False, True]])})
    fields = masks.as_dict()
    assert not MaskSet.from_dict(fields).unverified
    other = MaskSet({"a": ~masks["a"]}).as_dict()
    with pytest.raises(SurgeryError, match="do not have the digest they were saved with"):
        MaskSet.from_dict({**fields, "bits": other["bits"]})
    with pytest.raises(SurgeryError, match="do not have the digest"):
        MaskSet.from_dict({**fields, "shapes": {"a": [3, 2]}})
    del fields["digest"]
    old = MaskSet.from_dict(fields)
    assert old.unverified
    assert torch.equal(old["a"], masks["a"])


@pytest.mark.parametrize("kind", damaged_checkpoints.KINDS)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_a_share_of_the_campaign(tmp_path, kind):
    for seed in range(1000, 1003):
        folder = tmp_path / str(seed)
        folder.mkdir()
        found = damaged_checkpoints.examine(kind, seed, folder)
        assert found.outcome not in damage.FAULTS, (seed, found)
