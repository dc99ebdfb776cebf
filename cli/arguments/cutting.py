"""Options of the command that removes channels: what is cut, what brings accuracy back, how a latency is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from graphsurgery.cli.arguments.sources import Examples
from graphsurgery.errors import SurgeryError
from graphsurgery.training.loop.plan import Execution

if TYPE_CHECKING:
    from graphsurgery.onnx.runtime.latency import Timing
    from graphsurgery.recipes.compression.shrink import Cut


@Parameter(name="*", group="Cutting")
@dataclass(frozen=True)
class Cutting:
    """What is cut, and which channels go."""

    keep: float | None = None
    """Share of the channels that stays in every space, above 0 and at most 1."""
    target: str | None = None
    """What the network may cost at most: params=0.5x, macs=300M, size=4MB, width=0.75, or measured in ONNX Runtime
    latency=0.5x or latency=5ms. The widths are searched."""
    keep_space: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    """NAME=N for a number of channels of one space, NAME=0.25 for a share; may be given again, and prevails. Without
    --keep and --target the other spaces stay whole."""
    ranking: Literal["per-space", "global"] = "per-space"
    """For --target: every space keeps the same share, or the channels of all spaces compete."""
    uniform: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """For --target: spaces of one size get one size, so that a class with one number for all layers can hold the result
    (see install)."""
    min_width: int = 1
    """For --target: no space gets fewer channels."""
    max_cut: float = 0.9
    """For --target: no space loses a larger share."""
    within: Literal["groups", "same", "each", "best"] = "groups"
    """What goes where channels are in groups or heads: whole groups, the same channels of every group, others of each
    group, or whichever keeps the more important ones."""
    importance: str = "l2"
    """Which channels stay: l2, l1, bn, taylor (needs data), gate or random."""
    round_to: int | Literal["auto"] | None = None
    """Numbers of channels become multiples of this; auto finds by measuring what ONNX Runtime rewards. By default auto
    for a latency, else 1."""
    dead: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Remove the channels whose weights are all 0, as in a lottery ticket, and fold the constants that they give into
    what reads them. The outputs stay the same; nothing else is cut."""

    @property
    def to_latency(self) -> bool:
        """Whether the target is a latency."""
        return self.target is not None and self.target.strip().lower().startswith("latency")

    @property
    def auto_step(self) -> bool:
        """Whether the step of the widths is to be found."""
        return self.round_to == "auto" or (self.round_to is None and self.to_latency)

    @property
    def _uniform(self) -> dict[str, str]:
        return {"ranking": "uniform"} if self.uniform else {}

    def plan(self, seed: int) -> Cut:
        """The plan of this cut; a step that is to be found is 1 in it."""
        from graphsurgery.recipes.compression.shrink import Cut, parse_spaces
        from graphsurgery.surgery.channels.targets import parse_target

        limits = {"ranking": self.ranking, "min_width": self.min_width, "max_cut": self.max_cut}
        if self.uniform and (self.ranking == "global" or self.within in ("each", "best")):
            raise SurgeryError(
                "compress: --uniform cuts spaces of one size alike; leave out --ranking global, --within each and best"
            )
        if self.target is None and limits != {name: getattr(CUTTING, name) for name in limits}:
            raise SurgeryError("compress: --ranking, --min-width and --max-cut say how a --target is met; give one")
        return Cut(
            keep=self.keep,
            target=None if self.target is None else parse_target(self.target, **limits | self._uniform),
            spaces=parse_spaces(self.keep_space),
            within=self.within,
            importance=self.importance,
            round_to=self.round_to if isinstance(self.round_to, int) else 1,
            seed=seed,
        )


CUTTING = Cutting()


@Parameter(name="*", group="Fine-tuning")
@dataclass(frozen=True)
class Tuning(Execution):
    """How accuracy is brought back, where data are given."""

    epochs: int | None = None
    """Fine-tune for so long, with a fresh optimizer: on --data by the plan the network was trained with, by default not
    at all; on --calib by default for some 2,000 steps."""
    lr: float | None = None
    """Learning rate of the fine-tuning; by default a tenth of the training's, on --calib 0.001."""
    recover: Literal["labels", "mimic"] | None = None
    """What is learnt: the labels, or what the network said before the cut, which needs none. By default labels; with
    --calib always mimic."""
    calib: Examples = None
    """Examples without labels to recover on: a folder of images, of .npy arrays of inputs as the network takes them, or
    of .npz files with an array for each input; or a data spec, whose labels are not looked at. A part is held out to
    measure agreement with the original. Images are prepared as the network says, or as FOLDER?mean=0.5&std=0.5 does
    (also resize, crop)."""

    def settings(self, seed: int) -> dict[str, Any]:
        """What changes in the plan of the training."""
        chosen = {**self.execution(), "seed": seed, "epochs": self.epochs, "lr": self.lr}
        return {name: value for name, value in chosen.items() if value is not None}

    def check(self, data: str | None) -> None:
        """Refuse what does not go together."""
        if self.calib is not None and self.recover == "labels":
            raise SurgeryError("compress: --calib gives examples without labels; leave out --recover labels")
        if data is None and self.calib is None:
            if self.epochs:
                raise SurgeryError(
                    f"compress: {self.epochs} epochs of fine-tuning need data; give --data, or --calib without labels"
                )
            if self.recover is not None:
                raise SurgeryError(f"compress: --recover {self.recover} needs examples; give --data or --calib")
        of_tuning = ("lr", "recover", "tracker", "mixed_precision")
        if not self.epochs and self.calib is None and any(getattr(self, n) != getattr(TUNING, n) for n in of_tuning):
            raise SurgeryError(
                "compress: --lr, --recover, --tracker and --mixed-precision are of fine-tuning; give --data with "
                "--epochs, or --calib"
            )


TUNING = Tuning()


@Parameter(name="*", group="Latency")
@dataclass(frozen=True)
class Measuring:
    """How a latency is measured: ONNX Runtime on the CPU, the networks in turn after a warm-up, the median."""

    threads: Annotated[int, Parameter(validator=Number(gte=1))] = 1
    """Threads that an operator may use."""
    batch: Annotated[int, Parameter(validator=Number(gte=1))] = 1
    """Examples in one run."""
    runs: Annotated[int, Parameter(validator=Number(gte=1))] = 50
    """Timed runs of each network."""

    def timing(self) -> Timing:
        """The same for what measures."""
        from graphsurgery.onnx.runtime.latency import Timing

        return Timing(threads=self.threads, batch=self.batch, runs=self.runs)


MEASURING = Measuring()
