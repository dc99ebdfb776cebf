"""What graphsurgery can do with every network of torchvision, and with one of each family of timm: docs/coverage.md.

    python benchmarks/coverage.py                      # both; hours, goes on where it was killed
    python benchmarks/coverage.py torchvision --jobs 4
    python benchmarks/coverage.py --subset fast        # a handful; prints and writes no page
    python benchmarks/coverage.py torchvision/resnet18 timm/resnet10t

Each network is examined in a process of its own with a limit of time and memory (`examination.py`). What was found is
kept in a folder, by the versions that are installed: a second run measures only what is missing there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import coverage_page
from surveying import Limits, survey

ROOT = Path(__file__).parents[1]
EXAMINATION = Path(__file__).with_name("examination.py")
SOURCES = ("torchvision", "timm")
FAST = (
    "torchvision/resnet18",
    "torchvision/mobilenet_v3_small",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_1",
    "torchvision/quantized_resnet18?quantize=true",
    "timm/resnet10t",
)
_FAMILIES = "timm/families"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    if options.fresh:
        shutil.rmtree(options.cache, ignore_errors=True)
    wanted = list(FAST) if options.subset == "fast" else (options.what or SOURCES)
    names = [name for what in wanted for name in (names_of(what, options) if what in SOURCES else [what])]
    if options.again:
        _forget_short(names, options)
    if options.add:
        _add(names, options)
    place = place_of(options.cache, onnx=options.onnx)
    measured = [name for name in names if place(name).is_file()] if options.cached else names
    found = _run(measured, options)
    print(_counts(found))
    whole = [source for source in SOURCES if source in wanted]
    missing = {source: sum(n.startswith(source) for n in names if n not in found) for source in whole}
    if whole:
        documents = {source: {n: found[n] for n in found if n.startswith(source)} for source in whole}
        coverage_page.write(documents, _sources(), missing)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What graphsurgery can do with the networks of torchvision and timm.")
    parser.add_argument("what", nargs="*", help="torchvision, timm, or model specs; both sources by default")
    parser.add_argument("--subset", choices=("fast",), help="a handful of networks instead")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, of one thread each")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "coverage", help="where findings are kept")
    parser.add_argument("--fresh", action="store_true", help="forget all findings first")
    parser.add_argument("--again", action="store_true", help="forget the findings on networks that fall short")
    parser.add_argument("--add", action="store_true", help="measure contracts that the findings are too old to have")
    parser.add_argument("--cached", action="store_true", help="measure nothing; write the page from what was found")
    parser.add_argument("--seconds", type=float, default=900, help="limit for one network")
    parser.add_argument("--memory", type=float, default=8, help="limit for one network, in GB")
    parser.add_argument("--no-onnx", dest="onnx", action="store_false", help="leave ONNX Runtime out")
    return parser.parse_args(arguments)


def names_of(source: str, options: argparse.Namespace) -> list[str]:
    """The specs of a source: all of torchvision, its quantized ones with int8 weights too; one of each timm family."""
    if source == "torchvision":
        from torchvision.models import list_models

        names = [f"torchvision/{name}" for name in list_models()]
        return names + [f"{name}?quantize=true" for name in names if name.startswith("torchvision/quantized_")]
    families = _run([_FAMILIES], options)[_FAMILIES]
    return [f"timm/{name}" for name in families["smallest"].values()]


def _run(names: Sequence[str], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The documents of these networks, measured or from the cache; prints a line for each."""
    seconds = max(options.seconds, 3600) if list(names) == [_FAMILIES] else options.seconds
    limits = Limits(seconds=seconds, memory=options.memory * 1e9)
    found = {}
    place = place_of(options.cache, onnx=options.onnx)
    running = survey(names, _command(options), place, limits, options.jobs, {"sources": _sources()})
    for done, (name, document, cached) in enumerate(running, 1):
        found[name] = document
        if not cached:
            print(f"[{done}/{len(names)}] {coverage_page.line(name, document)}", flush=True)
    return {name: found[name] for name in names}


def _add(names: Sequence[str], options: argparse.Namespace) -> None:
    """Complete the findings that are there with the contracts that they lack; of one that fell short too."""
    place = place_of(options.cache, onnx=options.onnx)
    found = {n: json.loads(place(n).read_text(encoding="utf-8")) for n in names if place(n).is_file()}
    lacking = {name: only for name, document in found.items() if (only := coverage_page.lacking(document))}

    def command(name: str, output: Path) -> list[str]:
        only = [word for contract in lacking[name] for word in ("--only", contract)]
        return [sys.executable, str(EXAMINATION), "--no-onnx", name, str(output), *only]

    limits = Limits(seconds=options.seconds, memory=options.memory * 1e9)
    added = survey(list(lacking), command, lambda name: place(name).with_suffix(".added"), limits, options.jobs)
    for done, (name, document, _) in enumerate(added, 1):
        complete = coverage_page.completed(found[name], document)
        place(name).write_text(json.dumps(complete), encoding="utf-8")
        place(name).with_suffix(".added").unlink()
        print(f"[{done}/{len(lacking)}] {coverage_page.line(name, complete)}", flush=True)


def _command(options: argparse.Namespace) -> Callable[[str, Path], list[str]]:
    def command(name: str, output: Path) -> list[str]:
        what = ["--families"] if name == _FAMILIES else [name]
        onnx = [] if options.onnx else ["--no-onnx"]
        return [sys.executable, str(EXAMINATION), *onnx, *what, str(output)]

    return command


def place_of(cache: Path, *, onnx: bool) -> Callable[[str], Path]:
    """Where the findings on a network are kept: by the versions that are installed, and its name."""

    def place(name: str) -> Path:
        source = name.partition("/")[0]
        packages = ["torch", "graphsurgery", *(s for s in SOURCES if s == source)]
        folder = "_".join(f"{package}-{version(package)}" for package in packages)
        ending = ".json" if onnx else ".no-onnx.json"
        return cache / folder / (re.sub(r"[^\w.=-]+", "_", name) + ending)

    return place


def _forget_short(names: Sequence[str], options: argparse.Namespace) -> None:
    place = place_of(options.cache, onnx=options.onnx)
    for name in names:
        path = place(name)
        if path.is_file() and coverage_page.falls_short(name, json.loads(path.read_text(encoding="utf-8"))):
            path.unlink()


def _sources() -> str:
    """A digest of graphsurgery's sources, to tell findings of other sources apart."""
    digest = hashlib.sha256()
    for folder in ("graphsurgery", "passes", "models"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _counts(found: dict[str, dict[str, Any]]) -> str:
    short = [name for name, document in found.items() if coverage_page.falls_short(name, document)]
    return f"{len(found) - len(short)} of {len(found)} without a finding" + "".join(f"\n  {name}" for name in short)


if __name__ == "__main__":
    # A polite kill stops the networks that are under way too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
