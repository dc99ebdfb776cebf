"""Options that commands share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from graphsurgery.cli.arguments.sources import MaybeModel
from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from torch import nn

    from graphsurgery.graph import InputSpec, ModelGraph
    from graphsurgery.models.loading import Shape
    from graphsurgery.network.preprocessing import Preprocessing
    from graphsurgery.surgery.masks.mask_set import MaskSet
    from graphsurgery.training.data.calibration import Calibration
    from graphsurgery.training.data.dataset import Data

_FLAG = Parameter(negative="", show_default=False)


@Parameter(name="*")
@dataclass(frozen=True)
class Shown:
    """What is printed."""

    json: Annotated[bool, _FLAG] = False
    """Print one JSON document on standard output, and nothing else there."""
    quiet: Annotated[bool, _FLAG] = False
    """Print errors only (and the JSON document)."""
    wide: Annotated[bool, _FLAG] = False
    """Print all columns and whole names, however narrow the terminal is; off a terminal that is so anyway."""
    verbose: Annotated[bool, _FLAG] = False
    """Also print, on standard error, every epoch, how long each phase took, warnings of libraries, and what an error
    was raised from."""
    traceback: Annotated[bool, _FLAG] = False
    """Print the Python traceback of an error."""

    @classmethod
    def of(cls, tokens: Sequence[str]) -> Shown:
        """The same before a command line is parsed, which may go wrong."""
        return cls(**{field.name: f"--{field.name}" in tokens for field in fields(cls)})


@Parameter(name="*")
@dataclass(frozen=True)
class Opening:
    """How a model argument is opened."""

    arch: MaybeModel = None
    """What a state_dict (.pt, .safetensors) belongs to: a model spec, such as torchvision/resnet18 or file.py:function,
    or a checkpoint."""
    key: str | None = None
    """Which weights of a file that holds several, such as state_dict_ema."""
    answer: str | None = None
    """Which of several outputs counts, such as logits, 0 or out.aux; the others go, with what only they need."""
    input: Annotated[tuple[str, ...], _FLAG] = ()
    """Shape of one input without the batch, such as 3x224x224, where the spec does not say. Of an .onnx file with
    several inputs NAME=1x3x224x224, with the batch; may be given again."""
    trust_pickle: Annotated[bool, _FLAG] = False
    """Open files with pickled objects, which executes code from the file."""
    trust_remote_code: Annotated[bool, _FLAG] = False
    """Open folders of Hugging Face (hf:FOLDER) whose network is code in the folder, which executes it."""

    @property
    def tokens(self) -> list[str]:
        """The same options on a command line."""
        named = {"--arch": self.arch, "--key": self.key, "--answer": self.answer}
        given = [token for option, value in named.items() if value for token in (option, value)]
        given += [token for text in self.input for token in ("--input", text)]
        given += ["--trust-remote-code"] * self.trust_remote_code
        return given + ["--trust-pickle"] * self.trust_pickle

    def pair(
        self, source: str, shape: tuple[int, ...] | None = None, *, to_train: bool = False
    ) -> tuple[ModelGraph, nn.Module | None]:
        """The typed network, and the module that was traced where one was.

        Args:
            source: what names it.
            shape: of one input of the data, for want of --input.
            to_train: whether random weights are what is expected; else they are said to be random.
        """
        from graphsurgery.models.answers import with_output
        from graphsurgery.models.loading import open_pair

        if not to_train:
            _note_random(source)
        graph, module = open_pair(
            source,
            arch=self.arch,
            key=self.key,
            trust_pickle=self.trust_pickle,
            trust_remote_code=self.trust_remote_code,
            example_shape=self.shape(shape),
        )
        _note_weights(source, graph)
        if self.answer is not None and source.endswith(".onnx"):
            raise SurgeryError(f"--answer: edits of {source} go back into it, with all of its outputs; leave it out")
        if self.answer is None or (chosen := with_output(graph, self.answer)) is graph:
            return graph, module
        return chosen, None

    def graph(self, source: str, shape: tuple[int, ...] | None = None, *, to_train: bool = False) -> ModelGraph:
        """The typed network; arguments as for `pair`."""
        return self.pair(source, shape, to_train=to_train)[0]

    def fitting(self, source: str, data: Data | None, *, to_train: bool = False) -> ModelGraph:
        """The typed network, which takes these data where there are some.

        Raises:
            SpecError: it does not take them.
        """
        from graphsurgery.training.data.loading import check_fits

        graph = self.graph(source, data.input_shape if data else None, to_train=to_train)
        if data is not None:
            check_fits(data, graph.module, name=source)
        return graph

    def masks(self, source: str) -> MaskSet:
        """Which of its weights live."""
        from graphsurgery.models.mask_files import open_masks

        _note_random(source)
        return open_masks(
            source, arch=self.arch, key=self.key, trust_pickle=self.trust_pickle, example_shape=self.shape()
        )

    def data(self, spec: str, *models: str, seed: int = 0) -> Data:
        """The data that a spec names; images as the first of the models says that takes them.

        Raises:
            SpecError: --input says another shape than the data have; and as for `load_data`.
        """
        from graphsurgery.errors import SpecError

        found = open_data(spec, *models, arch=self.arch, seed=seed)
        if self.input and self.shape() != tuple(found.input_shape):
            shape = "x".join(map(str, found.input_shape))
            advice = f", or {spec.partition('?')[0]}?size=HEIGHTxWIDTH" if found.preprocessing is not None else ""
            raise SpecError(f"--input {' '.join(self.input)}: {spec} has inputs of {shape}; leave --input out{advice}")
        return found

    def examples(self, folder: str, model: str, inputs: Sequence[InputSpec], *, seed: int = 0) -> Calibration:
        """The examples without labels in a folder, for these inputs; images as the model says that takes them.

        Raises:
            SpecError: as for `read_examples`.
        """
        from graphsurgery.training.data.calibration import read_examples

        said = said_of_images(model, arch=self.arch)
        found = read_examples(folder, inputs, seed=seed, preprocessing=said)
        note_images(folder, found.preprocessing)
        return found

    def shape(self, otherwise: tuple[int, ...] | None = None) -> Shape | None:
        """What --input says of the inputs; another shape where it says nothing."""
        from graphsurgery.models.loading import parse_shapes

        return parse_shapes(self.input) or otherwise


def _note_random(source: str) -> None:
    """Remember a spec whose weights are random, for whoever prints."""
    from graphsurgery.models.specs import names_file, trained_instead

    random = RANDOM.get()
    if random is None or source.endswith((".onnx", ".json")) or names_file(source):
        return
    better = trained_instead(source)
    if better is not None:
        random[source] = better


def _note_weights(source: str, graph: ModelGraph) -> None:
    """Remember which weights of a file were taken, and what else it holds, for whoever prints."""
    taken, record = WEIGHTS.get(), graph.lineage[-1] if graph.lineage else {}
    if taken is not None and record.get("pass") == "import" and record.get("quantised"):
        taken[source] = (
            f"{record['quantised']} weights and values, dequantised: an edited file is in floating numbers; quantise "
            "it again with export --int8 --calib"
        )
    if taken is not None and "beside" in record and record["source"] == source:
        beside = f"; beside them it holds {', '.join(record['beside'])}" if record["beside"] else ""
        taken[source] = f"{record['weights'] or 'the tensors at its top'}{beside}"


def open_data(spec: str, *models: str, arch: str | None = None, seed: int = 0) -> Data:
    """The data that a spec names; images as the first of the models says that takes them. It is said on the screen.

    Raises:
        SpecError: as for `load_data`.
    """
    from graphsurgery.training.data.loading import load_data, takes_images

    said = said_of_images(*models, arch=arch) if takes_images(spec) else None
    found = load_data(spec, seed=seed, preprocessing=said)
    note_images(spec, found.preprocessing)
    if (parts := PARTS.get()) is not None and found.parts:
        parts[spec] = found.parts
    return found


def said_of_images(*models: str, arch: str | None = None) -> Preprocessing | None:
    """What the first of the models that says something says of the images that it takes."""
    from graphsurgery.models.preprocessing import preprocessing_of

    return next(filter(None, (preprocessing_of(model, arch) for model in models)), None)


def note_images(spec: str, made: Preprocessing | None) -> None:
    """Remember what images become inputs by, for whoever prints."""
    images = IMAGES.get()
    if images is not None and made is not None:
        images[spec] = made


IMAGES: ContextVar[dict[str, Preprocessing] | None] = ContextVar("IMAGES", default=None)
"""What images become inputs by, by the data that this command has opened."""

PARTS: ContextVar[dict[str, str] | None] = ContextVar("PARTS", default=None)
"""What the splits are of data of which a function left some out, by the data that this command has opened."""

RANDOM: ContextVar[dict[str, str] | None] = ContextVar("RANDOM", default=None)
"""The specs with random weights that this command has opened, and what to give for trained ones."""


WEIGHTS: ContextVar[dict[str, str] | None] = ContextVar("WEIGHTS", default=None)
"""Which weights of files that hold several this command has taken."""


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


def small_file(model: str) -> str:
    """A name for what becomes of a model, with the ending that it has to have."""
    return "small.onnx" if model.endswith(".onnx") else "small.pt"


def without_dry_run() -> list[str]:
    """The command line that runs, without --dry-run."""
    return [token for token in TOKENS.get() if token != "--dry-run"]


ENDINGS = {
    "network": ("checkpoint", (".pt", ".pth", ".ckpt")),
    "mask": ("supermask", (".pt", ".pth")),
    "masks": ("file of masks", (".json",)),
    "onnx": ("ONNX file", (".onnx",)),
    "report": ("web page", (".html", ".htm")),
    "picture": ("web page", (".html", ".htm")),
    "plot": ("picture", (".svg", ".png", ".pdf")),
}
"""What is written is called, and how the name of its file ends."""


@Parameter(name="*")
@dataclass(frozen=True)
class Writing:
    """What happens to files that exist."""

    overwrite: Annotated[bool, _FLAG] = False
    """Write over files that exist; never over one that is read."""

    def allow(self, *, reads: Iterable[str | None] = (), in_place: str | None = None, **files: Path | None) -> None:
        """Refuse, before any work is done, a file that could not be written or must not be.

        Args:
            reads: what the command opens: files, or specs that name some.
            in_place: an `.onnx` file among them that is written back, so that `files` may name it; by this name only.
            files: what will be written, by what it is (`ENDINGS`).

        Raises:
            SurgeryError: a folder of that name exists, the folder of the file does not, the name has another ending,
                it names what is read (also by a link) or what else is written, or it exists and `overwrite` is off.
        """
        named = {what: path for what, path in files.items() if path is not None}
        written: list[Path] = []
        for what, path in named.items():
            writable(path)
            self._check_ending(what, path, back=in_place is not None and in_place.endswith(".onnx"))
            self.check_apart(path, reads, in_place)
            if same := [other for other in written if _same_file(path, other)]:
                raise SurgeryError(f"{path}: would be written twice, also as {same[0]}; give each its own name")
            self.check_new(path)
            written.append(path)

    def check_new(self, *paths: Path) -> None:
        """Refuse a file that exists.

        Raises:
            SurgeryError: it does, and `overwrite` is off.
        """
        for path in paths:
            if os.path.lexists(path) and not self.overwrite:
                raise SurgeryError(f"{path}: exists; give another name, or --overwrite to write over it")

    @staticmethod
    def _check_ending(what: str, path: Path, *, back: bool) -> None:
        called, endings = ENDINGS[what]
        endings += ENDINGS["onnx"][1] * (back and what == "network")
        if path.suffix.lower() not in endings:
            raise SurgeryError(f"{path}: is no {called}; end the name in {', '.join(endings)}")

    @staticmethod
    def check_apart(path: Path, reads: Iterable[str | None], in_place: str | None = None) -> None:
        """Refuse a file or folder that is read, whatever `overwrite` says.

        Raises:
            SurgeryError: it is, by this name or a link.
        """
        named_so = in_place is not None and path.suffix == ".onnx" and Path(in_place) == path
        for source in filter(None, reads):
            for file in files_of(source):
                if _same_file(path, file) and not (named_so and file == path):
                    called = "" if str(file) == str(path) else f" (there called {file})"
                    raise SurgeryError(
                        f"{path}: is read by this command{called}; give another name for what is written"
                    )


WRITING = Writing()


def files_of(source: str) -> list[Path]:
    """The files that a command-line argument may mean: itself, or the one that a spec names.

    `nets.py:function?width=3` means `nets.py`, `imagefolder:DIR?size=64` means `DIR`.
    """
    name = source.partition("?")[0]
    return [
        Path(text) for text in dict.fromkeys((source, name, name.rpartition(":")[0], name.partition(":")[2])) if text
    ]


def again(*more: str, command: str | None = None) -> list[str]:
    """The command line again with more options, or as that of another command; it writes over what it has written."""
    tokens = without_dry_run()
    tokens = [command, *tokens[1:]] if command and tokens else tokens
    return [*tokens, *more, *(["--overwrite"] if "--overwrite" not in tokens else [])]


def writable(*paths: Path | None) -> None:
    """Refuse a file that could not be written, before any work is done for it."""
    for path in filter(None, paths):
        if path.is_dir():
            raise SurgeryError(f"{path}: is a folder, expected the name of a file")
        if not path.parent.is_dir():
            raise SurgeryError(f"{path}: its folder does not exist; make {path.parent} first")


def _same_file(one: Path, other: Path) -> bool:
    """Whether both names are of one file, by links too, or will be."""
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist
        return os.path.realpath(one) == os.path.realpath(other)
