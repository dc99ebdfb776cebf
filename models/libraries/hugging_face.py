"""Networks of transformers: `hf:CLASS?option=value` with random weights, `hf:FOLDER` with those of a folder.

A folder has a `config.json` and safetensors, in one file or in shards with an index. Pickled weights are not read.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphsurgery.errors import CheckpointError, SpecError, UnsupportedError, near_names, one_line
from graphsurgery.models.libraries.library import Library, Trust, dtype_of, imported, indices, made
from graphsurgery.models.libraries.tensor_files import StoredTensor, read_json, stored_tensors
from graphsurgery.models.spec_text import Value, parse_value
from graphsurgery.surgery.installing.configuration import without_weights

_TOKENS, _DECODED, _IMAGE, _FRAMES = 9, 7, 224, 16


def _transformers(spec: str) -> Any:
    return imported("transformers", "hf", spec)


def is_folder(name: str) -> bool:
    """Whether a name is meant as a folder and not as a class."""
    return Path(name).is_dir() or not name.isidentifier()


def build(name: str, options: Mapping[str, Value], trust: Trust) -> nn.Module:
    """A network of a class with random weights, or of a folder with its own.

    Raises:
        SpecError: transformers is not installed, there is no such class or option.
        CheckpointError: the folder is missing, lacks weights, or is damaged; or its code is not trusted.
    """
    return from_folder(Path(name), options, trust) if is_folder(name) else _drawn(name, options)


# Classes --------------------------------------------------------------------------------------------------------------


def _drawn(name: str, options: Mapping[str, Value]) -> nn.Module:
    spec = f"hf:{name}"
    transformers = _transformers(spec)
    kind = getattr(transformers, name, None)
    if name.startswith("Auto"):
        raise SpecError(f"{spec}: stands for many classes; name one, such as hf:BertModel, or give a folder")
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        known = [found for found in dir(transformers) if "Model" in found or "For" in found]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        advice = f"did you mean {' or '.join(near)}?" if near else "see the model documentation of transformers"
        raise SpecError(f"{spec}: transformers has no model {name}; {advice}")
    config = made_config(spec, kind, options)
    return made(spec, lambda: kind(config))


def made_config(spec: str, kind: Any, options: Mapping[str, Value]) -> Any:
    """The configuration of a class with these options; `a.b=1` goes into the configuration `a`, `1,2` is a list.

    Raises:
        SpecError: the configuration has no such option.
    """
    usual = kind.config_class()
    nested: dict[str, Any] = {"use_cache": False} if hasattr(usual, "use_cache") else {}
    for key, value in options.items():
        *path, last = key.split(".")
        own, target = usual, nested
        for part in path:
            own, target = getattr(own, part, None), target.setdefault(part, {})
        if not (hasattr(own, last) or last in inspect.signature(type(own)).parameters):
            raise SpecError(f"{spec}: has no option {key!r}; {near_names(last, _fields(own))}")
        target[last] = _listed(value)
    try:
        return kind.config_class(**nested)
    except Exception as cause:  # whatever transformers says to it
        raise SpecError(f"{spec}: its options do not go together: {one_line(cause)}") from cause


def _fields(config: Any) -> list[str]:
    return [name for name in vars(config) if not name.startswith("_")] if config is not None else []


def _listed(value: Value) -> Any:
    """`1,2` as a list of numbers."""
    return [parse_value(part) for part in value.split(",")] if isinstance(value, str) and "," in value else value


# Folders --------------------------------------------------------------------------------------------------------------

CONFIG = "config.json"


def from_folder(folder: Path, options: Mapping[str, Value], trust: Trust) -> nn.Module:
    """The network of a folder; every weight that its class has is there.

    Raises:
        CheckpointError: it is missing, damaged, lacks weights, or its code is not trusted.
    """
    spec = f"hf:{folder}"
    kind = _class_in(folder, options, trust)
    stored_tensors(folder)  # they are looked at
    loaded: dict[str, Any] = {}

    def load() -> nn.Module:
        with quiet():
            module, loaded["info"] = kind.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True,
                trust_remote_code=trust.remote_code, **options,
            )  # fmt: skip
        return module

    module = made(spec, load)
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if names := sorted(map(str, loaded["info"].get(what, ()))):
            kind_of = what.partition("_")[0]
            raise CheckpointError(
                f"{folder}: {len(names)} weights are {kind_of} for {type(module).__name__}: {names[0]}"
            )
    if hasattr(module.config, "use_cache"):
        module.config.use_cache = False
    return module


def without_weights_of(folder: Path, options: Mapping[str, Value]) -> tuple[nn.Module, dict[str, StoredTensor]]:
    """The network of a folder with parameters on the meta device, in evaluation, and the tensors that the folder has.

    Raises:
        CheckpointError: it is missing, damaged, lacks weights, or its class is not one of transformers.
    """
    spec = f"hf:{folder}"
    kind = _class_in(folder, options, Trust(remote_code=True))
    if not hasattr(kind, "config_class") or kind.config_class is None:
        raise CheckpointError(
            f"{folder}: its network is Python code in the folder, which is opened whole only: -o FILE.pt"
        )
    tensors = stored_tensors(folder)
    floating = Counter(tensor.dtype for tensor in tensors.values() if tensor.dtype.is_floating_point)

    def load() -> nn.Module:
        config = kind.config_class.from_pretrained(folder, local_files_only=True, **options)
        said = getattr(config, "dtype", None)
        usual = max(floating, key=floating.__getitem__, default=torch.get_default_dtype())
        return without_weights(lambda: kind(config), said if isinstance(said, torch.dtype) else usual)

    with quiet():
        module = made(spec, load).eval()
    config: Any = module.config
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return module, tensors


def names_in_class(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """The name in a network's class of each tensor in its files: the library gives some another one as it loads them.

    Raises:
        UnsupportedError: it computes a tensor from those in the files, as the weights of all experts from single ones.
    """
    try:
        loading = importlib.import_module("transformers.core_model_loading")
        conversions = importlib.import_module("transformers.conversion_mapping")
    except ModuleNotFoundError:  # of a library that takes them as they are
        return {name: name for name in names}
    known, base = module.state_dict(), getattr(module, "base_model_prefix", None)
    steps = conversions.get_model_conversion_mapping(module)
    renamings = [step for step in steps if isinstance(step, loading.WeightRenaming)]
    converters = [step for step in steps if isinstance(step, loading.WeightConverter)]
    found = {}
    for name in sorted(names, key=loading.dot_natural_key):  # a renaming may begin where another tensor was met
        renamed, converted = loading.rename_source_key(name, renamings, converters, base, known)
        if renamed not in known and name in known:
            renamed, converted = name, None
        if converted is not None:
            raise UnsupportedError(
                f"{type(module).__name__}: the library computes {renamed} from {name} and others as it loads them"
            )
        found[name] = renamed
    return found


def _class_in(folder: Path, options: Mapping[str, Value], trust: Trust) -> Any:
    """The class that builds the network of a folder, and takes these options."""
    spec = f"hf:{folder}"
    config = read_json(folder, CONFIG)
    transformers = _transformers(spec)
    if config.get("auto_map") and not trust.remote_code:
        raise CheckpointError(
            f"{folder}: its network is Python code in the folder ({', '.join(map(str, config['auto_map'].values()))}); "
            "with --trust-remote-code that code is executed"
        )
    if unknown := [key for key in options if key not in config]:
        raise SpecError(f"{spec}: its {CONFIG} has no {unknown[0]!r}; {near_names(unknown[0], config)}")
    return transformers.AutoModel if config.get("auto_map") else _class_of(transformers, folder, config)


def _class_of(transformers: Any, folder: Path, config: Mapping[str, Any]) -> Any:
    names = config.get("architectures") or []
    kind = getattr(transformers, str(names[0]), None) if names else None
    if kind is None:
        found = f"the class {names[0]}, which transformers {transformers.__version__} has not" if names else "no class"
        raise CheckpointError(f"{folder}: its {CONFIG} names {found} (architectures)")
    return kind


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars of progress, and without its reports of what is checked here."""
    transformers = _transformers("hf:")
    log = logging.getLogger("transformers")
    level, shown = log.level, transformers.utils.logging.is_progress_bar_enabled()
    log.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        log.setLevel(level)
        if shown:
            transformers.utils.logging.enable_progress_bar()


# Inputs ---------------------------------------------------------------------------------------------------------------


def inputs(module: nn.Module) -> dict[str, Tensor]:
    """Example inputs by name: the main one, a mask for texts, and those of a decoder or of a second tower."""
    config: Any = module.config
    main = str(getattr(module, "main_input_name", "input_ids"))
    takes = set(inspect.signature(module.forward).parameters)
    names = [main]
    if {"input_ids", "pixel_values"} <= takes and hasattr(config, "text_config") and hasattr(config, "vision_config"):
        names = ["input_ids", "pixel_values"]
    if "input_ids" in names and "attention_mask" in takes:
        names.append("attention_mask")
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        names.append("decoder_input_ids")
    return {name: _invented(name, config, dtype_of(module)) for name in names}


def _invented(name: str, config: Any, dtype: torch.dtype) -> Tensor:
    if name == "pixel_values":
        return torch.linspace(-1, 1, 2 * _product(image_shape(config))).reshape(2, *image_shape(config)).to(dtype).sin()
    if name in ("input_features", "input_values"):
        shape = _sound(name, config)
        return torch.arange(2 * _product(shape)).reshape(2, *shape).to(torch.float32).sin().to(dtype)
    if name == "attention_mask":
        mask = torch.ones(2, _TOKENS, dtype=torch.int64)
        mask[1, -2:] = 0
        return mask
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    return indices((2, _DECODED if name.startswith("decoder") else _TOKENS), int(getattr(text, "vocab_size", 2)))


def _sound(name: str, config: Any) -> tuple[int, ...]:
    """The shape of a spectrum, or of a wave, for one example."""
    bins = getattr(config, "num_mel_bins", None)
    if bins is None:
        return (4000,)
    if name == "input_values":
        return (int(config.max_length), int(bins))
    return (int(bins), 2 * int(getattr(config, "max_source_positions", 50)))


def image_shape(config: Any) -> tuple[int, int, int]:
    """`[channel, height, width]` of one image that a configuration says."""
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", _IMAGE)
    height, width = (size[0], size[-1]) if isinstance(size, list | tuple) else (size, size)
    return int(getattr(config, "num_channels", 3)), int(height), int(width)


def _product(shape: tuple[int, ...]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found


def _shape(module: nn.Module) -> tuple[int, ...] | None:
    takes_images = getattr(module, "main_input_name", None) == "pixel_values"
    return image_shape(module.config) if takes_images else None


def _better(name: str, options: Mapping[str, Value]) -> str | None:  # noqa: ARG001
    return None if is_folder(name) else "a folder with weights: hf:FOLDER"


HUGGING_FACE = Library("hf", build, inputs, _shape, _better)
