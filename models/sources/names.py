"""The names of models that the papers, torchvision and timm have, and the options of each."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from graphsurgery.errors import SpecError
from graphsurgery.models.paper.table import PAPER_NETWORKS

SOURCES = ("paper", "timm", "torchvision")


def available(prefix: str = "") -> list[str]:
    """The model specs that begin with `prefix`, sorted; those of timm only where timm is installed."""
    wanted = [source for source in SOURCES if source.startswith(prefix) or prefix.startswith(source)]
    names = [f"{source}/{name}" for source in wanted for name in names_of(source)]
    return sorted(name for name in names if name.startswith(prefix))


def names_of(source: str) -> Sequence[str]:
    """All models of a source; none of timm where it is not installed."""
    if source == "paper":
        return list(PAPER_NETWORKS)
    if source == "torchvision":
        from torchvision.models import list_models

        return list_models()
    try:
        return timm_package().list_models()
    except SpecError:
        return []


def near_in(source: str, name: str) -> str:
    """What may be meant by a name that a source does not have, or how to see all that it has."""
    known = names_of(source)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"graphsurgery models {source}/ lists all {len(known)}"


def near_specs(name: str) -> str:
    """What may be meant by a name without a source: what is called so, or nearly so, with its source."""
    specs: dict[str, list[str]] = {}
    for spec in available():
        specs.setdefault(spec.partition("/")[2], []).append(spec)
    close = [name] if name in specs else difflib.get_close_matches(name, specs, n=3, cutoff=0.6)
    found = [spec for each in close for spec in specs[each]]
    return f"did you mean {' or '.join(found[:4])}?" if found else "graphsurgery models lists what there is"


def options_of(name: str) -> list[str]:
    """The options that a model of the paper, torchvision or timm takes."""
    source, _, model = name.partition("/")
    if source == "paper":
        return list(inspect.signature(PAPER_NETWORKS[model]).parameters)
    if source == "timm":
        return ["pretrained", "num_classes", "in_chans", "img_size"]
    from torchvision.models import get_model_builder

    return accepted(get_model_builder(model))


def accepted(builder: Callable[..., Any]) -> list[str]:
    """Names that `builder` takes, and, where it passes keywords on, those of the class that it builds."""
    parameters = list(inspect.signature(builder).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        try:
            with torch.device("meta"):
                own = inspect.signature(type(builder())).parameters.values()
            parameters += [p for p in own if p.default is not p.empty]  # the others are what the builder gives
        except Exception:  # only the advice of an error gets shorter
            pass
    passed_on = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return sorted({p.name for p in parameters if p.kind not in passed_on})


def timm_package() -> ModuleType:
    """timm.

    Raises:
        SpecError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise SpecError("timm is not installed; install the extra: pip install 'graphsurgery[timm]'") from error
    return timm
