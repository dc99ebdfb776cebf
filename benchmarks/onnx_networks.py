"""What graphsurgery can do with the `.onnx` files of torchvision's and timm's networks: docs/onnx.md.

    python benchmarks/onnx_networks.py                      # both; hours, goes on where it was killed
    python benchmarks/onnx_networks.py torchvision --jobs 4
    python benchmarks/onnx_networks.py timm/resnet10t       # prints, and writes no page

Each network is exported in both dialects, by TorchScript and by dynamo, in a process of its own
(`onnx_examination.py`); what was found is kept in a folder, and a second run measures only what is missing there.
Detectors are left out: their files are more post-processing than network.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import coverage
import coverage_page
from document import DOCS, measured, table, write_section
from surveying import Limits, survey

EXAMINATION = Path(__file__).with_name("onnx_examination.py")
PAGE = DOCS / "onnx.md"
AGREES = 1e-4
_ROUNDING = 1.5
DIALECTS = ("TorchScript", "dynamo")
HEAD = ("network", *(f"{name}: {what}" for name in DIALECTS for what in ("operators", "opaque", "agrees", "cut")))
Document = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    sources = [source for source in coverage.SOURCES if source in (options.what or coverage.SOURCES)]
    names = [name for source in sources for name in coverage.names_of(source, options) if _examined(name)]
    names += [name for name in options.what if name not in coverage.SOURCES]
    place = coverage.place_of(options.cache / "onnx", onnx=True)
    limits = Limits(options.seconds, options.memory * 1e9)
    wanted = [name for name in names if place(name).is_file()] if options.cached else names

    def command(name: str, output: Path) -> list[str]:
        return [sys.executable, str(EXAMINATION), name, str(output)]

    found = {}
    for done, (name, document, cached) in enumerate(survey(wanted, command, place, limits, options.jobs), 1):
        found[name] = document
        if not cached:
            print(f"[{done}/{len(wanted)}] {line(name, document)}", flush=True)
    if sources:
        for source in sources:
            write(source, {n: found[n] for n in names if n in found and n.startswith(source)}, names)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What graphsurgery can do with the .onnx files of known networks.")
    parser.add_argument("what", nargs="*", help="torchvision, timm, or model specs; both sources by default")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, of one thread each")
    parser.add_argument("--cache", type=Path, default=coverage.ROOT / ".cache" / "coverage")
    parser.add_argument("--cached", action="store_true", help="measure nothing; write the page from what was found")
    parser.add_argument("--seconds", type=float, default=600, help="limit for one network")
    parser.add_argument("--memory", type=float, default=10, help="limit for one network, in GB")
    parser.set_defaults(onnx=True)
    return parser.parse_args(arguments)


def _examined(name: str) -> bool:
    """Whether a network is one that is exported as a whole."""
    from torchvision.models import list_models
    from torchvision.models.detection import __name__ as detection

    source, _, model = name.partition("/")
    if source != "torchvision":
        return True
    return "quantize" not in name and model not in list_models(sys.modules[detection])


def line(name: str, document: Document) -> str:
    """What was found on one network, in one line."""
    for key in ("failure", "refused"):
        if key in document:
            return f"{name}: {key}: {document[key]}"
    words = [f"{dialect} {_verdict(found)}" for dialect, found in document["dialects"].items()]
    return f"{name}: {'; '.join(words)}; {document['wall_seconds']:.0f} s"


def _verdict(found: Document) -> str:
    """What was found on one file, in words."""
    for key in ("not exported", "not imported", "not run"):
        if key in found:
            return f"{key} ({found[key]})"
    opaque = f", opaque {found['opaque']}" if found["opaque"] else ""
    cut = found["cut"]
    words = next((f"{key} ({cut[key]})" for key in ("nothing", "refused") if key in cut), None)
    words = words or f"{cut['deviation']:.0e} ({cut['spaces'][0]} of {cut['spaces'][1]} spaces)"
    return f"{found['deviation']:.0e}{opaque}, cut {words}"


def exported(documents: Mapping[str, Document], dialect: str) -> dict[str, Document]:
    """What was found on the files that there are."""
    found = {name: d["dialects"][dialect] for name, d in documents.items() if "dialects" in d}
    return {name: each for name, each in found.items() if "not exported" not in each}


def agreeing(found: Mapping[str, Document]) -> list[str]:
    """The networks whose file, imported, gives what ONNX Runtime makes of it."""
    return [name for name, each in found.items() if _agrees(each)]


def _agrees(found: Document) -> bool:
    """Within what is allowed, or no further than the exported file lies from the network itself."""
    deviation = found.get("deviation", 1.0)
    return bool(deviation <= AGREES or deviation <= _ROUNDING * found.get("exported", 0.0))


def equal_cut(found: Mapping[str, Document]) -> list[str]:
    """The networks whose file, cut in place, gives what the network cut in PyTorch gives."""
    return [name for name, each in found.items() if each.get("cut", {}).get("deviation", 1.0) <= AGREES]


def counts(documents: Mapping[str, Document]) -> str:
    """How many files of each dialect are imported, agree, and are cut in place."""
    rows = []
    for dialect in DIALECTS:
        found = exported(documents, dialect)
        agree, equal = agreeing(found), equal_cut(found)
        clear = [name for name in agree if not found[name]["opaque"]]
        seconds = [each["import_seconds"] for each in found.values() if "import_seconds" in each]
        share = f"{len(agree)} ({100 * len(agree) / max(1, len(found)):.0f} %)"
        speed = f"{statistics.median(seconds):.2f} s" if seconds else "–"
        rows.append([dialect, str(len(found)), share, str(len(clear)), str(len(equal)), speed])
    head = ["dialect", "files", "ONNX Runtime = imported", "without opaque nodes", "cut in place = cut", "to import"]
    return table(head, rows)


def write(source: str, documents: Mapping[str, Document], names: Sequence[str]) -> None:
    """The section of a source."""
    missing = sum(name.startswith(source) and name not in documents for name in names)
    seconds = sum(document["wall_seconds"] for document in documents.values())
    notes = coverage_page.Notes()
    rows = [_row(name, document, notes) for name, document in documents.items()]
    parts = [
        measured(f"python benchmarks/onnx_networks.py {source}", seconds, source, "onnxruntime"),
        counts(documents),
    ]
    parts += [f"{missing} networks are not measured."] if missing else []
    write_section(source, "\n\n".join([*parts, table(HEAD, rows), notes.text()]), PAGE)


def _row(name: str, document: Document, notes: coverage_page.Notes) -> list[str]:
    def why(text: str) -> str:
        text = re.sub("\x1b?\\[[0-9;]*m", "", coverage_page.without_folder(text))  # the exporter writes in colours
        return notes.mark(text)

    label = name.partition("/")[2]
    for key in ("failure", "refused"):
        if key in document:
            return [label, f"{key}{why(document[key])}", *[""] * (len(HEAD) - 2)]
    cells = [label]
    for dialect in DIALECTS:
        cells += _cells(document["dialects"][dialect], why)
    return cells


def _cells(found: Document, why: Any) -> list[str]:
    for key, word in (("not exported", "no file"), ("not imported", "**refused**"), ("not run", "**fails**")):
        if key in found:
            return [f"{word}{why(found[key])}", "", "", ""]
    opaque = ", ".join(f"{count} {kind}" for kind, count in found["opaque"].items())
    agrees = f"`{found['deviation']:.0e}`"
    if found["deviation"] > AGREES and _agrees(found):
        agrees += why("as far as the exported file lies from the network: rounding, which this network enlarges")
    agrees = agrees if _agrees(found) else f"**fails** {agrees}"
    return [str(found["operators"]), opaque, agrees, _cut_cell(found["cut"], why)]


def _cut_cell(cut: Document, why: Any) -> str:
    for key, word in (("nothing", "–"), ("refused", "refused")):
        if key in cut:
            return f"{word}{why(cut[key])}"
    both, ours = cut["spaces"]
    number = f"`{cut['deviation']:.0e}`" + ("" if both == ours else f" ({both} of {ours} spaces)")
    return number if cut["deviation"] <= AGREES else f"**fails** {number}"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
