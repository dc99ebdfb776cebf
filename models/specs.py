"""Model specs: `torchvision/NAME`, `timm/NAME`, `paper/NAME`, `file.py:function`, `hf:CLASS`, with `?option=value`.

`hf:FOLDER`, `ultralytics:…` and `smp:…` are in `libraries`.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from graphsurgery.errors import SpecError, near_names, one_line
from graphsurgery.models.libraries.library import Trust
from graphsurgery.models.libraries.table import LIBRARIES, library_of
from graphsurgery.models.paper.table import PAPER_NETWORKS
from graphsurgery.models.sources.catalogue import ENDINGS
from graphsurgery.models.sources.downloads import require_torchvision_weights, timm_weights
from graphsurgery.models.sources.names import SOURCES, accepted, names_of, near_in, near_specs, timm_package
from graphsurgery.models.sources.user_files import load_function, place_of, require_function, told
from graphsurgery.models.spec_text import (
    Spec,
    Value,
    is_function_spec,
    parse_spec,
    with_option,
)
from graphsurgery.progress import phase

_TORCHVISION_SIDES = {"inception_v3": 299, "quantized_inception_v3": 299, "ssd300_vgg16": 300}
_DETECTOR_SIDE = 320


_NO_TRUST = Trust()


@phase("building the network")
def build(spec: str, trust: Trust = _NO_TRUST) -> nn.Module:
    """The network that `spec` names, freshly initialised by the global random state of torch (or with its `weights`).

    Of a detector it is the core that holds its weights; `models.detection.install` puts that back into the detector.

    Args:
        spec: `paper/resnet20?in_channels=1`, `torchvision/resnet18?weights=DEFAULT`, `timm/resnet10t`, or
            `path/file.py:function?option=value`, which executes that file and calls that function; of libraries
            `hf:BertModel?num_hidden_layers=2`, `hf:FOLDER`, `ultralytics:yolo11n.yaml`, `smp:Unet`.
        trust: what a file or a folder of a library may execute.

    Raises:
        SpecError: the source, the name or an option is unknown, its library is not installed, or building fails.
        CheckpointError: a file or a folder is missing, damaged, or not trusted.
    """
    parsed = parse_spec(spec)
    if (found := library_of(spec)) is not None:
        library, name = found
        return library.build(name, parsed.options, trust)
    if is_function_spec(parsed.name):
        function, _ = load_function(parsed.name)
        module = called(spec, function, parsed.options)
        if not isinstance(module, nn.Module):
            raise SpecError(f"{spec}: returned {type(module).__name__}, expected a torch.nn.Module; return the network")
        return followable(module)
    require_function(spec)
    if names_file(spec):
        raise SpecError(f"{spec}: is a file, expected a model spec, such as paper/cnn; grow and slim train files on")
    source, name = _source_and_name(spec, parsed)
    return followable(_BUILDERS[source](spec, name, parsed.options))


def trained_instead(spec: str) -> str | None:
    """What to give for trained weights in the place of a spec that draws random ones; None where it draws none.

    What the function of a file does is not known, so that it counts as not random.
    """
    parsed = parse_spec(spec)
    source, _, name = parsed.name.partition("/")
    if (found := library_of(spec)) is not None:
        return found[0].better(found[1], parsed.options)
    if is_function_spec(parsed.name) or source not in SOURCES:
        return None
    options = {key: value for key, value in parsed.options.items() if value not in (None, False)}
    if source == "torchvision":
        return None if {"weights", "weights_backbone"} & set(options) else with_option(spec, "weights", "DEFAULT")
    if source == "timm":
        given = {"pretrained", "checkpoint_path", "pretrained_cfg"} & set(options)
        return None if given else with_option(spec, "pretrained", "true")
    return f"a checkpoint: graphsurgery train '{spec}' --data DATA -o {name}.pt"


def followable(module: nn.Module) -> nn.Module:
    """The core of a detector, which a trace can follow; any other module as it is."""
    from graphsurgery.tracing.trace import is_detector

    if not is_detector(module):
        return module
    from graphsurgery.models.detection.detectors import core

    return core(module)


def input_shape(spec: str) -> tuple[int, ...] | None:
    """The shape of one example, without the batch, that `spec` is made for; None where it is not known.

    Images are `[channel, height, width]`, videos `[channel, frame, height, width]`. For `file.py:function` it is the
    file's `INPUT_SHAPE`.

    Raises:
        SpecError: as `build` does.
    """
    parsed = parse_spec(spec)
    if library_of(spec) is not None:
        return None  # what it takes is known when it is built
    if is_function_spec(parsed.name):
        return _shape_in(load_function(parsed.name)[1])
    source, name = _source_and_name(spec, parsed)
    if source == "timm":
        return _timm_shape(name, parsed.options)
    if source == "torchvision":
        return _torchvision_shape(name, parsed.options)
    with torch.device("meta"):
        shape = _build_paper(spec, name, parsed.options).input_shape
    assert isinstance(shape, tuple)
    return shape


def _shape_in(module: ModuleType) -> tuple[int, ...] | None:
    shape = getattr(module, "INPUT_SHAPE", None)
    sizes = list(shape) if isinstance(shape, tuple | list) else []
    if shape is not None and not (sizes and all(type(size) is int and size > 0 for size in sizes)):
        raise SpecError(
            f"{module.__file__}: INPUT_SHAPE is {shape!r}; give the sizes of one example without the batch, such as "
            "(3, 32, 32)"
        )
    return tuple(sizes) or None


def example_inputs(spec: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor | None, ...] | None:
    """Inputs that the network of `spec` is traced on, one `[batch, ...]` for each; None where none are known.

    It is one of `input_shape`, on the meta device; or what `EXAMPLE_INPUTS` is in the file of `file.py:function`, for
    networks with several inputs, or with indices.

    Raises:
        SpecError: the file's are no tensors; and as `build` does.
    """
    parsed = parse_spec(spec)
    found = None
    if is_function_spec(parsed.name):
        _, module = load_function(parsed.name)
        found, shape = getattr(module, "EXAMPLE_INPUTS", None), _shape_in(module)
    else:
        shape = input_shape(spec)
    if found is None:
        return None if shape is None else (blank(shape, dtype),)
    inputs = (found,) if isinstance(found, Tensor) else tuple(found) if isinstance(found, tuple | list) else ()
    if not inputs or not all(isinstance(x, Tensor | None) for x in inputs):
        raise SpecError(f"model spec {spec!r}: its EXAMPLE_INPUTS are no tensors; give one [batch, ...] for each input")
    return inputs


def blank(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Two examples of a shape, without values."""
    return torch.empty(2, *shape, dtype=dtype, device="meta")


def _source_and_name(spec: str, parsed: Spec) -> tuple[str, str]:
    source, slash, name = parsed.name.partition("/")
    if Path(parsed.name).is_dir():
        raise SpecError(
            f"model spec {spec!r}: is a folder; give a file of it, or hf:{parsed.name} for one of transformers"
        )
    if not slash:
        raise SpecError(
            f"model spec {spec!r}: has no source, expected one of {', '.join(SOURCES)} before a /, or "
            f"{', '.join(LIBRARIES)} before a colon; {near_specs(parsed.name)}"
        )
    if source not in SOURCES:
        raise SpecError(
            f"model spec {spec!r}: unknown source {source!r}, and no such file; {near_names(source, SOURCES)}"
        )
    if source == "timm":
        timm_package()
    known = names_of(source)
    # timm also takes `model.tag`, which names pretrained weights of the model.
    if (name.partition(".")[0] if source == "timm" else name) not in known:
        raise SpecError(f"model spec {spec!r}: {source} has no model {name!r}; {near_in(source, name)}")
    return source, name


def fitted(spec: str, shape: Sequence[int], classes: int | None, *, replacing: bool = False) -> str:
    """A spec of a paper's network with the options that follow from data filled in, where it leaves them out.

    Args:
        spec: other specs stay as they are.
        shape: of one input, without the batch.
        classes: how many; None for regression.
        replacing: whether such options of the spec give way.
    """
    parsed = parse_spec(spec)
    source, _, name = parsed.name.partition("/")
    if source != "paper" or name not in PAPER_NETWORKS:
        return spec
    known: dict[str, int | None] = {
        "inputs": math.prod(shape),
        "in_features": math.prod(shape),
        "in_channels": shape[0],
        "image_size": shape[-1],
        "outputs": classes,
        "classes": classes,
    }
    accepted = inspect.signature(PAPER_NETWORKS[name]).parameters
    kept = () if replacing else parsed.options
    new = {k: v for k, v in known.items() if k in accepted and k not in kept and v is not None}
    options = "&".join(f"{key}={value}" for key, value in {**parsed.options, **new}.items())
    return f"{parsed.name}?{options}" if options else parsed.name


def _build_paper(spec: str, name: str, options: dict[str, Value]) -> nn.Module:
    return called(spec, PAPER_NETWORKS[name], options)


def _build_torchvision(spec: str, name: str, options: dict[str, Value]) -> nn.Module:
    from torchvision.models import get_model_builder

    builder = get_model_builder(name)
    if name in ("googlenet", "inception_v3") and options.get("weights") is None:
        # Their default, spelled out: torchvision warns when it is left implicit.
        options = {"init_weights": True, **options}
    if options.get("weights") is not None:
        require_torchvision_weights(spec, name, options["weights"])
    if "weights_backbone" in inspect.signature(builder).parameters:
        # Left at its default, torchvision downloads weights for the backbone alone.
        builder = partial(builder, weights_backbone=None)
    return called(spec, builder, options)


def _is_detector(builder: Callable[..., Any]) -> bool:
    return ".detection" in builder.__module__


def _build_timm(spec: str, name: str, options: dict[str, Value]) -> nn.Module:
    timm = timm_package()

    def builder(
        pretrained: bool = False, num_classes: int | None = None, in_chans: int = 3, **kwargs: Any
    ) -> nn.Module:
        if num_classes is not None:
            kwargs["num_classes"] = num_classes
        return timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **kwargs)

    with timm_weights(spec, name) if options.get("pretrained") else contextlib.nullcontext():
        return called(spec, builder, options)


_BUILDERS: dict[str, Callable[[str, str, dict[str, Value]], nn.Module]] = {
    "paper": _build_paper,
    "timm": _build_timm,
    "torchvision": _build_torchvision,
}


def called(spec: str, builder: Callable[..., Any], options: Mapping[str, Value]) -> Any:
    """What a function gives that takes these options.

    Raises:
        SpecError: it has no such option, or it fails; says at which line of a file of the user.
    """
    try:
        return builder(**options)
    except SpecError as error:
        raise SpecError(f"{spec}: {error}") from error
    except Exception as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, TypeError) and unknown and unknown[1] in options:
            taken = accepted(builder)
            advice = f"accepted: {', '.join(taken)}" if taken else "it takes no options"
            raise SpecError(f"{spec}: has no option {unknown[1]!r}; {advice}") from error
        missing = re.search(r"missing \d+ required [\w-]+ arguments?: (.*)", str(error))
        if isinstance(error, TypeError) and missing and place_of(error) is None:
            needed = "&".join(f"{name}=..." for name in re.findall(r"'(\w+)'", missing[1]))
            raise SpecError(f"{spec}: needs options; give them as ?{needed}") from error
        if place_of(error) is not None:
            raise SpecError(f"{spec}: fails: {told(error)}; repair the file, or the options") from error
        reason = one_line(error)
        raise SpecError(f"{spec}: cannot be built ({type(error).__name__}: {reason}); check its options") from error


def _torchvision_shape(name: str, options: dict[str, Value]) -> tuple[int, ...] | None:
    from torchvision.models import get_model_builder

    builder = get_model_builder(name)
    package = builder.__module__
    if ".optical_flow" in package:
        return None
    if ".video" in package:
        side = 224 if name.startswith(("mvit", "swin3d", "s3d")) else 112
        return (3, 16, side, side)
    usual = _DETECTOR_SIDE if _is_detector(builder) else 224
    side_option = options.get("image_size", _TORCHVISION_SIDES.get(name, usual))
    if not isinstance(side_option, int):
        return None
    return (3, side_option, side_option)


def _timm_shape(name: str, options: dict[str, Value]) -> tuple[int, ...] | None:
    config = timm_package().get_pretrained_cfg(name)
    size = getattr(config, "input_size", None) or (3, 224, 224)
    channels, height, width = size
    side = options.get("img_size")
    if isinstance(side, int):
        height = width = side
    override = options.get("in_chans")
    return (override if isinstance(override, int) else channels, height, width)


def names_file(source: str) -> bool:
    """Whether `source` is a file, or should be one by its ending; a model spec is none."""
    if library_of(source) is not None:
        return False
    path = Path(source)
    return path.is_file() or (path.suffix in ENDINGS and "?" not in source)
