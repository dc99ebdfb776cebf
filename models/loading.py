"""Any way to name a network, opened as a typed graph: checkpoints, `.onnx` files, weights with a spec, specs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from graphsurgery.checkpoint.files import is_checkpoint, load
from graphsurgery.checkpoint.foreign import read_weights
from graphsurgery.errors import CheckpointError, SpecError, SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.models.spec_text import anchored, is_function_spec, parse_spec
from graphsurgery.models.specs import blank, build, example_inputs, followable, names_file
from graphsurgery.models.supermasks import is_supermask, load_supermask
from graphsurgery.tracing.trace import trace


def open_model(
    source: str,
    *,
    arch: str | None = None,
    trust_pickle: bool = False,
    example_shape: tuple[int, ...] | None = None,
    seed: int = 0,
) -> ModelGraph:
    """The network that `source` names, typed.

    Args:
        source: a graphsurgery checkpoint or supermask; an `.onnx` file; a file with a state_dict, which needs `arch`;
            a pickled module, which needs `trust_pickle`; or a model spec such as `torchvision/resnet18` or
            `file.py:function`.
        arch: model spec whose constructor makes the network that a state_dict belongs to; checkpoints need none.
        trust_pickle: open files that hold pickled objects too. That executes code from the file.
        example_shape: shape of one input, without the batch; by default what the spec is made for, or the
            `EXAMPLE_INPUTS` of its file.
        seed: draws the weights of a spec.

    Raises:
        CheckpointError: the file is missing, damaged, untrusted, or its weights do not fit `arch`.
        SpecError: an unknown spec, or no input shape is known.
        TraceError: the network's forward cannot be followed.
        UnsupportedError: an `.onnx` file that is quantised, in half precision, or has control flow.
    """
    graph, _ = open_pair(source, arch=arch, trust_pickle=trust_pickle, example_shape=example_shape, seed=seed)
    return graph


def open_pair(
    source: str,
    *,
    arch: str | None = None,
    trust_pickle: bool = False,
    example_shape: tuple[int, ...] | None = None,
    seed: int = 0,
) -> tuple[ModelGraph, nn.Module | None]:
    """The typed network, and the module that was traced; None for a checkpoint, which needs no tracing.

    Arguments and errors are those of `open_model`.
    """
    if source.endswith(".onnx"):
        from graphsurgery.onnx.importing.importer import import_onnx

        imported = import_onnx(source, shape=example_shape)
        return imported.graph, imported.module
    if not names_file(source):
        from graphsurgery.models.preprocessing import of_spec

        module = _built(source, seed)
        graph, images = _traced(module, source, source, example_shape), of_spec(source)
        if images is not None:
            record = {"pass": "open", "source": anchored(source), "preprocessing": images.as_dict()}
            graph = replace(graph, lineage=(*graph.lineage, record))
        return graph, module
    if is_checkpoint(source):
        return load(source), None
    if is_supermask(source):
        return load_supermask(source, trust_files=trust_pickle).network(), None
    weights = read_weights(source, trust_pickle=trust_pickle)
    if isinstance(weights, nn.Module):
        module = followable(weights)
        return _traced(module, arch, source, example_shape), module
    if arch is None:
        raise CheckpointError(
            f"{source}: holds {len(weights)} tensors and not their architecture; give --arch SPEC, "
            "such as torchvision/resnet18 or file.py:function"
        )
    module = _built(arch, seed)
    fill(module, weights, f"{source}: does not fit {arch}")
    return _traced(module, arch, source, example_shape), module


def fill(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Put weights into a module; each name and shape must be there on both sides.

    Raises:
        CheckpointError: counts the names that are missing, unexpected or of another shape, with the first of each.
    """
    own = module.state_dict()
    # A norm's counter was not saved by old versions of torch, and nothing reads it.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in own]
    unlike = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    found = []
    if missing:
        found.append(f"{len(missing)} missing (first {missing[0]})")
    if unexpected:
        found.append(f"{len(unexpected)} unexpected (first {unexpected[0]})")
    if unlike:
        name = unlike[0]
        shapes = f"{list(weights[name].shape)} in the file, {list(own[name].shape)} in the model"
        found.append(f"{len(unlike)} of another shape (first {name}: {shapes})")
    if found:
        raise CheckpointError(
            f"{where}: of {len(own)} tensors {', '.join(found)}; give the spec and ?options it was trained with"
        )
    module.load_state_dict(dict(weights), strict=False)


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape that `3x224x224` spells: one example, without the batch.

    Raises:
        SpecError: it is not positive whole numbers joined by x.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise SpecError(f"input shape {text!r}: expected sizes joined by x, such as 3x224x224, without the batch")
    return tuple(int(size) for size in text.split("x"))


def _built(spec: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(spec)


def _traced(module: nn.Module, spec: str | None, source: str, example_shape: tuple[int, ...] | None) -> ModelGraph:
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    if example_shape is not None:
        examples: tuple[Tensor, ...] | None = (blank(example_shape, dtype),)
    else:
        examples = None if spec is None else example_inputs(spec, dtype)
    in_file = spec is not None and is_function_spec(parse_spec(spec).name)
    if examples is None:
        advice = ", or set INPUT_SHAPE in the file" if in_file else ""
        raise SpecError(f"{source}: no input shape is known for it; give --input, such as --input 3x224x224{advice}")
    try:
        return trace(module, examples)
    except SurgeryError as cause:
        advice = "; EXAMPLE_INPUTS in the file may be several tensors, or indices" if in_file else ""
        raise type(cause)(f"{source}: {cause}{advice}") from cause
