"""Any way to name a network, opened as a typed graph: checkpoints, `.onnx` files, weights with a spec, specs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from graphsurgery.checkpoint.files import is_checkpoint, load
from graphsurgery.checkpoint.foreign import Contents, read_contents
from graphsurgery.errors import CheckpointError, SpecError, SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.models.libraries.library import Library, Trust, check_call, dtype_of
from graphsurgery.models.libraries.table import library_of
from graphsurgery.models.sources.user_files import require_function
from graphsurgery.models.sources.weights import chosen, load_weights
from graphsurgery.models.spec_text import anchored, is_function_spec, parse_spec
from graphsurgery.models.specs import blank, build, example_inputs, followable, names_file
from graphsurgery.models.supermasks import is_supermask, load_supermask
from graphsurgery.network.outputs.randomness import seeded
from graphsurgery.surgery.installing.install import as_traced
from graphsurgery.tracing.plain_weights import with_plain_weights
from graphsurgery.tracing.trace import trace

_NO_TRUST = Trust()


def open_model(
    source: str,
    *,
    arch: str | None = None,
    key: str | None = None,
    trust_pickle: bool = False,
    trust_remote_code: bool = False,
    example_shape: Shape | None = None,
    seed: int = 0,
) -> ModelGraph:
    """The network that `source` names, typed.

    Args:
        source: a graphsurgery checkpoint or supermask; an `.onnx` file; a file with a state_dict, which needs `arch`;
            a pickled module, which needs `trust_pickle`; or a model spec such as `torchvision/resnet18`,
            `file.py:function` or `hf:FOLDER`.
        arch: what the network is that a state_dict belongs to: a model spec, or a checkpoint; checkpoints need none.
        key: which weights of a file that holds several: the path of keys that leads to them, such as `state_dict_ema`.
        trust_pickle: open files that hold pickled objects too. That executes code from the file.
        trust_remote_code: take networks whose code lies in their folder (`hf:FOLDER`). That executes the code.
        example_shape: shape of one input, without the batch, or of the inputs of an `.onnx` file by name; by default
            what the spec is made for, or the `EXAMPLE_INPUTS` of its file.
        seed: draws the weights of a spec.

    Raises:
        CheckpointError: the file is missing, damaged, untrusted, or its weights do not fit `arch`.
        SpecError: an unknown spec, or no input shape is known.
        TraceError: the network's forward cannot be followed.
        UnsupportedError: an `.onnx` file that is quantised, or has control flow.
    """
    graph, _ = open_pair(
        source,
        arch=arch,
        key=key,
        trust_pickle=trust_pickle,
        trust_remote_code=trust_remote_code,
        example_shape=example_shape,
        seed=seed,
    )
    return graph


def open_pair(
    source: str,
    *,
    arch: str | None = None,
    key: str | None = None,
    trust_pickle: bool = False,
    trust_remote_code: bool = False,
    example_shape: Shape | None = None,
    seed: int = 0,
) -> tuple[ModelGraph, nn.Module | None]:
    """The typed network, and the module that was traced, which takes the same inputs.

    It is None for a checkpoint, which needs no tracing, and where the module takes None between its inputs.

    Arguments and errors are those of `open_model`.
    """
    if source.endswith(".onnx"):
        from graphsurgery.onnx.importing.importer import import_onnx

        imported = import_onnx(source, shape=example_shape)
        return imported.graph, imported.module
    if not names_file(source):
        from graphsurgery.models.preprocessing import of_spec

        module = _built(source, seed, Trust(trust_pickle, trust_remote_code))
        graph, images = _traced(module, source, source, example_shape), of_spec(source)
        if images is not None:
            record = {"pass": "open", "source": anchored(source), "preprocessing": images.as_dict()}
            graph = replace(graph, lineage=(*graph.lineage, record))
        return graph, _alike(module, graph)
    require_function(source)
    if is_checkpoint(source):
        return load(source), None
    if is_supermask(source):
        return load_supermask(source, trust_files=trust_pickle).network(), None
    contents = read_contents(source, trust_pickle=trust_pickle)
    if contents.modules:
        module = followable(_pickled(contents, source, key))
        graph = _traced(module, arch, source, example_shape)
        return graph, _alike(module, graph)
    if arch is None:
        raise CheckpointError(
            f"{source}: holds {len(contents.tensors)} tensors and not their architecture; give --arch SPEC, "
            "such as torchvision/resnet18 or file.py:function"
        )
    return _filled(contents, source, arch, key, example_shape, seed)


def _filled(
    contents: Contents, source: str, arch: str, key: str | None, example_shape: Shape | None, seed: int
) -> tuple[ModelGraph, nn.Module | None]:
    """The network that `arch` names with weights of a file; what else the file holds is in its lineage."""
    described = _described(arch)
    module: nn.Module = _built(arch, seed) if described is None else described.module
    taken = load_weights(module, contents, source, arch, key)
    graph = _traced(module, arch, source, example_shape) if described is None else _with_plain_weights(described)
    if taken.others or key is not None:
        record = {"pass": "open", "source": source, "weights": taken.path, "beside": list(taken.others)}
        graph = replace(graph, lineage=(*graph.lineage, record))
    return graph, _alike(module, graph) if described is None else None


def _alike(module: nn.Module, graph: ModelGraph) -> nn.Module | None:
    """The module, where it takes the inputs of its trace one after the other, or as one that does."""
    called = as_traced(graph, module)
    if called is not module:
        return called
    names = list(inspect.signature(module.forward).parameters)
    places = [names.index(spec.name) for spec in graph.inputs if spec.name in names]
    return module if places == list(range(len(places))) else None


def _with_plain_weights(graph: ModelGraph) -> ModelGraph:
    """A network of a checkpoint whose weights have come in parts, in normal form again."""
    module, lines = with_plain_weights(graph.module)
    if not lines:
        return graph
    assert isinstance(module, fx.GraphModule)
    record = {"pass": "open", "weights that were computed": lines}
    return replace(graph, module=module, lineage=(*graph.lineage, record))


def _described(arch: str) -> ModelGraph | None:
    """The network that a checkpoint describes; None for a spec.

    Raises:
        CheckpointError: another file, which has no architecture.
    """
    if not names_file(arch):
        return None
    if is_checkpoint(arch):
        return load(arch)
    raise CheckpointError(f"--arch {arch}: describes no network; give a graphsurgery checkpoint or a model spec")


def _pickled(contents: Contents, source: str, key: str | None) -> nn.Module:
    """The one module that a file pickles, or that the key says."""
    found = chosen(contents, source, key).modules
    if len({id(module) for module in found.values()}) != 1:
        raise CheckpointError(f"{source}: holds {contents.listed()}; choose one module with --key")
    return next(iter(found.values()))


Shape = tuple[int, ...] | Mapping[str, tuple[int, ...]]
"""Of one example, without the batch; or of inputs of an `.onnx` file by name, with it."""


def parse_shapes(texts: Sequence[str]) -> Shape | None:
    """What `3x224x224` says, or several times `NAME=1x3x224x224`.

    Raises:
        SpecError: something else.
    """
    if not any("=" in text for text in texts):
        if len(texts) > 1:
            raise SpecError(f"--input {texts[1]}: say whose shape each is: --input NAME=1x3x224x224, with the batch")
        return parse_shape(texts[0]) if texts else None
    pairs = [text.rpartition("=") for text in texts]
    found = {name: parse_shape(sizes) for name, _, sizes in pairs}
    if "" in found or len(found) < len(pairs):
        raise SpecError(f"--input {' '.join(texts)}: expected one NAME=1x3x224x224 for an input, with the batch")
    return found


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape that `3x224x224` spells: one example, without the batch.

    Raises:
        SpecError: it is not positive whole numbers joined by x.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise SpecError(f"input shape {text!r}: expected sizes joined by x, such as 3x224x224, without the batch")
    return tuple(int(size) for size in text.split("x"))


def _built(spec: str, seed: int, trust: Trust = _NO_TRUST) -> nn.Module:
    with seeded(seed):
        return build(spec, trust)


def _traced(module: nn.Module, spec: str | None, source: str, example_shape: Shape | None) -> ModelGraph:
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    if isinstance(example_shape, Mapping):
        raise SpecError(f"{source}: shapes by name are for the inputs of an .onnx file; give --input 3x224x224")
    if spec is not None and (found := library_of(spec)) is not None:
        return _traced_of(found[0], module, source, example_shape)
    if example_shape is not None:
        examples: tuple[Tensor | None, ...] | None = (blank(example_shape, dtype),)
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


def _traced_of(library: Library, module: nn.Module, source: str, example_shape: tuple[int, ...] | None) -> ModelGraph:
    """The network of a library, traced on the inputs that are invented for it."""
    inputs = library.inputs(module)
    if example_shape is not None:
        if library.shape(module) is None:
            raise SpecError(f"{source}: takes {', '.join(inputs)}, so --input says nothing about it; leave it out")
        inputs = {name: torch.zeros(2, *example_shape, dtype=dtype_of(module)) for name in inputs}
    check_call(source, module, inputs)
    try:
        return trace(module, inputs[""]) if "" in inputs else trace(module, inputs)
    except SurgeryError as cause:
        raise type(cause)(f"{source}: {cause}") from cause
