"""`graphsurgery masks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import combinations
from operator import and_, or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from graphsurgery.cli.arguments.sources import MaybeModel, Model
from graphsurgery.cli.editing import Editing, EditSession
from graphsurgery.cli.options import OPENING, PROOF, SHOWN, WRITING, Opening, Proof, Shown, Writing, small_file
from graphsurgery.cli.session import Session
from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from graphsurgery.cli.output import Screen
    from graphsurgery.reports.sheet import Sheet
    from graphsurgery.surgery.masks.mask_set import MaskSet, Overlap


def masks(
    source: Model,
    /,
    *others: Model,
    join: Literal["intersection", "union"] | None = None,
    apply: MaybeModel = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    writing: Writing = WRITING,
    opening: Opening = OPENING,
    proof: Proof = PROOF,
    shown: Shown = SHOWN,
) -> None:
    """Show which share of each layer's weights lives, and how far masks agree; join them, or put them on a network.

    Parameters
    ----------
    source
        A ticket, a supermask, a .json file of masks, or any network (.pt, .onnx, .safetensors): of that the weights
        live that are not 0.
    others
        More of them, of the same architecture, to compare with.
    join
        Take the weights that live in all of them, or in any.
    apply
        The network whose other weights become 0; it may be a model spec.
    output
        With --apply the network to write; otherwise the masks alone, a .json file.
    """
    sources = (source, *others)
    _check(sources, join, apply, output)
    if proof != PROOF and (output is None or output.suffix != ".onnx"):
        raise SurgeryError("masks: --rtol says how an .onnx file is proved; give --apply m.onnx -o masked.onnx")
    reads = [*sources, opening.arch]
    if output is not None and apply is not None:
        editing = Editing(writing=writing, opening=opening, proof=proof, shown=shown)
        session: Session = EditSession.of(output, apply, editing, reads=reads)
    else:
        writing.allow(masks=output, reads=reads)
        session = Session(shown)
    screen = session.screen
    found = [opening.masks(each) for each in sources]
    known = session.document = _show(screen, sources, found)
    chosen = found[0]
    if join is not None:
        chosen = _joined(found, join)
        screen.line(join, _living(chosen))
        known["joined"] = {"by": join, "kept": chosen.kept, "density": chosen.density}
    if isinstance(session, EditSession):
        _apply(session, opening, chosen)
        return
    if output is not None:
        chosen.save(output)
        screen.line("wrote", str(output))
        known["files"] = {"masks": output}
    screen.finish(known, *_next(output or source, opening))


def _next(bits: Path | str, opening: Opening) -> tuple[str | Path, ...]:
    """The next command to try: bits alone go on a network, a network gets smaller."""
    if str(bits).endswith(".json"):
        return "masks", bits, "--apply", "MODEL", "-o", "masked.pt"
    return "compress", bits, *opening.tokens, "--dead", "-o", small_file(str(bits))


def _joined(found: Sequence[MaskSet], join: Literal["intersection", "union"]) -> MaskSet:
    """The weights that live in all, or in any."""
    return reduce({"intersection": and_, "union": or_}[join], found)


def _apply(session: EditSession, opening: Opening, chosen: MaskSet) -> None:
    """Write the network whose other weights are 0."""
    from graphsurgery.passes.mask import mask
    from graphsurgery.recipes.contracts.edit_checks import check_masked

    whole = opening.graph(session.model)
    network = mask(whole, chosen)
    session.screen.require(check_masked(whole, network, chosen))
    session.show_moved(whole, network)
    del whole  # the proof needs its memory
    output = session.output
    small = output.with_stem(f"{output.stem}_small")
    session.write(network, "compress", output, "--dead", "-o", small, network=session.model)


def _show(screen: Screen, sources: Sequence[str], found: Sequence[MaskSet]) -> dict[str, Any]:
    """What lives in each, and how far they agree."""
    pairs = {(sources[i], sources[k]): found[i].overlap(found[k]) for i, k in combinations(range(len(found)), 2)}
    document: dict[str, Any] = {
        "sources": [
            {"source": each, "kept": one.kept, "total": one.total, "density": one.density, "densities": one.densities}
            for each, one in zip(sources, found, strict=True)
        ],
        "pairs": [{"between": names, **overlap._asdict()} for names, overlap in pairs.items()],
    }
    layers = found[0].compared(found[1]) if len(found) == 2 else {}
    screen.show(_pairs(pairs) if len(found) > 2 else _layers(found, layers))
    for each, one in zip(sources, found, strict=True):
        screen.line("mask", f"{each}: {_living(one)}")
        if one.unverified:
            screen.line("note", f"{each}: has no digest, so its bits are taken as they are; write it again", "yellow")
    if layers:
        screen.line("agree", _words(pairs[sources[0], sources[1]]))
        document["layers"] = {name: overlap._asdict() for name, overlap in layers.items()}
    return document


def _check(sources: Sequence[str], join: str | None, apply: str | None, output: Path | None) -> None:
    """Refuse what does not go together, before any file is read."""
    if join is not None and len(sources) == 1:
        raise SurgeryError(f"masks: --join {join} wants two masks or more")
    if output is None:
        if apply is not None:
            raise SurgeryError("masks: --apply wants a file to write; give -o masked.pt")
        return
    if len(sources) > 1 and join is None:
        raise SurgeryError("masks: which of them shall be written? Give --join intersection or --join union")
    if apply is not None:
        if output.suffix == ".json":
            raise SurgeryError(f"{output}: a network is no .json file; give -o {output.with_suffix('.pt')}")
        return
    if output.suffix != ".json":
        raise SurgeryError(f"{output}: masks alone are a .json file; give --apply MODEL to write a network")


def _living(masks: MaskSet) -> str:
    return f"{masks.kept:,} of {masks.total:,} weights live ({masks.density:.2%})"


def _words(overlap: Overlap) -> str:
    return (
        f"on {1 - overlap.hamming:.2%} of the weights; of those that live in either {overlap.iou:.1%} live in both, "
        f"{overlap.chance:.1%} would by chance"
    )


def _layers(found: Sequence[MaskSet], overlaps: Mapping[str, Overlap]) -> Sheet:
    """A row for each weight tensor of one mask, or of two and how far they agree there."""
    from graphsurgery.cli.output import columns

    densities = [masks.densities for masks in found]
    live = ["live"] if len(found) == 1 else ["live in the first", "live in the second"]
    compared = ["differ", "IoU", "IoU by chance"] if overlaps else []
    drop = ["IoU by chance", "IoU", "differ", "shape"]
    table = columns("weight", "shape", *live, *compared, right=[*live, *compared], marks=["shape"], drop=drop)
    for name, mask in found[0].items():
        cells = [f"{shares[name]:.2%}" for shares in densities]
        if overlaps:
            cells += [f"{value:.2%}" for value in overlaps[name]]
        table.add_row(name, "×".join(map(str, mask.shape)), *cells)
    return table


def _pairs(pairs: Mapping[tuple[str, str], Overlap]) -> Sheet:
    """A row for each two masks."""
    from graphsurgery.cli.output import columns

    numbers = ["differ", "IoU", "IoU by chance"]
    table = columns("masks", "", *numbers, right=numbers, names=["masks", ""], drop=["IoU by chance", "IoU"])
    for names, overlap in pairs.items():
        table.add_row(*names, *(f"{value:.2%}" for value in overlap))
    return table
