"""docs/coverage.md from what was found on each network."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from document import DOCS, table, write_section

Document = Mapping[str, Any]

PAGE = DOCS / "coverage.md"
# Contracts by the head of their column, in order.
COLUMNS = {
    "eval": "traced = eager, evaluating",
    "train": "traced = eager, training",
    "batches": "traced = eager, other batch sizes",
    "sizes": "traced = eager, another resolution",
    "mean": "concatenated = mean of two",
    "open": "gates open = no gates",
    "cut": "gates 0 or 1 = compressed",
    "mixed": "gates 0 or 1 = compressed, mixed spaces",
    "folded": "gates folded = gated",
    "wide": "widened = original",
    "undone": "widened and undone = original",
    "deep": "deepened = original",
    "masked": "masked = weights zeroed",
    "pruned": "dead channels pruned = masked",
    "slim": "slim at width 1 = original",
    "slim, w": "slim at width w = compressed to the first channels",
    "stored": "saved and loaded = original",
    "spaces kept": "compressed keeps its spaces",
    "ONNX": "ONNX Runtime = PyTorch, compressed",
}
HEAD = ("network", "route", "measured on", "nodes", "spaces", "M parameters", "editable", "left at ½", *COLUMNS, "s")
WELL, HALF = 0.95, 0.5
INSENSITIVE = 1e-3
_LARGEST_REASONS = 2


def falls_short(name: str, document: Document) -> bool:
    """Whether a network was refused, or a contract of it fails or is refused; int8 weights have to be refused."""
    if is_int8(name):
        return "refused" not in document
    if "failure" in document or "refused" in document:
        return True
    return any(contract["status"] in ("fails", "refused") for contract in document["contracts"])


def is_int8(name: str) -> bool:
    """Whether a spec asks for int8 weights, which graphsurgery has to refuse."""
    return "quantize=true" in name


def lacking(document: Document) -> list[str]:
    """The contracts that a finding is too old to have."""
    known = {contract["name"] for contract in document.get("contracts", ())}
    return [name for name in COLUMNS.values() if known and name not in known]


def completed(document: Document, added: Document) -> dict[str, Any]:
    """A finding with the contracts of a later one."""
    contracts = {c["name"]: c for c in (*document["contracts"], *added.get("contracts", ()))}
    order = [name for name in COLUMNS.values() if name in contracts]
    seconds = document["wall_seconds"] + added["wall_seconds"]
    return {**document, "contracts": [contracts[name] for name in order], "wall_seconds": seconds}


def line(name: str, document: Document) -> str:
    """What was found on one network, in one line."""
    for key in ("failure", "refused"):
        if key in document:
            return f"{name}: {key}: {document[key]}"
    if "contracts" not in document:
        return f"{name}: done"
    short = [f"{c['name']} {c['status']}" for c in document["contracts"] if c["status"] in ("fails", "refused")]
    verdict = "; ".join(short) or "every contract holds"
    return f"{name}: {document['editable']:.1%} editable, {verdict}, {document['wall_seconds']:.0f} s"


def write(
    found: Mapping[str, Mapping[str, Document]], sources: str, missing: Mapping[str, int], page: Path = PAGE
) -> None:
    """Write the sections of these sources, and their counts above.

    Args:
        found: for each source (`torchvision`, `timm`) every network and what was found on it.
        sources: a digest of graphsurgery's sources as they are now.
        missing: for each source, how many of its networks are not measured.
        page: a Markdown page with markers for each section.
    """
    for source, documents in found.items():
        unmeasured = f"\n- {missing[source]} more are not measured." if missing[source] else ""
        write_section(f"{source} counts", counts(source, documents) + unmeasured, page)
        write_section(source, "\n\n".join([_measured(source, documents, sources), section(documents)]), page)


def counts(source: str, documents: Mapping[str, Document]) -> str:
    """How many networks of a source every contract holds for, and of how many how much is editable."""
    examined = {name: d for name, d in documents.items() if not is_int8(name)}
    int8 = [d for name, d in documents.items() if is_int8(name)]
    traced = [d for d in examined.values() if "contracts" in d]
    cores = sum(d["core"] for d in traced)
    holding = [d for name, d in examined.items() if not falls_short(name, d)]
    kind = "networks" if source == "torchvision" else "families"
    lines = [
        f"- **{sum(d['editable'] >= WELL for d in holding)} of {len(examined)} {source} {kind}** with every contract "
        f"holding and at least {WELL:.0%} of the parameters editable; {len(holding)} with every contract holding.",
        f"- **{sum(d['editable'] > HALF for d in traced)} of {len(examined)} {source} {kind}** with more than half of "
        f"the parameters editable; {sum(d['editable'] >= WELL for d in traced)} with at least {WELL:.0%}.",
        f"- {len(traced) - cores} are traced whole"
        + (f", {cores} as the tensor core of a detector" if cores else "")
        + f", {len(examined) - len(traced)} are not examined to the end.",
    ]
    failing = sum(any(c["status"] == "fails" for c in d["contracts"]) for d in traced)
    refused = sum(any(c["status"] == "refused" for c in d["contracts"]) for d in traced)
    lines.append(f"- A contract fails on {failing}, a pass is refused on {refused}.")
    if int8:
        lines.append(f"- {sum('refused' in d for d in int8)} of {len(int8)} networks with int8 weights are refused.")
    return "\n".join(lines)


def section(documents: Mapping[str, Document]) -> str:
    """The table of a source, and the reasons of all that falls short below it."""
    notes = Notes()
    rows = [_row(name, document, notes) for name, document in documents.items()]
    return "\n\n".join([table(HEAD, rows), notes.text()])


class Notes:
    """Numbered reasons; equal ones share a number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, reason: str) -> str:
        """The number of a reason, to stand behind what it explains."""
        return f"<sup>{self.numbers.setdefault(reason, len(self.numbers) + 1)}</sup>" if reason else ""

    def text(self) -> str:
        """The reasons in order."""
        return "\n".join(f"{number}. {_escaped(reason)}" for reason, number in self.numbers.items())


def _row(name: str, document: Document, notes: Notes) -> list[str]:
    label = name.partition("/")[2].replace("?quantize=true", " (int8)")
    blank = [""] * (len(HEAD) - 3)
    if "failure" in document:
        return [label, f"**fails**{notes.mark(document['failure'])}", "", *blank]
    if "refused" in document:
        return [label, f"refused{notes.mark(document['refused'])}", "", *blank]
    contracts = {contract["name"]: contract for contract in document["contracts"]}
    sensitivity = document.get("sensitivity")
    if sensitivity is not None and sensitivity < INSENSITIVE:
        label += notes.mark(f"with other inputs its outputs change by {sensitivity:.0e} only: equality says less")
    reasons = [f"{count:,} parameters: {reason}" for reason, count in document["held"][:_LARGEST_REASONS]]
    held = notes.mark("not editable: " + "; ".join(reasons)) if document["editable"] < WELL else ""
    kept = document["kept"]
    return [
        label,
        "tensor core" if document["core"] else "whole",
        _measured_on(contracts.values()),
        str(document["nodes"]),
        str(document["spaces"]),
        f"{document['parameters'] / 1e6:.1f}",
        _share(document["editable"]) + held,
        "–" if kept is None else f"{kept:.1%}",
        *(_cell(contracts.get(contract), notes) for contract in COLUMNS.values()),
        f"{document['wall_seconds']:.0f}",
    ]


def _share(share: float) -> str:
    """A percentage that is 100 only where nothing is missing to the digit shown."""
    return f"{int(share * 1000) / 10:.1f}%"


def _measured_on(contracts: Iterable[Mapping[str, Any]]) -> str:
    """The precision, and the cut that stands for a large network."""
    notes = " ".join(contract["note"] for contract in contracts)
    if "on a cut to " in notes:
        return f"float32; float64 on {notes.partition('on a cut to ')[2].partition('%')[0]}%"
    return "float32" if "in float32" in notes else "float64"


def _cell(contract: Mapping[str, Any] | None, notes: Notes) -> str:
    if contract is None:
        return ""
    if contract["status"] == "refused":
        return f"refused{notes.mark(without_folder(contract['refused']))}"
    if contract["status"] == "not measured":
        return f"–{notes.mark(contract['absent'])}"
    number = _number(contract["measured"])
    if contract["status"] == "fails":
        why = contract["note"] if contract["measured"] is None else ""
        return " ".join(filter(None, ("**fails**", number))) + notes.mark(why)
    return f"({number})" if contract["status"] == "stated" else number


def without_folder(reason: str) -> str:
    """A reason without the temporary file that it begins with."""
    return re.sub(r"(^|(?<=[: ]))/\S*/[^/\s]+: ", "", reason)


def _number(measured: float | None) -> str:
    if measured is None:
        return ""
    return "0" if measured == 0 else f"`{measured:.0e}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def _measured(source: str, documents: Mapping[str, Document], sources: str) -> str:
    """The command, the date, the versions and the time of all processes, as the lines above a table."""
    seconds = sum(document["wall_seconds"] for document in documents.values())
    packages = ("torch", source, "onnxruntime", "graphsurgery")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    other = sum(document.get("sources") != sources for document in documents.values())
    older = f" {other} networks were measured with other sources of graphsurgery than the last." if other else ""
    uncalibrated = sum("contracts" in document and "sensitivity" not in document for document in documents.values())
    if uncalibrated:
        older += (
            f" {uncalibrated} of them before norms got the statistics of a batch: the outputs of deep networks with"
            " fresh BatchNorms hardly depend on the input, so there an equality says little about the first layers."
        )
    examined = [c["name"] for document in documents.values() for c in document.get("contracts", ())]
    if not any(name == COLUMNS["ONNX"] for name in examined):
        older += " ONNX Runtime was left out (`--no-onnx`)."
    return (
        f"```\npython benchmarks/coverage.py {source}\n```\n\nMeasured until {datetime.date.today().isoformat()} in "
        f"{seconds / 60:.0f} minutes of one thread; {versions}.{older}"
    )
