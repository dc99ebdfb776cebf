"""Damaged and hostile checkpoints, masks, supermasks and slimmable networks: the first table of docs/reliability.md.

    python benchmarks/campaigns/damaged_checkpoints.py --cases 60    # of each kind; goes on where it was killed

Bytes are damaged as disks and networks do. Content is changed as somebody would who knows the format: the zip file is
whole and the digests fit. Nothing of it may run, fail later, or give other numbers than it says.
"""

from __future__ import annotations

import copy
import os
import pickle
import random
import sys
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from json import dumps, loads
from pathlib import Path
from typing import Any

import torch
from damage import OTHER, SAME, WRONG, Found, campaign, flipped, mutate, outcome_of
from torch import Tensor

from graphsurgery.checkpoint import load, save
from graphsurgery.checkpoint.files import _digest
from graphsurgery.graph import ModelGraph
from graphsurgery.models.loading import open_model
from graphsurgery.models.mask_files import open_masks
from graphsurgery.models.supermasks import Supermask, drawn, load_supermask, save_supermask
from graphsurgery.network.outputs.naming import tensors_of
from graphsurgery.recipes.slimming.slimmable import Statistics, load_slimmable, save_slimmable
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.channels.slimming import Slimmable
from graphsurgery.surgery.masks.mask_set import MaskSet

SPEC, WIDE = "paper/cnn?width=2", "paper/mlp?hidden=24"
CANARY = "executed"


def outputs(graph: ModelGraph) -> list[Tensor]:
    """What a network gives in evaluation, after everything that a command asks of it."""
    assert cost(graph).parameters >= 0
    assert all(space.size > 0 for space in graph.spaces)
    graph.module.eval()
    with torch.no_grad():
        return list(tensors_of(graph.module(*graph.example_inputs(2))))


def of_checkpoint(path: Path) -> list[Tensor]:
    return outputs(load(path))


def of_slimmable(path: Path) -> list[Tensor]:
    statistics, _ = load_slimmable(path)
    return [x for width in (1.0, 0.5) for x in outputs(statistics.slimmable.extract(width))]


def of_masks(path: Path) -> list[Tensor]:
    return list(open_masks(str(path)).values())


def of_supermask(path: Path) -> list[Tensor]:
    return outputs(load_supermask(path).network())


READERS: Mapping[str, Callable[[Path], list[Tensor]]] = {
    "network.pt": of_checkpoint,
    "layers.pt": of_checkpoint,
    "slimmable.pt": of_slimmable,
    "masks.json": of_masks,
    "ticket.pt": of_masks,
    "supermask.pt": of_supermask,
}


@cache
def originals() -> Path:
    """A folder with one whole file of each format."""
    import atexit
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp())
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder) if os.getpid() == owner else None)
    graph = open_model(SPEC)
    save(graph, folder / "network.pt", note="whole")
    save(open_model("torchvision/mobilenet_v3_small?num_classes=3", example_shape=(3, 32, 32)), folder / "layers.pt")
    slimmable = Slimmable(open_model("torchvision/resnet18?num_classes=3", example_shape=(3, 32, 32)), switchable=[0.5])
    save_slimmable(Statistics(slimmable), folder / "slimmable.pt")
    masks = MaskSet.ones(graph).shuffled(0)
    masks = MaskSet({name: torch.rand(mask.shape, generator=_generator()) > 0.5 for name, mask in masks.items()})
    masks.save(folder / "masks.json")
    save(graph, folder / "ticket.pt", masks=masks.as_dict())
    wide = drawn(WIDE, 0, (1,))
    bits = {name: torch.rand(mask.shape, generator=_generator()) > 0.5 for name, mask in MaskSet.ones(wide).items()}
    save_supermask(Supermask(WIDE, 0, (1,), MaskSet(bits)), folder / "supermask.pt")
    return folder


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@cache
def expected(name: str) -> list[Tensor]:
    """What the whole file gives."""
    return READERS[name](originals() / name)


def damaged_bytes(path: Path, draw: random.Random) -> str:
    path.write_bytes(flipped(path.read_bytes(), draw))
    return WRONG


def damaged_graph(path: Path, draw: random.Random) -> str:
    content = _content(path)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        mutate(content["graph"], draw)
    return _stored(content, path)


def damaged_arguments(path: Path, draw: random.Random) -> str:
    content = _content(path)
    layers = [entry for entry in content["graph"]["modules"].values() if entry.get("arguments")]
    mutate(draw.choice(layers)["arguments"], draw)
    return _stored(content, path)


def damaged_calls(path: Path, draw: random.Random) -> str:
    content = _content(path)
    node = draw.choice(content["graph"]["nodes"])
    if draw.random() < 0.3:
        content["graph"]["nodes"].insert(draw.randrange(len(content["graph"]["nodes"])), copy.deepcopy(node))
    else:
        mutate(node, draw)
    return _stored(content, path)


def damaged_tensors(path: Path, draw: random.Random) -> str:
    """Tensors of another dtype, shape, layout or order in memory; half of the time the description says so too."""
    content = _content(path)
    named = content["state_dict"]
    name = draw.choice([name for name, tensor in named.items() if tensor.dim() or draw.random() < 0.1])
    tensor = named[name]
    ways: list[Callable[[], Any]] = [
        lambda: tensor.to(draw.choice((torch.bool, torch.uint8, torch.int64, torch.float64, torch.float16))),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.expand(3, *tensor.shape),
        lambda: tensor.flatten()[:1].expand(tensor.numel()).view(tensor.shape) if tensor.numel() else tensor,
        lambda: torch.stack([tensor, tensor], -1)[..., 0],
        lambda: tensor.flip(0) if tensor.dim() else tensor,
        lambda: tensor.transpose(0, -1) if tensor.dim() > 1 else tensor[:-1] if tensor.dim() else tensor,
        lambda: tensor.to("meta"),
        lambda: tensor.to_sparse() if tensor.dim() else tensor,
        lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor - 7,
        lambda: "not a tensor",
    ]
    named[name] = draw.choice(ways)()
    entry = content["graph"]["tensors"][name]
    if draw.random() < 0.5 and isinstance(named[name], Tensor) and "same" not in entry:
        entry |= {"dtype": str(named[name].dtype).removeprefix("torch."), "shape": list(named[name].shape)}
    return _stored(content, path)


def damaged_fields(path: Path, draw: random.Random) -> str:
    """Everything beside graph and tensors: inputs, lineage, metadata, or the fields themselves."""
    content = _content(path)
    rest = {name: value for name, value in content.items() if name not in ("graph", "state_dict", "buffers")}
    if draw.random() < 0.3:
        content[draw.choice(list(content))] = draw.choice((None, 3, "x", [], {}, [3], {"a": 1}, torch.zeros(2)))
    else:
        mutate(rest, draw)
        content |= rest
    return _stored(content, path)


def damaged_settings(path: Path, draw: random.Random) -> str:
    """The metadata that a slimmable network is made by."""
    content = _content(path)
    part = draw.choice(("slim", "norms", "metadata"))
    mutate(content["metadata"] if part == "metadata" else content["metadata"][part], draw)
    return _stored(content, path)


def damaged_masks(path: Path, draw: random.Random) -> str:
    """Other bits with a whole container, other shapes, or anything."""
    fields = loads(path.read_text()) if path.suffix == ".json" else _content(path)
    inner = fields if path.suffix == ".json" else fields["metadata"]["masks"] if "metadata" in fields else fields
    if draw.random() < 0.5:
        masks = MaskSet.from_dict(inner).shuffled(draw.randrange(1000))
        inner["bits"] = masks.as_dict()["bits"]
    else:
        mutate(inner, draw)
    if path.suffix == ".json":
        path.write_text(dumps(fields))
        return OTHER if "digest" not in fields else WRONG
    return _stored(fields, path)


def damaged_supermask(path: Path, draw: random.Random) -> str:
    content = _content(path)
    match draw.randrange(3):
        case 0:
            content["bits"] = content["bits"].flip(0)
        case 1:
            content[draw.choice(list(content))] = draw.choice((None, 3, "x", [], {}, [3], {"a": 1}, torch.zeros(2)))
        case _:
            plain = {name: value for name, value in content.items() if not isinstance(value, Tensor)}
            mutate(plain, draw)
            content |= plain
    torch.save(content, path)
    return OTHER


class Hostile:
    """Is called with its arguments when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def hostile_pickle(path: Path, draw: random.Random) -> str:
    """An object that writes a file when it is made, at a place where a checkpoint has something else."""
    canary = str(path.parent / CANARY)
    made = draw.choice(
        (
            Hostile(open, canary, "w"),
            Hostile(os.system, f"touch {canary}"),
            Hostile(exec, f"open({canary!r}, 'w')"),
            Hostile(eval, f"open({canary!r}, 'w')"),
            Hostile(os.mkdir, canary),
        )
    )
    if draw.random() < 0.3:
        path.write_bytes(pickle.dumps(made))
        return WRONG
    content = _content(path)
    content[draw.choice(list(content))] = made
    torch.save(content, path)
    return WRONG


def hostile_zip(path: Path, draw: random.Random) -> str:
    """Another content of one record of the zip file, or a record more; the sums fit."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(records))
    if draw.random() < 0.3:
        records[draw.choice((f"../{CANARY}", f"/{CANARY}", name + "x"))] = b"x"
    else:
        records[name] = flipped(records[name] or b"x", draw)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return OTHER


def _content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def _stored(content: dict[str, Any], path: Path) -> str:
    """Write it with the digest that fits; what it then says is another network."""
    try:
        content["digest"] = _digest(content["graph"]) if draw_digest(content) else content["digest"]
    except Exception:  # of a graph that is none
        content["digest"] = "0"
    torch.save(content, path)
    return OTHER


def draw_digest(content: Mapping[str, Any]) -> bool:
    """Whether there is a graph to have a digest."""
    return "graph" in content


KINDS: Mapping[str, tuple[Callable[[Path, random.Random], str], tuple[str, ...]]] = {
    "bytes": (damaged_bytes, tuple(READERS)),
    "records of the zip file": (hostile_zip, ("network.pt", "supermask.pt", "ticket.pt")),
    "pickled objects": (hostile_pickle, ("network.pt", "slimmable.pt", "supermask.pt")),
    "graph": (damaged_graph, ("network.pt", "layers.pt")),
    "arguments of layers": (damaged_arguments, ("network.pt", "layers.pt")),
    "calls": (damaged_calls, ("network.pt", "layers.pt")),
    "tensors": (damaged_tensors, ("network.pt", "layers.pt", "slimmable.pt")),
    "inputs, lineage, metadata": (damaged_fields, ("network.pt", "ticket.pt", "slimmable.pt")),
    "settings of slimmable networks": (damaged_settings, ("slimmable.pt",)),
    "masks": (damaged_masks, ("masks.json", "ticket.pt")),
    "supermasks": (damaged_supermask, ("supermask.pt",)),
}


def examine(kind: str, seed: int, folder: Path) -> Found:
    """Damage one file, open it, and say what became of it."""
    damage, names = KINDS[kind]
    name = names[seed % len(names)]
    draw = random.Random(f"{kind} {seed}")
    path = folder / name
    path.write_bytes((originals() / name).read_bytes())
    otherwise = damage(path, draw)
    before = sorted(folder.parent.glob(CANARY))

    def opening() -> Found:
        found = READERS[name](path)
        whole = expected(name)
        same = len(found) == len(whole) and all(
            a.shape == b.shape and torch.equal(a, b) for a, b in zip(found, whole, strict=True)
        )
        return Found(SAME if same else otherwise, "" if same or otherwise != WRONG else "other numbers, and no word")

    result = outcome_of(opening)
    if (folder / CANARY).exists() or sorted(folder.parent.glob(CANARY)) != before:
        return Found(WRONG, "code was executed")
    return result


def main() -> int:
    torch.set_num_threads(1)
    for name in READERS:
        expected(name)
    return campaign(__doc__ or "", list(KINDS), examine)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
