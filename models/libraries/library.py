"""What a library of networks has to offer to a spec, and what all of them do alike."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from graphsurgery.errors import SpecError, one_line
from graphsurgery.models.spec_text import Value


@dataclass(frozen=True)
class Trust:
    """What a spec may execute that is not installed code.

    Attributes:
        pickle: objects in pickled files.
        remote_code: Python files that lie beside weights.
    """

    pickle: bool = False
    remote_code: bool = False


@dataclass(frozen=True)
class Library:
    """Where specs that begin with a scheme get their networks.

    Attributes:
        scheme: what stands before the colon.
        build: the network of a name with options.
        inputs: example inputs by the names of arguments; a single one without a name is called "".
        shape: the shape of one image `[channel, height, width]`, where it takes one.
        better: what to give for trained weights in the place of a name that draws random ones; None where it does not.
    """

    scheme: str
    build: Callable[[str, Mapping[str, Value], Trust], nn.Module]
    inputs: Callable[[nn.Module], dict[str, Tensor]]
    shape: Callable[[nn.Module], tuple[int, ...] | None]
    better: Callable[[str, Mapping[str, Value]], str | None]


def imported(package: str, extra: str, spec: str) -> ModuleType:
    """A package, which an optional extra installs.

    Raises:
        SpecError: it is not there, and which extra has it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as cause:
        found = getattr(cause, "name", None) or package
        missing = (
            f"{package} is not installed" if found == package else f"{package} needs {found}, which is not installed"
        )
        raise SpecError(f"{spec}: {missing}; install the extra: pip install 'graphsurgery[{extra}]'") from cause


def made(spec: str, make: Callable[[], Any]) -> nn.Module:
    """What a library builds, as a network.

    Raises:
        SpecError: the library says no, and what; or it has built something else.
    """
    try:
        module = make()
    except SpecError:
        raise
    except Exception as cause:  # whatever the library raises
        raise SpecError(
            f"{spec}: cannot be built ({type(cause).__name__}: {one_line(cause)}); check its options"
        ) from cause
    if not isinstance(module, nn.Module):
        raise SpecError(f"{spec}: is a {type(module).__name__}, expected a network")
    return module


def check_call(spec: str, module: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Run a network on invented inputs.

    Raises:
        SpecError: it does not take them.
    """
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        return
    modes = {part: part.training for part in module.modules()}
    module.eval()
    args = [inputs[""]] if "" in inputs else []
    try:
        with torch.no_grad():
            module(*args, **{name: value for name, value in inputs.items() if name})
    except Exception as cause:  # whatever the model's own code raises
        shapes = ", ".join(f"{name or 'image'} {list(tensor.shape)}" for name, tensor in inputs.items())
        raise SpecError(
            f"{spec}: does not take the inputs that were invented for it ({shapes}): {one_line(cause)}; trace it in "
            "Python: gs.trace(model, kwargs={...})"
        ) from cause
    finally:
        for part, mode in modes.items():
            part.training = mode


def dtype_of(module: nn.Module) -> torch.dtype:
    """The precision of a network."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def indices(shape: tuple[int, ...], below: int) -> Tensor:
    """Indices in no order, the same in every call: all of them in turn, from some prime on."""
    return (torch.arange(math.prod(shape)) * 7919 % max(1, below)).reshape(shape)
