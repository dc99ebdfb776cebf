"""A command that opens a network, edits it, and writes it: a checkpoint, or the `.onnx` file that it came from."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cyclopts import Parameter

from graphsurgery.cli.options import (
    OPENING,
    PROOF,
    SHOWN,
    WRITING,
    DryRun,
    Opening,
    Proof,
    Seed,
    Shown,
    Writing,
    writable,
)
from graphsurgery.cli.session import Session
from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from torch import Tensor

    from graphsurgery.graph import ModelGraph


@Parameter(name="*")
@dataclass(frozen=True)
class Editing:
    """What every command takes that opens a network and writes it changed."""

    seed: Seed = 0
    dry_run: DryRun = False
    writing: Writing = WRITING
    opening: Opening = OPENING
    proof: Proof = PROOF
    shown: Shown = SHOWN


EDITING = Editing()


def check_size(graph: ModelGraph, output: Path, target: str | None) -> None:
    """Refuse a number of bytes where they are counted in another precision than the file will be stored in."""
    stored = stored_in(graph)
    if stored is None or target is None or output.suffix != ".onnx":
        return
    from graphsurgery.surgery.channels.targets import parse_target

    asked = parse_target(target)
    if asked.quantity == "size" and not asked.relative:
        raise SurgeryError(
            f"--target {target}: bytes are counted in float32, and the file stores most numbers in {stored}; "
            "give a share, such as size=0.5x, or parameters, such as params=1M"
        )


def stored_in(graph: ModelGraph) -> str | None:
    """The precision of the `.onnx` file that a network comes from, where it is not the network's."""
    return next((str(record["stored"]) for record in graph.lineage if "stored" in record), None)


@dataclass
class EditSession(Session):
    """What such a command says and writes.

    Attributes:
        model: what the network is opened from.
        proof: how an `.onnx` file is proved.
    """

    model: str = ""
    proof: Proof = PROOF

    @classmethod
    def of(
        cls,
        output: Path,
        model: str,
        asked: Editing,
        *,
        reads: Iterable[str | None] = (),
        beside: Mapping[str, Path | None] | None = None,
        **document: Any,
    ) -> Self:
        """The session of these options, where the network can be written.

        Args:
            output: the network that will be written; the `.onnx` file that `model` names may be written back into it.
            model: what the network is opened from.
            asked: what the command takes.
            reads: what else the command opens.
            beside: what else it writes, by what it is.
            document: what is known from the start.

        Raises:
            SurgeryError: as for `writes_to`.
        """
        writes_to(output, model, asked.writing, reads=[asked.opening.arch, *reads], beside=beside)
        files = {"network": output, **{name: path for name, path in (beside or {}).items() if path is not None}}
        return cls(asked.shown, {"model": model, **document}, files, model=model, proof=asked.proof)

    @property
    def output(self) -> Path:
        """The file of the network."""
        return self.files["network"]

    def would_write(self) -> None:
        """End a dry run."""
        self.would(f"write {', '.join(map(str, self.files.values()))}")

    def write(
        self, graph: ModelGraph, *following: str | Path, inputs: Sequence[Tensor] | None = None, **known: Any
    ) -> None:
        """Write the network, prove an `.onnx` file in ONNX Runtime, and show the last lines.

        Args:
            graph: the network.
            following: the next command to try with a checkpoint; by default its export.
            inputs: real inputs, each `[batch, ...]`, that an `.onnx` file is proved on too.
            known: what else is known of it, for the checkpoint and `--json`.
        """
        self.document |= known
        self.put(graph, inputs)
        self.finish(*following)

    def put(
        self,
        graph: ModelGraph,
        inputs: Sequence[Tensor] | None = None,
        accept: Callable[[Path], object] | None = None,
    ) -> None:
        """Write the network, and show the proof of an `.onnx` file.

        Args:
            graph: the network.
            inputs: see `write`.
            accept: given a proved `.onnx` file before it is put in place; see `rewrite_onnx`.
        """
        if self.output.suffix != ".onnx":
            from graphsurgery.checkpoint.files import save

            save(graph, self.output, **self.document)
            return
        import gc

        from graphsurgery.onnx.editing.rewriting import rewrite_onnx
        from graphsurgery.recipes.outcome import Check

        gc.collect()  # graphs are full of cycles; the network as it was may still take its memory
        found = rewrite_onnx(self.model, graph, self.output, rtol=self.proof.rtol, inputs=inputs, accept=accept)
        self.screen.checks([Check("ONNX Runtime = PyTorch", found.deviation, found.allowed)])
        self.screen.untested(found.remarks)
        self.document["onnx"] = found.as_dict()

    def finish(self, *following: str | Path) -> None:
        """Name the files, and the next command: of an `.onnx` file the comparison, else by default the export."""
        for what, path in self.files.items():
            self.screen.line("wrote", str(path) if what == "network" else f"{path} ({what})")
        output = self.output
        if output.suffix == ".onnx":
            following = ("diff", self.model, output)
        following = following or ("export", output, "-o", output.with_suffix(".onnx"))
        self.screen.finish({**self.document, "files": self.files}, *following)

    def show_moved(
        self, before: ModelGraph, after: ModelGraph, recover: Sequence[str | Path] = (), *, seed: int = 0
    ) -> str:
        """Say what an edit without data did to the outputs, that it is not recovered, and by which command it can be.

        The same goes into the document, under `moved`; the words are returned.

        Args:
            before: the network as it was.
            after: the network as it is written.
            recover: the command, without `graphsurgery`, that brings accuracy back; empty where there is none.
            seed: draws the inputs.
        """
        from graphsurgery.recipes.contracts.moved import moved

        found = moved(before, after, seed=seed)
        self.document["moved"] = told = {**found.as_dict(), "recovered": found.stays}
        if found.stays:
            self.screen.line("change", str(found))
            return str(found)
        self.screen.line("change", f"{found}; not recovered", "yellow")
        if recover:
            told["recover"] = shlex.join(["graphsurgery", *map(str, recover)])
            self.screen.line("recover", told["recover"], "cyan")
        return f"{found}; not recovered"


def writes_to(
    output: Path,
    model: str,
    writing: Writing,
    *,
    reads: Iterable[str | None] = (),
    beside: Mapping[str, Path | None] | None = None,
) -> None:
    """Refuse, before any work is done, a file that could not be written or must not be.

    Args:
        output: the network that will be written; the `.onnx` file that `model` names may be written back into it.
        model: what the network is opened from.
        writing: whether files may be written over.
        reads: what else the command opens.
        beside: what else it writes, by what it is.

    Raises:
        SurgeryError: as for `Writing.allow`, or it is an `.onnx` file and the network does not come from one.
    """
    writable(output)
    if output.suffix == ".onnx" and not model.endswith(".onnx"):
        raise SurgeryError(
            f"{output}: only what was an .onnx file is written back into one; give -o {output.with_suffix('.pt')}, "
            "and export that"
        )
    writing.allow(network=output, reads=(model, *reads), in_place=model, **(beside or {}))


def data_of(graph: ModelGraph) -> str:
    """The data that a network was last trained on, as far as it says; else a word to replace."""
    return next((str(record["data"]) for record in reversed(graph.lineage) if record.get("data")), "DATA")
