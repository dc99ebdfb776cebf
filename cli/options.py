"""Options that commands share."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from torch import nn

    from graphsurgery.graph import ModelGraph
    from graphsurgery.masks import MaskSet

_FLAG = Parameter(negative="", show_default=False)


@Parameter(name="*")
@dataclass(frozen=True)
class Shown:
    """What is printed."""

    json: Annotated[bool, _FLAG] = False
    """Print one JSON document on standard output, and nothing else there."""
    quiet: Annotated[bool, _FLAG] = False
    """Print errors only (and the JSON document)."""


@Parameter(name="*")
@dataclass(frozen=True)
class Opening:
    """How a model argument is opened."""

    arch: str | None = None
    """Model spec that a state_dict belongs to, such as torchvision/resnet18 or file.py:function."""
    input: str | None = None
    """Shape of one input without the batch, such as 3x224x224, where the spec does not say."""
    trust_pickle: Annotated[bool, _FLAG] = False
    """Open files with pickled objects, which executes code from the file."""

    @property
    def tokens(self) -> list[str]:
        """The same options on a command line."""
        named = {"--arch": self.arch, "--input": self.input}
        given = [token for option, value in named.items() if value for token in (option, value)]
        return given + ["--trust-pickle"] * self.trust_pickle

    def pair(self, source: str, shape: tuple[int, ...] | None = None) -> tuple[ModelGraph, nn.Module | None]:
        """The typed network, and the module that was traced where one was; `shape` is for want of --input."""
        from graphsurgery.models.loading import open_pair

        return open_pair(source, arch=self.arch, trust_pickle=self.trust_pickle, example_shape=self._shape(shape))

    def graph(self, source: str, shape: tuple[int, ...] | None = None) -> ModelGraph:
        """The typed network."""
        return self.pair(source, shape)[0]

    def masks(self, source: str) -> MaskSet:
        """Which of its weights live."""
        from graphsurgery.models.mask_files import open_masks

        return open_masks(source, arch=self.arch, trust_pickle=self.trust_pickle, example_shape=self._shape())

    def _shape(self, otherwise: tuple[int, ...] | None = None) -> tuple[int, ...] | None:
        from graphsurgery.models.loading import parse_shape

        return parse_shape(self.input) if self.input else otherwise


@Parameter(name="*")
@dataclass(frozen=True)
class Proof:
    """How an `.onnx` file is proved before it is put in place."""

    rtol: Annotated[float, Parameter(validator=Number(gte=0))] = 1e-4
    """By how much ONNX Runtime may deviate from PyTorch in an .onnx file, as a share of what each output varies by."""


TOKENS: ContextVar[Sequence[str]] = ContextVar("TOKENS", default=())
SHOWN = Shown()
OPENING = Opening()
PROOF = Proof()

DryRun = Annotated[
    bool, Parameter(negative="", show_default=False, help="Say what would be done; train and write nothing.")
]
Output = Annotated[Path, Parameter(name=["--output", "-o"], help="The file to write.")]
Seed = Annotated[int, Parameter(help="Fixes everything that is drawn.")]
RunFolder = Annotated[
    Path | None, Parameter(name="--run", help="Folder for metrics and states; the same command resumes from it.")
]


def small_file(model: str) -> str:
    """A name for what becomes of a model, with the ending that it has to have."""
    return "small.onnx" if model.endswith(".onnx") else "small.pt"


def without_dry_run() -> list[str]:
    """The command line that runs, without --dry-run."""
    return [token for token in TOKENS.get() if token != "--dry-run"]


def writable(*paths: Path | None) -> None:
    """Refuse a file that could not be written, before any work is done for it."""
    for path in filter(None, paths):
        if path.is_dir():
            raise SurgeryError(f"{path}: is a folder, expected the name of a file")
        if not path.parent.is_dir():
            raise SurgeryError(f"{path}: its folder does not exist; make {path.parent} first")
