"""What graphsurgery can do with small random networks of libraries as they are: docs/libraries.md.

    python benchmarks/libraries.py                 # all; goes on where it was killed
    python benchmarks/libraries.py --jobs 2 --seconds 300
    python benchmarks/libraries.py 'hf:BertModel?num_hidden_layers=2'   # prints, writes no page
    python benchmarks/libraries.py --cached        # measures nothing; writes the page from what was found

Each network is examined in a process of its own with a limit of time and memory. What was found is kept in a folder, by
the versions that are installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from built_networks import BUILT
from document import DOCS, measured, table
from library_networks import NAMES
from surveying import Limits, survey
from torch import nn

import graphsurgery as gs
from graphsurgery.errors import SurgeryError, one_line

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("transformers", "diffusers", "segmentation_models_pytorch", "ultralytics", "monai", "vit-pytorch"),
    *("x-transformers", "open_clip_torch", "torch_geometric"),
)
STEPS = ("trace", "halve", "onnx", "put back", "config")


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
    options = parser.parse_args(arguments)
    if options.examine:
        name, file = options.examine
        Path(file).write_text(json.dumps(examined(name, onnx=options.onnx)), encoding="utf-8")
        return
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    whole, short = _place(options.cache, onnx=True), _place(options.cache, onnx=False)

    def place(name: str) -> Path:
        """What was found with ONNX is also what is found without."""
        return short(name) if not whole(name).is_file() and (options.cached or not options.onnx) else whole(name)

    names = [name for name in options.names or NAMES if not options.cached or place(name).is_file()]

    def command(name: str, file: Path) -> list[str]:
        more = [] if options.onnx else ["--no-onnx"]
        return [sys.executable, "-W", "ignore", __file__, "--examine", name, str(file), *more]

    found = {}
    limits = Limits(options.seconds, options.memory * 1e9)
    for name, document, cached in survey(names, command, place, limits, options.jobs):
        found[name] = document
        if not cached:
            print(f"{_short(name):44} {_line(document)}", flush=True)
    if not options.names:
        (DOCS / "libraries.md").write_text(page(found), encoding="utf-8")


def _place(folder: Path, *, onnx: bool) -> Callable[[str], Path]:
    """Where what is known of a network is kept."""
    versions = hashlib.sha256(repr([_version(package) for package in ("torch", *PACKAGES)]).encode()).hexdigest()[:8]

    def place(name: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        return (
            folder
            / (versions if onnx else f"{versions}-no-onnx")
            / f"{re.sub(r'[^A-Za-z0-9]+', '_', _short(name))}-{digest}.json"
        )

    return place


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


# One network ----------------------------------------------------------------------------------------------------------


def examined(name: str, *, onnx: bool = True) -> dict[str, Any]:
    """What can be done with a network, step by step; a step that fails says why, and ends those that need it."""
    began = time.monotonic()
    found: dict[str, Any] = {}
    state: dict[str, Any] = {}

    def step(what: str, do: Callable[[], Any]) -> bool:
        try:
            found[what] = do() or "yes"
        except SurgeryError as cause:
            found[what] = f"no: {one_line(cause, 300)}"
        except Exception as cause:  # what is no SurgeryError is a fault of ours
            found[what] = f"fault: {type(cause).__name__}: {one_line(cause, 300)}"
        return not found[what].startswith(("no", "fault"))

    model, kwargs = _built(name)
    state["model"] = model
    if step("trace", lambda: _trace(state, found, kwargs)) and step("halve", lambda: _halve(state)):
        if onnx:
            step("onnx", lambda: _onnx(state))
        if step("put back", lambda: _put_back(state)) and name.startswith("hf:"):
            step("config", lambda: _config(state))
    return {**found, "seconds": round(time.monotonic() - began, 1)}


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
        return model, {"": torch.zeros(2, inputs[""].shape[1], 64, 64)}
    return model, inputs


def _trace(state: dict[str, Any], found: dict[str, Any], kwargs: Mapping[str, Any]) -> None:
    graph = gs.trace(state["model"], kwargs.get("", kwargs))
    whole = [node.meta["unfollowed"] for node in graph.module.graph.nodes if "unfollowed" in node.meta]
    parameters = dict(graph.module.named_parameters())
    free = {graph.types.canonical.get(use[0], use[0]) for uses in graph.uses.values() for use in uses}
    counted = {name: parameter.numel() for name, parameter in parameters.items()}
    editable = sum(n for name, n in counted.items() if graph.types.canonical.get(name, name) in free)
    found["editable"] = editable / max(1, sum(counted.values()))
    found["spaces"] = len(graph.spaces)
    state["graph"] = graph
    if whole:
        raise SurgeryError(f"{len(whole)} parts are kept whole: {whole[0]}")


def _halve(state: dict[str, Any]) -> str:
    from graphsurgery.recipes.contracts.edit_checks import check_cut

    small = state["small"] = gs.compress(state["graph"], 0.5)
    checked = check_cut(state["graph"], small)
    if checked.check is None:
        return "runs"
    if not checked.check.holds:
        raise SurgeryError(f"the cut network is not the original with masked reads: {checked.deviation:.1e}")
    return "exact"


def _onnx(state: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "small.onnx"
        gs.export_onnx(state["small"], file)
        gs.check_onnx(state["small"], file, batches=(1, 3))


def _put_back(state: dict[str, Any]) -> None:
    gs.install(state["small"], state["model"])


def _config(state: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in gs.config_of(state["small"], state["model"]).items())


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
    if "failure" in found:
        return str(found["failure"])[:200]
    said = [f"{what} {found.get(what, '–')}" for what in STEPS]
    return f"{found.get('editable', 0):.2f} {'; '.join(said)}; {found['seconds']} s"


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page."""
    done = {name: document for name, document in found.items() if "failure" not in document}
    counts = []
    for step in STEPS[:4]:
        tried = [document[step] for document in done.values() if step in document]
        good = sum(_word(said) in ("yes", "exact", "runs") for said in tried)
        counts.append(f"{good} {_COUNTED[step]}" + (f" of {len(tried)} that were exported" if step == "onnx" else ""))
    held = sum(d.get("config", "no").partition(":")[0] not in ("no", "fault") for d in done.values())
    missing = len(NAMES) - len(found)
    more = f" {missing} more are listed in `benchmarks/library_networks.py`, and were not measured." if missing else ""
    packages = [package for package in PACKAGES if _version(package)]
    seconds = sum(float(d.get("seconds", 0)) for d in done.values())
    rows = [_row(name, document) for name, document in found.items()]
    head = ["network", "route", "editable", "spaces", "trace", "halve", "ONNX", "put back", "configuration", "seconds"]
    notes = [f"- `{_short(name)}`, {what}: {why}" for name, d in found.items() for what, why in _reasons(d)]
    return _PAGE.format(
        measured=measured("python benchmarks/libraries.py", seconds, *packages),
        counts=f"Of {len(found)} networks {', '.join(counts)}, and {held} by their configuration.{more}",
        table=table(head, rows),
        notes="\n".join(notes) or "Nothing.",
    )


_COUNTED = {
    "trace": "are followed whole",
    "halve": "are cut in half",
    "onnx": "agree with ONNX Runtime",
    "put back": "go back into their class",
}
_PAGE = """# Networks of libraries

Small random networks of libraries, as they are: no wrapper, no rewritten forward. `hf:…`, `smp:…` and `ultralytics:…`
are specs of every command; the others are traced in Python, with their inputs by name.

- **editable**: the share of the parameters in tensors that have a free axis.
- **trace**: followed whole, and compared with the model in evaluation, in training with gradients, and at other sizes.
- **halve**: half of every outer space removed, and compared with the network with the removed reads masked (*exact*);
  where norms or softmax mix channels, nothing is promised but that it runs (*runs*).
- **ONNX**: exported after that, and compared in ONNX Runtime.
- **put back**: `gs.install`: the halved weights in an instance of the library's class, compared with the network.
- **configuration**: `gs.config_of`: the class built from changed fields gives the same outputs to the last bit.
- **seconds**: on a busy machine; they say which take long, and no more. Not all rows are of one state of the code.

{measured}

{counts} A dash says that it was not measured, or that what it needs failed.

{table}

## What is not, and why

{notes}
"""


def _row(name: str, found: Mapping[str, Any]) -> list[str]:
    route = "spec" if ":" in name else "kwargs"
    if "failure" in found:
        return [f"`{_short(name)}`", route, *["–"] * 7, str(found.get("seconds", "–"))]
    said = [_word(found.get(what)) for what in STEPS[:4]]
    fields = found.get("config")
    config = "–" if fields is None else "no" if fields.startswith(("no", "fault")) else fields
    shown = [f"{found.get('editable', 0):.2f}", str(found.get("spaces", "–"))]
    return [f"`{_short(name)}`", route, *shown, *said, config, f"{found['seconds']:.0f}"]


def _reasons(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "failure" in found:
        return [("limit", str(found["failure"])[:300])]
    home = re.compile(r"/\S*/(?:site-packages/|(?=small\.onnx))")
    failed = [(what, str(found[what])) for what in STEPS if str(found.get(what, "")).startswith(("no:", "fault:"))]
    return [
        (what, home.sub("", why).partition(": ")[2] if why.startswith("no:") else home.sub("", why))
        for what, why in failed
    ]


if __name__ == "__main__":
    main()
