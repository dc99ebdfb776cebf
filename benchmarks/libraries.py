"""What graphsurgery can do with small random networks of libraries as they are: docs/libraries.md.

    python benchmarks/libraries.py                 # all; goes on where it was killed
    python benchmarks/libraries.py --jobs 2 --seconds 300
    python benchmarks/libraries.py 'hf:BertModel?num_hidden_layers=2'   # prints, writes no page
    python benchmarks/libraries.py --cached        # measures nothing; writes the page from what was found

Each network is examined in a process of its own with a limit of time and memory. What was found is kept in a folder, by
the versions that are installed; a second run measures only the steps that are missing there. The contracts of the
passes are those of `doctor`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from built_networks import BUILT
from document import DOCS, measured, table
from examination import smallest_side
from library_networks import NAMES
from surveying import Limits, survey
from torch import nn

import graphsurgery as gs
from graphsurgery.errors import SurgeryError, one_line

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("transformers", "diffusers", "segmentation_models_pytorch", "ultralytics", "monai", "vit-pytorch"),
    *("x-transformers", "open_clip_torch", "torch_geometric", "torchaudio", "speechbrain"),
)
# What a step needs; a step that fails ends those that need it.
NEEDS = {
    "trace": "",
    "halve": "trace",
    "contracts": "trace",
    "put back": "halve",
    "config": "put back",
    "onnx": "halve",
    "peer": "",
}
# Contracts of the passes by the head of their column.
COLUMNS = {
    "mean": ["concatenated = mean of two"],
    "wide": ["widened = original", "widened and undone = original"],
    "deep": ["deepened = original"],
    "factors": ["factorized at full rank = original"],
    "slim": ["slim at width 1 = original", "slim at width w = compressed to the first channels"],
    "masked": ["masked = weights zeroed"],
    "aligned": ["aligned = original"],
    "stored": ["saved and loaded = original"],
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What graphsurgery can do with networks of libraries.")
    parser.add_argument("names", nargs="*", help="specs; by default all, which writes the page")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, of one thread each")
    parser.add_argument("--seconds", type=float, default=300, help="limit for one network")
    parser.add_argument("--memory", type=float, default=4, help="limit for one network, in GB")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "libraries", help="where findings are kept")
    parser.add_argument("--no-onnx", dest="onnx", action="store_false", help="leave ONNX out, which takes longest")
    parser.add_argument("--cached", action="store_true", help="measure nothing; write the page from what was found")
    parser.add_argument("--examine", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--step", action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.examine:
        name, file = options.examine
        Path(file).write_text(json.dumps(examined(name, options.step)), encoding="utf-8")
        return
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    place = _place(options.cache)
    names = options.names or NAMES
    found = {name: json.loads(place(name).read_text(encoding="utf-8")) for name in names if place(name).is_file()}
    if not options.cached:
        left_out = {"onnx": not options.onnx, "peer": not _version("torch-pruning")}
        wanted = [step for step in NEEDS if not left_out.get(step)]
        _measure({n: lacking(n, found.get(n, {}), wanted) for n in names}, found, place, options)
    if not options.names:
        (DOCS / "libraries.md").write_text(page({n: found[n] for n in names if n in found}), encoding="utf-8")


def lacking(name: str, document: Mapping[str, Any], wanted: Collection[str] = tuple(NEEDS)) -> list[str]:
    """The steps that a finding has not, and that nothing which it has makes impossible."""

    def possible(step: str) -> bool:
        needed = NEEDS[step]
        return not needed or (_good(document.get(needed, "yes")) and possible(needed))

    steps = [step for step in wanted if step not in document and possible(step)]
    return [step for step in steps if step != "config" or name.startswith("hf:")]


def _measure(
    missing: Mapping[str, list[str]],
    found: dict[str, dict[str, Any]],
    place: Callable[[str], Path],
    options: argparse.Namespace,
) -> None:
    """Complete the findings by the steps that are missing; prints a line for each network."""

    def command(name: str, file: Path) -> list[str]:
        steps = [word for step in missing[name] for word in ("--step", step)]
        return [sys.executable, "-W", "ignore", __file__, "--examine", name, str(file), *steps]

    def added(name: str) -> Path:
        return place(name).with_suffix(".added")

    limits = Limits(options.seconds, options.memory * 1e9)
    for name, document, _ in survey([n for n in missing if missing[n]], command, added, limits, options.jobs):
        found[name] = completed(found.get(name, {}), document, missing[name])
        place(name).write_text(json.dumps(found[name]), encoding="utf-8")
        added(name).unlink()
        print(f"{_short(name):44} {_line(found[name])}", flush=True)


def completed(before: Mapping[str, Any], added: Mapping[str, Any], steps: Sequence[str]) -> dict[str, Any]:
    """A finding with the steps of a later one; what ended that process stands at the first of them."""
    if "failure" in added:
        failure = str(added["failure"])
        word = "fault" if failure.startswith("the process") else "no"
        added = {steps[0]: f"{word}: {failure}", "seconds": added["wall_seconds"]}
    return {**before, **added, "seconds": round(before.get("seconds", 0) + added["seconds"], 1)}


def _place(folder: Path) -> Callable[[str], Path]:
    """Where what is known of a network is kept."""
    versions = hashlib.sha256(repr([_version(package) for package in ("torch", *PACKAGES)]).encode()).hexdigest()[:8]

    def place(name: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        return folder / versions / f"{re.sub(r'[^A-Za-z0-9]+', '_', _short(name))}-{digest}.json"

    return place


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


# One network ----------------------------------------------------------------------------------------------------------


def examined(name: str, steps: Collection[str] = tuple(NEEDS)) -> dict[str, Any]:
    """What can be done with a network, step by step; a step that fails says why, and ends those that need it.

    What is needed for the steps that are asked for is done, and not in what was found.
    """
    began = time.monotonic()
    found: dict[str, Any] = {}
    model, kwargs = _built(name)
    subject = Subject(model, kwargs, checked="trace" in steps)
    for step, needed in NEEDS.items():
        if step not in steps and not any(_needs(other, step) for other in steps):
            continue
        if (not needed or _good(found.get(needed, "no"))) and (step != "config" or name.startswith("hf:")):
            found[step] = _tried(lambda step=step: getattr(subject, step.replace(" ", "_"))())  # type: ignore[misc]
    kept = {step: said for step, said in found.items() if step in steps}
    return {**(subject.counted if "trace" in steps else {}), **kept, "seconds": round(time.monotonic() - began, 1)}


def _needs(step: str, other: str) -> bool:
    """Whether a step needs another, or what it needs does."""
    return bool(NEEDS[step]) and (NEEDS[step] == other or _needs(NEEDS[step], other))


def _good(said: Any) -> bool:
    """Whether a step went well; contracts are measured, or not, one by one."""
    return not isinstance(said, str) or not said.startswith(("no", "fault"))


def _tried(do: Callable[[], Any]) -> Any:
    try:
        return do() or "yes"
    except SurgeryError as cause:
        return f"no: {one_line(cause, 300)}"
    except Exception as cause:  # what is no SurgeryError is a fault of ours
        return f"fault: {type(cause).__name__}: {one_line(cause, 300)}"


def _built(name: str) -> tuple[nn.Module, Mapping[str, Any]]:
    """A network in evaluation, and inputs by name; a single one without a name is an image."""
    from graphsurgery.models.libraries.table import library_of
    from graphsurgery.models.specs import build

    torch.manual_seed(0)
    if name in BUILT:
        model, kwargs = BUILT[name]()
        return model.eval(), kwargs
    model = build(name).eval()
    library = library_of(name)
    assert library is not None
    inputs = library[0].inputs(model)
    if "" in inputs:
        return model, {"": torch.zeros(2, *smallest_side(model, tuple(inputs[""].shape[1:])))}
    return model, inputs


class Subject:
    """A network and what the steps have made of it; a method for each step.

    Args:
        model: in evaluation.
        kwargs: its inputs by name.
        checked: whether the trace is compared with it, as it is for users.

    Attributes:
        counted: the share of the parameters that is editable, and the number of spaces.
    """

    graph: gs.ModelGraph
    small: gs.ModelGraph

    def __init__(self, model: nn.Module, kwargs: Mapping[str, Any], *, checked: bool = True) -> None:
        self.model, self.kwargs, self.checked = model, kwargs, checked
        self.counted: dict[str, Any] = {}

    def trace(self) -> None:
        """Followed whole, and as the model."""
        graph = gs.trace(self.model, self.kwargs.get("", self.kwargs), check=self.checked)
        whole = [node.meta["unfollowed"] for node in graph.module.graph.nodes if "unfollowed" in node.meta]
        free = {graph.types.canonical.get(use[0], use[0]) for uses in graph.uses.values() for use in uses}
        counted = {name: parameter.numel() for name, parameter in graph.module.named_parameters()}
        editable = sum(n for name, n in counted.items() if graph.types.canonical.get(name, name) in free)
        self.counted = {"editable": editable / max(1, sum(counted.values())), "spaces": len(graph.spaces)}
        self.graph = graph
        if whole:
            raise SurgeryError(f"{len(whole)} parts are kept whole: {whole[0]}")

    def halve(self) -> str:
        """Half of every outer space removed."""
        from graphsurgery.recipes.contracts.edit_checks import check_cut

        self.small = gs.compress(self.graph, 0.5)
        checked = check_cut(self.graph, self.small)
        if checked.check is None:
            return "runs"
        if not checked.check.holds:
            raise SurgeryError(f"the cut network is not the original with masked reads: {checked.deviation:.1e}")
        return "exact"

    def contracts(self) -> dict[str, Any]:
        """What `doctor` measures of the passes in `COLUMNS`: status, deviation and why, by the contract's name."""
        from graphsurgery.recipes.contracts.doctor import examine

        report = examine(self.graph, onnx=False, only=[name for names in COLUMNS.values() for name in names])
        return {
            c.name: {
                "status": c.status,
                "measured": None if c.measured is None or math.isinf(c.measured) else c.measured,
                "why": c.refused or c.absent or c.note,
            }
            for c in report.contracts
        }

    def onnx(self) -> None:
        """The halved network in ONNX Runtime."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "small.onnx"
            gs.export_onnx(self.small, file)
            gs.check_onnx(self.small, file, batches=(1, 3))

    def put_back(self) -> None:
        """The halved weights in an instance of the class."""
        gs.install(self.small, self.model)

    def peer(self) -> str:
        """What Torch-Pruning leaves of it with plain settings: half of the channels of each group, by magnitude."""
        import torch_pruning

        model, inputs = copy.deepcopy(self.model), self.kwargs.get("", self.kwargs)
        before = sum(parameter.numel() for parameter in model.parameters())
        importance = torch_pruning.importance.MagnitudeImportance(p=2)
        try:
            torch_pruning.pruner.MagnitudePruner(model, inputs, importance, pruning_ratio=0.5).step()
            with torch.no_grad():
                model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
        except Exception as cause:  # whatever another tool raises
            raise SurgeryError(f"{type(cause).__name__}: {one_line(cause, 200)}") from cause
        left = sum(parameter.numel() for parameter in model.parameters()) / before
        if left == 1:
            raise SurgeryError("removes nothing")
        return f"{left:.2f}"

    def config(self) -> str:
        """The fields of its configuration that give the halved network."""
        return ", ".join(f"{name}={value}" for name, value in gs.config_of(self.small, self.model).items())


# The page -------------------------------------------------------------------------------------------------------------


def _short(name: str) -> str:
    """A name without the options that make it small."""
    head, _, options = name.partition("?")
    return name if head.startswith("smp:") else head + (" …" if options else "")


def _word(said: str | None) -> str:
    if said is None:
        return "–"
    return said if said in ("yes", "exact", "runs") else "fault" if said.startswith("fault") else "no"


def _line(found: Mapping[str, Any]) -> str:
    said = [f"{what} {found.get(what, '–')}" for what in NEEDS if what != "contracts"]
    short = [f"{column} {_cell(found, column)}" for column in COLUMNS]
    return f"{found.get('editable', 0):.2f} {'; '.join(said + short)}; {found['seconds']} s"


def _contracts(found: Mapping[str, Any], column: str) -> list[Mapping[str, Any]]:
    """What was measured for a column; nothing where the contracts as a whole were not."""
    known = found.get("contracts", {})
    return [] if isinstance(known, str) else [known[name] for name in COLUMNS[column] if name in known]


def _cell(found: Mapping[str, Any], column: str) -> str:
    """The largest deviation of a column, or what became of it."""
    measured = _contracts(found, column)
    states = [contract["status"] for contract in measured]
    for state, word in (("fails", "**fails**"), ("refused", "no"), ("not measured", "none")):
        if state in states:
            return word
    if not measured:
        return "–"
    worst = max(contract["measured"] for contract in measured)
    return "0" if worst == 0 else f"{worst:.0e}"


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page."""
    missing = len(NAMES) - len(found)
    listed = "1 more is" if missing == 1 else f"{missing} more are"
    more = f" {listed} listed in `benchmarks/library_networks.py`, and not measured." if missing else ""
    packages = [package for package in (*PACKAGES, "torch-pruning") if _version(package)]
    seconds = sum(float(d.get("seconds", 0)) for d in found.values())
    head = [*("network", "route", "editable", "spaces", "trace", "halve"), *COLUMNS]
    head += ["ONNX", "put back", "configuration", "Torch-Pruning", "seconds"]
    return _PAGE.format(
        measured=measured("python benchmarks/libraries.py", seconds, *packages),
        counts=f"Of {len(found)} networks {_counts(found.values())}.{more}",
        contracts=_contract_counts(found.values()),
        table=table(head, [_row(name, document) for name, document in found.items()]),
        notes=_notes(found) or "Nothing.",
    )


def _counts(found: Collection[Mapping[str, Any]]) -> str:
    """How many networks each step goes well for."""
    counts = []
    for step, words in _COUNTED.items():
        tried = [document[step] for document in found if step in document]
        good = sum(_good(said) for said in tried)
        counts.append(f"{good} {words.format(len(tried))}")
    return f"{', '.join(counts[:-1])}, and {counts[-1]}"


def _contract_counts(found: Collection[Mapping[str, Any]]) -> str:
    """For how many networks each contract of a pass holds."""
    lines = []
    for column, names in COLUMNS.items():
        states = [_cell(document, column) for document in found]
        other = {"**fails**": "failing", "no": "refused", "none": "with nothing to do"}
        parts = [f"{states.count(cell)} {word}" for cell, word in other.items() if cell in states]
        holds = sum(cell not in (*other, "–") for cell in states)
        tried = sum(cell != "–" for cell in states)
        lines.append(f"- **{column}**, {'; '.join(names)}: holds on {', '.join([f'{holds} of {tried}', *parts])}.")
    return "\n".join(lines)


_COUNTED = {
    "trace": "are followed whole",
    "halve": "are cut in half",
    "onnx": "agree with ONNX Runtime of {} that were exported",
    "put back": "go back into their class",
    "config": "do so by their configuration",
    "peer": "of {} run after Torch-Pruning has taken half of their channels",
}
_PAGE = """# Networks of libraries

Small random networks of libraries, as they are: no wrapper, no rewritten forward. `hf:…`, `smp:…` and `ultralytics:…`
are specs of every command; the others are traced in Python, with their inputs by name.

- **editable**: the share of the parameters in tensors that have a free axis.
- **trace**: followed whole, and compared with the model in evaluation, in training with gradients, and at other sizes.
- **halve**: half of every outer space removed, and compared with the network with the removed reads masked (*exact*);
  where norms or softmax mix channels, nothing is promised but that it runs (*runs*).
- The contracts of the other passes, as `graphsurgery doctor` measures them, in float64 with random norms. The number
  is the largest deviation, relative to the largest output; *none*: there is nothing to do. **mean**: two networks
  side by side give the mean of their outputs. **wide**: half as many channels more, and back. **deep**: a part
  repeated at every place that is proposed. **factors**: every layer as two of full rank, and as one again. **slim**:
  as a slimmable network at its whole width, and at narrow ones against `compress`. **masked**: under random masks.
  **aligned**: in the order of another network. **stored**: saved and loaded, as it is, cut and wide. At most 1e-12
  holds, 1e-10 of *factors* and of narrow widths, 0 of *stored*; more where a network itself enlarges the rounding of
  its inputs.
- **ONNX**: exported after halving, and compared in ONNX Runtime.
- **put back**: `gs.install`: the halved weights in an instance of the library's class, compared with the network.
- **configuration**: `gs.config_of`: the class built from changed fields gives the same outputs to the last bit.
- **Torch-Pruning**: the share of the parameters that it leaves with plain settings (`MagnitudePruner`, half of each
  group of channels, nothing ignored), where the rest runs on the same inputs, in whatever sizes of outputs.
- **seconds**: on a busy machine; they say which take long, and no more. Not all rows are of one state of the code.

{measured}

{counts} A dash says that it was not measured, or that what it needs failed.

{contracts}

{table}

## What is not, and why

By reason; the names and numbers are those of the first network that is named.

{notes}
"""


def _row(name: str, found: Mapping[str, Any]) -> list[str]:
    route = "spec" if ":" in name else "kwargs"
    words = {step: _word(found.get(step)) for step in ("trace", "halve", "onnx", "put back")}
    config, peer = (
        "–" if found.get(step) is None else found[step] if _good(found[step]) else "no" for step in ("config", "peer")
    )
    shown = [f"`{_short(name)}`", route, f"{found.get('editable', 0):.2f}", str(found.get("spaces", "–"))]
    cells = [_cell(found, column) for column in COLUMNS]
    return [
        *(*shown, words["trace"], words["halve"], *cells, words["onnx"], words["put back"], config, peer),
        f"{found['seconds']:.0f}",
    ]


_NAMED = re.compile(r"`[^`]*`|\b[\w.]*[\d._][\w.]*\b|\[[^]]*\]|\b[A-Z]\w+\b")


def _notes(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What failed, by step and reason: the same but for names and numbers is one reason."""
    kinds: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, document in found.items():
        for what, why in _reasons(document):
            kinds.setdefault((what, _NAMED.sub("…", why)[:60]), []).append((_short(name), why))
    order = [*NEEDS, *COLUMNS]
    lines = []
    for (what, _), of in sorted(kinds.items(), key=lambda item: (order.index(item[0][0]), -len(item[1]))):
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(name for name, _ in of))
        lines.append(f"- **{'Torch-Pruning' if what == 'peer' else what}**, {len(of)}: {of[0][1]} ({names})")
    return "\n".join(lines)


def _reasons(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    home = re.compile(r"/\S*/(?:site-packages/|(?=small\.onnx))")
    said = [(step, found[step]) for step in NEEDS if step in found and not _good(found[step])]
    for column in COLUMNS:
        for contract in _contracts(found, column):
            if contract["status"] == "refused":
                said.append((column, contract["why"]))
            elif contract["status"] == "fails":
                off = "" if contract["measured"] is None else f" by {contract['measured']:.0e}"
                said.append((column, f"fails{off}: {contract['why']}"))
    return [(what, home.sub("", why).removeprefix("no: ")) for what, why in said]


if __name__ == "__main__":
    main()
